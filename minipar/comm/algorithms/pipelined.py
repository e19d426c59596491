"""Chains and trees that pass the vector on in segments, so that all of their links work at once.

Every message has a time, the same at both of its ends, and each rank's rounds follow these times:
so ranks never wait for one another in a circle, whatever they do besides.
"""

from math import isqrt

from ..compose import both, on
from ..program import collective, recv, recv_reduce, register, send
from .blocks import ceil_lg
from .ring import ring_all_gather
from .tree import binomial_scatter

ROUND = 4096  # elements that take as long to send as a round takes to begin: 16 KiB of float32,
#               where networks have about 4 KiB and shared memory about 64 KiB


def segments(x, depth):
    """x in the number of segments that costs least when they pass `depth` links one by one.

    k segments take (depth + k)(alpha + n beta / k), which is least for k = sqrt(depth n beta /
    alpha).
    """
    return x.split(max(1, isqrt(depth * len(x) // ROUND)))


@register
@collective("broadcast")
def chain(rank, size, x, root=0):
    """p-2+k rounds of n/k bytes, in k segments: each rank passes them on to the next one."""
    yield from chain_of(rank, size, segments(x, size - 2) if size > 2 else x.split(1), root)


def chain_of(rank, size, segment, root):
    """A broadcast along a chain, of a given list of segments."""
    distance, k = (rank - root) % size, len(segment)
    right, left = (rank + 1) % size, (rank - 1) % size
    for time in range(size - 2 + k):
        ops, goes, comes = [], time - distance, time - distance + 1
        if distance < size - 1 and 0 <= goes < k:
            ops.append(send(segment[goes], right))
        if distance > 0 and 0 <= comes < k:
            ops.append(recv(segment[comes], left))
        if ops:
            yield ops


def parent(place, size):
    """The parent of a place in a binary tree in order; None of place 0, the root.

    The lowest bit of a place tells its height, so the leaves are the odd ones; a parent that
    would be beyond the last place is passed over.
    """
    if place == 0:
        return None
    bit = place & -place
    above = (place ^ bit) | bit << 1
    return above if above < size else place ^ bit


def children(place, size):
    """The children of a place in that tree, at most two; the root has one."""
    if place == 0:
        return [1 << ceil_lg(size) - 1] if size > 1 else []
    reach = (place & -place) >> 1
    first = [place - reach] if reach else []
    while reach and place + reach >= size:
        reach >>= 1
    return first + ([place + reach] if reach else [])


def tree(place, size, segment):
    """All-reduce along the tree, one (maybe empty) round for each time.

    Segment i leaves a place of depth d for its parent at time 2(height - d) + i, one later if it
    is a second child, so that a parent reduces one child's at a time; it is complete at the root
    before 2 height + i, and leaves a place of depth d for its children at 2 height + d + i.
    """
    up, down, height, k = parent(place, size), children(place, size), ceil_lg(size), len(segment)
    depth, above = 0, up
    while above is not None:
        depth, above = depth + 1, parent(above, size)
    late = up is not None and place != children(up, size)[0]
    for time in range(3 * height + k - 1):
        ops = []
        for j, child in enumerate(down):
            if 0 <= (i := time - 2 * (height - depth - 1) - j) < k:
                ops.append(recv_reduce(segment[i], child))
            if 0 <= (i := time - 2 * height - depth) < k:
                ops.append(send(segment[i], child))
        if up is not None:
            if 0 <= (i := time - 2 * (height - depth) - late) < k:
                ops.append(send(segment[i], up))
            if 0 <= (i := time - 2 * height - depth + 1) < k:
                ops.append(recv(segment[i], up))
        yield ops


@register
@collective("all_reduce")
def double_binary_tree(rank, size, x):
    """3 ceil(lg p) + k - 1 rounds of n/k bytes, in k segments of each half; a rank sends 2n bytes
    at most, and reduces n.

    Each half of the vector goes up and down a tree of its own. A rank that is within one of them
    is a leaf of the other (all but rank 0, if p is odd), so that all ranks work alike. The second
    tree is the first one backwards for even p, and one further for odd p. Sanders, Speck, Traeff
    2009, "Two-tree algorithms for full bandwidth broadcast, reduction and scan".
    """
    half = x.split(2)
    yield from double_tree_of(rank, size, [segments(part, 3 * ceil_lg(size)) for part in half])


def double_tree_of(rank, size, segment):
    """The all-reduce along two trees, of given lists of segments."""
    if size % 2 == 0:
        place, order = size - 1 - rank, range(size - 1, -1, -1)
    else:
        place, order = (rank - 1) % size, [(i + 1) % size for i in range(size)]
    for ops in both(tree(rank, size, segment[0]), on(order, tree(place, size, segment[1]))):
        if ops:
            yield ops


@register
@collective("broadcast")
def scatter_all_gather(rank, size, x, root=0):
    """ceil(lg p) + p-1 rounds; the root sends 2n(p-1)/p bytes, no rank more.

    A binomial scatter of blocks, then a ring. Van de Geijn 1994; Barnett et al. 1994.
    """
    order = [(root + i) % size for i in range(size)]
    place = order.index(rank)
    yield from on(order, binomial_scatter(place, size, x, root=0))
    yield from on(order, ring_all_gather(place, size, x))
