"""Reports as pictures, drawn with matplotlib (the extra `viz`)."""

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from ...draw.colours import OKABE_ITO

COLOURS = [light for light, _ in OKABE_ITO]
MARKERS = "osD^vPX*"  # with the colours: a second way to tell lines apart
DASHES = ("-", "--", ":")  # after eight lines, colours come again


def losses(rows, key, path):
    """Test loss over samples, bytes or seconds, a line for each method."""
    words = {"samples": "samples", "bytes": "bytes that a rank has sent", "seconds": "seconds"}
    figure = _figure(7.6, 4.4)
    axis = figure.subplots()
    for i, row in enumerate(rows):
        points = [(p[key], p["loss"]) for p in row["curve"] if p[key] is not None]
        if key == "bytes":
            points = [point for point in points if point[0] > 0]
        axis.plot(*zip(*points) if points else ([], []), label=row["method"], **_style(i))
    axis.set(xlabel=words[key], ylabel="test loss")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    _few_ticks(axis.yaxis, [p["loss"] for row in rows for p in row["curve"]])
    if key == "bytes":
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(_amount))
        _few_ticks(axis.xaxis, [p["bytes"] for row in rows for p in row["curve"] if p["bytes"]])
    figure.legend(loc="outside right upper", frameon=False)
    _save(figure, path)


def scaling(rows, path):
    """Throughput, speed-up, efficiency and communication over the number of ranks."""
    figure = _figure(9.6, 6.8)
    axes = figure.subplots(2, 2).flat
    for i, (kind, mine) in enumerate(_kinds(rows).items()):
        n = [row["ranks"] for row in mine]
        for axis, key in zip(axes, ("samples_per_s", "speedup", "efficiency", "communication")):
            label = f"{kind}, waiting" if key == "communication" else kind
            axis.plot(n, [row.get(key) for row in mine], label=label, **_style(i))
        told = [row for row in mine if "possible" in row]
        for axis, power in ((axes[1], 0), (axes[2], 1)):
            axis.plot([row["ranks"] for row in told],
                      [row["possible"] / row["ranks"] ** power for row in told],
                      "--", color=COLOURS[i], label=f"{kind}, possible")
        told = [row for row in mine if row.get("overlap") is not None]
        axes[3].plot([row["ranks"] for row in told], [row["overlap"] for row in told], ".:",
                     color=COLOURS[i], label=f"{kind}, of the reductions overlapped")
    counts = sorted({row["ranks"] for row in rows})
    axes[1].plot(counts, counts, color="#8a8f98", lw=1, zorder=0, label="ideal")
    for axis, title in zip(axes, ("samples / s", "speed-up", "efficiency: speed-up / ranks",
                                  "communication: part of a step")):
        axis.set(title=title, xlabel="ranks", ylim=(0, 1.04 * axis.get_ylim()[1]))
        axis.xaxis.set(major_locator=FixedLocator(counts), minor_locator=NullLocator())
        axis.legend(frameon=False, fontsize=8)
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    for axis in (axes[2], axes[3]):
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    _save(figure, path)


def training(rows, path):
    """Loss and accuracy over samples, and what is known of the gradients over ranks."""
    stats = [row for row in rows if row.get("grad_variance") is not None]
    figure = _figure(9.6, 6.8 if stats else 3.6)
    axes = figure.subplots(2 if stats else 1, 2, squeeze=False)
    for i, row in enumerate(rows):
        label = f"{row['ranks']} rank{'s' * (row['ranks'] > 1)}" + (
            ", weak" if row["scaling"] == "weak" else "")
        for axis, key in zip(axes[0], ("loss", "accuracy")):
            axis.plot([p["samples"] for p in row["curve"]], [p[key] for p in row["curve"]],
                      label=label, **_style(i))
    axes[0][0].set(title="test loss", xlabel="samples")
    axes[0][1].set(title="test accuracy", xlabel="samples")
    axes[0][1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0][0].legend(frameon=False, fontsize=8)
    if stats:
        counts = sorted({row["ranks"] for row in stats})
        for i, (kind, mine) in enumerate(_kinds(stats).items()):
            n = [row["ranks"] for row in mine]
            axes[1][0].plot(n, [row["grad_norm"] ** 2 for row in mine], "--", color=COLOURS[i],
                            label=f"{kind}, |gradient|²")
            axes[1][0].plot(n, [row["grad_variance"] for row in mine],
                            label=f"{kind}, variance over ranks", **_style(i))
            axes[1][1].plot(n, [row["grad_cosine"] for row in mine], label=kind, **_style(i))
        axes[1][0].set(title="gradients of the ranks", xlabel="ranks", ylim=(0, None))
        axes[1][1].set(title="cosine of a rank's gradient with their mean", xlabel="ranks",
                       ylim=(0, 1.05))
        for axis in axes[1]:
            axis.xaxis.set(major_locator=FixedLocator(counts), minor_locator=NullLocator())
            axis.legend(frameon=False, fontsize=8)
    _save(figure, path)


def strategies(rows, path):
    """Throughput and memory of each layout, the fastest first."""
    rows = sorted(rows, key=lambda row: row["samples_per_s"])
    figure = _figure(9.6, 1.3 + 0.34 * len(rows))
    axes = figure.subplots(1, 2, sharey=True)
    names = [row["name"] for row in rows]
    axes[0].barh(names, [row["samples_per_s"] for row in rows], color=COLOURS[0])
    axes[1].barh(names, [row["memory"] for row in rows], color=COLOURS[1])
    axes[0].set(title="samples / s")
    axes[1].set(title="memory of the rank that holds most")
    axes[0].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes[1].xaxis.set_major_formatter(FuncFormatter(_amount))
    for axis in axes:
        axis.locator_params(axis="x", nbins=5)
        axis.tick_params(axis="y", length=0)
    _save(figure, path)


def _kinds(rows):
    """{"strong": rows, "weak": rows}; weak scaling begins with the same run of one rank."""
    found = {kind: [row for row in rows if row["scaling"] == kind] for kind in ("strong", "weak")}
    if found["weak"]:
        found["weak"] = [row for row in rows if row["ranks"] == 1] + found["weak"]
    return {kind: mine for kind, mine in found.items() if mine}


def _style(i):
    """Markers are hollow, each smaller than the last: of lines that coincide all are seen."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)],
            "markersize": max(4, 9 - i), "markerfacecolor": "none", "linewidth": 1.4,
            "linestyle": DASHES[i // len(COLOURS) % len(DASHES)]}


def _amount(value, _=None):
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"


def _few_ticks(axis, values):
    """Ticks of a logarithmic axis: powers of ten; 2 and 5 times them, too, if it is short."""
    low, high = min(values, default=1) / 1.5, max(values, default=1) * 1.5
    multiples = (1, 2, 5) if high < 100 * low else (1,)
    ticks = [m * 10.0 ** e for e in range(-9, 16) for m in multiples]
    axis.set(major_locator=FixedLocator([t for t in ticks if low < t < high]),
             minor_locator=NullLocator())


def _figure(width, height):
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure, path):
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
    # The same picture for the same numbers: no date, no random ids.
    with matplotlib.rc_context({"svg.hashsalt": "minipar", "svg.fonttype": "none"}):
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
