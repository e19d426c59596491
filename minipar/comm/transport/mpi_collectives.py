"""The MPI library's own collectives, non-blocking, on the buffers that the kinds declare."""

import numpy as np

from ..kinds import exchange_blocks
from ..program import Chunk
from .mpi import MPI, as_bytes

OPS = {"sum": MPI.SUM, "prod": MPI.PROD, "max": MPI.MAX, "min": MPI.MIN}


def collective(comm, kind, arrays, op, root, counts):
    """(begin, end) of a collective on flat arrays of one dtype: begin() starts a run and returns
    its request; end() is called after each, unless it is None.

    Raises ValueError for a kind that the library does not have, TypeError for a dtype that it
    cannot reduce.
    """
    if kind not in MAKERS:
        raise ValueError(f"mpi: the library has no {kind}; it has {', '.join(MAKERS)}")
    if kind == "all_to_all":
        return _all_to_all(comm, counts, **arrays)
    made = MAKERS[kind](comm, arrays["x"], OPS[op], root)
    return made if isinstance(made, tuple) else (made, None)


def _typed(x):
    """[array, its MPI datatype], for a reduction."""
    try:
        datatype = MPI.Datatype.fromcode(x.dtype.char)
    except ValueError:
        datatype = MPI.DATATYPE_NULL
    if x.dtype.kind not in "iuf" or datatype == MPI.DATATYPE_NULL:
        raise TypeError(f"mpi: this MPI library does not reduce {x.dtype}")
    return [x, datatype]


def _parts(chunks, itemsize):
    """(bytes of each chunk, where each begins)."""
    return [len(c) * itemsize for c in chunks], [c.start * itemsize for c in chunks]


def _blocks(comm, x):
    """([x, parts, datatype], the same of this rank's block), as bytes."""
    sizes, starts = parts = _parts(Chunk("x", 0, x.size).split(comm.size), x.itemsize)
    start, data = starts[comm.rank], as_bytes(x)
    return [data, parts, MPI.BYTE], [data[start:start + sizes[comm.rank]], MPI.BYTE]


def _all_reduce(comm, x, op, root):
    buffer = _typed(x)
    return lambda: comm.Iallreduce(MPI.IN_PLACE, buffer, op)


def _reduce(comm, x, op, root):
    buffer = _typed(x)
    if comm.rank == root:
        return lambda: comm.Ireduce(MPI.IN_PLACE, buffer, op, root)
    return lambda: comm.Ireduce(buffer, None, op, root)


def _reduce_scatter(comm, x, op, root):
    blocks = list(Chunk("x", 0, x.size).split(comm.size))
    mine = x[blocks[comm.rank].start:blocks[comm.rank].stop]
    part, counts = np.empty_like(mine), [len(block) for block in blocks]
    return (lambda: comm.Ireduce_scatter(_typed(x), _typed(part), counts, op),
            lambda: np.copyto(mine, part))


def _all_gather(comm, x, op, root):
    whole, _ = _blocks(comm, x)
    return lambda: comm.Iallgatherv(MPI.IN_PLACE, whole)


def _gather(comm, x, op, root):
    whole, mine = _blocks(comm, x)
    if comm.rank == root:
        return lambda: comm.Igatherv(MPI.IN_PLACE, whole, root)
    return lambda: comm.Igatherv(mine, None, root)


def _scatter(comm, x, op, root):
    whole, mine = _blocks(comm, x)
    if comm.rank == root:
        return lambda: comm.Iscatterv(whole, MPI.IN_PLACE, root)
    return lambda: comm.Iscatterv(None, mine, root)


def _broadcast(comm, x, op, root):
    return lambda: comm.Ibcast([as_bytes(x), MPI.BYTE], root)


def _barrier(comm, x, op, root):
    return comm.Ibarrier


def _all_to_all(comm, counts, input, output):
    goes, comes = (_parts(chunks, input.itemsize) for chunks in exchange_blocks(
        comm.rank, comm.size, Chunk("input", 0, input.size), Chunk("output", 0, output.size),
        counts))
    sending = [as_bytes(input), goes, MPI.BYTE]
    receiving = [as_bytes(output), comes, MPI.BYTE]
    return lambda: comm.Ialltoallv(sending, receiving), None


MAKERS = {"all_reduce": _all_reduce, "reduce": _reduce, "reduce_scatter": _reduce_scatter,
          "all_gather": _all_gather, "gather": _gather, "scatter": _scatter,
          "broadcast": _broadcast, "all_to_all": _all_to_all, "barrier": _barrier}
