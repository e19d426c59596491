"""Logarithmic algorithms: binomial tree and dissemination."""

from ..program import collective, recv, register, send


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
@collective("barrier")
def dissemination(rank, size, x):
    """ceil(lg p) rounds without data: after round k each rank has heard, directly or not, from
    the 2^(k+1) - 1 ranks below it. Hensgen, Finkel, Manber 1988."""
    nothing, reach = x[0:0], 1
    while reach < size:
        yield send(nothing, (rank + reach) % size), recv(nothing, (rank - reach) % size)
        reach *= 2
