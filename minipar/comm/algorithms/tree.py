"""Logarithmic algorithms, and the linear ones that they are measured against.

In a binomial tree the ranks are counted from the root, upwards and around. The subtree of the
one at distance d has 2^k members, d to d + 2^k - 1, if 2^k is the lowest bit of d.
"""

from ..program import collective, recv, recv_reduce, register, send
from .blocks import around, ceil_lg


@register
@collective("broadcast")
def binomial(rank, size, x, root=0):
    """ceil(lg p) rounds of n bytes. In round k the 2^k ranks nearest to the root (going up) have
    the data, and each passes it on to the one 2^k further."""
    distance = (rank - root) % size
    reach = 1
    while reach < size:
        if distance < reach and distance + reach < size:
            yield send(x, (rank + reach) % size)
        elif reach <= distance < 2 * reach:
            yield recv(x, (rank - reach) % size)
        reach *= 2


@register
@collective("reduce", name="binomial")
def binomial_reduce(rank, size, x, root=0):
    """ceil(lg p) rounds; each rank but the root sends n bytes, the root reduces n ceil(lg p)."""
    distance = (rank - root) % size
    for k in range(ceil_lg(size)):
        if distance & 1 << k:
            yield send(x, (rank - (1 << k)) % size)
            return
        if distance + (1 << k) < size:
            yield recv_reduce(x, (rank + (1 << k)) % size)


@register
@collective("gather", name="binomial")
def binomial_gather(rank, size, x, root=0):
    """ceil(lg p) rounds; the root receives n(p-1)/p bytes, another sends its subtree's blocks.

    A subtree's blocks that wrap around the last rank go as two messages in one round.
    """
    distance = (rank - root) % size
    for k in range(ceil_lg(size)):
        if distance & 1 << k:
            count = min(1 << k, size - distance)
            yield [send(part, (rank - (1 << k)) % size) for part in around(x, size, rank, count)]
            return
        if distance + (1 << k) < size:
            child, count = rank + (1 << k), min(1 << k, size - distance - (1 << k))
            yield [recv(part, child % size) for part in around(x, size, child, count)]


@register
@collective("scatter", name="binomial")
def binomial_scatter(rank, size, x, root=0):
    """ceil(lg p) rounds; the root sends n(p-1)/p bytes: the gather's messages, backwards."""
    distance = (rank - root) % size
    for k in reversed(range(ceil_lg(size))):
        if distance % (2 << k) == 1 << k:
            count = min(1 << k, size - distance)
            yield [recv(part, (rank - (1 << k)) % size) for part in around(x, size, rank, count)]
        elif distance % (2 << k) == 0 and distance + (1 << k) < size:
            child, count = rank + (1 << k), min(1 << k, size - distance - (1 << k))
            yield [send(part, child % size) for part in around(x, size, child, count)]


@register
@collective("all_reduce")
def binomial_reduce_broadcast(rank, size, x):
    """2 ceil(lg p) rounds of n bytes: a reduction at rank 0, and a broadcast from there."""
    yield from binomial_reduce(rank, size, x, root=0)
    yield from binomial(rank, size, x, root=0)


@register
@collective("all_reduce")
def naive(rank, size, x):
    """2(p-1) messages of n bytes, all of them at rank 0: it reduces what the others send, in the
    order of ranks, and sends them the result. What every other algorithm is measured against."""
    for other in range(1, size):
        if rank == 0:
            yield recv_reduce(x, other)
        elif rank == other:
            yield send(x, 0)
    for other in range(1, size):
        if rank == 0:
            yield send(x, other)
        elif rank == other:
            yield recv(x, 0)


@register
@collective("gather")
def linear(rank, size, x, root=0):
    """One round of p-1 messages at the root; every other rank sends its block, n/p bytes."""
    chunk = x.split(size)
    if rank == root:
        yield [recv(chunk[other], other) for other in range(size) if other != root]
    else:
        yield send(chunk[rank], root)


@register
@collective("scatter", name="linear")
def linear_scatter(rank, size, x, root=0):
    """One round of p-1 messages at the root, n/p bytes each."""
    chunk = x.split(size)
    if rank == root:
        yield [send(chunk[other], other) for other in range(size) if other != root]
    else:
        yield recv(chunk[rank], root)


@register
@collective("barrier")
def dissemination(rank, size, x):
    """ceil(lg p) rounds without data: after round k each rank has heard, directly or not, from
    the 2^(k+1) - 1 ranks below it. Hensgen, Finkel, Manber 1988."""
    nothing, reach = x[0:0], 1
    while reach < size:
        yield send(nothing, (rank + reach) % size), recv(nothing, (rank - reach) % size)
        reach *= 2
