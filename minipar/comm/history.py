"""What a few elements held in an execution, exactly, and which operation made a sum wrong.

`History` replays the moves that concern some cells with exact values: a Counter of the cells
that contributed. `blame` looks through it for the operation that made one of them wrong.
"""

from collections import Counter, namedtuple
from dataclasses import dataclass


@dataclass(slots=True)
class Event:
    """One element that an operation wrote. old, new: what the cell held, Counters; came, was: the
    events before it at the origin and at the target, None for what was there from the start."""
    task: object
    cell: int
    old: Counter
    new: Counter
    reduces: bool
    origin: int
    came: object
    was: object


class History:
    """The events that concern `cells` in a run, in the order in which they happened."""

    def __init__(self, run, cells):
        self.run, self.events, self._last = run, [], {}
        self._values = {}
        for moves in self._moves(set(cells)):
            read = [(self.value(origin), self._last.get(origin)) for _, origin, _ in moves]
            for (cell, origin, step), (arriving, came) in zip(moves, read):
                old = self.value(cell)
                new = old + arriving if step.reduces else arriving
                event = Event(step.task, cell, old, new, step.reduces, origin, came,
                              self._last.get(cell))
                self._values[cell], self._last[cell] = new, event
                self.events.append(event)

    def _moves(self, needed):
        """For each step, its (cell, origin, step) that have to do with the needed cells."""
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
        return reversed(found)

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
            if event is not None and id(event) not in found:
                found.add(id(event))
                stack += [event.came, event.was] if event.reduces else [event.came]
        return [event for event in self.events if id(event) in found]


# What is wrong with a cell, in words; the task to blame or None, and how it is.
Blame = namedtuple("Blame", "words task how")


def blame(history, cell, promised):
    """Say what is wrong with what a cell holds: the cells in `promised` should have contributed."""
    promised, got = Counter(promised), history.value(cell)
    extra, missing = got - promised, promised - got
    last, cone = history.last(cell), history.cone(cell)

    def names(cells):
        return _names(history.run, cells, cell)
    if not got:
        return Blame("never written", None, "")
    if extra:
        twice = {c for c in extra if c in promised}
        words = (f"with {names(twice)} {_times(max(got[c] for c in twice))}" if twice else
                 f"holding {names(extra)}, which does not belong there")
        for event in cone:
            mixed = {c in promised for c in event.new} == {True, False}
            if event.reduces and (mixed or any(event.new[c] > promised[c] for c in event.new
                                               if c in promised)):
                return Blame(words, event.task, "first wrong after")
        return Blame(words, last and last.task, "last written by")
    words = f"without {names(missing)}"
    for event in cone:
        if not event.reduces and (event.old - event.new) & missing:
            return Blame(words, event.task, "overwritten by")
    return Blame(words, last and last.task, "last written by")


def _times(k):
    return "twice" if k == 2 else f"{k} times"


def _names(run, cells, of):
    """The ranks whose elements some cells are; with the element if it is not that of cell `of`."""
    _, buffer, element = run.name(of)
    named = []
    for rank, b, e in map(run.name, sorted(cells)):
        named.append(f"rank {rank}'s" + ("" if (b, e) == (buffer, element) else f" {b}[{e}]"))
    return ", ".join(named[:4]) + (f" and {len(named) - 4} more" if len(named) > 4 else "")


def expression(history, cell, limit=200):
    """The tree of additions that a cell holds, as text: ((r0 + r1) + r2), r for a rank."""
    trees = {}

    def tree(event, at):
        return trees[id(event)] if event is not None else f"r{history.run.name(at)[0]}"
    for event in history.events:
        arriving = tree(event.came, event.origin)
        trees[id(event)] = (f"({tree(event.was, event.cell)} + {arriving})" if event.reduces
                            else arriving)
    text = tree(history.last(cell), cell)
    return text if len(text) <= limit else text[:limit] + "..."
