"""Collectives in shared memory, by every rank of a job; prints `ok` once."""

import numpy as np

from minipar.comm import collective, copy, fence, get, get_reduce, put, world


@collective("all_reduce")
def reduce_and_put(rank, size, x):
    """Each rank reduces its part straight from every peer, and writes it to every peer."""
    mine, others = x.split(size)[rank], [(rank + i) % size for i in range(1, size)]
    yield fence()
    for block in mine.blocks(1000):
        for peer in others:
            yield get_reduce(block, peer)
        yield [put(block, peer) for peer in others]
    yield fence()


@collective("all_gather")
def read_all(rank, size, x):
    """Each rank reads every peer's block."""
    parts = x.split(size)
    yield fence()
    yield [get(parts[peer], peer) for peer in range(size) if peer != rank]
    yield fence()


@collective("broadcast")
def from_scratch(rank, size, x, root, scratch):
    """The root's data goes through a buffer of the program's own, at another place."""
    landing = scratch(len(x) + 3)[3:]
    if rank == root:
        yield [put(x, peer, landing) for peer in range(size) if peer != rank]
    yield fence()
    if rank != root:
        yield copy(landing, x)
    yield fence()


def values(rank, n, dtype):
    """Distinct for every rank and element; products stay exact."""
    return (np.arange(n) % 89 + rank * 7).astype(dtype)


def check(comm):
    ranks, p = range(comm.size), comm.size
    for n in (0, 1, p - 1, p, 100, 10_007):
        for dtype in (np.float32, np.float64, np.int64):
            total = sum(values(r, n, dtype) for r in ranks)
            largest = np.max([values(r, n, dtype) for r in ranks], axis=0)
            guarded = np.full(n + 2, 77, dtype)
            ordinary = guarded[1:-1]
            shared = comm.empty((n,), dtype)
            for x in (ordinary, shared):
                for op, expected in (("sum", total), ("max", largest)):
                    x[...] = values(comm.rank, n, dtype)
                    comm.all_reduce(x, op=op, algorithm=reduce_and_put)
                    assert (x == expected).all(), (n, dtype, op)
                root = n % p
                x[...] = values(comm.rank, n, dtype)
                comm.broadcast(x, root, algorithm=from_scratch)
                assert (x == values(root, n, dtype)).all(), (n, dtype, root)
            assert guarded[0] == guarded[-1] == 77
            gathered = comm.all_gather(values(comm.rank, n, dtype), algorithm=read_all)
            for r in ranks:
                assert (gathered[r] == values(r, n, dtype)).all()
    many_at_once(comm)
    in_a_part(comm)


def many_at_once(comm):
    """More in flight than plans are kept of one length, mixed with messages."""
    arrays = [np.full(50 + i % 2, comm.rank + i) for i in range(9)]
    works = [comm.all_reduce(a, async_op=True,
                             algorithm=reduce_and_put if i % 3 else "ring")
             for i, a in enumerate(arrays)]
    for work in reversed(works):
        work.wait()
    base = comm.size * (comm.size - 1) // 2
    assert all((a == base + i * comm.size).all() for i, a in enumerate(arrays))
    kept = comm.empty((1000,), np.float64)
    plan = comm.plan("all_reduce", kept, algorithm=reduce_and_put)
    for step in range(20):
        kept[...] = comm.rank + step
        plan.start()
        plan.wait()
        assert (kept == base + step * comm.size).all()


def in_a_part(comm):
    part = comm.split(comm.rank % 2, -comm.rank)
    x = np.full(5, comm.rank, np.float64)
    part.all_reduce(x, algorithm=reduce_and_put)
    assert (x == sum(r for r in range(comm.size) if r % 2 == comm.rank % 2)).all()


if __name__ == "__main__":
    check(world())
    world().barrier()
    if world().rank == 0:
        print("ok", flush=True)
