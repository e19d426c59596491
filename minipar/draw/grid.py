"""The grid of a pipeline schedule: a row a stage, time to the right, a coloured cell an action.

    timeline = Timeline("1f1b", 4, [Span(0, 0.0, 1.0, "F", 0), ...], bubble=3 / 11)
    print(draw_schedule(timeline))
    draw_schedule([predicted, recorded], "both.svg")

Stands at the side: whoever has a simulated or a recorded run makes Spans of it.
"""

from dataclasses import dataclass, field

from .colours import action_roles
from .names import counted
from .scene import Box, Label, Line, Scene, text_width
from .write import write_scene

KINDS = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient"}
ROW, GAP, TOP = 30, 4, 50  # the height of a row, the gap to the next, and what is above the first
NICE = (1, 2, 5)  # of these times a power of ten are the steps of the time axis


@dataclass(frozen=True)
class Span:
    """An action that took the time from `start` to `end` on a row.

    row: from 0, a stage or rank. kind: "F", "B" (whole backward), "I" (input gradient) or "W"
    (weight gradient). microbatch: its number. chunk: the virtual stage on this row, from 0.
    replica: of a schedule in two directions, 0 or 1. Times are in one unit, whichever it is.
    """
    row: int
    start: float
    end: float
    kind: str
    microbatch: int
    chunk: int = 0
    replica: int = 0

    @property
    def label(self):
        """"F3"; of the second replica "F3'"."""
        return f"{self.kind}{self.microbatch}" + "'" * self.replica


@dataclass
class Timeline:
    """One run of a schedule: its title, number of rows, Spans, bubble rate if known, row names.

    Raises ValueError for a span of no known kind, outside the rows, that ends before it starts,
    or that overlaps another of its row.
    """
    title: str
    rows: int
    spans: list = field(default_factory=list)
    bubble: float | None = None
    names: tuple | None = None

    def __post_init__(self):
        last = {}
        for span in sorted(self.spans, key=lambda span: (span.row, span.start, span.end)):
            if span.kind not in KINDS:
                raise ValueError(f"{span}: no kind {span.kind!r}: there are {', '.join(KINDS)}")
            if not 0 <= span.row < self.rows:
                raise ValueError(f"{span}: there is no row {span.row} among {self.rows}")
            if not 0 <= span.start <= span.end:
                raise ValueError(f"{span}: from {span.start} to {span.end}")
            before = last.get(span.row)
            if before is not None and span.start < before.end - 1e-9 * self.end:
                raise ValueError(f"{span} starts before {before} ends")
            last[span.row] = span

    @property
    def end(self):
        """When the last action ends."""
        return max((span.end for span in self.spans), default=0.0)

    def name(self, row):
        """What a row is called."""
        return self.names[row] if self.names else f"stage {row}"

    def heading(self):
        """The title, with the bubble rate."""
        share = f": bubble {100 * self.bubble:.1f} %" if self.bubble is not None else ""
        return self.title + share

    def bubbles(self):
        """(row, start, end) of every gap, the ones before a row's first action included."""
        for row in range(self.rows):
            at = 0.0
            for span in sorted((s for s in self.spans if s.row == row), key=lambda s: s.start):
                if span.start > at:
                    yield row, at, span.start
                at = max(at, span.end)
            if at < self.end:
                yield row, at, self.end


def draw_schedule(timelines, path=None, width=100, theme=None):
    """Draw one Timeline, or several below each other with one time axis.

    path: an .svg, .png or .txt file, which is written; None: returns the text for a terminal of
    `width` letters. theme: "light", "dark", or "auto" for SVG, as the reader's system has it.
    Raises ValueError for other endings and where a file cannot be written.
    """
    timelines = [timelines] if isinstance(timelines, Timeline) else list(timelines)
    if path is None:
        from .grid_text import schedule_text
        return schedule_text(timelines, width)
    write_scene(path, lambda: schedule_scene(timelines), theme,
                lambda: draw_schedule(timelines, width=width))


def schedule_scene(timelines):
    """The Scene of some Timelines. Groups: "action" and "bubble", one for each; both have
    data-row."""
    end = max((line.end for line in timelines), default=0.0) or 1.0
    shortest = min((s.end - s.start for line in timelines for s in line.spans if s.end > s.start),
                   default=end)
    letters = max((len(s.label) for line in timelines for s in line.spans), default=2)
    left = 36 + max(text_width(line.name(r), 12) for line in timelines for r in range(line.rows))
    # As wide as the shortest action needs for its number, from 560 to 1600 pixels.
    scale = min(max(560, text_width("0" * letters, 11) * end / shortest), 1600) / end
    scene = Scene(left + end * scale + 30, 0, "; ".join(line.heading() for line in timelines))
    chunks = 1 + max((s.chunk for line in timelines for s in line.spans), default=0)
    scene.roles.update(action_roles(chunks))
    scene.roles["letters"] = ("#14171c", "#14171c")
    y = 10
    for line in timelines:
        y = _timeline(scene, line, left, y, scale) + 14
    y = _axis(scene, left, y, scale, end)
    scene.height = _legend(scene, timelines, left, y + 26, chunks) + 14
    return scene


def _timeline(scene, line, left, y, scale):
    """Draw one timeline from y on; returns where it ends."""
    scene.add("heading", Label(left, y + 24, line.heading(), 15, bold=True))
    top = y + TOP - 12
    scene.add("rows", *[Label(left - 10, top + row * (ROW + GAP) + ROW / 2 + 4, line.name(row), 12,
                              "end", "soft") for row in range(line.rows)])
    for row, start, end in line.bubbles():
        scene.add("bubble", Box(left + start * scale, top + row * (ROW + GAP),
                                (end - start) * scale, ROW, "paper", None, hatched=True),
                  title=f"{line.name(row)}: nothing to do from {start:g} to {end:g}", row=row)
    for span in line.spans:
        x, wide = left + span.start * scale, (span.end - span.start) * scale
        high = top + span.row * (ROW + GAP)
        shapes = [Box(x, high, wide, ROW, f"{span.kind}{span.chunk}", "paper", 1.2, 2)]
        if span.replica:
            shapes.append(Box(x, high + ROW - 5, wide, 4, "letters", "paper", 1.2))
        text = str(span.microbatch)
        size = next((s for s in (12, 10, 8) if text_width(text, s) <= wide - 2), None)
        if size is not None:
            shapes.append(Label(x + wide / 2, high + ROW / 2 + size / 3, text, size, "middle",
                                "letters"))
        words = f"{KINDS[span.kind]} of micro-batch {span.microbatch}"
        scene.add("action", *shapes, row=span.row, title=(
            f"{line.name(span.row)}: {words}" + f", virtual stage {span.chunk}" * bool(span.chunk)
            + f", replica {span.replica}" * bool(span.replica)
            + f", from {span.start:g} to {span.end:g}"))
    return top + line.rows * (ROW + GAP)


def _axis(scene, left, y, scale, end):
    """The time axis; returns where it ends."""
    step = next(base * 10.0 ** power for power in range(-12, 13) for base in NICE
                if base * 10.0 ** power * scale >= 56)
    shapes = [Line(((left, y), (left + end * scale, y)), "line", 1.2)]
    for i in range(int(end / step + 1e-9) + 1):
        x = left + i * step * scale
        shapes += [Line(((x, y), (x, y + 5)), "line", 1.2),
                   Label(x, y + 18, f"{i * step:g}", 11, "middle", "soft")]
    scene.add("axis", *shapes, Label(left - 10, y + 18, "time", 11, "end", "soft"))
    return y + 20


def _legend(scene, timelines, left, y, chunks):
    """What the colours mean; returns where it ends."""
    spans = [span for line in timelines for span in line.spans]
    kinds = [kind for kind in KINDS if any(span.kind == kind for span in spans)]
    entries = [([f"{kind}{v}" for v in range(chunks)], f"{kind} {KINDS[kind]}") for kind in kinds]
    x, shapes = left, []
    for roles, words in [*entries, ([None], "bubble")]:
        width = 14 * len(roles) + text_width(words, 11) + 28
        if x > left and x + width > scene.width:
            x, y = left, y + 20
        shapes += [Box(x + 14 * i, y - 11, 14, 14, role or "paper", None if role else "line", 0.8,
                       hatched=role is None) for i, role in enumerate(roles)]
        shapes.append(Label(x + 14 * len(roles) + 6, y, words, 11, colour="soft"))
        x += width
    notes = []
    if chunks > 1:
        notes.append(f"{counted(chunks, 'virtual stage')} a row, the first one darkest")
    if any(span.replica for span in spans):
        notes.append("underlined: the second replica")
    for note in notes:
        y += 20
        shapes.append(Label(left, y, note, 11, colour="soft"))
    scene.add("legend", *shapes)
    return y
