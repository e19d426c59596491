"""The grid of a pipeline schedule as text: as many letters as an action is long."""

from .grid import KINDS, NICE

DOT = "."  # where nothing is done


def schedule_text(timelines, width=100):
    """Timelines below each other with one time axis, in lines of `width` letters.

    A unit of time has as many letters as the labels need; what is then too wide is cut into
    blocks of equal times.
    """
    side = 2 + max(len(line.name(row)) for line in timelines for row in range(line.rows))
    letters = _letters_per_unit(timelines, max(20, width - side))
    end = max((line.end for line in timelines), default=0.0)
    total = max(1, round(end * letters))
    block = max(1, int((width - side) / max(1.0, letters)) * round(max(1.0, letters)))
    lines = []
    for first in range(0, total, block):
        for line in timelines:
            lines.append(line.heading() + f" (from time {first / letters:g} on)" * (first > 0))
            for row in range(line.rows):
                text = _row(line, row, letters)[first:first + block]
                lines.append(f"{line.name(row):{side}}{text}".rstrip())
            lines.append("")
        lines += [" " * side + _axis(end, letters, first, first + block), ""]
    kinds = {span.kind for line in timelines for span in line.spans}
    words = [f"{kind} {KINDS[kind]}" for kind in KINDS if kind in kinds]
    if any(span.chunk for line in timelines for span in line.spans):
        words.append("small letters: odd virtual stages")
    if any(span.replica for line in timelines for span in line.spans):
        words.append("': the second replica")
    return "\n".join([*lines, ", ".join([*words, f"{DOT} nothing"])])


def _letters_per_unit(timelines, room):
    """How many letters a unit of time has: a whole number if times are, and at most so many that
    there are eight blocks."""
    spans = [s for line in timelines for s in line.spans if s.end > s.start]
    if not spans:
        return 1.0
    end = max(s.end for s in spans)
    wanted = max(len(s.label) / (s.end - s.start) for s in spans)
    if all(float(t).is_integer() for s in spans for t in (s.start, s.end)):
        whole = max(1, -(-wanted // 1))
        return float(whole + (end * (whole + 1) <= room))
    return min(8 * room / end, max(wanted, min(1.5 * wanted, room / end)))


def _row(line, row, letters):
    """The letters of one row."""
    text = [DOT] * round(line.end * letters)
    for span in line.spans:
        if span.row != row:
            continue
        start, end = round(span.start * letters), round(span.end * letters)
        label = span.label.lower() if span.chunk % 2 else span.label
        shown = _fitted(label, end - start)
        text[start:end] = shown
    return "".join(text)


def _fitted(label, room):
    """A label in exactly `room` letters: with dashes behind, its number alone, or its kind."""
    if len(label) < room:
        return f"{label}{'-' * (room - len(label) - 1)} "
    for shorter in (label, label[1:], label[:1]):
        if len(shorter) <= room:
            return shorter.ljust(room)
    return ""


def _axis(end, letters, first, last):
    """Times under the letters from `first` to `last`, with room between them."""
    text, least = "", 8 / letters
    step = next(base * 10.0 ** power for power in range(-12, 13) for base in NICE
                if base * 10.0 ** power >= least)
    for i in range(int(end / step + 1e-9) + 1):
        at = round(i * step * letters) - first
        if 0 <= at < last - first:
            text = text.ljust(at) + f"{i * step:g}"
    return text
