"""16-bit numbers in collectives: a case that every rank runs and asserts, thread or process."""

import numpy as np
from algorithm_cases import SERIAL, programs
from comm_cases import REDUCTIONS, guarded, refused, same

from minipar import bfloat16


def exact_values(rank, n, op, dtype):
    """What `rank` contributes: of few digits, so that no order of reduction rounds."""
    e = np.arange(n)
    return (2.0 ** ((5 * e + rank) % 3 - 1) if op == "prod" else (e + 7 * rank) % 60).astype(dtype)


def folded(contributions, op):
    """The reduction in the order of ranks, each step in float32 and rounded."""
    total = contributions[0]
    for x in contributions[1:]:
        total = REDUCTIONS[op](total.astype(np.float32), x.astype(np.float32)).astype(total.dtype)
    return total


def sixteen_bits(comm):
    """Every all-reduce of float16 and bfloat16: exact where it can be, else near and the same."""
    p, rank = comm.size, comm.rank
    for dtype in (np.dtype(np.float16), bfloat16.storage):
        unit = 2.0**-11 if dtype == np.float16 else 2.0**-8  # the largest error of a rounding
        for name in [program.name for kind, program in programs(p) if kind == "all_reduce"]:
            for n, op in ((0, "sum"), (1, "max"), (101, "sum"), (64, "min"), (33, "prod")):
                buffer, x = guarded(exact_values(rank, n, op, dtype))
                comm.all_reduce(x, op, name)
                same(x, folded([exact_values(r, n, op, dtype) for r in range(p)], op),
                     f"{name} {op} of {n} {dtype}")
                assert (buffer[n:] == 77).all()
            given = [np.random.default_rng([3, r]).normal(size=1001).astype(dtype)
                     for r in range(p)]
            x = given[rank].copy()
            comm.all_reduce(x, algorithm=name)
            for row in comm.all_gather(x):
                same(row, x, f"another rank's result of {name}")
            if name in SERIAL:
                same(x, folded(given, "sum"), name)
            wide = [g.astype(np.float64) for g in given]
            bound = (p - 1) * unit * np.abs(wide).sum(0)
            assert (np.abs(x.astype(np.float64) - np.sum(wide, 0)) <= bound).all(), name
            x = np.full(5, rank, dtype)
            x[2] = np.nan if rank == p - 1 else 1
            comm.all_reduce(x, "max", name)
            assert np.isnan(x[2]) and (x[[0, 1, 3, 4]] == p - 1).all()
        x = np.full(3, rank + 1, dtype)
        comm.all_reduce(x, "mean")
        same(x, np.full(3, (p + 1) / 2, dtype), "a mean")
        same(comm.reduce_scatter(exact_values(rank, 4 * p, "sum", dtype)),
             folded([exact_values(r, 4 * p, "sum", dtype) for r in range(p)], "sum")
             [4 * rank:4 * rank + 4], "reduce_scatter")
    if type(comm.transport).__name__ == "Mpi":
        refused(TypeError, ["mpi", "does not reduce bfloat16"], comm.all_reduce,
                np.ones(3, bfloat16.storage), algorithm="mpi")
