"""The per-chunk view of a collective: after every step, how much of each chunk every rank has."""

from .colours import share_roles
from .names import claim, frames, title, totals
from .scene import Box, Label, Scene, text_width, wrapped

GAP, SIDE, TOP = 34, 20, 34  # between tables; left of one and above it, for names
BESIDE = 1300  # how wide a picture becomes before tables go below each other


def chunks(flow):
    """The Scene of a Flow: small tables, ranks x chunks, one for each step that changes something.

    A cell tells how many ranks' contributions to the chunk the rank has (see Flow.states), as a
    number and as a shade; of up to eight ranks also whose they are, one tick for each rank.
    Groups: "state", one for each table, with data-step.
    """
    tables = frames(flow)
    most = max([held.total() for _, table in tables for row in table for held in row], default=0)
    cell = 30 if flow.size <= 8 else 21
    wide = max(SIDE + cell * len(flow.chunks),
               max(text_width(when, 12) for when, _ in tables)) + GAP
    tall = TOP + cell * flow.size + 20
    beside = max(1, min(len(tables), int(max(BESIDE - 48, wide) / wide)))
    scene = Scene(max(560, 48 + beside * wide - GAP + SIDE), 0, f"{title(flow)}: chunks")
    scene.roles.update(share_roles(most))
    y, lines = 28, []
    for text, size, bold in ((title(flow), 16, True), (claim(flow), 12, False),
                             (totals(flow), 12, False), (_meaning(flow), 12, False)):
        for line in wrapped(text, scene.width - 48, size, bold):
            lines.append(Label(24, y, line, size, colour="ink" if bold else "soft", bold=bold))
            y += size * 1.4
        y += 3
    scene.add("heading", *lines)
    for i, (when, table) in enumerate(tables):
        at = 24 + SIDE + (i % beside) * wide, y + 22 + (i // beside) * tall
        scene.add("state", *_table(flow, when, table, *at, cell), step=i - 1, title=when)
    scene.height = y + 22 + -(-len(tables) // beside) * tall
    return scene


def _meaning(flow):
    told = ("as many ranks' contributions to the chunk are added up there"
            if flow.program.kind.reduces else "from as many ranks something of the chunk is there")
    ticks = "; the ticks say whose, rank 0 at the left" if flow.size <= 8 else ""
    return f"Rows are ranks, columns are chunks. A number: {told}{ticks}."


def _table(flow, when, table, x, y, cell):
    """The shapes of one table with its upper left corner at (x, y)."""
    letters = 12 if cell > 24 else 10
    shapes = [Label(x, y, when, 12, bold=True)]
    shapes += [Label(x + (c + 0.5) * cell, y + 20, f"c{c}", 10, "middle", "soft")
               for c in range(len(flow.chunks))]
    for rank, row in enumerate(table):
        top = y + 26 + rank * cell
        shapes.append(Label(x - 7, top + cell / 2 + 4, str(rank), 10, "end", "soft"))
        for c, held in enumerate(row):
            share, left = held.total(), x + c * cell
            shapes.append(Box(left + 0.5, top + 0.5, cell - 1, cell - 1, f"s{share}", "line", 0.6,
                              2))
            if share:
                lift = 1 if cell > 24 else 4
                shapes.append(Label(left + cell / 2, top + cell / 2 + lift, str(share), letters,
                                    "middle"))
                shapes += _ticks(flow, held, left, top, cell) if flow.size <= 8 else []
    return shapes


def _ticks(flow, held, left, top, cell):
    """One short bar for each rank that has contributed, in its place."""
    room = (cell - 8) / flow.size
    return [Box(left + 4 + rank * room + 0.4, top + cell - 9, room - 0.8, 4, "ink", None)
            for rank in held]
