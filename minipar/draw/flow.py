"""What a picture of a collective shows, read from its task graph: what moves when, and what every
rank holds afterwards.

A *step* of the picture is one round of the ranks that take part in it: every rank goes through its
rounds in order, a message moves in the step in which both of its ends have come to it, and a fence
is passed in the step in which the last rank has. Where all ranks are in the same round in every
step, as on a ring, a step is a round.

A *chunk* is a range of elements that every operation moves, or leaves, as a whole: `c0`, `c1`, ...
by where they stand on the ranks that have them before. What a rank holds is told by contributions:
(rank, chunk) as they were before the program ran. So a chunk keeps its name and colour when it
passes through scratch memory.
"""

import math
from collections import Counter
from typing import NamedTuple

from ..comm.cost import cost
from ..comm.graph import lower
from ..comm.kinds import ask
from ..comm.program import Chunk
from ..comm.topology import Topology

MOST = 20_000  # operations that a picture may have


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

    @property
    def actor(self):
        """The rank that touches another's memory."""
        return self.source if self.kind == "put" else self.target


class Flow:
    """A program on `size` ranks, as pictures show it.

    n: elements; if None as few as are cut evenly. options: root, topo, as in Program.trace.
    steps: how many.             moves[step]: a list of Move.
    fences: the steps in which all ranks pass a fence, a set.
    rounds[step][rank]: the round that a rank is in; None if it is done.
    chunks: [(first rank that has it, buffer, start, stop)] in their order.
    changes[step]: {(rank, chunk): Counter of ranks} of what is another after the step; changes[0]
    is what is there before the program runs: what step s leaves is in changes[s + 1].
    Raises ValueError if the program refuses these ranks, is no graph, or waits in a circle.
    """

    def __init__(self, program, size, n=None, **options):
        self.program, self.size = program, size
        self.options = _with_topology(program, size, options)
        self.n = even_length(program.kind, size, self.options) if n is None else n
        operations = 0
        for rank in range(size):
            rounds = program.trace(rank, size, self.n, **self.options).rounds
            operations += sum(map(len, rounds))
            if operations > MOST:
                raise ValueError(f"{program.name} has {operations:,} operations on the first "
                                 f"{rank + 1} of {size} ranks: a picture shows at most {MOST:,}")
        self.tasks = lower(program, size, self.n, **self.options)
        self.cost = cost(program, size, self.n, **self.options)
        self._begin = begins(self.tasks, size)
        self.steps = 1 + max(self.step_of(task) for task in self.tasks) if self.tasks else 0
        self.fences = {self.step_of(task) for task in self.tasks if task.kind == "fence"}
        self.rounds = self._rounds()
        self._memory = _Memory(self)
        self.chunks, self.moves, self.changes = self._memory.run()

    def step_of(self, task):
        """The step in which a task happens: when the last rank that it needs is there."""
        return max(self._begin[t.rank, t.round] for t in _together(task, self.tasks))

    def _rounds(self):
        found = [[None] * self.size for _ in range(self.steps)]
        for (rank, number), step in self._begin.items():
            for row in found[step:]:
                row[rank] = number
        for rank in range(self.size):
            last = max((self.step_of(t) for t in self.tasks if t.rank == rank), default=-1)
            for row in found[last + 1:]:
                row[rank] = None
        return found

    @property
    def in_step(self):
        """Whether a step is a round: every rank is in it, until it is done."""
        return all(number in (None, step) for step, row in enumerate(self.rounds)
                   for number in row)

    @property
    def messages(self):
        """Transfers between ranks, in order; one-sided ones count."""
        return [m for moves in self.moves for m in moves if m.kind not in ("copy", "reduce")]

    @property
    def reductions(self):
        """Moves that reduce, in order."""
        return [m for moves in self.moves for m in moves if m.reduces]

    def states(self):
        """What all ranks hold: steps + 1 tables [rank][chunk], each a Counter {rank: times it
        contributed}. Of a kind that reduces, the fullest sum of the chunk on the rank; of another,
        all contributions of the chunk that are on it, wherever they are."""
        table = [[Counter() for _ in self.chunks] for _ in range(self.size)]
        for changes in self.changes:
            table = [list(row) for row in table]
            for (rank, chunk), held in changes.items():
                table[rank][chunk] = held
            yield table


def _with_topology(program, size, options):
    """The options; a program that wants a topology and is not given one gets the levels that are
    nearest to a square."""
    options = {k: v for k, v in options.items() if v is not None}
    if "topo" in program.wants and "topo" not in options:
        outer = next(r for r in range(math.isqrt(size), 0, -1) if size % r == 0)
        options["topo"] = Topology((size // outer, outer) if outer > 1 else (size,))
    if program.kind.rooted:
        options.setdefault("root", 0)
    return options


def even_length(kind, size, options):
    """The least number of elements that is cut evenly by all ranks, and twice by every level of
    halving: so that chunks are of one length."""
    n = math.lcm(size, 2 << (size.bit_length() - 1)) if size > 1 else 2
    for candidate in (n, n * size):
        try:
            kind.buffers(0, size, candidate, **options)
        except ValueError:
            continue
        return candidate
    return size


def _together(task, tasks):
    """The tasks that happen as one: a message's two ends, a fence on all ranks."""
    found = [task]
    while found[-1].match >= 0 and tasks[found[-1].match] is not task:
        found.append(tasks[found[-1].match])
    return found


def begins(tasks, size):
    """{(rank, round): the step in which the rank comes to it}. ValueError if one never does."""
    rounds = {}
    for task in tasks:
        rounds.setdefault((task.rank, task.round), []).append(task)
    last = [max((k for rank, k in rounds if rank == me), default=-1) for me in range(size)]
    begun, waiting = {(rank, 0): 0 for rank in range(size)}, {}
    ready = list(begun)
    while ready:
        rank, number = ready.pop()
        events = [_together(task, tasks) for task in rounds.get((rank, number), ())]
        missing = next(((t.rank, t.round) for event in events for t in event
                        if (t.rank, t.round) not in begun), None)
        if missing is not None:
            waiting.setdefault(missing, []).append((rank, number))
            continue
        ends = [max(begun[t.rank, t.round] for t in event) for event in events]
        if number < last[rank]:
            begun[rank, number + 1] = max(ends, default=begun[rank, number]) + 1
            ready += [(rank, number + 1), *waiting.pop((rank, number + 1), ())]
    stuck = sorted({who for those in waiting.values() for who in those})
    if stuck:
        raise ValueError(f"ranks wait for one another in a circle: rank {stuck[0][0]} in its round "
                         f"{stuck[0][1]} (minipar verify says where)")
    return begun


class _Memory:
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
        pieces = {}  # {(buffer, start, stop): first rank that has it}
        for rank, chunk in self.given:
            cuts = self.cuts[rank, chunk.buffer]
            for start, stop in zip(cuts, cuts[1:]):
                if chunk.start <= start < chunk.stop:
                    pieces.setdefault((chunk.buffer, start, stop), rank)
        chunks = sorted(pieces)
        index = {(buffer, start): i for i, (buffer, start, _) in enumerate(chunks)}
        holds, self.where = {}, {}  # {cell: Counter of (rank, chunk)}; {(rank, chunk): its cells}
        for rank, chunk in self.given:
            for cell in self._cells(rank, chunk):
                self._put(holds, cell, Counter([(rank, index[cell[1:]])]))
        changes = [{place: self._told(holds, place) for place in self.where}]
        moves = [[] for _ in range(self.flow.steps)]
        for step in range(self.flow.steps):
            changes.append(self._step(step, holds, moves[step]))
        return [(pieces[c], *c) for c in chunks], moves, changes

    def _step(self, step, holds, moves):
        """Do what moves in a step: all is read before anything is written."""
        writes, touched = [], set()
        for _, task, (rank, to), (other, of) in [m for m in self.moved if m[0] == step]:
            reduces = task.kind in ("recv_reduce", "reduce", "get_reduce")
            read = [holds.get(cell, Counter()) for cell in self._cells(other, of)]
            writes += zip(self._cells(rank, to), read, [reduces] * len(read))
            kind = "message" if task.match >= 0 else task.kind
            line = (self.flow.tasks[task.match].line,) if task.match >= 0 else ()
            named = tuple(dict.fromkeys(chunk for held in read for _, chunk in sorted(held)))
            moves.append(Move(step, kind, other, rank, tuple(sorted(named)), len(to), reduces,
                              task.channel, (*line, task.line)))
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
