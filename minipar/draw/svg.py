"""A scene as SVG, written directly; it needs nothing but itself wherever it is shown.

Shapes have the colours of light ground as attributes, for whoever knows no style sheets, and a
class for each colour, which a style sheet turns into those of dark ground where the reader's
system is dark.
"""

from xml.sax.saxutils import escape, quoteattr

from .scene import Box, Circle, Label, Line

FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
THEMES = ("auto", "light", "dark")


def to_svg(scene, theme="auto", prolog=True):
    """The SVG text of a scene. theme: "light", "dark", or "auto", as the reader's system has it.

    prolog: with the XML declaration, as a file begins; without it, it stands inside a page.
    """
    writer = _Writer(scene, theme)
    body = [line for group in scene.groups for line in writer.group(group)]
    width, height = _number(scene.width), _number(scene.height)
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" aria-label={quoteattr(scene.title)} '
            f'font-family="{FONT}">')
    return "\n".join([
        *['<?xml version="1.0" encoding="UTF-8"?>'] * prolog, head,
        f"<title>{escape(scene.title)}</title>", *writer.style(), *writer.patterns(),
        f'<rect width="{width}" height="{height}" {writer.paint("fill", "paper")}/>',
        *body, "</svg>", ""])


def _number(value):
    return f"{value:.2f}".rstrip("0").rstrip(".")


class _Writer:
    def __init__(self, scene, theme):
        self.roles, self.theme, self.used = scene.roles, theme, {}

    def style(self):
        """The style sheet of dark ground."""
        if self.theme != "auto":
            return []
        rules = [f".f-{role}{{fill:{dark}}}.s-{role}{{stroke:{dark}}}"
                 for role, (_, dark) in self.roles.items()]
        return ["<style>@media (prefers-color-scheme: dark){", *rules, "}</style>"]

    def patterns(self):
        """The hatching."""
        return ['<defs><pattern id="hatching" width="6" height="6" patternUnits="userSpaceOnUse" '
                'patternTransform="rotate(45)">'
                f'<line x1="0" y1="0" x2="0" y2="6" {self.paint("stroke", "hatch")} '
                'stroke-width="1.6"/></pattern></defs>']

    def paint(self, *pairs):
        """Attributes that fill or stroke with roles: paint("fill", "paper", "stroke", None)."""
        attributes, classes = [], []
        for what, role in zip(pairs[::2], pairs[1::2]):
            if role is None:
                attributes.append(f'{what}="none"')
                continue
            attributes.append(f'{what}="{self.roles[role][self.theme == "dark"]}"')
            classes.append(f"{what[0]}-{role}")
        if classes and self.theme == "auto":
            attributes.append(f'class="{" ".join(classes)}"')
        return " ".join(attributes)

    def group(self, group):
        """The lines of a group."""
        data = "".join(f" data-{key}={quoteattr(str(value))}" for key, value in group.data.items())
        yield f'<g class="{group.name}"{data}>'
        if group.title:
            yield f"<title>{escape(group.title)}</title>"
        for shape in group.shapes:
            yield from self.shape(shape)
        yield "</g>"

    def shape(self, shape):
        """The lines of a shape."""
        n = _number
        if isinstance(shape, Label):
            yield from self.label(shape)
        elif isinstance(shape, Box):
            where = (f'x="{n(shape.x)}" y="{n(shape.y)}" width="{n(shape.width)}" '
                     f'height="{n(shape.height)}"')
            where += f' rx="{n(shape.radius)}"' * (shape.radius > 0)
            yield (f'<rect {where} {self.paint("fill", shape.fill, "stroke", shape.stroke)} '
                   f'stroke-width="{n(shape.line)}"/>')
            if shape.hatched:
                yield f'<rect {where} fill="url(#hatching)"/>'
        elif isinstance(shape, Circle):
            yield (f'<circle cx="{n(shape.x)}" cy="{n(shape.y)}" r="{n(shape.radius)}" '
                   f'{self.paint("fill", shape.fill, "stroke", shape.stroke)} '
                   f'stroke-width="{n(shape.width)}"/>')
        else:
            points = " ".join(f"{n(x)},{n(y)}" for x, y in shape.points)
            if isinstance(shape, Line):
                dash = " ".join(map(n, shape.dash))
                yield (f'<polyline points="{points}" {self.paint("fill", None)} '
                       f'{self.paint("stroke", shape.colour)} stroke-width="{n(shape.width)}"'
                       + f' stroke-dasharray="{dash}"' * bool(dash) + "/>")
            else:
                yield (f'<polygon points="{points}" '
                       f'{self.paint("fill", shape.fill, "stroke", shape.stroke)} '
                       f'stroke-width="{n(shape.width)}"/>')

    def label(self, label):
        """Text; a halo is a thick line of the ground's colour beneath it."""
        where = (f'x="{_number(label.x)}" y="{_number(label.y)}" font-size="{_number(label.size)}"'
                 f' text-anchor="{label.anchor}"' + ' font-weight="600"' * label.bold
                 + f' font-family="{MONO}"' * label.mono)
        text = escape(label.text)
        if label.halo:
            yield (f'<text {where} {self.paint("fill", "paper", "stroke", "paper")} '
                   f'stroke-width="3.5" stroke-linejoin="round" aria-hidden="true">{text}</text>')
        yield f'<text {where} {self.paint("fill", label.colour)}>{text}</text>'
