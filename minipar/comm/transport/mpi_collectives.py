"""The MPI library's own collectives on the buffers that the kinds declare: non-blocking ones, as
algorithms; and its blocking ones, which benchmarks compare with."""

from types import SimpleNamespace

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
    made = MAKERS[kind](comm, OPS[op], root, counts, **arrays)
    return made if isinstance(made, tuple) else (made, None)


def blocking(comm, kind, arrays, op, root):
    """A function that runs the library's blocking collective once, as a user of mpi4py calls it.

    Arguments and errors as those of `collective`.
    """
    names = ("Allreduce", "Reduce", "Reduce_scatter", "Reduce_scatter_block", "Allgather",
             "Allgatherv", "Gatherv", "Scatterv", "Bcast", "Barrier", "Alltoallv")
    own = {"I" + name.lower(): getattr(comm, name) for name in names}
    begin, end = collective(SimpleNamespace(rank=comm.rank, size=comm.size, **own), kind, arrays,
                            op, root, None)
    if end is None:
        return begin

    def run():
        begin()
        end()
    return run


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


def _all_reduce(comm, op, root, counts, x):
    buffer = _typed(x)
    return lambda: comm.Iallreduce(MPI.IN_PLACE, buffer, op)


def _reduce(comm, op, root, counts, x):
    buffer = _typed(x)
    if comm.rank == root:
        return lambda: comm.Ireduce(MPI.IN_PLACE, buffer, op, root)
    return lambda: comm.Ireduce(buffer, None, op, root)


def _reduce_scatter(comm, op, root, counts, x):
    blocks = list(Chunk("x", 0, x.size).split(comm.size))
    mine = x[blocks[comm.rank].start:blocks[comm.rank].stop]
    part = np.empty_like(mine)
    return _reduce_scatter_into(comm, op, root, counts, x, part), lambda: np.copyto(mine, part)


def _reduce_scatter_into(comm, op, root, counts, input, output):
    source, target = _typed(input), _typed(output)
    if input.size % comm.size == 0:
        return lambda: comm.Ireduce_scatter_block(source, target, op)
    parts = [len(block) for block in Chunk("input", 0, input.size).split(comm.size)]
    return lambda: comm.Ireduce_scatter(source, target, parts, op)


def _all_gather(comm, op, root, counts, x, source=MPI.IN_PLACE):
    if x.size % comm.size == 0:
        whole = [as_bytes(x), MPI.BYTE]
        return lambda: comm.Iallgather(source, whole)
    whole, _ = _blocks(comm, x)
    return lambda: comm.Iallgatherv(source, whole)


def _all_gather_into(comm, op, root, counts, input, output):
    return _all_gather(comm, op, root, counts, output, [as_bytes(input), MPI.BYTE])


def _gather(comm, op, root, counts, x):
    whole, mine = _blocks(comm, x)
    if comm.rank == root:
        return lambda: comm.Igatherv(MPI.IN_PLACE, whole, root)
    return lambda: comm.Igatherv(mine, None, root)


def _scatter(comm, op, root, counts, x):
    whole, mine = _blocks(comm, x)
    if comm.rank == root:
        return lambda: comm.Iscatterv(whole, MPI.IN_PLACE, root)
    return lambda: comm.Iscatterv(None, mine, root)


def _broadcast(comm, op, root, counts, x):
    return lambda: comm.Ibcast([as_bytes(x), MPI.BYTE], root)


def _barrier(comm, op, root, counts, x):
    return comm.Ibarrier


def _all_to_all(comm, op, root, counts, input, output):
    goes, comes = (_parts(chunks, input.itemsize) for chunks in exchange_blocks(
        comm.rank, comm.size, Chunk("input", 0, input.size), Chunk("output", 0, output.size),
        counts))
    sending = [as_bytes(input), goes, MPI.BYTE]
    receiving = [as_bytes(output), comes, MPI.BYTE]
    return lambda: comm.Ialltoallv(sending, receiving), None


MAKERS = {"all_reduce": _all_reduce, "reduce": _reduce, "reduce_scatter": _reduce_scatter,
          "all_gather": _all_gather, "gather": _gather, "scatter": _scatter,
          "broadcast": _broadcast, "reduce_scatter_into": _reduce_scatter_into,
          "all_gather_into": _all_gather_into, "all_to_all": _all_to_all, "barrier": _barrier}
