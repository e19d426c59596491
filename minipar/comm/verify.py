"""Proves programs right before a byte is moved, for a number of ranks and a length at a time.

A program is right if, whatever the values are,
- every message is matched, nothing in a round clashes (`graph.lower` sees to both), and nothing
  waits in a circle even if every send waits for its receive;
- no element is written by one rank and touched by another in one epoch of one-sided access
  (`epochs.py`);
- no operation reads what nothing has been written to;
- every element that the kind's after table speaks of ends with exactly the promised
  contributions, each once; and what is promised to several ranks is the same tree of additions on
  all of them, but for the order of the two operands of one addition. So all get the same bits.

The task graph is executed on fingerprints. A contribution, the element of a rank before, is a
random number of 64 bits. `sums` adds them up modulo 2^64: it tells multisets of contributions
apart. `trees` hashes the two operands of every addition: it tells trees apart. Different ones are
taken for equal with a probability of 2^-64; what differs is worked out again exactly, for a few
elements, in `counterexample.py`.
"""

import itertools
from bisect import bisect_right
from collections import namedtuple

import numpy as np

from . import counterexample
from .counterexample import VerificationError, rounds_of
from .epochs import races
from .graph import lower_traces
from .kinds import ask
from .program import ONE_SIDED, Chunk, ProgramError
from .topology import Topology

__all__ = ["VerificationError", "cases", "lengths", "verify", "verify_graph", "verify_traces"]


def lengths(kind, size, **options):
    """The numbers of elements for which `verify` proves a program on `size` ranks, if not told.

    One for each rank, more such that blocks are uneven, fewer, none; rounded up to a multiple of
    `size` where the kind refuses others. Of more than 64 ranks only the first three.
    """
    found = {}
    for n in (size, 2 * size + 1, size - 1, 7 * size + 3, 1, 0)[:None if size <= 64 else 3]:
        for candidate in (n, -(-n // size) * size):
            try:
                for rank in range(size):
                    kind.buffers(rank, size, candidate, **options)
            except ValueError:
                continue
            found[candidate] = True
            break
    return list(found)


def verify(program, size, n=None, **options):
    """Prove `program` right on `size` ranks; returns None.

    n: elements; several lengths if None (see `lengths`). options: root, counts, topo, as in
    Program.trace; what is not given takes several values (see `cases`).
    Raises VerificationError, whose message is a counterexample, if the program is wrong;
    ValueError if it refuses to serve such a group.
    """
    if reason := program.refusal(size):
        raise ValueError(reason)
    for case in cases(program, size, **options):
        for m in lengths(program.kind, size, **case) if n is None else [n]:
            try:
                traces = [program.trace(rank, size, m, **case) for rank in range(size)]
            except ProgramError as error:
                raise counterexample.untraceable(program, size, m, case, error) from None
            except ValueError:
                if "counts" in case and "counts" not in options:
                    break  # it serves equal blocks only, and says so
                raise
            verify_traces(traces, program.kind, m, program.deterministic, program.name, **case)


def cases(program, size, **options):
    """The options that `verify` proves a program for, as dicts; those that are given stay.

    All roots of a rooted kind; every way to cut the ranks into levels for a program that wants a
    topology; equal blocks and uneven ones, some empty, where the kind and the program take counts.
    """
    choices = {}
    if program.kind.rooted:
        choices["root"] = range(size)
    if "topo" in program.wants:
        choices["topo"] = [Topology(levels) for levels in _factors(size)]
    if "counts" in program.wants:
        choices["counts"] = [None, tuple(tuple((3 * r + 5 * s + r * s) % 4 for s in range(size))
                                         for r in range(size))]
    choices.update((name, [value]) for name, value in options.items())
    for values in itertools.product(*choices.values()):
        yield {name: value for name, value in zip(choices, values) if value is not None}


def _factors(size):
    """The ways to write `size` as a product of numbers above 1, in every order; (1,) for 1."""
    yield size,
    for first in range(2, size // 2 + 1):
        if size % first == 0:
            yield from ((first, *rest) for rest in _factors(size // first))


def verify_traces(traces, kind, n, deterministic=True, name="program", **options):
    """Prove the traces of all ranks, in order, right for `kind` and n elements; see `verify`."""
    what = counterexample.title(kind, name, len(traces), n, options)
    try:
        tasks = lower_traces(traces)
    except ProgramError as error:
        rounds = [[list(ops) for ops in trace.rounds] for trace in traces]
        raise counterexample.refused(what, rounds, error) from None
    verify_graph(tasks, kind, len(traces), n, deterministic, name, **options)


def verify_graph(tasks, kind, size, n, deterministic=True, name="program", **options):
    """Prove the task graph of `size` ranks right for `kind` and n elements; see `verify`."""
    run = Run(tasks, kind, size, n, name, options)
    if found := list(itertools.islice(races(tasks), 10_000)):
        raise counterexample.race(run, found)
    run.execute()
    _check(run, deterministic)


# What moved once: `length` elements from cell `source` on to cell `target` on, for a task.
Step = namedtuple("Step", "target source length reduces task")


class Run:
    """One execution of a task graph on the fingerprints of all ranks' buffers, end to end.

    sums, trees: uint64, one a cell; trees is 0 where nothing is.   atoms: what cells contribute.
    writer: the last of `steps` that wrote to a cell; -1 if none did.
    """

    def __init__(self, tasks, kind, size, n, name, options):
        self.tasks, self.kind, self.size, self.n, self.options = tasks, kind, size, n, options
        self.what = counterexample.title(kind, name, size, n, options)
        self.rounds, self.steps = rounds_of(tasks, size), []
        lengths = [dict(kind.buffers(rank, size, n, **options)) for rank in range(size)]
        chunks = [{name: Chunk(name, 0, m) for name, m in own.items()} for own in lengths]
        # Equal chunks are one object, so that equal terms are soon seen to be equal.
        self._chunks = [chunks[0] if own == lengths[0] else chunk
                        for own, chunk in zip(lengths, chunks)]
        self._lay_out(lengths)
        random = np.random.default_rng(2009)
        self.atoms = random.integers(2**64, size=self.cells, dtype=np.uint64)
        self.sums, self.trees = np.zeros_like(self.atoms), np.zeros_like(self.atoms)
        self.writer = np.full(self.cells, -1, np.int32)
        for rank in range(size):
            for chunk in self.table(kind.before, rank):
                cells = self.at(rank, chunk)
                self.sums[cells] = self.atoms[cells]
                self.trees[cells] = self.atoms[cells] | np.uint64(1)
        self._before = self.trees != 0

    def _lay_out(self, lengths):
        """Give every buffer of every rank its cells; scratch is as long as it is used."""
        for task in self.tasks:
            for rank, chunk in ((task.rank, task.chunk), (task.rank, task.source),
                                (task.peer, task.remote)):
                if chunk is not None and chunk.stop > lengths[rank].get(chunk.buffer, -1):
                    lengths[rank][chunk.buffer] = chunk.stop
        self.buffers, self.cells, self._firsts = [], 0, []  # of each rank: {buffer: first cell}
        for rank in range(self.size):
            self.buffers.append({})
            self._firsts.append(self.cells)
            for name, length in lengths[rank].items():
                self.buffers[rank][name] = self.cells
                self.cells += length

    def table(self, function, rank):
        """What a table of the kind says for a rank."""
        return ask(function, rank, self.size, **self._chunks[rank], **self.options)

    def at(self, rank, chunk):
        """The cells of a chunk, as a slice."""
        first = self.buffers[rank][chunk.buffer]
        return slice(first + chunk.start, first + chunk.stop)

    def name(self, cell):
        """(rank, buffer, element) of a cell."""
        rank = bisect_right(self._firsts, cell) - 1
        buffer, first = [b for b in self.buffers[rank].items() if b[1] <= cell][-1]
        return rank, buffer, cell - first

    def was_there(self, cell):
        """Whether a cell held something before."""
        return bool(self._before[cell])

    def execute(self):
        """Run all ranks round by round. A message moves when both ends have come to its round."""
        tasks, position, left = self.tasks, [-1] * self.size, [0] * self.size
        started, arrived = bytearray(len(tasks)), [0] * (len(tasks) + 1)
        ready = [*reversed(range(self.size))]
        while ready:
            rank = ready.pop()
            while left[rank] == 0 and position[rank] + 1 < len(self.rounds[rank]):
                position[rank] += 1
                for task in self.rounds[rank][position[rank]]:
                    started[task.id] = 1
                    if task.kind == "fence":
                        left[rank] = 1
                        arrived[task.epoch] += 1
                        if arrived[task.epoch] == self.size:
                            left = [0] * self.size
                            ready = list(range(self.size))
                    elif task.match < 0:
                        self._move(task)
                    elif not started[task.match]:
                        left[rank] += 1
                    else:
                        self._move(task if task.kind != "send" else tasks[task.match])
                        left[task.peer] -= 1
                        if left[task.peer] == 0:
                            ready.append(task.peer)
        if any(left):
            raise counterexample.deadlock(self, position, started)

    def _move(self, task):
        """Do what a task does: a receive stands for its message."""
        target, origin = (task.rank, task.chunk), (task.rank, task.source)
        if task.match >= 0:
            origin = (task.peer, self.tasks[task.match].chunk)
        elif task.kind == "put":
            target, origin = (task.peer, task.remote), target
        elif task.kind in ONE_SIDED:
            origin = (task.peer, task.remote)
        if len(task.chunk) == 0:
            return
        reduces = task.kind not in ("recv", "copy", "put", "get")
        to, of = self.at(*target), self.at(*origin)
        if not self.trees[of].all():
            reader = self.tasks[task.match] if task.match >= 0 else task
            raise counterexample.unwritten(self, reader, of)
        if reduces:
            if not self.trees[to].all():
                raise counterexample.unwritten(self, task, to)
            self.sums[to] += self.sums[of]
            self.trees[to] = _added(self.trees[to], self.trees[of])
        else:
            self.sums[to] = self.sums[of]
            self.trees[to] = self.trees[of]
        self.writer[to] = len(self.steps)
        self.steps.append(Step(to.start, of.start, len(task.chunk), reduces, task))


def _added(a, b):
    """The fingerprints of the trees a + b, which are those of b + a; never 0."""
    z = np.minimum(a, b) * np.uint64(0xBF58476D1CE4E5B9)
    z += np.maximum(a, b) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(31)
    return z | np.uint64(1)


def _check(run, deterministic):
    """Hold what all ranks ended with against the after table."""
    sums, places = {}, {}  # {terms: their fingerprints}, {terms: the cells they are promised to}
    wrong = []  # one cell of each broken promise: where it was broken first
    for rank in range(run.size):
        for chunk, terms in run.table(run.kind.after, rank):
            cells, terms = run.at(rank, chunk), tuple(terms)
            if terms not in sums:
                if not terms or {len(c) for _, c in terms} != {len(chunk)}:
                    raise ValueError(f"the after table of {run.kind.name} promises rank {rank} "
                                     f"{chunk} as the sum of {terms}: one or more chunks of its "
                                     f"length were expected")
                sums[terms], places[terms] = _expected(run, terms, len(chunk)), []
            places[terms].append(cells)
            no = np.flatnonzero(run.sums[cells] != sums[terms])
            if no.size:
                e = min(no, key=lambda e: run.writer[cells.start + e])
                wrong.append((cells.start + int(e), terms, int(e)))
    if wrong:
        raise counterexample.wrong_sum(run, wrong)
    if deterministic:
        for cells in _added_up_differently(run, sums, places):
            raise counterexample.different_trees(run, cells)


def _added_up_differently(run, sums, places):
    """Yield lists of cells that hold the same sum, but not all as the same tree."""
    for cells in places.values():
        for own in cells:
            for e in np.flatnonzero(run.trees[own] != run.trees[cells[0]])[:1]:
                yield [c.start + int(e) for c in cells]
    # Chunks that are not the same may promise the same sums: look for equal elements.
    expected = np.concatenate([np.empty(0, np.uint64), *sums.values()])
    at = np.concatenate([np.empty(0, int), *(np.arange(cells[0].start, cells[0].stop)
                                             for cells in places.values())])
    order = np.argsort(expected, kind="stable")
    expected, at = expected[order], at[order]
    other = (expected[1:] == expected[:-1]) & (run.trees[at[1:]] != run.trees[at[:-1]])
    for i in np.flatnonzero(other)[:1]:
        yield at[expected == expected[i]].tolist()


def _expected(run, terms, length):
    """The fingerprints that a promise comes to, shape (length,)."""
    starts = np.array([run.at(r, c).start for r, c in terms])
    if len(terms) < length:
        return sum((run.atoms[s:s + length] for s in starts), np.zeros(length, np.uint64))
    return run.atoms[starts[:, None] + np.arange(length)].sum(0)
