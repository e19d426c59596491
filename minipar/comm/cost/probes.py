"""Programs that measure a machine: each repeats what one price of the model stands for.

They compute nothing of use, and belong to a kind of their own that promises nothing.
"""

from ..algorithms.direct import others
from ..kinds import Kind
from ..program import (collective, copy, fence, get, get_reduce, put, recv, recv_reduce, reduce,
                      send)


def _nothing(rank, size, x):
    return ()


PROBE = Kind("probe", _nothing, _nothing, reduces=True)
TIMES = 4  # rounds of a probe: a program's start weighs less so


@collective(PROBE)
def start(rank, size, x):
    """No rounds at all."""
    return ()


@collective(PROBE)
def shift(rank, size, x, scratch):
    """Every rank sends to its right neighbour and receives from its left."""
    room = scratch(len(x))
    for _ in range(TIMES if size > 1 else 0):
        yield send(x, (rank + 1) % size), recv(room, (rank - 1) % size)


@collective(PROBE)
def ping_pong(rank, size, x):
    """Pairs of ranks; one of the two sends and the other one answers."""
    peer = rank ^ 1
    for i in range(TIMES if peer < size else 0):
        yield (send if rank % 2 == i % 2 else recv)(x, peer)


@collective(PROBE)
def shift_reduce(rank, size, x, scratch):
    """As shift, and what comes is reduced."""
    room = scratch(len(x))
    yield copy(x, room)  # numbers, where there was anything
    for _ in range(TIMES if size > 1 else 0):
        yield send(x, (rank + 1) % size), recv_reduce(room, (rank - 1) % size)


@collective(PROBE)
def exchange(rank, size, x, scratch):
    """Every rank sends a block to every other one, in one round."""
    block = x.split(size)
    room = scratch(size * len(block[rank])).split(size)
    for _ in range(TIMES if size > 1 else 0):
        yield ([send(block[peer], peer) for peer in others(rank, size)]
               + [recv(room[peer], peer) for peer in others(rank, size)])


@collective(PROBE)
def copies(rank, size, x, scratch):
    """Copies within each rank."""
    room = scratch(len(x))
    for _ in range(TIMES):
        yield copy(x, room)


@collective(PROBE)
def reductions(rank, size, x, scratch):
    """Reductions within each rank."""
    room = scratch(len(x))
    yield copy(x, room)
    for _ in range(TIMES):
        yield reduce(x, room)


@collective(PROBE)
def fences(rank, size, x):
    """Fences, one after another."""
    for _ in range(TIMES):
        yield fence()


def _one_sided(operation, name, words):
    def probe(rank, size, x):
        yield fence()
        for peer in others(rank, size):
            for _ in range(2):
                yield operation(x.split(size)[rank], peer)
        yield fence()
    probe.__doc__ = words
    return collective(PROBE, name=name)(probe)


MESSAGES = (start, shift, shift_reduce, ping_pong, exchange, copies, reductions)
ONE_SIDED = (
    fences,
    _one_sided(get, "gets", "Each rank reads its block of every other one, twice, all at once."),
    _one_sided(put, "puts", "Each rank writes its block to every other one, twice."),
    _one_sided(get_reduce, "get_reduces", "Each rank reduces its block from every other one."))
WITHOUT_BYTES = (start, fences)  # one size is enough
