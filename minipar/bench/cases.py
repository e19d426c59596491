"""What is timed: a kind of collective on buffers of a size, and the values that prove it right."""

import functools
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from ..comm.kinds import KINDS
from ..comm.reduction import OPS
from ..options import UsageError


def _share(n):
    return (n - 1) / n


# {kind: bytes that a rank sends at least, over the buffer's bytes, on n ranks}, as in nccl-tests.
BUS = {"all_reduce": lambda n: 2 * (n - 1) / n, "reduce_scatter": _share, "all_gather": _share,
       "reduce_scatter_into": _share, "all_gather_into": _share, "broadcast": lambda n: 1,
       "reduce": lambda n: 1, "gather": _share, "scatter": _share, "all_to_all": _share,
       "barrier": lambda n: 0}

# Small whole numbers, of which every type holds the sums exactly. Period: elements until they
# begin again; a prime, so that no block of another begins alike.
PERIOD = 61

_memory = WeakKeyDictionary()  # {communicator: {(name, where): bytes}}, used again


class Piece(NamedTuple):
    """Elements [start, stop) of a buffer; element i holds values[(i + phase) % PERIOD]."""
    buffer: str
    start: int
    stop: int
    values: np.ndarray
    phase: int = 0


class Case:
    """A collective on `comm` for `nbytes` bytes of `dtype`, a NumPy dtype.

    arrays: {buffer: 1-D array}, in memory of the kind `where` (see `memory`), the same for every
    case of a communicator. count: elements. nbytes: of them; a little less than asked for where
    blocks must be equal.
    Raises UsageError for a kind or root that there is not.
    """

    def __init__(self, comm, kind, nbytes, dtype, op="sum", root=0, where="window"):
        if kind not in BUS:
            raise UsageError(f"no kind {kind!r} to time: there are {', '.join(BUS)}")
        if not 0 <= root < comm.size:
            raise UsageError(f"root {root} is not one of {comm.size} ranks")
        self.comm, self.kind, self.dtype, self.op, self.root = comm, kind, dtype, op, root
        n = 0 if kind == "barrier" else nbytes // dtype.itemsize
        self.count = n - n % comm.size if kind == "all_to_all" else n
        self.nbytes = self.count * dtype.itemsize
        lengths = KINDS[kind].buffers(comm.rank, comm.size, self.count)
        self.arrays = {name: memory(comm, name, self.nbytes, where).view(dtype)[:m]
                       for name, m in lengths.items()}

    def _of(self, rank):
        """The values of a rank, of which its buffer is a repetition."""
        values = np.arange(PERIOD) % (61 if self.dtype.itemsize > 2 else 5)
        if self.op == "prod":
            return ((values + rank) % 2 + 1).astype(self.dtype)
        return (values + 1 + rank).astype(self.dtype)

    def fill(self):
        """Put in what the collective is to work on; elsewhere 0, which no result is."""
        for array in self.arrays.values():
            array.fill(0)
        for piece in self._given():
            for place, values in _in_parts(self.arrays[piece.buffer], piece):
                place[...] = values

    def wrong(self, arrays=None):
        """How many elements of this rank are not what the kind promises, in `arrays` or the
        case's own."""
        arrays = self.arrays if arrays is None else arrays
        return sum(int((place != values).sum()) for piece in self._promised()
                   for place, values in _in_parts(arrays[piece.buffer], piece))

    def rest(self):
        """Put in zeros, which stay what they are however often they are reduced."""
        for array in self.arrays.values():
            array.fill(0)

    def _blocks(self):
        n, p = self.count, self.comm.size
        return [(r * n // p, (r + 1) * n // p) for r in range(p)]

    def _given(self):
        kind, rank, own = self.kind, self.comm.rank, self._of(self.comm.rank)
        if kind in ("all_gather", "gather"):
            return [Piece("x", *self._blocks()[rank], own)]
        if kind in ("broadcast", "scatter") and rank != self.root or kind == "barrier":
            return []
        name = next(iter(self.arrays))
        return [Piece(name, 0, self.arrays[name].size, own)]

    def _promised(self):
        kind, p, rank, blocks = self.kind, self.comm.size, self.comm.rank, self._blocks()
        at_root = rank == self.root
        start, stop = blocks[rank]
        if kind == "all_reduce" or kind == "reduce" and at_root:
            return [Piece("x", 0, self.count, self._reduced())]
        if kind == "reduce_scatter":
            return [Piece("x", start, stop, self._reduced())]
        if kind == "reduce_scatter_into":
            return [Piece("output", 0, stop - start, self._reduced(), start)]
        if kind == "all_gather" or kind == "gather" and at_root:
            return [Piece("x", *block, self._of(r)) for r, block in enumerate(blocks)]
        if kind == "all_gather_into":
            return [Piece("output", a, b, self._of(r), -a) for r, (a, b) in enumerate(blocks)]
        if kind == "broadcast":
            return [Piece("x", 0, self.count, self._of(self.root))]
        if kind == "scatter":
            return [Piece("x", start, stop, self._of(self.root))]
        if kind == "all_to_all":
            return [Piece("output", *blocks[r], self._of(r), start - blocks[r][0])
                    for r in range(p)]
        return []

    def _reduced(self):
        return functools.reduce(OPS[self.op], [self._of(r) for r in range(self.comm.size)])


def _in_parts(array, piece, length=PERIOD * 4096):
    """(elements of the array, what they are to be), part by part, so that little memory does."""
    values = np.resize(np.roll(piece.values, -(piece.start + piece.phase)),
                       min(length, piece.stop - piece.start))
    for at in range(piece.start, piece.stop, length):
        place = array[at:min(at + length, piece.stop)]
        yield place, values[:place.size]


def memory(comm, name, nbytes, where="window"):
    """`nbytes` bytes of this rank called `name`, the same again for every case. Collective.

    where: "window", which the ranks can map; "common", one memory of all; "ordinary".
    """
    make = {"window": comm.empty, "common": comm.empty_shared, "ordinary": np.empty}[where]
    kept = _memory.setdefault(comm, {})
    if (name, where) not in kept or kept[name, where].size < nbytes:
        kept[name, where] = make((max(nbytes, 64),), np.dtype(np.uint8))
        kept[name, where].fill(0)  # so that no page is missing when time is taken
    return kept[name, where][:nbytes]
