"""What all ranks' buffers hold, from step to step: a task graph executed on names of chunks.

Exact and slow: `comm/verify/fingerprints.py` proves programs for a thousand ranks, this here tells
what has come where on a few, also of programs that are wrong.
"""

from collections import Counter
from typing import NamedTuple

from ..comm.kinds import ask
from ..comm.program import REDUCING, Chunk


class Move(NamedTuple):
    """Something that moved in one step, or did in one place.

    kind:    "message", "put", "get", "get_reduce", "copy", "reduce".
    source, target: ranks; one and the same if local.
    chunks:  what moved, as indices of chunks, in order; () if it has no elements.
    elements: how many.    reduces: whether it was added to what was there.
    lines:   the source lines of its operations, "file:number": of a message the sender's first.
    """
    step: int
    kind: str
    source: int
    target: int
    chunks: tuple
    elements: int
    reduces: bool
    channel: int
    lines: tuple


class Contents:
    """All ranks' buffers, cut into pieces that are moved as a whole, and what they hold."""

    def __init__(self, flow):
        self.flow, self.moved = flow, []  # (step, task that stands for it, target, origin)
        for task in flow.tasks:
            if task.kind in ("send", "fence"):
                continue
            target, origin = (task.rank, task.chunk), (task.rank, task.source)
            if task.match >= 0:
                origin = task.peer, flow.tasks[task.match].chunk
            elif task.kind == "put":
                target, origin = (task.peer, task.remote), target
            elif task.remote is not None:
                origin = task.peer, task.remote
            self.moved.append((flow.step_of(task), task, target, origin))
        self.moved.sort(key=lambda moved: (moved[0], moved[3][0], moved[2][0]))
        self._before()
        self._cut()

    def _before(self):
        """Where every rank has something before."""
        flow, self.given = self.flow, []
        for rank in range(flow.size):
            lengths = flow.program.kind.buffers(rank, flow.size, flow.n, **flow.options)
            buffers = {name: Chunk(name, 0, length) for name, length in lengths.items()}
            self.given += [(rank, chunk) for chunk in
                           ask(flow.program.kind.before, rank, flow.size, **buffers,
                               **flow.options)]

    def _cut(self):
        """Carry every boundary along with what is moved, until nothing is cut on the way."""
        self.cuts = {}
        for rank, chunk in [*self.given, *(end for _, _, *ends in self.moved for end in ends)]:
            self.cuts.setdefault((rank, chunk.buffer), set()).update((chunk.start, chunk.stop))
        grown = True
        while grown:
            grown = False
            for _, _, (rank, to), (other, of) in [*self.moved, *self.moved[::-1]]:
                here, there = self.cuts[rank, to.buffer], self.cuts[other, of.buffer]
                shift = to.start - of.start
                new = {cut + shift for cut in there if of.start < cut < of.stop} - here
                old = {cut - shift for cut in here if to.start < cut < to.stop} - there
                here |= new
                there |= old
                grown = grown or bool(new or old)
        self.cuts = {place: sorted(cuts) for place, cuts in self.cuts.items()}

    def _cells(self, rank, chunk):
        """The pieces of a chunk: [(rank, buffer, start)]."""
        return [(rank, chunk.buffer, cut) for cut in self.cuts[rank, chunk.buffer]
                if chunk.start <= cut < chunk.stop]

    def run(self):
        """(chunks, moves, changes) as Flow has them."""
        given = {}  # {cell: (buffer, start, stop)}
        for rank, chunk in self.given:
            cuts = self.cuts[rank, chunk.buffer]
            given.update(((rank, chunk.buffer, start), (chunk.buffer, start, stop))
                         for start, stop in zip(cuts, cuts[1:])
                         if chunk.start <= start < chunk.stop)
        chunks = sorted(set(given.values()))
        index = {piece: i for i, piece in enumerate(chunks)}
        holds, self.where = {}, {}  # {cell: Counter of (rank, chunk)}; {(rank, chunk): its cells}
        for cell, piece in given.items():
            self._put(holds, cell, Counter([(cell[0], index[piece])]))
        changes = [{place: self._told(holds, place) for place in self.where}]
        moves = [[] for _ in range(self.flow.steps)]
        for step in range(self.flow.steps):
            changes.append(self._step(step, holds, moves[step]))
        return chunks, moves, changes

    def _step(self, step, holds, moves):
        """Do what moves in a step: all is read before anything is written."""
        writes, touched = [], set()
        for _, task, (rank, to), (other, of) in [m for m in self.moved if m[0] == step]:
            reduces = task.kind in REDUCING
            read = [holds.get(cell, Counter()) for cell in self._cells(other, of)]
            writes += zip(self._cells(rank, to), read, [reduces] * len(read))
            kind = "message" if task.match >= 0 else task.kind
            line = (self.flow.tasks[task.match].line,) if task.match >= 0 else ()
            named = tuple(sorted({chunk for held in read for _, chunk in held}))
            moves.append(Move(step, kind, other, rank, named, len(to), reduces, task.channel,
                              (*line, task.line)))
        for cell, arriving, reduces in writes:
            touched |= self._put(holds, cell, holds.get(cell, Counter()) + arriving
                                 if reduces else arriving)
        return {place: self._told(holds, place) for place in touched}

    def _put(self, holds, cell, held):
        """Let a cell hold something; returns the (rank, chunk) that are touched by it."""
        before = {(cell[0], chunk) for _, chunk in holds.get(cell, ())}
        after = {(cell[0], chunk) for _, chunk in held}
        for place in before - after:
            self.where[place].discard(cell)
        for place in after:
            self.where.setdefault(place, set()).add(cell)
        holds[cell] = held
        return before | after

    def _told(self, holds, place):
        """What a rank holds of a chunk; see Flow.states."""
        chunk, told = place[1], Counter()
        for cell in self.where[place]:
            held = Counter({r: k for (r, c), k in holds[cell].items() if c == chunk})
            if not self.flow.program.kind.reduces:
                told |= held
            elif held.total() > told.total():
                told = held
        return told
