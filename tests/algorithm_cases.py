"""Every algorithm that is registered, run by the ranks of a communicator and checked bit by bit.

Values, guards and comparisons are those of `comm_cases`; like there, every rank runs and asserts.
"""

import numpy as np

import comm_cases
from comm_cases import GUARD, REDUCTIONS, guarded, reduced, refused, same, values
from minipar import Tensor
from minipar.comm.program import ALGORITHMS
from minipar.comm.select import select


def programs(size):
    """(kind, program) of all that serve `size` ranks."""
    return [(kind, program) for kind, table in ALGORITHMS.items() for program in table.values()
            if program.refusal(size) is None]


def lengths(p):
    """0, 1, p - 1, p, 100 and 10,007, in this order, as often as they are equal."""
    return [0, 1, p - 1, p, 100, 10_007]


def cover(p):
    """(n, dtype, op) of the cases for p ranks: over all p in 1..9, every pair of two of p, n, dtype
    and op comes up."""
    return [(n, comm_cases.DTYPES[(p + i) % 6], list(REDUCTIONS)[(p // 2 - i) % 4])
            for i, n in enumerate(lengths(p))]


def blocks(p, n):
    """Block i of n elements is [i n // p, (i + 1) n // p)."""
    return [slice(i * n // p, (i + 1) * n // p) for i in range(p)]


def given(kind, rank, p, n, dtype, op, root):
    """What stands in x before: what the kind asks for, and something else around it."""
    mine = values(rank, p, n, dtype, op)
    if kind in ("all_gather", "gather"):
        x = np.full(n, 3, dtype)
        x[blocks(p, n)[rank]] = mine[blocks(p, n)[rank]]
        return x
    return mine


def check(comm, kind, algorithm, n, dtype, op="sum", root=0):
    """Compile, run twice, and compare all that the kind promises on this rank."""
    p, rank, what = comm.size, comm.rank, f"{kind} {algorithm} {op} of {n} {np.dtype(dtype)}"
    if kind == "all_to_all":
        return check_exchange(comm, algorithm, n * p, dtype)
    if kind.endswith("_into"):
        return check_into(comm, kind, algorithm, n, dtype, op)
    buffer, x = guarded(given(kind, rank, p, n, dtype, op, root))
    plan = comm.plan(kind, x, op, algorithm, root)
    for run in range(2):
        x[...] = given(kind, rank, p, n, dtype, op, root)
        plan.start()
        plan.wait()
        assert (buffer[n:] == GUARD).all(), f"{what}: a guard"
        mine = blocks(p, n)[rank]
        if kind == "all_reduce" or kind == "reduce" and rank == root:
            same(x, reduced(p, n, dtype, op), what)
        elif kind == "reduce_scatter":
            same(x[mine], reduced(p, n, dtype, op)[mine], what)
        elif kind == "all_gather" or kind == "gather" and rank == root:
            for r, block in enumerate(blocks(p, n)):
                same(x[block], values(r, p, n, dtype, op)[block], f"{what}, block {r}")
        elif kind == "broadcast":
            same(x, values(root, p, n, dtype, op), what)
        elif kind == "scatter":
            same(x[mine], values(root, p, n, dtype, op)[mine], what)
    comm.free(plan)


def check_into(comm, kind, algorithm, n, dtype, op):
    """Kinds with an input, which stays as it is, and an output, wherever these lie."""
    p, rank, reduces = comm.size, comm.rank, kind == "reduce_scatter_into"
    mine, table = blocks(p, n)[rank], [values(r, p, n, dtype, op) for r in range(p)]
    source = table[rank] if reduces else table[rank][mine]
    for place in (np.empty, comm.empty):
        buffer, output = guarded(np.full(mine.stop - mine.start if reduces else n, 5, dtype))
        array = place((n,), dtype)[:source.size]
        array[...] = source
        plan = comm.plan(kind, {"input": array, "output": output}, op, algorithm)
        for run in range(2):
            output[...] = 5
            plan.start()
            plan.wait()
            expected = reduced(p, n, dtype, op)[mine] if reduces else np.concatenate(
                [row[block] for row, block in zip(table, blocks(p, n))])
            same(output, expected, f"{kind} {algorithm} {op} of {n} {np.dtype(dtype)}")
            same(array, source, "an input")
            assert (buffer[output.size:] == GUARD).all()
        comm.free(plan)


def check_exchange(comm, algorithm, n, dtype):
    p, rank = comm.size, comm.rank
    buffer, x = guarded(values(rank, p, n, dtype))
    landed, y = guarded(np.zeros(n, dtype))
    plan = comm.plan("all_to_all", {"input": x, "output": y}, algorithm=algorithm)
    for run in range(2):
        y[...] = 0
        plan.start()
        plan.wait()
        for r, block in enumerate(blocks(p, n)):
            same(y[block], values(r, p, n, dtype)[blocks(p, n)[rank]], f"{algorithm}, block {r}")
        same(x, values(rank, p, n, dtype), "an input")
        assert (buffer[n:] == GUARD).all() and (landed[n:] == GUARD).all()
    comm.free(plan)


def all_algorithms(comm, cases=None):
    p = comm.size
    for kind, program in programs(p):
        for i, (n, dtype, op) in enumerate(cover(p) if cases is None else cases):
            check(comm, kind, program.name, n, dtype, op, root=(i + p) % p)


def the_library(comm):
    """Every kind by MPI's own collective, or its refusal where ranks do not use MPI."""
    p = comm.size
    if type(comm.transport).__name__ != "Mpi":
        refused(ValueError, ["mpi", type(comm.transport).__name__], comm.all_reduce, np.ones(3),
                algorithm="mpi")
        return
    for kind in ALGORITHMS:
        for i, (n, dtype, op) in enumerate(cover(p)):
            try:
                check(comm, kind, "mpi", n, dtype, op, root=(i + p) % p)
            except TypeError as error:  # some libraries cannot reduce them; all ranks agree
                assert dtype == np.float16 and "float16" in str(error), error
    refused(TypeError, ["mpi", "bool"], comm.all_reduce, np.ones(3, bool), algorithm="mpi")
    # Beside plans of programs, started in one order and waited for in another.
    a, b, c = (values(comm.rank, p, n, float) for n in (1000, 7, 50_000))
    works = [comm.all_reduce(a, algorithm="mpi", async_op=True),
             comm.all_reduce(b, algorithm="ring", async_op=True),
             comm.all_reduce(c, algorithm="mpi", async_op=True)]
    for i in (1, 2, 0) if comm.rank % 2 else (2, 0, 1):
        works[i].wait()
    for x in (a, b, c):
        same(x, reduced(p, x.size, float, "sum"), "beside others")


SERIAL = ("naive", "all_gather_reduce", "reduce_scatter_all_gather")  # reduce in order of ranks


def results_are_equal_bit_by_bit(comm):
    """Also where additions round, and for NaNs with a sign and zeros with one."""
    p, rank = comm.size, comm.rank
    draw = np.random.default_rng([11, p])
    terms = draw.normal(size=(p, 1003)).astype(np.float32)
    odd = draw.choice(np.array([0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1], np.float32),
                      size=(p, 1003))
    serial = terms[0].copy()
    for term in terms[1:]:
        serial += term
    for program in [program for kind, program in programs(p) if kind == "all_reduce"]:
        assert program.deterministic
        for table, op in ((terms, "sum"), (odd, "max"), (odd, "min"), (odd, "sum")):
            x = table[rank].copy()
            with np.errstate(invalid="ignore"):
                comm.all_reduce(x, op, algorithm=program)
            for other in comm.all_gather(x):
                same(other, x, f"{program.name} {op}")
            if table is terms:
                assert np.abs(x - serial).max() < p * 1e-6
                if program.name in SERIAL:
                    same(x, serial, f"{program.name}, a serial loop")


# ------------------------------------------------------------------ the communicator's methods


def reductions_to_a_root(comm):
    p, rank = comm.size, comm.rank
    for root in range(p):
        for op in ("sum", "prod", "max", "min", "mean"):
            for n in (0, 1, 10, 100):
                x = values(rank, p, n, np.float64, op)
                assert comm.reduce(x, root, op) is None
                same(x, reduced(p, n, np.float64, op) if rank == root else values(
                    rank, p, n, np.float64, op), f"reduce {op} to {root}")
    strided, t = np.zeros((6, 4))[:, 1], Tensor(np.full(3, rank + 1.0, np.float32))
    strided[...] = values(rank, p, 6, float)
    comm.reduce(strided, p - 1, "mean")
    comm.reduce(t, 0, async_op=True).wait()
    if rank == p - 1:
        same(strided.copy(), reduced(p, 6, float, "mean"), "a strided mean")
    assert (t.array == (p * (p + 1) / 2 if rank == 0 else rank + 1)).all()
    assert t.storage.version == (rank == 0)
    frozen = values(rank, p, 6, float)
    frozen.flags.writeable = rank == 0
    comm.reduce(frozen)
    refused(TypeError, ["mean", "int64"], comm.reduce, np.zeros(3, np.int64), 0, "mean")


def gathers_and_scatters(comm):
    p, rank = comm.size, comm.rank
    for root in range(p):
        for shape in ((), (5,), (2, 3), (0, 4)):
            n = int(np.prod(shape))
            rows = np.stack([values(r, p, n, np.int32).reshape(shape) for r in range(p)])
            found = comm.gather(rows[rank], root)
            if rank == root:
                same(found, rows, f"gather at {root}")
                out = np.empty_like(rows)
                assert comm.gather(rows[rank], root, out=out) is out
                same(out, rows, "gather into out")
            else:
                assert found is None and comm.gather(rows[rank], root) is None
            same(comm.scatter(rows if rank == root else None, root), rows[rank], f"from {root}")
            out = np.empty(shape, np.int32)
            assert comm.scatter(rows if rank == root else None, root, out=out) is out
            same(out, rows[rank], "scatter into out")
    given = Tensor(np.arange(3.0 * p).reshape(p, 3)) if rank == 0 else None
    part = comm.scatter(given)
    assert isinstance(part, Tensor) == (rank == 0)
    back = comm.gather(part)
    if rank == 0:
        same(back.array, given.array, "scattered and gathered")
        refused(ValueError, [f"({p + 1}, 2)", str(p)], comm.scatter, np.zeros((p + 1, 2)))
        refused(ValueError, [f"float64({p}, 2)", f"float64({p}, 3)"], comm.gather, np.zeros(3),
                out=np.zeros((p, 2)))


def exchanges(comm):
    p, rank = comm.size, comm.rank
    for shape in ((), (3,), (2, 2), (0,)):
        n = int(np.prod(shape))
        tables = [values(r, p, p * n, np.float32).reshape(p, *shape) for r in range(p)]
        expected = np.stack([table[rank] for table in tables])
        for algorithm in ("auto", "pairwise", "bruck"):
            same(comm.all_to_all(tables[rank], algorithm), expected, f"all_to_all {algorithm}")
        out = np.empty_like(expected)
        comm.all_to_all(tables[rank], out=out, async_op=True).wait()
        same(out, expected, "into out")
        fortran = np.asfortranarray(tables[rank])
        same(comm.all_to_all(fortran), expected, "Fortran order")
    assert isinstance(comm.all_to_all(Tensor(np.zeros((p, 2)))), Tensor)
    refused(ValueError, [f"({p + 1},)", f"{p}"], comm.all_to_all, np.zeros(p + 1))
    refused(ValueError, ["()"], comm.all_to_all, np.array(1.0))
    for seed in range(3):
        counts = np.random.default_rng([seed, p]).integers(0, 4, (p, p))
        if seed == 2:
            counts[:, 0] = 0
        starts = np.concatenate([np.zeros((p, 1), int), counts.cumsum(1)], axis=1)
        tables = [values(r, p, 2 * starts[r, -1], np.int64).reshape(-1, 2) for r in range(p)]
        got, arriving = comm.all_to_all_v(tables[rank], counts[rank].tolist())
        assert arriving == counts[:, rank].tolist()
        same(got, np.concatenate([table[starts[r, rank]:starts[r, rank + 1]]
                                  for r, table in enumerate(tables)]), f"counts {seed}")
    refused(ValueError, ["1 + " * (p - 1) + "1 of", "(9,)"] if p != 9 else [], comm.all_to_all_v,
            np.zeros(9 if p != 9 else 10), [1] * p)
    refused(ValueError, ["bruck", "equal blocks"], comm.all_to_all_v, np.zeros(p), [1] * p,
            "bruck")


def results_into_out_and_later(comm):
    p, rank = comm.size, comm.rank
    x = values(rank, p, 101, np.float64)
    part, table = np.empty(101 * (rank + 1) // p - 101 * rank // p), np.empty((p, 101))
    assert comm.reduce_scatter(x, "mean", out=part) is part
    expected = reduced(p, 101, np.float64, "mean")[blocks(p, 101)[rank]]
    same(part, expected, "reduce_scatter into out")
    assert comm.all_gather(x, out=table) is table
    rows = np.stack([values(r, p, 101, np.float64) for r in range(p)])
    same(table, rows, "all_gather into out")
    part[...], table[...] = 0, 0
    y = x.copy()
    works = [comm.reduce_scatter(x, "mean", out=part, async_op=True),
             comm.all_gather(x, out=table, async_op=True),
             comm.broadcast(y, p - 1, async_op=True)]
    for work in reversed(works):
        work.wait()
    same(part, expected, "reduce_scatter later")
    same(table, rows, "all_gather later")
    same(y, rows[p - 1], "broadcast later")
    out = Tensor(np.zeros((p, 101)))
    assert comm.all_gather(x, out=out) is out and out.storage.version == 1
    same(out.array, rows, "into a tensor")
    refused(ValueError, ["async_op", "out"], comm.all_gather, x, async_op=True)
    refused(ValueError, [f"float32({p}, 101)", f"float64({p}, 101)"], comm.all_gather, x,
            out=np.empty((p, 101), np.float32))
    refused(ValueError, ["contiguous"], comm.all_gather, x, out=np.empty((p, 202))[:, ::2])


def results_that_ranks_share(comm):
    p, rank = comm.size, comm.rank
    for place in (np.empty, comm.empty):
        for n in lengths(p):
            for dtype, op in ((np.float32, "sum"), (np.int64, "max"), (np.float64, "prod")):
                x, out = place((n,), dtype), comm.empty_shared((n,), dtype)
                for run in range(3):
                    x[...] = values(rank, p, n, dtype, op)
                    assert comm.all_reduce(x, op, out=out) is out
                    same(out, reduced(p, n, dtype, op), f"a shared {op} of {n}")
                    same(x, values(rank, p, n, dtype, op), "what was given")
    x, own, common = np.ones((2, 3)), np.zeros((2, 3)), comm.empty_shared((2, 3), float)
    work = comm.all_reduce(x, out=common, async_op=True)
    work.wait()
    assert (common == p).all() and (x == 1).all()
    assert comm.all_reduce(x, "mean", out=own) is own and (own == 1).all()
    t = Tensor(np.zeros((2, 3)))
    assert comm.all_reduce(Tensor(x), out=t) is t and (t.array == p).all()
    assert t.storage.version == 1
    if comm.shares_memory():
        comm.barrier()
        if rank == 0:
            common[1, 2] = 77
        comm.barrier()
        assert common[1, 2] == 77  # it is one memory
        refused(ValueError, ["mean", "share"], comm.all_reduce, x, "mean", out=common)
        refused(ValueError, ["'ring'"], comm.all_reduce, x, algorithm="ring", out=common)
    refused(ValueError, ["float64(2, 3)", "float64(3,)"], comm.all_reduce, np.ones(3), out=own)


def results_of_many_lengths_and_places(comm):
    """One plan serves inputs and outputs wherever they lie, one call after another."""
    p, rank = comm.size, comm.rank
    for n in (3000, 4099):
        x, table = comm.empty((n,), np.float64), [values(r, p, n, np.float64) for r in range(p)]
        x[...] = table[rank]
        x.flags.writeable = False
        mine, kept = blocks(p, n)[rank], []
        for run in range(5):
            kept.append((comm.reduce_scatter(x), comm.all_gather(x)))
        for part, rows in kept:
            same(part, reduced(p, n, np.float64, "sum")[mine], "reduce_scatter")
            same(rows, np.stack(table), "all_gather")
        for name in ("shared", "ring"):
            same(comm.reduce_scatter(x.reshape(1, n), "mean", name), reduced(
                p, n, np.float64, "mean")[mine], f"a mean by {name}")
            same(comm.all_gather(x.reshape(1, n)[:, ::-1], name),
                 np.stack(table)[:, None, ::-1], f"all_gather by {name}")


def refusals(comm):
    p, x = comm.size, np.zeros(8)
    if p & (p - 1):
        refused(ValueError, ["swing", "2^k", str(p)], comm.all_reduce, x, algorithm="swing")
    if p % 2 and p > 1:
        refused(ValueError, ["neighbour_exchange", "even", str(p)], comm.all_gather, x,
                algorithm="neighbour_exchange")
    refused(ValueError, ["no kind 'all_reduse'"], comm.plan, "all_reduse", x)
    refused(ValueError, ["one dtype", "float64 and float32"], comm.plan, "all_to_all",
            {"input": np.zeros(p), "output": np.zeros(p, np.float32)})
    refused(ValueError, ["all_to_all", "elements", str(9 + (p == 9))], comm.plan, "all_to_all", {"input": np.zeros(p), "output": np.zeros(9 + (p == 9))})
    refused(ValueError, ["topology 2", f"{p} ranks"] if p != 2 else ["no reduction"],
            lambda: setattr(comm, "topology", type(comm.topology)((2,))) if p != 2
            else comm.all_reduce(x, "summ"))
    comm.topology = type(comm.topology)((1, p))
    comm.all_reduce(x, algorithm="hierarchical")
    comm.barrier()


CASES = [all_algorithms, the_library, results_are_equal_bit_by_bit, reductions_to_a_root,
         gathers_and_scatters, exchanges, results_into_out_and_later,
         results_that_ranks_share, results_of_many_lengths_and_places, refusals]


def tables_name_what_there_is(size):
    """Every automatic choice is an algorithm that serves `size` ranks."""
    for kind in ALGORITHMS:
        for nbytes in (0, 1, 10**3, 10**4, 10**5, 10**6, 10**9):
            assert select(kind, size, nbytes).refusal(size) is None
