"""Times that `tune` and `explain` measure: of algorithms by the benchmark, of probes here."""

import statistics
import time

import numpy as np

from ..bench import measure
from ..comm.cost import probes
from ..comm.cost.fit import Sample
from ..comm.kinds import KINDS
from ..comm.mpi_plan import LIBRARY
from ..comm.program import ALGORITHMS
from .ranks import launcher_of


def reason_against(program, size, topo=None, shares=True):
    """Why a program cannot serve these ranks, in words; None if it can.

    topo: their Topology, or why there is none, in words. shares: whether they share memory.
    """
    if reason := program.refusal(size):
        return reason
    if "topo" in program.wants and isinstance(topo, str):
        return f"{program.name} needs a topology: {topo}"
    try:
        trace = program.trace(0, size, 64 * size, root=0, counts=None, topo=topo)
    except ValueError as error:
        return str(error)
    if trace.one_sided and not shares:
        return f"{program.name} reads and writes memory of its peers, which these ranks do not " \
               f"share"
    return None


def topology_of(comm):
    """The Topology of a communicator, or why there is none."""
    try:
        return comm.topology
    except ValueError as error:
        return str(error)


def candidates(comm, kind):
    """What can serve a kind on the ranks of `comm`: ({name: Program or LIBRARY}, {name: why not}).
    """
    serve, refused = {}, {}
    topo, shares = topology_of(comm), comm.shares_memory()
    for name, program in sorted(ALGORITHMS[kind].items()):
        if reason := reason_against(program, comm.size, topo, shares):
            refused[name] = reason
        else:
            serve[name] = program
    if launcher_of(comm) == "mpi":
        serve[LIBRARY.name] = LIBRARY
    else:
        refused[LIBRARY.name] = "mpi is the MPI library's own: it needs ranks under mpirun"
    return serve, refused


def is_one_sided(program, size, topo=None):
    """Whether a program works in memory that ranks share."""
    return program is not LIBRARY and program.trace(0, size, size, root=0, counts=None,
                                                    topo=topo).one_sided


def seconds_of(comm, kind, nbytes, algorithm, dtype, seconds=0.05):
    """Seconds of a run in a buffer of `comm.empty`, by the benchmark, which checks the result;
    ValueError if that is wrong. Each run is timed after a barrier."""
    row = measure(comm, kind, nbytes, algorithm, dtype, "isolated", seconds)
    if row["wrong"]:
        raise ValueError(f"{kind} {row['algorithm']} of {nbytes} bytes on {comm.size} ranks is "
                         f"wrong in {row['wrong']} elements")
    return row["time_us"] / 1e6


def arrays_in(room, comm, kind, n):
    """{buffer: array} of a kind's buffers for n elements, cut from `room`, which holds n for each:
    every one begins at the same place on all ranks, however long it is there."""
    lengths = KINDS.get(kind, probes.PROBE).buffers(comm.rank, comm.size, n, counts=None)
    return {name: room[i * n:i * n + length] for i, (name, length) in enumerate(lengths.items())}


def seconds_on(comm, kind, arrays, algorithm, seconds=0.05):
    """Seconds of a run on given arrays, as in Communicator.plan, of zeros: timed as seconds_of
    does, and nothing is checked."""
    plan, times = comm.plan(kind, arrays, algorithm=algorithm), []
    rounds = 3
    while len(times) < rounds:
        comm.barrier()
        begin = time.perf_counter()
        plan.start()
        plan.wait()
        times.append(time.perf_counter() - begin)
        if len(times) == rounds == 3:
            guess = np.array([statistics.median(times)])
            comm.all_reduce(guess, op="max")
            rounds = 3 + int(min(1000, max(5, seconds / max(guess[0], 1e-7))))
    comm.free(plan)
    found = np.array([statistics.median(times[3:])])
    comm.all_reduce(found, op="mean")
    return float(found[0])


def fastest(comm, kind, room, nbytes, names, seconds, checks=True):
    """{name: seconds} of algorithms for `nbytes`, in `room` for two such buffers: of each the
    fastest of three measurements, which alternate, so that what disturbs the machine for a while
    does not decide. checks: whether the first ones are the benchmark's, in a buffer of its own."""
    arrays, found = arrays_in(room, comm, kind, nbytes // room.itemsize), {}
    for again in range(3):
        for name in names:
            if checks and not again:
                taken = seconds_of(comm, kind, nbytes, name, room.dtype, seconds / 3)
            else:
                taken = seconds_on(comm, kind, arrays, name, seconds / 3)
            found[name] = min(taken, found.get(name, np.inf))
    return found


def probe_runs(comm, sizes):
    """[(kind, Program, bytes)] of every probe that these ranks can run."""
    programs = probes.MESSAGES + (probes.ONE_SIDED if comm.shares_memory() else ())
    return [("probe", program, nbytes) for program in programs
            for nbytes in (sizes[:1] if program in probes.WITHOUT_BYTES else sizes)]


def algorithm_runs(comm, kinds, sizes):
    """[(kind, Program, bytes)] of every algorithm of the kinds that can serve here."""
    return [(kind, program, nbytes) for kind in kinds
            for program in candidates(comm, kind)[0].values() if program is not LIBRARY
            for nbytes in sizes]


def samples(comm, runs, dtype, seconds, passes=3):
    """A Sample of each run, in memory that all of them work in: the fastest of some passes through
    all of them, so that what disturbs the machine for a while does not decide."""
    room = comm.empty((2 * (max(nbytes for *_, nbytes in runs) // dtype.itemsize),), dtype)
    room.fill(0)  # sums of it stay 0
    best = [np.inf] * len(runs)
    for _ in range(passes):
        for i, (kind, program, nbytes) in enumerate(runs):
            arrays = arrays_in(room, comm, kind, nbytes // dtype.itemsize)
            best[i] = min(best[i], seconds_on(comm, kind, arrays, program, seconds / passes))
    return [Sample(program, comm.size, nbytes // dtype.itemsize, taken, dtype.itemsize,
                   topology_of(comm) if "topo" in program.wants else None)
            for (_, program, nbytes), taken in zip(runs, best)]
