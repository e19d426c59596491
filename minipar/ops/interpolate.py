"""Enlarging and shrinking images by taking nearest elements."""

import numpy as np

from ..device import beside
from ..tensor import record
from .precision import arithmetic
from .windows import pair


@arithmetic
def interpolate(input, size=None, scale_factor=None, mode="nearest"):
    """Another size of an image: out[n, c, i, j] = input[n, c, floor(i / s), floor(j / t)], with
    scales s and t.

    input (N, C, H, W), floating -> (N, C, Ho, Wo). Either size (Ho, Wo) is given, an int or a
    pair, or scale_factor (s, t), a positive number or a pair: then Ho = floor(s H). Positions are
    computed in float32, as PyTorch does. mode: "nearest".
    Raises ValueError for both or neither, another mode or an empty image; TypeError for other
    types.
    """
    x = input.array
    if x.ndim != 4:
        raise ValueError(f"interpolate: input {x.shape}: expected (N, C, H, W)")
    if mode != "nearest":
        raise ValueError(f"interpolate: mode is 'nearest', not {mode!r}")
    if not input.dtype.is_floating_point:
        raise TypeError(f"interpolate: a floating type is needed, not {input.dtype}")
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate: one of size and scale_factor is needed")
    if size is not None:
        size = pair("interpolate: size", size, 1)
        steps = [np.float32(n) / np.float32(out) for n, out in zip(x.shape[2:], size)]
    else:
        scales = scale_factor if isinstance(scale_factor, (tuple, list)) else [scale_factor] * 2
        if len(scales) != 2 or not all(s > 0 for s in scales):
            raise ValueError(f"interpolate: scale_factor is a positive number or a pair of them, "
                             f"not {scale_factor!r}")
        size = [int(n * s) for n, s in zip(x.shape[2:], scales)]
        steps = [np.float32(1 / s) for s in scales]
    if not min(size) or not x.shape[2] * x.shape[3]:
        raise ValueError(f"interpolate: input {x.shape} to {size[0]} x {size[1]} is empty")
    from_rows, from_columns = (_sources(*sizes) for sizes in zip(x.shape[2:], size, steps))
    rows = x.transpose(2, 1, 3, 0)  # as convolutions lay it out: whole rows and columns are moved
    out = rows[beside(x, from_rows)].take(beside(x, from_columns), axis=2)

    def backward(g):
        g = _gather(g.transpose(2, 1, 3, 0), 0, rows.shape[0], from_rows)
        return (_gather(g, 2, rows.shape[2], from_columns).transpose(3, 1, 0, 2),)
    return record(out.transpose(3, 1, 0, 2), (input,), backward)


def _sources(size, out, step):
    """The index, rising, that each of `out` positions takes its element from."""
    if out in (size, 2 * size):  # whatever the scale was that gave this
        return np.arange(out) // (out // size)
    index = np.floor(np.arange(out, dtype=np.float32) * step).astype(np.int64)
    return np.minimum(index, size - 1)


def _gather(g, axis, size, sources):
    """The sums along `axis` of what was taken from each of `size` elements: first takers, then
    second ones and so on. (np.add.reduceat takes 10 times as long along this axis.)
    """
    first = np.flatnonzero(np.diff(sources, prepend=-1))  # equal sources lie together
    times = np.diff(first, append=len(sources))
    shape = list(g.shape)
    shape[axis] = size
    total = np.zeros(shape, g.dtype, like=g)
    for tap in range(times.max()):
        takers = first[times > tap] + tap
        total[_along(g, axis, sources[takers])] += g[_along(g, axis, takers)]
    return total


def _along(g, axis, index):
    """An index of `g` along `axis`; a slice, which needs no copy, if the steps are even."""
    step = index[1] - index[0] if len(index) > 1 else 1
    if (np.diff(index) == step).all():
        index = slice(index[0], index[-1] + 1, step)
    else:
        index = beside(g, index)
    return (slice(None),) * axis + (index,)
