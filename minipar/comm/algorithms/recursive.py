"""Recursive halving and doubling: 2^k ranks, and in each round a partner at another distance.

Halving: two partners that work on the same blocks share them out: each sends the half that it
gives up and reduces what comes into the half that it keeps, until every rank has one block.
Doubling is the same backwards, with whole results. Thakur, Rabenseifner, Gropp 2005,
"Optimization of collective communication operations in MPICH"; Rabenseifner 2004.

Other numbers of ranks are folded to 2^k first, as MPICH does: `folded`.
"""

from ..compose import on
from ..program import collective, copy, recv, recv_reduce, reduce, register, send
from .blocks import runs


def halving(place, parts, run, peer):
    """Reduce-scatter in lg(parts) rounds: the rank at `place` ends with run(place, place + 1).

    run(a, b): the chunk of blocks a to b - 1. peer(s): the partner in round s, which must be in
    the other half of the places that still work on the same blocks.
    """
    low, high, s = 0, parts, 0
    while high - low > 1:
        middle = (low + high) // 2
        keep, give = ((low, middle), (middle, high))[::1 if place < middle else -1]
        yield send(run(*give), peer(s)), recv_reduce(run(*keep), peer(s))
        (low, high), s = keep, s + 1


def doubling(place, parts, run, peer):
    """All-gather in lg(parts) rounds, from what `halving` with the same arguments ends with."""
    for s in reversed(range(parts.bit_length() - 1)):
        width = parts >> (s + 1)
        mine = place - place % width
        other = mine ^ width
        yield send(run(mine, mine + width), peer(s)), recv(run(other, other + width), peer(s))


def across(place, parts):
    """Partners that differ in one bit, the highest first: a hypercube."""
    return lambda s: place ^ (parts >> (s + 1))


def staying(size):
    """The ranks that stay when `size` is folded to 2^k: of the first 2r, r = size - 2^k, the odd
    ones; and all others."""
    spare = size - (1 << size.bit_length() - 1)
    return [*range(1, 2 * spare, 2), *range(2 * spare, size)]


def folded(rank, size, x, inside, result):
    """Run inside(place, 2^k) between 2^k ranks; the others hand x to the next one before it.

    result: the chunk that they get back from it afterwards; None if nothing. At most 2 rounds
    more, and the ranks that take part in them send and receive n bytes more.
    """
    stay = staying(size)
    paired = rank < 2 * (size - len(stay))
    if paired and rank % 2 == 0:
        yield send(x, rank + 1)
        if result is not None:
            yield recv(result, rank + 1)
        return
    if paired:
        yield recv_reduce(x, rank - 1)
    yield from on(stay, inside(stay.index(rank), len(stay)))
    if paired and result is not None:
        yield send(result, rank - 1)


@register
@collective("all_reduce")
def recursive_doubling(rank, size, x, scratch):
    """lg p rounds (floor(lg p) + 2 if p is not 2^k); each rank sends and reduces n lg p bytes.

    Partners exchange all that they have. Both put the lower rank's operand first: so they get the
    same bits even of NaNs, and of maxima of 0 and -0.
    """
    def inside(place, parts):
        here, there, reach = x, scratch(len(x)), 1
        while reach < parts:
            peer = place ^ reach
            yield send(here, peer), recv(there, peer)
            if place < peer:
                yield reduce(there, here)
            else:
                yield reduce(here, there)
                here, there = there, here
            reach *= 2
        if here is not x:
            yield copy(here, x)
    yield from folded(rank, size, x, inside, x)


@register
@collective("all_reduce")
def rabenseifner(rank, size, x):
    """2 lg p rounds; each rank sends 2n(p-1)/p bytes and reduces n(p-1)/p: halving, then doubling.

    If p is not 2^k: 2 floor(lg p) + 2 rounds, and up to 2n bytes more. Rabenseifner 2004.
    """
    def inside(place, parts):
        run, peer = runs(x, parts), across(place, parts)
        yield from halving(place, parts, run, peer)
        yield from doubling(place, parts, run, peer)
    yield from folded(rank, size, x, inside, x)


@register
@collective("reduce_scatter")
def recursive_halving(rank, size, x):
    """lg p rounds; each rank sends and reduces n(p-1)/p bytes.

    If p is not 2^k: floor(lg p) + 2 rounds, and n bytes more; who stays serves two ranks' blocks.
    """
    run, spare = runs(x, size), size - len(staying(size))

    def inside(place, parts):
        yield from halving(place, parts, lambda a, b: run(a + min(a, spare), b + min(b, spare)),
                           across(place, parts))
    yield from folded(rank, size, x, inside, x.split(size)[rank - rank % 2])


@register
@collective("all_gather", ranks="power_of_two", name="recursive_doubling")
def recursive_doubling_all_gather(rank, size, x):
    """lg p rounds; each rank sends n(p-1)/p bytes."""
    yield from doubling(rank, size, runs(x, size), across(rank, size))


@register
@collective("reduce", name="rabenseifner")
def rabenseifner_reduce(rank, size, x, root=0):
    """2 lg p rounds; a rank sends at most n(p-1)/p + n/2 bytes, and reduces n(p-1)/p.

    Halving, then the blocks are gathered along a binomial tree. If p is not 2^k: 2 floor(lg p) + 1
    rounds, and n bytes from those that are folded. Rabenseifner 2004.
    """
    order = [(root + 1 + i) % size for i in range(size)]  # the root last: it stays when folded

    def inside(place, parts):
        run, peer = runs(x, parts), across(place, parts)
        yield from halving(place, parts, run, peer)
        width = 1
        while width < parts:
            mine = place - place % width
            if not place & width:
                yield send(run(mine, mine + width), place + width)
                return
            yield recv(run(mine - width, mine), place - width)
            width *= 2
    yield from on(order, folded(order.index(rank), size, x, inside, None))
