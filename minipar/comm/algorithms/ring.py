"""Ring algorithms: every rank sends to its right neighbour and receives from its left.

The buffer is cut into one chunk per rank. A chunk travels round the ring; in the reduce-scatter
each rank adds its own contribution as it passes, in the all-gather each rank keeps a copy.
Optimal in bytes for any number of ranks: Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce
algorithms for clusters of workstations".
"""

from ..program import collective, copy, recv, recv_reduce, register, send


def _reduce_scatter(rank, size, chunk, offset):
    """After size - 1 rounds this rank holds the whole sum of chunk[rank + offset]."""
    right, left = (rank + 1) % size, (rank - 1) % size
    for s in range(size - 1):
        mine = rank + offset - 1 - s  # the chunk that goes on; the one behind it arrives
        yield send(chunk[mine], right), recv_reduce(chunk[mine - 1], left)


def _all_gather(rank, size, chunk, offset):
    """From every rank holding chunk[rank + offset] to every rank holding all of them."""
    right, left = (rank + 1) % size, (rank - 1) % size
    for s in range(size - 1):
        mine = rank + offset - s
        yield send(chunk[mine], right), recv(chunk[mine - 1], left)


@register
@collective("all_reduce")
def ring(rank, size, x):
    """2(p-1) rounds; each rank sends 2n(p-1)/p bytes and reduces n(p-1)/p."""
    chunk = x.split(size)
    yield from _reduce_scatter(rank, size, chunk, 1)
    yield from _all_gather(rank, size, chunk, 1)


@register
@collective("reduce_scatter", name="ring")
def ring_reduce_scatter(rank, size, x):
    """p-1 rounds; each rank sends and reduces n(p-1)/p bytes."""
    yield from _reduce_scatter(rank, size, x.split(size), 0)


@register
@collective("all_gather", name="ring")
def ring_all_gather(rank, size, x):
    """p-1 rounds; each rank sends n(p-1)/p bytes."""
    yield from _all_gather(rank, size, x.split(size), 0)


@register
@collective("all_gather_into", name="ring")
def ring_all_gather_into(rank, size, input, output):
    """p-1 rounds; each rank sends n(p-1)/p bytes."""
    block = output.split(size)
    yield copy(input, block[rank])
    yield from _all_gather(rank, size, block, 0)
