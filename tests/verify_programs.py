"""Correct programs for the tests of the verifier, beside the registered ones: with local work,
channels, and one-sided operations of every kind."""

from minipar.comm import (both, channels, collective, copy, fence, get, get_reduce, put, recv,
                          recv_reduce, reduce, send)
from minipar.comm.algorithms.ring import ring
from minipar.comm.program import ALGORITHMS


@collective("all_reduce", ranks="power_of_two")
def doubling(rank, size, x, scratch):
    there, reach = scratch(len(x)), 1
    while reach < size:
        yield send(x, rank ^ reach), recv(there, rank ^ reach)
        yield reduce(there, x)
        reach *= 2


@collective("reduce")
def to_the_root(rank, size, x, root):
    place, reach = (rank - root) % size, 1
    while reach < size:
        if place % (2 * reach) == reach:
            yield send(x, (rank - reach) % size)
            return
        if place + reach < size:
            yield recv_reduce(x, (rank + reach) % size)
        reach *= 2


@collective("all_gather")
def puts(rank, size, x):
    mine = x.split(size)[rank]
    yield fence()
    yield [put(mine, peer) for peer in range(size) if peer != rank]
    yield fence()


@collective("all_reduce")
def windows(rank, size, x):
    """Each rank reduces its part from everyone, then gets the others'."""
    part = x.split(size)
    yield fence()
    for k in range(1, size):
        yield get_reduce(part[rank], (rank + k) % size)
    yield fence()
    yield [get(part[peer], peer) for peer in range(size) if peer != rank]
    yield fence()


@collective("broadcast")
def through_scratch(rank, size, x, root, scratch):
    """The root puts into everyone's scratch, from where each copies."""
    landing = scratch(len(x))
    yield fence()
    if rank == root:
        yield [put(x, peer, landing) for peer in range(size) if peer != root]
    yield fence()
    if rank != root:
        yield copy(landing, x)


@collective("all_gather")
def both_ways(rank, size, x):
    """Rings in both directions, each for half of every block, on channels of their own."""
    block = x.split(size)

    def round_about(step, half):
        for s in range(size - 1):
            mine, theirs = block[rank - s * step], block[rank - (s + 1) * step]
            yield (send(half(mine), (rank + step) % size), recv(half(theirs), (rank - step) % size))
    yield from both(round_about(1, lambda b: b[:len(b) // 2]),
                    round_about(-1, lambda b: b[len(b) // 2:]))


OWN = [doubling, to_the_root, puts, windows, through_scratch, both_ways, channels(ring, 2)]
PROGRAMS = [p for table in ALGORITHMS.values() for p in table.values()] + OWN
