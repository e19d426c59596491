"""The steps that batch normalisation is made of.

Its input is taken as matrices (length, columns), one after the other in memory (`Matrices`).
Statistics are taken down the columns of each and then joined over matrices; after that every
element is treated with numbers of its channel. `kernels/batchnorm.cu` has the same steps; without
it they run as NumPy here.
"""

from typing import NamedTuple

import numpy as np

from ..device import aligned
from ..execution import Kernel
from .softmax import ones

_STEPS = ("moments", "normalise", "products", "gradient")
_KERNELS = {f"{kind}_{step}": Kernel("batchnorm.cu", f"{kind}_{step}", rows="matrices", width=width)
            for kind, width in (("run", "length"), ("column", "columns")) for step in _STEPS}
_KERNELS |= {name: Kernel("batchnorm.cu", name, elements="columns")
             for name in ("join_moments", "join_sums", "channel_numbers", "follow",
                          "channel_gradients")}
_BLOCK = 65536  # elements that the reference takes through all steps while in the cache


class Matrices(NamedTuple):
    """An array as `count` matrices (length, columns), together of `total` rows.

    Matrix m takes row m % period of what is given for each channel. With more than one column,
    the period is 1.
    """

    count: int
    length: int
    columns: int
    total: int
    period: int

    def run(self, step, *arrays):
        """Run the kernel of a step; returns whether there is one."""
        run = _KERNELS[f"{'run' if self.columns == 1 else 'column'}_{step}"].build(arrays[0])
        if not run or not self.total:
            return False
        if self.columns > 1:
            run(*arrays, *self[:-1])
        else:
            run(*arrays, *self[:2], *([] if step == "moments" else [self.period]))
        return True

    repeats = property(lambda self: self.count // max(1, self.period))

    def blocks(self):
        """Slices (of the repeats of the period, in it) of about _BLOCK elements each."""
        size = max(1, self.length * self.columns)
        step = max(1, _BLOCK // (size * max(1, self.period)))
        step_in = max(1, _BLOCK // size) if step == 1 else self.period
        return [(slice(i, i + step), slice(j, j + step_in)) for i in range(0, self.repeats, step)
                for j in range(0, self.period, max(1, step_in))]

    def cut(self, *arrays):
        """Arrays as (repeats of the period, period, length, columns)."""
        shape = (self.repeats, self.period, self.length, self.columns)
        return [a.reshape(shape) for a in arrays]

    def spread(self, *numbers):
        """Numbers (period * columns) as the matrices above take them."""
        return [a.reshape(self.period, 1, self.columns) for a in numbers]


def rows_of_columns(rows, columns, like):
    """Matrices for one matrix (rows, columns): a kernel takes it in parts, side by side."""
    part = 64 if _KERNELS["column_moments"].build(like) and columns > 1 else max(1, rows)
    return Matrices(-(-rows // part), part, columns, rows, 1)


def _sums(a):
    """Down the columns: (..., length, columns) -> (..., columns)."""
    if a.shape[-1] == 1:  # a product with a vector is the fastest sum of short rows
        return (a[..., 0] @ ones(a.shape[-2], a))[..., None]
    return a.sum(axis=-2, dtype=np.float64)  # one after the other: errors would add up


def moments(x, view):
    """(mean of each column of each matrix, sum of squares about it), each (count, columns)."""
    mean, squares = np.empty((2, view.count, view.columns), x.dtype, like=x)
    if not view.run("moments", x, mean, squares):
        x, = view.cut(x)
        mean_, squares_ = (a.reshape(view.repeats, view.period, view.columns)
                           for a in (mean, squares))
        for block in view.blocks():
            mean_[block] = _sums(x[block]) / view.length
            centred = x[block] - mean_[block][:, :, None]
            squares_[block] = _sums(centred * centred)
    return mean, squares


def join_moments(mean, squares, length, total):
    """Mean and variance, float64 (columns,), over the parts of mean and squares (parts, columns).

    A part has `length` elements in each column, the last one what is left of `total`. Chan, Golub
    & LeVeque 1983, "Algorithms for computing the sample variance".
    """
    parts, columns = mean.shape
    joined, variance = np.zeros((2, columns), like=mean)
    if run := _KERNELS["join_moments"].build(mean) if mean.size else None:
        run(mean, squares, joined, variance, parts, columns, length, total)
    elif mean.size:
        counts = np.full_like(mean, length, np.float64, shape=(parts, 1))
        counts[-1] = total - (parts - 1) * length
        joined = (counts * mean).sum(0) / total
        distances = mean - joined
        variance = (squares + counts * distances * distances).sum(0) / total
    return joined, variance


def channel_numbers(mean, variance, weight, eps):
    """(3, channels): the mean, scale = 1 / sqrt(variance + eps), and scale times the weight.

    mean, variance: float64 (channels,); weight: in the type to compute with, that of the result.
    """
    numbers = np.empty((3, *weight.shape), weight.dtype, like=weight)
    if run := _KERNELS["channel_numbers"].build(weight):
        run(mean, variance, weight, numbers, weight.size, eps)
    else:
        numbers[0], numbers[1] = mean, 1 / np.sqrt(variance + eps)
        np.multiply(numbers[1], weight, out=numbers[2])
    return numbers


def follow(mean, variance, running_mean, running_variance, momentum, unbiased):
    """The running arrays (channels,) become (1 - momentum) running + momentum batch, in place; the
    variance of the batch is multiplied with `unbiased`.
    """
    run = _KERNELS["follow"].build(running_mean)
    pair = running_mean, running_variance
    if run and all(a.flags.c_contiguous and aligned(a) for a in pair):
        run(mean, variance, *pair, mean.size, momentum, unbiased)
        return
    for running, value in zip(pair, (mean, variance * unbiased)):
        running[...] = (1 - momentum) * running.astype(value.dtype) + momentum * value


def normalise(x, view, mean, slope, offset):
    """(x - mean) slope + offset, a new array; the others hold period * columns numbers."""
    y = np.empty_like(x)
    if not view.run("normalise", x, mean, slope, offset, y):
        x, out = view.cut(x, y)
        mean, slope, offset = view.spread(mean, slope, offset)
        for block in view.blocks():
            within = block[1]
            np.subtract(x[block], mean[within], out=out[block])
            out[block] *= slope[within]
            out[block] += offset[within]
    return y


def products(g, x, view, mean):
    """The sums of g and of g (x - mean) in each column of each matrix: (2, count, columns)."""
    both = np.empty((2, view.count, view.columns), g.dtype, like=g)
    if not view.run("products", g, x, mean, *both):
        g, x = view.cut(g, x)
        mean, = view.spread(mean)
        sums, along = both.reshape(2, view.repeats, view.period, view.columns)
        for block in view.blocks():
            sums[block] = _sums(g[block])
            along[block] = _sums(g[block] * (x[block] - mean[block[1]]))
    return both


def join_sums(sums):
    """The sums of (parts, columns) over the parts, in order, float64 (columns,)."""
    run = _KERNELS["join_sums"].build(sums) if sums.size else None
    if not run:
        return sums.sum(0, dtype=np.float64)
    joined = np.empty(sums.shape[1], like=sums)
    run(sums, joined, *sums.shape)
    return joined


def channel_gradients(both, numbers, n):
    """(4, channels): gradients of weight and bias, and `tilt` and `level` of `gradient`.

    both: of `products`; numbers: of `channel_numbers`; n: elements that a channel has.
    """
    scale, slope = numbers[1], numbers[2]
    both = both.reshape(2, -1, scale.size)
    if run := _KERNELS["channel_gradients"].build(both) if both.size else None:
        out = np.empty((4, scale.size), scale.dtype, like=scale)
        run(both, numbers, out, *both.shape[1:], n)
        return out
    gb, along = both.sum(1, dtype=np.float64)
    gw = along * scale
    n = max(1, n)
    return np.stack([gw, gb, gw * slope * scale / n, gb * slope / n]).astype(scale.dtype)


def gradient(g, x, view, mean, slope, tilt, level):
    """slope g - tilt (x - mean) - level, a new array; see `normalise`."""
    gx = np.empty_like(g)
    if not view.run("gradient", g, x, mean, slope, tilt, level, gx):
        g, x, out = view.cut(g, x, gx)
        mean, slope, tilt, level = view.spread(mean, slope, tilt, level)
        for block in view.blocks():
            within = block[1]
            np.subtract(x[block], mean[within], out=out[block])
            out[block] *= tilt[within]
            out[block] += level[within]
            np.subtract(g[block] * slope[within], out[block], out=out[block])
    return gx
