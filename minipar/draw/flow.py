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

from ..comm.cost import cost
from ..comm.graph import lower
from ..comm.topology import Topology
from .contents import Contents

MOST = 20_000  # operations that a picture may have


class Flow:
    """A program on `size` ranks, as pictures show it.

    n: elements; if None as few as are cut evenly. options: root, topo, as in Program.trace.
    steps: how many.             moves[step]: a list of Move.
    fences: the steps in which all ranks pass a fence, a set.
    rounds[step][rank]: the round that a rank is in; None if it is done.
    chunks: [(buffer, start, stop)] in their order.
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
        self.chunks, self.moves, self.changes = Contents(self).run()

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
