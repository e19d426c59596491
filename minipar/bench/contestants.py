"""What can be timed under `--algorithms`: programs, and others that only a benchmark knows."""

import numpy as np

from ..commands.programs import programs_of
from ..options import UsageError
from .cases import memory

# Names besides those of programs, "auto" and "mpi": {name: what it is}.
OTHERS = {
    "function": "the communicator's method, called anew each time",
    "shared_result": "all_reduce into one memory of all ranks, each reducing a block of it",
    "mpi-blocking": "the MPI library's own blocking collective, called through mpi4py",
    "gloo": "torch.distributed over gloo (needs the extra peers)",
    "memory": "the time for (n+1) size bytes at the rate at which all ranks copy at once: what an "
              "all-reduce of n ranks in one memory must read and write",
}


class Contestant:
    """Something that does what a case is about.

    run: does it once.   free: releases what it holds.   arrays: {buffer: array} of the case in
    which its result is, if others than the case's own.   scale: what its time is multiplied by.
    checked: whether it has a result.
    """

    def __init__(self, name, run, free=lambda: None, arrays=None, scale=1.0, checked=True):
        self.name, self.run, self.free, self.arrays = name, run, free, arrays
        self.scale, self.checked = scale, checked


def contestant(case, algorithm):
    """The Contestant for an algorithm: a Program, its name, "auto", "mpi", FILE.py:NAME, or one
    of OTHERS. Called by all ranks together.

    Raises UsageError or ValueError, in one line, for what cannot serve the case.
    """
    if algorithm in MAKERS:
        return MAKERS[algorithm](case)
    if isinstance(algorithm, str) and ".py:" in algorithm:
        algorithm = _of_file(*algorithm.rsplit(":", 1))
    return _plan(case, case.kind, case.arrays, algorithm)


def _of_file(path, name):
    found = {program.name: program for program in programs_of(path)}
    if name not in found:
        raise UsageError(f"no program {name!r} in {path}: there are {', '.join(found)}")
    return found[name]


def _plan(case, kind, buffers, algorithm, name=None, arrays=None):
    comm = case.comm
    plan = comm.plan(kind, buffers, case.op, algorithm, case.root)

    def run():
        plan.start()
        plan.wait()
    return Contestant(name or plan.name.split()[-1], run, lambda: comm.free(plan), arrays)


def _shared_result(case):
    if case.kind != "all_reduce":
        raise UsageError(f"shared_result is an all_reduce, no {case.kind}")
    comm, n = case.comm, case.count
    result = memory(comm, "result", case.nbytes, "common").view(case.dtype)
    own = result[comm.rank * n // comm.size:(comm.rank + 1) * n // comm.size]
    return _plan(case, "reduce_scatter_into", {"input": case.arrays["x"], "output": own}, "shared",
                 "shared_result", {"x": result})


def _function(case):
    comm, op, root, arrays = case.comm, case.op, case.root, case.arrays
    first, *rest = arrays.values()
    methods = {"all_reduce": lambda: comm.all_reduce(first, op),
               "reduce_scatter_into": lambda: comm.reduce_scatter(first, op, out=rest[0]),
               "broadcast": lambda: comm.broadcast(first, root),
               "reduce": lambda: comm.reduce(first, root, op), "barrier": comm.barrier}
    if case.kind in ("all_gather_into", "all_to_all") and case.count % comm.size == 0:
        rows = rest[0].reshape(comm.size, -1)
        table = first.reshape(comm.size, -1) if case.kind == "all_to_all" else None
        methods["all_gather_into"] = lambda: comm.all_gather(first, out=rows)
        methods["all_to_all"] = lambda: comm.all_to_all(table, out=rows)
    if case.kind not in methods:
        raise UsageError(f"function: no method of the communicator is a {case.kind} of "
                         f"{case.count} elements on {comm.size} ranks")
    return Contestant("function", methods[case.kind])


def _mpi_blocking(case):
    run = case.comm.transport.blocking(case.kind, case.arrays, case.op, case.root)
    return Contestant("mpi-blocking", run)


def _gloo(case):
    from .gloo import collective
    return Contestant("gloo", collective(case))


def _memory(case):
    n, comm = case.comm.size, case.comm
    if case.kind != "all_reduce":
        raise UsageError(f"memory is a limit of all_reduce, not of {case.kind}")
    source, target = (memory(comm, name, case.nbytes, "ordinary") for name in ("from", "to"))

    def run():  # until the last rank is done: all together read and write 2 n size bytes
        np.copyto(target, source)
        comm.barrier()
    return Contestant("memory", run, scale=(n + 1) / (2 * n), checked=False)


MAKERS = {"function": _function, "shared_result": _shared_result, "mpi-blocking": _mpi_blocking,
          "gloo": _gloo, "memory": _memory}
