"""All-reduce level by level: each level of a network carries only what it must."""

from math import isqrt

from ..compose import on
from ..program import collective, register
from .ring import ring_all_gather, ring_reduce_scatter


def level_by_level(rank, size, x, levels):
    """Reduce-scatter within the innermost groups, all-reduce of its part across them by the
    levels outside, all-gather within; a ring at each level. Levels as in Topology."""
    inner = levels[0]
    place, first = rank % inner, rank - rank % inner
    group = range(first, first + inner)
    yield from on(group, ring_reduce_scatter(place, inner, x))
    if len(levels) > 1:
        yield from on(range(place, size, inner), level_by_level(
            rank // inner, size // inner, x.split(inner)[place], levels[1:]))
    yield from on(group, ring_all_gather(place, inner, x))


@register
@collective("all_reduce")
def torus_2d(rank, size, x):
    """2(c-1) + 2(r-1) rounds on a torus of r rows and c columns, r c = p; 2n(p-1)/p bytes.

    Rings along the rows, and with 1/c of the vector along the columns. The torus is the one
    nearest to a square: a prime p is one row, which is the ring. Mikami et al. 2018, "Massively
    distributed SGD: ImageNet/ResNet-50 training in a flash".
    """
    rows = next(r for r in range(isqrt(size), 0, -1) if size % r == 0)
    yield from level_by_level(rank, size, x, (size // rows, rows))


@register
@collective("all_reduce")
def hierarchical(rank, size, x, topo=None):
    """2 (g-1) rounds for each level of groups of g members; 2n(p-1)/p bytes.

    With g ranks a node, 2(n/g)(m-1)/m bytes of it go across m nodes. Needs a topology, and raises
    ValueError without one that fits. Cho et al. 2019, "BlueConnect: decomposing all-reduce for
    deep learning on heterogeneous network hierarchy".
    """
    if topo is None:
        raise ValueError("hierarchical needs a topology: set the communicator's `topology`")
    if reason := topo.problem(size):
        raise ValueError(f"hierarchical: {reason}")
    yield from level_by_level(rank, size, x, topo.levels)
