"""A scene as a picture of pixels, drawn with matplotlib (the extra `viz`)."""

from importlib.util import find_spec

from .scene import Box, Circle, Label, Line


def check():
    """Raise ValueError, with what to install, if there is no matplotlib."""
    if find_spec("matplotlib") is None:
        raise ValueError("PNG needs matplotlib: pip install 'minipar[viz]'; SVG needs nothing")


def to_png(scene, path, theme="light", scale=2.0):
    """Write a scene as PNG, `scale` pixels for each of its own. theme: "light" or "dark"."""
    check()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    colours = {role: pair[theme == "dark"] for role, pair in scene.roles.items()}
    figure = Figure(figsize=(scene.width / 72, scene.height / 72), facecolor=colours["paper"])
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, scene.width), ylim=(scene.height, 0))
    axes.axis("off")
    order = 0
    for group in scene.groups:
        for shape in group.shapes:
            order += 1
            _draw(axes, shape, colours, order)
    figure.savefig(path, dpi=72 * scale, format="png", facecolor=colours["paper"])


def _draw(axes, shape, colours, order):
    from matplotlib import patches
    from matplotlib.lines import Line2D

    def colour(role):
        return "none" if role is None else colours[role]
    if isinstance(shape, Label):
        _write(axes, shape, colours, order)
        return
    if isinstance(shape, Line):
        style = {"linestyle": (0, [d / shape.width for d in shape.dash])} if shape.dash else {}
        axes.add_line(Line2D(*zip(*shape.points), color=colour(shape.colour), zorder=order,
                             linewidth=shape.width, dash_capstyle="butt",
                             solid_capstyle="butt", **style))
        return
    if isinstance(shape, Box):
        kind, extra = patches.Rectangle, {}
        if shape.radius:
            kind = patches.FancyBboxPatch
            extra = {"boxstyle": f"round,pad=0,rounding_size={shape.radius}"}
        if shape.hatched:
            axes.add_patch(patches.Rectangle((shape.x, shape.y), shape.width, shape.height,
                                             facecolor=colour(shape.fill), hatch="////",
                                             edgecolor=colours["hatch"], linewidth=0,
                                             zorder=order))
        patch = kind((shape.x, shape.y), shape.width, shape.height, zorder=order + 0.5,
                     facecolor="none" if shape.hatched else colour(shape.fill),
                     edgecolor=colour(shape.stroke), linewidth=shape.line, **extra)
    elif isinstance(shape, Circle):
        patch = patches.Circle((shape.x, shape.y), shape.radius, facecolor=colour(shape.fill),
                               edgecolor=colour(shape.stroke), linewidth=shape.width, zorder=order)
    else:
        patch = patches.Polygon(shape.points, closed=True, facecolor=colour(shape.fill),
                                edgecolor=colour(shape.stroke), linewidth=shape.width,
                                joinstyle="miter", zorder=order)
    axes.add_patch(patch)


def _write(axes, label, colours, order):
    from matplotlib import patheffects
    # Letters of the fonts that matplotlib comes with are wider than those of most systems.
    text = axes.text(label.x, label.y, label.text, fontsize=label.size * 0.93, zorder=order,
                     ha={"start": "left", "middle": "center", "end": "right"}[label.anchor],
                     va="baseline", color=colours[label.colour], parse_math=False,
                     fontweight="bold" if label.bold else "normal",
                     family="monospace" if label.mono else "sans-serif")
    if label.halo:
        text.set_path_effects([patheffects.withStroke(linewidth=3.5, foreground=colours["paper"])])
