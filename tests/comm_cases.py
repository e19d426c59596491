"""Cases of communication that every rank runs and asserts, whatever it is: a thread or a process.

Each case takes a communicator. Values are chosen so that every sum, mean and product is exact in
its dtype, hence independent of the order of reduction: expected and found are compared bit by
bit. Values differ per rank and per element, and guard elements stand behind every buffer.
"""

import time
from functools import lru_cache

import numpy as np

from minipar import Tensor
from minipar.comm import collective, recv, recv_reduce, send

FLOATS = (np.float64, np.float32, np.float16)
DTYPES = (*FLOATS, np.int64, np.int32, np.uint8)
REDUCTIONS = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}
GUARD = 77


def sizes(p):
    """The lengths at which blocks are empty, uneven, even and many."""
    return sorted({0, 1, p - 1, p, 100, 10_007})


def values(rank, size, n, dtype, op="sum"):
    """What `rank` contributes: n elements of `dtype`, shape (n,)."""
    e = np.arange(n, dtype=np.int64)
    if op == "prod" and np.dtype(dtype).kind == "f":
        return (2.0 ** ((5 * e + rank) % 3 - 1)).astype(dtype)  # 1/2, 1 or 2
    if dtype == np.float16:
        return ((e * size + rank) % (2048 // size)).astype(dtype)  # they add up to less than 2048
    return (e * size + rank + 1).astype(dtype)  # integers may wrap, in any order alike


@lru_cache(maxsize=512)  # ranks that are threads expect the same
def reduced(size, n, dtype, op):
    """The reduction of all ranks' values, shape (n,), read-only."""
    function = REDUCTIONS["sum" if op == "mean" else op]
    out = values(0, size, n, dtype, op)
    for rank in range(1, size):
        out = function(out, values(rank, size, n, dtype, op))
    out = (out / size).astype(dtype) if op == "mean" else out
    out.flags.writeable = False
    return out


def guarded(array):
    """(a buffer with guards behind it, the view in front that holds `array`)."""
    buffer = np.full(array.size + 3, GUARD, array.dtype)
    buffer[:array.size] = array
    return buffer, buffer[:array.size]


def same(found, expected, what):
    """Assert equal shape, dtype and bits."""
    assert found.dtype == expected.dtype and found.shape == expected.shape, (
        f"{what}: {found.dtype}{found.shape} is not {expected.dtype}{expected.shape}")
    assert found.tobytes() == expected.tobytes(), f"{what}: {found} is not {expected}"


def refused(kind, words, function, *args, **kwargs):
    """Assert that a call raises `kind` with every one of `words` in its message."""
    try:
        function(*args, **kwargs)
    except kind as error:
        missing = [word for word in words if word not in str(error)]
        assert not missing, f"{missing} not in {error}"
    else:
        raise AssertionError(f"{function.__name__}{args} was not refused")


def ops_of(dtype):
    return [*REDUCTIONS, "mean"] if np.dtype(dtype).kind == "f" else list(REDUCTIONS)


# ------------------------------------------------------------------ collectives


def all_reduce(comm, dtypes=DTYPES):
    p = comm.size
    for dtype in dtypes:
        for n in sizes(p):
            for op in ops_of(dtype):
                buffer, x = guarded(values(comm.rank, p, n, dtype, op))
                assert comm.all_reduce(x, op) is None
                same(x, reduced(p, n, dtype, op), f"all_reduce {op} of {n} {x.dtype}")
                assert (buffer[n:] == GUARD).all()


def reduce_scatter_gather_broadcast(comm, dtypes=DTYPES):
    p, rank = comm.size, comm.rank
    for dtype in dtypes:
        for n in sizes(p):
            what = f"of {n} {np.dtype(dtype)}"
            mine = values(rank, p, n, dtype)
            for op in ops_of(dtype):
                given = values(rank, p, n, dtype, op)
                part = comm.reduce_scatter(given, op)
                same(part, reduced(p, n, dtype, op)[rank * n // p:(rank + 1) * n // p],
                     f"reduce_scatter {op} {what}")
                same(given, values(rank, p, n, dtype, op), f"reduce_scatter's input {what}")
            table = comm.all_gather(mine)
            same(table, np.stack([values(r, p, n, dtype) for r in range(p)]),
                 f"all_gather {what}")
            for root in range(p):
                buffer, x = guarded(mine)
                comm.broadcast(x, root)
                same(x, values(root, p, n, dtype), f"broadcast from {root} {what}")
                assert (buffer[n:] == GUARD).all()


def all_ranks_get_the_same_bits(comm):
    p = comm.size
    for dtype in FLOATS:
        given = [np.random.default_rng([7, r]).normal(size=1001).astype(dtype) for r in range(p)]
        x = given[comm.rank].copy()
        comm.all_reduce(x)
        exact = np.sum([g.astype(np.float64) for g in given], axis=0)
        scale = np.sum([np.abs(g.astype(np.float64)) for g in given], axis=0)
        assert (np.abs(x - exact) <= p * np.finfo(dtype).eps * scale).all()
        table = comm.all_gather(x)
        for row in table:
            same(row, x, "another rank's result")


def arrays_of_any_layout(comm):
    p, rank = comm.size, comm.rank

    def pattern(r):
        return np.arange(24.0).reshape(4, 6) * p + r
    total = sum(pattern(r) for r in range(p))
    big = np.full((8, 12), GUARD, float)
    layouts = {"every second": big[::2, ::2], "reversed": np.empty((4, 6))[::-1, ::-1],
               "Fortran": np.empty((4, 6), order="F"), "transposed": np.empty((6, 4)).T}
    for name, x in layouts.items():
        x[...] = pattern(rank)
        comm.all_reduce(x)
        same(np.ascontiguousarray(x), total, f"{name} all_reduce")
        x[...] = pattern(rank)
        comm.broadcast(x, p - 1)
        same(np.ascontiguousarray(x), pattern(p - 1), f"{name} broadcast")
        x[...] = pattern(rank)
        same(comm.all_gather(x), np.stack([pattern(r) for r in range(p)]), f"{name} all_gather")
        same(comm.reduce_scatter(x), total.reshape(-1)[rank * 24 // p:(rank + 1) * 24 // p],
             f"{name} reduce_scatter")
    assert (big[1::2] == GUARD).all() and (big[:, 1::2] == GUARD).all()
    zero = np.array(rank + 1.0)
    comm.all_reduce(zero)
    same(zero, np.array(p * (p + 1) / 2), "0-d all_reduce")
    comm.all_reduce(zero, "mean")
    same(zero, np.array(p * (p + 1) / 2), "0-d mean")
    zero = np.array(rank + 5)
    comm.broadcast(zero, p - 1)
    same(zero, np.array(p + 4), "0-d broadcast")
    same(comm.all_gather(np.array(rank)), np.arange(p), "0-d all_gather")


def tensors(comm):
    p, rank = comm.size, comm.rank
    t = Tensor(values(rank, p, 10, np.float32).reshape(2, 5))
    same(comm.all_gather(t).array,
         np.stack([values(r, p, 10, np.float32).reshape(2, 5) for r in range(p)]), "all_gather")
    part = comm.reduce_scatter(t)
    assert isinstance(part, Tensor) and t.storage.version == 0
    before = t.storage.version
    comm.all_reduce(t)
    assert t.storage.version == before + 1
    same(t.array, reduced(p, 10, np.float32, "sum").reshape(2, 5), "all_reduce of a tensor")
    same(part.array, t.array.reshape(-1)[rank * 10 // p:(rank + 1) * 10 // p], "reduce_scatter")
    comm.broadcast(t, 0)
    assert t.storage.version == before + 2
    refused(TypeError, ["list"], comm.all_reduce, [1.0, 2.0])


def barrier(comm):
    """Nobody leaves before all have come; clocks of one machine's ranks are one clock."""
    for last in range(comm.size):
        if comm.rank == last:
            time.sleep(0.02)
        came = time.monotonic()
        comm.barrier()
        left = time.monotonic()
        assert left >= comm.all_gather(np.array(came)).max()


# ------------------------------------------------------------------ plans and async


def collectives_in_flight(comm):
    p, rank = comm.size, comm.rank
    for order in ((3, 1, 0, 2), (0, 1, 2, 3), (2, 3, 1, 0)):
        lengths = (10_007, 1, 100, p)
        buffers = [values(rank, p, n, np.float64) for n in lengths]
        strided = np.zeros((50, 2))[:, 0]
        strided[...] = rank
        works = [comm.all_reduce(x, "mean", async_op=True) for x in buffers]
        last = comm.all_reduce(strided, "max", async_op=True)
        for i in order:
            works[i].wait()
            works[i].wait()
            assert works[i].done and works[i].test()
            same(buffers[i], reduced(p, lengths[i], np.float64, "mean"), f"number {i}")
        while not last.test():
            time.sleep(0)
        assert (strided == p - 1).all()


def more_in_flight_than_tags(comm):
    p, rank = comm.size, comm.rank
    count = 600
    buffers = [np.array([rank + i, rank * i, i], np.int64) for i in range(count)]
    works = [comm.all_reduce(x, async_op=True) for x in buffers]
    for work in reversed(works):
        work.wait()
    ranks = p * (p - 1) // 2
    for i, x in enumerate(buffers):
        same(x, np.array([ranks + i * p, ranks * i, i * p]), f"number {i} of {count}")


def a_kept_plan_meets_no_later_one(comm):
    """A plan that stays while hundreds come and go is not confused with a new one."""
    p, rank = comm.size, comm.rank
    kept, other = np.empty(257), np.empty(257)
    old = comm.plan("all_reduce", kept)
    for _ in range(511):
        comm.free(comm.plan("all_reduce", other))
    new = comm.plan("all_reduce", other)
    for i in range(20):
        kept[...], other[...] = rank + i, -rank - i
        old.start()
        new.start()
        if (rank + i) % 2:
            old.wait()
        new.wait()
        old.wait()
        total = p * (p - 1) / 2 + p * i
        assert (kept == total).all() and (other == -total).all()
    comm.free(old)
    comm.free(new)


def plans_started_again(comm):
    p, rank = comm.size, comm.rank
    a, b = np.empty(1000, np.float32), np.empty((7, 3), np.int64)
    first, second = comm.plan("all_reduce", a), comm.plan("all_reduce", b, op="max")
    for i in range(100):
        a[...], b[...] = rank + i, rank * i
        first.start()
        second.start()
        if p > 1 and not first.done:
            refused(RuntimeError, ["in flight"], first.start)
        (first if (i + rank) % 2 else second).wait()
        first.wait()
        second.wait()
        assert (a == p * (p - 1) / 2 + p * i).all() and (b == (p - 1) * i).all(), i
    comm.free(first)
    comm.free(second)
    refused(ValueError, ["contiguous"], comm.plan, "all_reduce", np.empty((4, 4))[:, 0])


@collective("all_reduce")
def star(rank, size, x):
    """Everybody to rank 0, one after another, and back."""
    for other in range(1, size):
        if rank == 0:
            yield recv_reduce(x, other)
        elif rank == other:
            yield send(x, 0)
    if rank == 0:
        yield [send(x, other) for other in range(1, size)]
    else:
        yield recv(x, 0)


def programs_of_the_user(comm):
    p = comm.size
    for n in sizes(p):
        x = values(comm.rank, p, n, np.float64)
        comm.all_reduce(x, algorithm=star)
        same(x, reduced(p, n, np.float64, "sum"), f"star of {n}")
    refused(ValueError, ["star", "all_reduce", "broadcast"], comm.broadcast, np.zeros(3),
            algorithm=star)


# ------------------------------------------------------------------ groups and messages


def split(comm):
    p, rank = comm.size, comm.rank
    half = comm.split(rank % 2, key=-rank)
    members = [r for r in reversed(range(p)) if r % 2 == rank % 2]
    assert (half.rank, half.size) == (members.index(rank), len(members))
    assert half.all_gather(np.array(rank)).tolist() == members
    nested = half.split(half.rank // 2)
    inner = [m for i, m in enumerate(members) if i // 2 == half.rank // 2]
    assert nested.all_gather(np.array(rank)).tolist() == inner
    some = comm.split(None if rank == 0 else 5, key=0)
    assert (some is None) == (rank == 0)
    x, y, z = np.array([rank + 1.0]), np.array([rank + 1.0]), np.array([rank + 1.0])
    works = [comm.all_reduce(x, async_op=True), half.all_reduce(y, async_op=True),
             nested.all_reduce(z, async_op=True)]
    if some is not None:
        assert some.all_gather(np.array(rank)).tolist() == list(range(1, p))
    for i in (2, 0, 1):
        works[i].wait()
    assert x[0] == p * (p + 1) / 2
    assert y[0] == sum(r + 1 for r in members) and z[0] == sum(r + 1 for r in inner)
    for group in (half, nested, some):
        if group is not None:
            group.barrier()


def groups_of_the_same_ranks_are_apart(comm):
    """Collectives of two groups with the same members, started in another order on each rank."""
    p, rank = comm.size, comm.rank
    groups = [comm.split(0), comm.split(0), comm.split(1)]
    for _ in range(3):
        buffers = [np.array([rank + 1.0, 10.0**i]) for i in range(3)]
        works = [None] * 3
        for i in [(rank + k) % 3 for k in range(3)]:
            works[i] = groups[i].all_reduce(buffers[i], async_op=True)
        for work in works:
            work.wait()
        for i, x in enumerate(buffers):
            same(x, np.array([p * (p + 1) / 2, p * 10.0**i]), f"group {i}")


def messages(comm):
    p, rank = comm.size, comm.rank
    refused(ValueError, [f"rank {rank} of {p}", f"peer {rank}"], comm.send, np.zeros(1), rank)
    refused(ValueError, [f"peer {p}"], comm.irecv, np.zeros(1), p)
    refused(ValueError, ["peer -1"], comm.isend, np.zeros(1), -1)
    if p == 1:
        return
    refused(ValueError, ["tag -1"], comm.isend, np.zeros(1), (rank + 1) % p, -1)
    right, left = (rank + 1) % p, (rank - 1) % p
    # Many tags, received in another order than sent; twice each, first in first out.
    sent = [np.arange(i + 1.0) * p + rank + 100 * k for k in range(2) for i in range(20)]
    sends = [comm.isend(x, right, tag=i % 20) for i, x in enumerate(sent)]
    got, receives = {}, []
    for tag in reversed(range(20)):
        for k in range(2):
            got[k, tag], view = guarded(np.zeros(tag + 1))
            receives.append(comm.irecv(view, left, tag))
    for work in receives[1::2] + receives[::2] + sends[::-1]:
        work.wait()
    for (k, tag), buffer in got.items():
        same(buffer[:-3], np.arange(tag + 1.0) * p + left + 100 * k, f"message {k} of tag {tag}")
        assert (buffer[-3:] == GUARD).all()
    # Shapes may differ at the two ends, arrays be 0-d, empty or strided.
    for dtype in DTYPES:
        work = comm.isend(values(rank, p, 6, dtype).reshape(2, 3), right)
        x = np.zeros((6, 2), dtype)
        comm.recv(x[:, 1], left)
        work.wait()
        same(x[:, 1].copy(), values(left, p, 6, dtype), "a strided receive")
        assert not x[:, 0].any()
    for given in (np.array(3.5 + rank), np.zeros((0, 3)), values(rank, p, 8, np.int32)[::-2]):
        work = comm.isend(given, right)
        x = np.full_like(given, GUARD)
        comm.recv(x, left)
        work.wait()
        same(x, given + np.asarray(left - rank, given.dtype), "a message")
    t = Tensor(np.zeros(3))
    work = comm.isend(Tensor(np.full(3, rank + 1.0)), right)
    comm.recv(t, left)
    work.wait()
    assert (t.array == left + 1).all() and t.storage.version == 1


def refusals(comm):
    p, x = comm.size, np.zeros(4)
    refused(ValueError, [f"root {p}", f"{p} ranks"], comm.broadcast, x, p)
    refused(ValueError, ["root -1"], comm.broadcast, x, -1)
    refused(ValueError, ["'summ'", "sum"], comm.all_reduce, x, "summ")
    refused(ValueError, ["'rng'", "did you mean ring?"], comm.all_reduce, x, algorithm="rng")
    refused(ValueError, ["'zzz'", "binomial"], comm.broadcast, x, algorithm="zzz")
    for dtype in (np.int64, np.int32, np.uint8):
        refused(TypeError, ["mean", np.dtype(dtype).name], comm.all_reduce,
                np.zeros(4, dtype), "mean")
        refused(TypeError, ["mean", np.dtype(dtype).name], comm.reduce_scatter,
                np.zeros(4, dtype), "mean")
    comm.barrier()


CASES = [all_reduce, reduce_scatter_gather_broadcast, all_ranks_get_the_same_bits,
         arrays_of_any_layout, tensors, barrier, collectives_in_flight, more_in_flight_than_tags,
         a_kept_plan_meets_no_later_one, plans_started_again, programs_of_the_user, split,
         groups_of_the_same_ranks_are_apart, messages, refusals]
