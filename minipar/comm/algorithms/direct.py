"""All ranks with all others: exchanges of blocks, and reductions in the order of ranks."""

from ..kinds import exchange_blocks
from ..program import collective, copy, recv, recv_reduce, reduce, register, send
from .blocks import around, runs


def others(rank, size):
    """The other ranks, each rank beginning with the next one, so that not all begin with one."""
    return [(rank + i) % size for i in range(1, size)]


@register
@collective("all_reduce")
def all_gather_reduce(rank, size, x, scratch):
    """One round of p-1 messages; each rank sends and reduces n(p-1) bytes, and has scratch for pn.

    Everybody gets everything and reduces it in the order of ranks: the bits of a serial loop.
    """
    given = scratch(size * len(x)).split(size)
    yield ([send(x, peer) for peer in others(rank, size)]
           + [recv(given[peer], peer) for peer in others(rank, size)])
    yield copy(x, given[rank])
    yield copy(given[0], x)
    for source in range(1, size):
        yield reduce(given[source], x)


@register
@collective("all_reduce")
def reduce_scatter_all_gather(rank, size, x, scratch):
    """Two rounds of p-1 messages; each rank sends 2n(p-1)/p bytes and reduces n(p-1)/p.

    Every rank reduces one block, in the order of ranks (the bits of a serial loop), and sends the
    result to all: as parameter servers do that are shared out among the workers. Scratch for n.
    """
    block = x.split(size)
    mine = block[rank]
    given = scratch(size * len(mine)).split(size)
    yield ([send(block[peer], peer) for peer in others(rank, size)]
           + [recv(given[peer], peer) for peer in others(rank, size)])
    yield copy(mine, given[rank])
    yield copy(given[0], mine)
    for source in range(1, size):
        yield reduce(given[source], mine)
    yield ([send(mine, peer) for peer in others(rank, size)]
           + [recv(block[peer], peer) for peer in others(rank, size)])


@register
@collective("reduce_scatter")
def pairwise(rank, size, x):
    """p-1 rounds; each rank sends and reduces n(p-1)/p bytes, with another pair in each round."""
    block = x.split(size)
    for i in range(1, size):
        target, source = (rank + i) % size, (rank - i) % size
        yield send(block[target], target), recv_reduce(block[rank], source)


@register
@collective("reduce_scatter_into", name="pairwise")
def pairwise_into(rank, size, input, output):
    """p-1 rounds; each rank sends and reduces n(p-1)/p bytes. The input stays as it is."""
    block = input.split(size)
    yield copy(block[rank], output)
    for i in range(1, size):
        target, source = (rank + i) % size, (rank - i) % size
        yield send(block[target], target), recv_reduce(output, source)


@register
@collective("all_to_all", name="pairwise")
def pairwise_exchange(rank, size, input, output, counts=None):
    """p-1 rounds; each rank sends n(p-1)/p bytes. In round i it exchanges with rank xor i if p is
    2^k; else it sends to rank + i and receives from rank - i."""
    goes, comes = exchange_blocks(rank, size, input, output, counts)
    yield copy(goes[rank], comes[rank])
    for i in range(1, size):
        target, source = (rank + i) % size, (rank - i) % size
        if size & (size - 1) == 0:
            target = source = rank ^ i
        yield send(goes[target], target), recv(comes[source], source)


@register
@collective("all_to_all")
def bruck(rank, size, input, output, scratch, counts=None):
    """ceil(lg p) rounds; each rank sends about (n/2) lg p bytes. Equal blocks only.

    A block that has i ranks to go travels 2^k further in round k if i has bit k. The blocks that
    do are packed, so that they are one message; scratch for 2n. Bruck et al. 1997, "Efficient
    algorithms for all-to-all communications in multiport message-passing systems".
    """
    if counts is not None:
        raise ValueError("bruck exchanges equal blocks; pairwise serves all_to_all with counts")
    goes, comes = input.split(size), output.split(size)
    length, half = len(input) // size, size // 2
    here = scratch(len(input)).split(size)
    packed, landed = scratch(half * length), scratch(half * length)
    yield [copy(goes[rank + i], here[i]) for i in range(size)]
    reach = 1
    while reach < size:
        moving = [i for i in range(size) if i & reach]
        out, into = (buffer[:len(moving) * length] for buffer in (packed, landed))
        yield [copy(here[i], out.split(len(moving))[j]) for j, i in enumerate(moving)]
        yield send(out, (rank + reach) % size), recv(into, (rank - reach) % size)
        yield [copy(into.split(len(moving))[j], here[i]) for j, i in enumerate(moving)]
        reach *= 2
    yield [copy(here[i], comes[rank - i]) for i in range(size)]


@register
@collective("all_gather", name="bruck")
def bruck_all_gather(rank, size, x):
    """ceil(lg p) rounds; each rank sends n(p-1)/p bytes.

    In round k a rank has the 2^k blocks from its own on, and gets as many more from the rank that
    stands behind them; those that wrap around the last rank go as two messages. Bruck et al. 1997.
    """
    have = 1
    while have < size:
        count = min(have, size - have)
        target, source = (rank - have) % size, (rank + have) % size
        yield ([send(part, target) for part in around(x, size, rank, count)]
               + [recv(part, source) for part in around(x, size, source, count)])
        have += count


@register
@collective("all_gather", ranks="even")
def neighbour_exchange(rank, size, x):
    """p/2 rounds; each rank sends n(p-1)/p bytes, to its two neighbours in turn.

    After the first round pairs of blocks travel: what came from one neighbour goes on to the
    other. Chen, Zhang, Yuan, Zhang 2005, "Performance evaluation of allgather algorithms on
    terascale Linux cluster with fast Ethernet".
    """
    run, step = runs(x, size), 1 if rank % 2 == 0 else -1
    if size > 1:
        peer = (rank + step) % size
        yield send(run(rank, rank + 1), peer), recv(run(peer, peer + 1), peer)
    own = pair = rank - rank % 2  # where the pair of blocks begins that goes on
    for i in range(1, size // 2):
        side = step if i % 2 == 0 else -step
        peer, theirs = (rank + side) % size, (own + side * 2 * ((i + 1) // 2)) % size
        yield send(run(pair, pair + 2), peer), recv(run(theirs, theirs + 2), peer)
        pair = theirs
