"""Algorithms for ranks that can touch each other's memory: one-sided, between fences.

No message waits for its receiver, and nothing is copied twice. A block is reduced and passed on
while it is in the cache.
"""

from ..program import Chunk, collective, copy, fence, get, get_reduce, put, register
from .direct import others

BLOCK = 32768  # elements: 128 KiB of float32


@register
@collective("all_reduce")
def shared(rank, size, x):
    """2 fences; each rank reads and reduces n(p-1)/p bytes of its peers, and writes as many.

    Each rank reduces its part of the vector straight from every peer's memory, and puts the result
    into it, block by block: nobody else touches that part in between.
    """
    yield fence()
    for block in x.split(size)[rank].blocks(BLOCK):
        for peer in others(rank, size):
            yield get_reduce(block, peer)
        yield [put(block, peer) for peer in others(rank, size)]
    yield fence()


@register
@collective("reduce_scatter", name="shared")
def shared_reduce_scatter(rank, size, x):
    """2 fences; each rank reads and reduces n(p-1)/p bytes of its peers."""
    yield fence()
    for block in x.split(size)[rank].blocks(BLOCK):
        for peer in others(rank, size):
            yield get_reduce(block, peer)
    yield fence()


@register
@collective("all_gather", name="shared")
def shared_all_gather(rank, size, x):
    """2 fences; each rank reads n(p-1)/p bytes of its peers."""
    block = x.split(size)
    yield fence()
    yield [get(block[peer], peer) for peer in others(rank, size)]
    yield fence()


@register
@collective("broadcast", name="shared")
def shared_broadcast(rank, size, x, root=0):
    """2 fences; each rank but the root reads n bytes of it."""
    yield fence()
    if rank != root:
        yield get(x, root)
    yield fence()


@register
@collective("reduce_scatter_into", name="shared")
def shared_result(rank, size, input, output):
    """2 fences; each rank reads n bytes, and writes n/p: no other all-reduce moves so few.

    Each rank reduces its part straight from every rank's input into its output. If outputs lie
    side by side in one memory that all ranks see, that is an all-reduce of which nothing is ever
    copied: everyone reads the result where it stands.
    """
    yield fence()
    for mine, into in zip(input.split(size)[rank].blocks(BLOCK), output.blocks(BLOCK)):
        yield copy(mine, into)
        for peer in others(rank, size):
            yield get_reduce(into, peer, mine)
    yield fence()


@register
@collective("all_gather_into", name="shared")
def shared_all_gather_into(rank, size, input, output):
    """2 fences; each rank reads n bytes, straight from where its peers have them."""
    place = output.split(size)
    yield fence()
    yield [copy(input, place[rank])] + [
        get(place[peer], peer, Chunk("input", 0, len(place[peer])))
        for peer in others(rank, size)]
    yield fence()
