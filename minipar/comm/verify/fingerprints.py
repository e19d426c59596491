"""A task graph executed on fingerprints, which tell what an element holds without saying it.

A contribution, an element of a rank as it was before, is a random number of 64 bits. `sums` adds
them up modulo 2^64: it tells multisets of contributions apart. `trees` hashes the two operands of
every addition: it tells trees of additions apart, but for the order of two operands. Different
ones are taken for equal with a probability of 2^-64. What a lossy codec has passed is hashed with
its name: another tree, unless it has passed the same codec before and that is idempotent.

The buffers of all ranks are one array, so that a message is one addition or copy between two of its
slices, however long it is.
"""

import zlib
from bisect import bisect_right
from collections import namedtuple

import numpy as np

from ..kinds import ask
from ..program import ONE_SIDED, Chunk
from . import counterexample

# What moved once: `length` elements from cell `source` on to cell `target` on, for a task.
Step = namedtuple("Step", "target source length reduces task")


class Run:
    """One execution of a task graph on the fingerprints of all ranks' buffers, end to end.

    sums, trees: uint64, one a cell; trees is 0 where nothing is.   atoms: what cells contribute.
    writer: the last of `steps` that wrote to a cell; -1 if none did.
    seals: uint64, one a cell: which idempotent codec its value has passed at last, and in which
           company; 0 for none. None if the graph has no codec.
    """

    def __init__(self, tasks, kind, size, n, name, options):
        self.tasks, self.kind, self.size, self.n, self.options = tasks, kind, size, n, options
        self.what = counterexample.title(kind, name, size, n, options)
        self.rounds, self.steps = counterexample.rounds_of(tasks, size), []
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
        coded = any(task.codec is not None for task in tasks)
        self.seals = np.zeros_like(self.atoms) if coded else None
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
        arriving, seals = self.trees[of], 0 if self.seals is None else self.seals[of]
        if task.codec is not None and not task.codec.lossless:
            arriving, seals = _coded(task.codec, arriving, seals)
        if reduces:
            if not self.trees[to].all():
                raise counterexample.unwritten(self, task, to)
            self.sums[to] += self.sums[of]
            self.trees[to] = _added(self.trees[to], arriving)
        else:
            self.sums[to] = self.sums[of]
            self.trees[to] = arriving
        if self.seals is not None:
            self.seals[to] = 0 if reduces else seals
        self.writer[to] = len(self.steps)
        self.steps.append(Step(to.start, of.start, len(task.chunk), reduces, task))


def _coded(codec, trees, seals):
    """(trees, seals) of what a lossy codec makes of elements that have these."""
    name = np.array([zlib.crc32(codec.name.encode()) + 1], np.uint64)
    if codec.elementwise:
        out, seal = _mixed(trees ^ _mixed(name)), _mixed(name + name)
        kept = seals == seal
    else:  # it matters which elements are together
        out, seal = _mixed(trees ^ _together(trees, name)), _together(trees, name + name)
        kept = np.full(len(trees), (seals == seal).all())
    if not codec.idempotent:
        return out, np.zeros_like(out)
    out = np.where(kept, trees, out)
    return out, np.broadcast_to(seal if codec.elementwise else _together(out, name + name),
                                out.shape)


def _together(trees, salt):
    """One fingerprint of many trees in their order, shape (1,)."""
    places = np.arange(1, len(trees) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return _mixed(_mixed(trees ^ places).sum(keepdims=True) + salt)


def _added(a, b):
    """The fingerprints of the trees a + b, which are those of b + a; never 0."""
    z = np.minimum(a, b) * np.uint64(0xBF58476D1CE4E5B9)
    z += np.maximum(a, b) * np.uint64(0x94D049BB133111EB)
    return _mixed(z)


def _mixed(z):
    """A fingerprint of each element of a uint64 array (after splitmix64); never 0."""
    z = z ^ (z >> np.uint64(30))
    z *= np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(31)
    return z | np.uint64(1)
