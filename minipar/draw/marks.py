"""The small shapes that pictures are made of, and the legend that explains them."""

from math import hypot

from .scene import Box, Circle, Label, Line, Polygon, text_width

HEAD = 9.0  # the length of an arrow's head
DASHES = {"put": (8, 4), "get": (2.5, 2.5), "get_reduce": (2.5, 2.5)}
SWATCHES = 40  # chunks that a legend lists


def short_of(tail, head, gap):
    """The point `gap` before `head` on the way from `tail`."""
    length = hypot(head[0] - tail[0], head[1] - tail[1])
    keep = max(0.0, length - gap) / length if length else 0.0
    return tail[0] + (head[0] - tail[0]) * keep, tail[1] + (head[1] - tail[1]) * keep


def ribbon(tail, end, colours, dash=()):
    """Lines side by side, one a colour: the more there are, the wider they are together."""
    width = 1.8 if len(colours) == 1 else min(1.6 * len(colours), 3.5 + 0.35 * len(colours))
    dx, dy = end[0] - tail[0], end[1] - tail[1]
    length = hypot(dx, dy) or 1.0
    across = -dy / length, dx / length
    each, found = width / len(colours), []
    for i, colour in enumerate(colours):
        off = (i + 0.5) * each - width / 2
        found.append(Line(tuple((x + off * across[0], y + off * across[1])
                                for x, y in (tail, end)), colour, each, dash))
    return found


def head(stem, tip, colour, hollow=False):
    """An arrow's head, from its base in the middle of `stem` to its tip."""
    dx, dy = tip[0] - stem[0], tip[1] - stem[1]
    length = hypot(dx, dy) or 1.0
    across = -dy / length * 4.2, dx / length * 4.2
    points = (tip, (stem[0] + across[0], stem[1] + across[1]),
              (stem[0] - across[0], stem[1] - across[1]))
    return Polygon(points, "paper" if hollow else colour, colour, 1.2)


def plus(x, y, fill):
    """A circle with a plus: something is added here."""
    return [Circle(x, y, 5.6, fill, "ink", 1.3), Line(((x - 3.2, y), (x + 3.2, y)), "ink", 1.3),
            Line(((x, y - 3.2), (x, y + 3.2)), "ink", 1.3)]


def square(x, y, colour, side=10.0):
    """A square: something is copied here."""
    return [Box(x - side / 2, y - side / 2, side, side, colour, "paper", 0.8)]


def legend(scene, flow, y, left):
    """Explain marks and chunks, in lines from y on; returns where the last one ends."""
    entries = [*_mark_entries(flow), *_chunk_entries(flow)]
    x, shapes = left, []
    for make, words, before in entries:
        width = before + 6 + text_width(words, 11) + 18
        if x > left and x + width > scene.width - left:
            x, y = left, y + 20
        shapes += make(x, y - 4)
        shapes.append(Label(x + before + 6, y, words, 11, colour="soft"))
        x += width
    scene.add("legend", *shapes)
    return y + 10


def _mark_entries(flow):
    """[(shapes at (x, y), words, width of the shapes)] of what occurs in a flow."""
    kinds = {m.kind for moves in flow.moves for m in moves}

    def arrow(colours, dash=(), hollow=False):
        return lambda x, y: [*ribbon((x, y), (x + 22, y), colours, dash),
                             head((x + 21, y), (x + 30, y), "ink", hollow)]
    entries = []
    if "message" in kinds:
        entries.append((arrow(["ink"]), "message", 30))
    if any(len(m.chunks) > 1 for m in flow.messages):
        entries.append((arrow(["c0", "c1", "c2"][:len(flow.chunks)]), "of several chunks", 30))
    if any(m.channel for m in flow.messages):
        entries.append((arrow(["ink"], hollow=True), "on another channel (#)", 30))
    if "put" in kinds:
        entries.append((arrow(["ink"], DASHES["put"]), "put, by the sending rank", 30))
    if kinds & {"get", "get_reduce"}:
        entries.append((arrow(["ink"], DASHES["get"]), "get, by the receiving rank", 30))
    if any(m.reduces for moves in flow.moves for m in moves):
        entries.append((lambda x, y: plus(x + 6, y, "paper"), "reduce: add to what is there", 12))
    if "copy" in kinds:
        entries.append((lambda x, y: square(x + 6, y, "soft"), "copy within a rank", 12))
    return entries


def _chunk_entries(flow):
    """The same for chunks; of very many, in one line."""
    if len(flow.chunks) > SWATCHES:
        return [(lambda x, y: [], f"c0 to c{len(flow.chunks) - 1}: in the order of the buffer", 0)]

    def swatch(c):
        return lambda x, y: square(x + 6, y, f"c{c}", 12)
    return [(swatch(c), f"c{c} = {buffer}[{start}:{stop}]", 12)
            for c, (buffer, start, stop) in enumerate(flow.chunks)]
