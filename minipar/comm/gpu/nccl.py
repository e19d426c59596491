"""NVIDIA's collectives between GPUs, through CuPy: algorithm "nccl", for ranks with a GPU each.

Queued on the stream that computes, as a kernel is: a plan is done when it has been queued, and
whatever the stream is given afterwards comes after it. How it works is the library's affair: it
declares neither rounds nor an order of additions. (What stands here was checked against a stand-in
for the library, not yet on a machine with several GPUs.)
"""

import socket
import time

from ...device import import_cupy, import_nccl

KINDS = ("all_reduce", "reduce", "broadcast")
_TYPES = {"float16": "HALF", "float32": "FLOAT", "float64": "DOUBLE", "int32": "INT",
          "int64": "INT64", "uint8": "UINT8"}


class Nccl:
    """Stands for "nccl" where a program would stand."""

    name = "nccl"

    def __repr__(self):
        return "<NCCL's collectives>"


NCCL = Nccl()


def connect(comm):
    """NCCL's communicator of the ranks of `comm`. Called by all of them.

    Raises ValueError, on every rank, if two share a GPU; RuntimeError if NCCL is not installed.
    """
    nccl, runtime = import_nccl(), import_cupy().cuda.runtime
    mine = (socket.gethostname(), runtime.deviceGetPCIBusId(runtime.getDevice()),
            bool(getattr(nccl, "available", True)))
    everybody = [comm.broadcast_object(mine, rank) for rank in range(comm.size)]
    for rank, (*where, there) in enumerate(everybody):
        if not there:
            raise RuntimeError(f"nccl: rank {rank} has no NCCL: pip install nvidia-nccl-cu12")
        first = next(r for r, (*other, _) in enumerate(everybody) if other == where)
        if first != rank:
            raise ValueError(f"nccl: ranks {first} and {rank} share a GPU, and NCCL needs one for "
                             f"each: leave the algorithm to minipar")
    unique = comm.broadcast_object(nccl.get_unique_id() if comm.rank == 0 else None)
    return nccl.NcclCommunicator(comm.size, unique, comm.rank)


class NcclPlan:
    """A collective of NCCL on a registered array of a GPU, with the interface of `Plan`."""

    reused = False

    def __init__(self, library, kind, array, engine, op, root):
        nccl = import_nccl()
        if kind not in KINDS:
            raise ValueError(f"nccl: no {kind} here; there are {', '.join(KINDS)}")
        if array.dtype.name not in _TYPES:
            raise TypeError(f"nccl: it has no {array.dtype}")
        self._engine, self._array, self.nbytes = engine, array, array.nbytes
        kind_of = getattr(nccl, f"NCCL_{_TYPES[array.dtype.name]}")
        reduction = getattr(nccl, f"NCCL_{op.upper()}")
        at, count = array.data.ptr, array.size
        self._run = {
            "all_reduce": lambda s: library.allReduce(at, at, count, kind_of, reduction, s),
            "reduce": lambda s: library.reduce(at, at, count, kind_of, reduction, root, s),
            "broadcast": lambda s: library.broadcast(at, at, count, kind_of, root, s)}[kind]
        self.done, self.name = True, f"{kind} nccl"

    def start(self):
        """Queue a run on the current stream."""
        if self.nbytes:
            self._run(import_cupy().cuda.get_current_stream().ptr)
        self.began = self.ended = time.perf_counter()

    def test(self):
        """True: what is queued needs nobody's help."""
        return True

    def wait(self):
        """Nothing to wait for, but for other plans in flight."""
        self._engine.progress()

    def waits_for(self):
        """(a mark, peers): it waits for none."""
        return 0, ()

    def free(self):
        """Release the array."""
        self._run = self._array = None
