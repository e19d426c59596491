"""What a few elements held in an execution, exactly: a Counter of the cells that contributed."""

from collections import Counter
from dataclasses import dataclass


@dataclass(slots=True)
class Event:
    """One element that an operation wrote. old, new: what the cell held, Counters; came, was: the
    events before it at the origin and at the target, None for what was there from the start."""
    number: int
    task: object
    cell: int
    old: Counter
    new: Counter
    reduces: bool
    origin: int
    came: object
    was: object


class History:
    """The events that concern `cells` in a run, in their order: of these cells, and of those from
    which something came to them."""

    def __init__(self, run, cells):
        self.run, self.events, self._last = run, [], {}
        self._values, needed, before = {}, set(cells), -1
        while len(needed) > before:  # what came to a cell also has a later life of its own
            before = len(needed)
            found = self._moves(needed)
        for moves in found:
            read = [(self.value(origin), self._last.get(origin)) for _, origin, _ in moves]
            for (cell, origin, step), (arriving, came) in zip(moves, read):
                old = self.value(cell)
                new = old + arriving if step.reduces else arriving
                event = Event(len(self.events), step.task, cell, old, new, step.reduces, origin,
                              came, self._last.get(cell))
                self._values[cell], self._last[cell] = new, event
                self.events.append(event)

    def _moves(self, needed):
        """For each step its (cell, origin, step) of needed cells; their origins are needed too."""
        found = []
        for step in reversed(self.run.steps):
            if step.length < len(needed):
                hits = [c for c in range(step.target, step.target + step.length) if c in needed]
            else:
                hits = [c for c in needed if step.target <= c < step.target + step.length]
            moves = [(c, c - step.target + step.source, step) for c in hits]
            needed.update(origin for _, origin, _ in moves)
            if moves:
                found.append(moves)
        return found[::-1]

    def value(self, cell):
        """What a cell holds, at the end once all is replayed."""
        if cell not in self._values:
            self._values[cell] = Counter([cell] if self.run.was_there(cell) else [])
        return self._values[cell]

    def last(self, cell):
        """The last event at a cell; None if nothing was written there."""
        return self._last.get(cell)

    def cone(self, cell):
        """The events that what a cell holds at the end was made by, in their order."""
        found, stack = set(), [self.last(cell)]
        while stack:
            event = stack.pop()
            if event is not None and event.number not in found:
                found.add(event.number)
                stack += [event.came, event.was] if event.reduces else [event.came]
        return [self.events[number] for number in sorted(found)]

    def kept(self, event):
        """What the rank whose memory an event changed has after it, in any cell: a set."""
        name, held = self.run.name, {}
        rank = name(event.cell)[0]
        for e in self.events[:event.number + 1]:
            if name(e.cell)[0] == rank:
                held[e.cell] = e.new
        untouched = [cell for cell in self._values if cell not in held and name(cell)[0] == rank]
        first = {e.cell: e.old for e in reversed(self.events)}
        values = [*held.values(), *(first.get(cell, self.value(cell)) for cell in untouched)]
        return {atom for value in values for atom in value}

    def later(self, event, cell):
        """The events at a cell after another event."""
        return [e for e in self.events[event.number + 1:] if e.cell == cell]


def expression(history, cell, limit=200):
    """The tree of additions that a cell holds, as text: ((r0 + r1) + r2), r for a rank; what a
    lossy codec has passed stands in its name's brackets: float16(r0 + r1)."""
    trees = {}  # of events: (text, the codec that it has passed at last)

    def tree(event, at):
        return trees[event.number] if event is not None else (f"r{history.run.name(at)[0]}", None)
    for event in history.events:
        (text, passed), codec = tree(event.came, event.origin), event.task.codec
        if codec is not None and not codec.lossless and (passed != codec or not codec.idempotent):
            text = f"{codec.name}{text}" if text.startswith("(") else f"{codec.name}({text})"
        if event.reduces:
            text, codec = f"({tree(event.was, event.cell)[0]} + {text})", None
        trees[event.number] = text, codec or (None if event.reduces else passed)
    text = tree(history.last(cell), cell)[0]
    return text if len(text) <= limit else text[:limit] + "..."


def journey(run, atom):
    """The steps by which a contribution came to further cells, and those that overwrote it there:
    a list of (step, cell, whether it came)."""
    holders, found = {atom}, []
    for step in run.steps:
        shift = step.target - step.source
        come = {c + shift for c in holders if step.source <= c < step.source + step.length}
        if not step.reduces:
            gone = {c for c in holders if step.target <= c < step.target + step.length} - come
            found += [(step, c, False) for c in sorted(gone)]
            holders -= gone
        found += [(step, c, True) for c in sorted(come - holders)]
        holders |= come
    return found
