"""A picture as a list of shapes, for whoever puts it on paper (`svg.py`, `png.py`).

Lengths are pixels, y grows downwards. A colour is a role, a key of the scene's `roles`, which
has one colour for light and one for dark ground.
"""

from dataclasses import dataclass, field

from .colours import ROLES

WIDE, BOLD = 0.56, 0.63  # of the height: the width of a letter, on the average


@dataclass
class Line:
    """A line through `points`; dash: lengths of strokes and gaps, () for none."""
    points: tuple
    colour: str = "line"
    width: float = 1.0
    dash: tuple = ()


@dataclass
class Polygon:
    """A closed line through `points`."""
    points: tuple
    fill: str | None = "ink"
    stroke: str | None = None
    width: float = 1.0


@dataclass
class Circle:
    """A circle about (x, y)."""
    x: float
    y: float
    radius: float
    fill: str | None = "paper"
    stroke: str | None = None
    width: float = 1.0


@dataclass
class Box:
    """A rectangle with its upper left corner at (x, y); hatched: with slanted lines in it."""
    x: float
    y: float
    width: float
    height: float
    fill: str | None = "band"
    stroke: str | None = None
    line: float = 1.0
    radius: float = 0.0
    hatched: bool = False


@dataclass
class Label:
    """Text at (x, y), its baseline; anchor "start", "middle" or "end"; halo: with the ground's
    colour around it, so that it is read on lines."""
    x: float
    y: float
    text: str
    size: float = 12.0
    anchor: str = "start"
    colour: str = "ink"
    bold: bool = False
    halo: bool = False
    mono: bool = False


@dataclass
class Group:
    """Shapes that are one thing: `name` says what ("arrow", "reduction", ...), `title` is shown
    when it is pointed at, `data` goes along as data-* attributes."""
    name: str
    shapes: list = field(default_factory=list)
    title: str = ""
    data: dict = field(default_factory=dict)


@dataclass
class Scene:
    """A picture: its size, a one-line description, groups from back to front, {role: colours}."""
    width: float
    height: float
    title: str
    groups: list = field(default_factory=list)
    roles: dict = field(default_factory=lambda: dict(ROLES))

    def add(self, name, *shapes, title="", **data):
        """Append a Group; returns it."""
        self.groups.append(Group(name, list(shapes), title, data))
        return self.groups[-1]


def text_width(text, size, bold=False):
    """About how wide a text is, in pixels."""
    return len(text) * size * (BOLD if bold else WIDE)


def wrapped(text, width, size, bold=False):
    """A text as lines of at most about `width` pixels."""
    lines = [""]
    for word in text.split():
        if lines[-1] and text_width(f"{lines[-1]} {word}", size, bold) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
