"""Swing: partners that are near on a ring or torus, first to one side, then to the other.

De Sensi, Bonato, Saam, Hoefler 2024 (NSDI), "Swing: short-cutting rings for higher bandwidth
allreduce". As Rabenseifner's, but the partner of an even rank r in round s is r + rho(s) and that
of an odd one r - rho(s), rho = 1, -1, 3, -5, 11, ...: no hop is longer than 2^(s+1) / 3 or so,
where recursive doubling has 2^s, and links are crossed by fewer messages.
"""

from ..program import collective, register
from .blocks import runs
from .recursive import doubling, halving


def rho(s):
    """The distance in round s: the sum of (-2)^i for i = 0 to s."""
    return (1 - (-2) ** (s + 1)) // 3


def partner(rank, size, s):
    """Whom `rank` meets in round s."""
    return (rank + (rho(s) if rank % 2 == 0 else -rho(s))) % size


def reached(rank, size, s=0):
    """The ranks that hear of `rank` from round s on, itself first.

    Two partners of round s hear of the two halves of one set: in this order every set of blocks
    that is sent lies side by side.
    """
    if 1 << s == size:
        return [rank]
    return reached(rank, size, s + 1) + reached(partner(rank, size, s), size, s + 1)


@register
@collective("all_reduce", ranks="power_of_two")
def swing(rank, size, x):
    """2 lg p rounds; each rank sends 2n(p-1)/p bytes and reduces n(p-1)/p."""
    place, run = reached(0, size).index(rank), runs(x, size)

    def peer(s):
        return partner(rank, size, s)
    yield from halving(place, size, run, peer)
    yield from doubling(place, size, run, peer)
