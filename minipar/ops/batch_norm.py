"""Batch normalisation (Ioffe & Szegedy 2015, "Batch normalization: accelerating deep network
training by reducing internal covariate shift").

Arrays are taken in the order in which they lie in memory, as (A, C, B) with the channels in the
middle: (N, C, HW) of what is contiguous, (H, C, WN) of what comes from a convolution. Then each
channel's share is runs of B elements, and nothing is transposed.
"""

import math

import numpy as np

from ..context import no_grad
from ..tensor import record
from .base import quiet
from .softmax import ones

_BLOCK = 65536  # elements that are taken through all steps while in the cache


@quiet
def batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False,
               momentum=0.1, eps=1e-5):
    """weight * (x - mean) / sqrt(variance + eps) + bias, all of them per channel.

    input (N, C, ...); the others (C,) or None; all of one floating type. If `training`, mean and
    variance (over n = N * ... elements, not n - 1) are the batch's own, and the running ones, if
    given, become (1 - momentum) running + momentum batch in place, with the variance over n - 1;
    an empty batch leaves them. Otherwise the running ones are used.
    Raises ValueError with the shapes if they do not match, if n is 1 when training, and if there
    is nothing to normalise with; TypeError for other types.
    """
    x, dtype = input.array, input.array.dtype
    _check(input, running_mean, running_var, weight, bias, training)
    n = x.size // max(1, x.shape[1])
    order = memory_order(x)
    blocks, restore = _blocks(x, order)
    if training:
        mean, variance = _statistics(blocks, n)
        if running_mean is not None and n:
            _follow(running_mean, mean, momentum)
            _follow(running_var, variance * (n / (n - 1)), momentum)
    else:
        mean, variance = (t.array.astype(np.float64) for t in (running_mean, running_var))
    mean, scale = (a.astype(blocks.dtype)[:, None] for a in (mean, 1 / np.sqrt(variance + eps)))
    slope = scale if weight is None else scale * weight.array[:, None]
    out = np.empty_like(blocks)
    for part in _parts(blocks):
        np.subtract(blocks[part], mean, out=out[part])
        out[part] *= slope
        if bias is not None:
            out[part] += bias.array[:, None]
    need_x = input.requires_grad
    need_w = weight is not None and weight.requires_grad
    if not (need_w or need_x and training):
        x = None
    del blocks  # backward finds it in input's array again

    def backward(g):
        g, gx = _blocks(g, order)[0], None
        values = None if x is None else _blocks(x, order)[0]
        gb, gw = _channel_sums(g, values, mean, scale)
        if need_x:
            slope = scale if weight is None else scale * weight.array[:, None]
            gx = _input_gradient(g, values, mean, scale, gb / n, gw / n) if training else g
            gx = restore(np.multiply(gx, slope, out=gx if training else None))
            gx = gx.astype(dtype, copy=False)
        return (gx, gw.astype(dtype) if need_w else None,
                None if bias is None else gb.astype(dtype))
    saved = ([] if x is None else [input]) + ([weight] if need_x and weight is not None else [])
    out = restore(out).astype(dtype, copy=False)
    return record(out, (input, weight, bias), backward, saved)


def _check(input, running_mean, running_var, weight, bias, training):
    if input.ndim < 2:
        raise ValueError(f"batch_norm: input {input.shape}: expected (N, C, ...)")
    named = {"running_mean": running_mean, "running_var": running_var, "weight": weight,
             "bias": bias}
    for name, t in named.items():
        if t is not None and t.shape != input.shape[1:2]:
            raise ValueError(f"batch_norm: {name} {t.shape} for {input.shape[1]} channels of "
                             f"input {input.shape}")
    if (running_mean is None) != (running_var is None) or not training and running_mean is None:
        raise ValueError("batch_norm: running_mean and running_var are both given, or neither "
                         "when training")
    if training and math.prod(input.shape[:1] + input.shape[2:]) == 1:
        raise ValueError(f"batch_norm: more than 1 value per channel is needed when training, "
                         f"not input {input.shape}")
    if not input.dtype.is_floating_point or any(
            t is not None and t.dtype is not input.dtype for t in named.values()):
        types = ", ".join(str(t.dtype) for t in (input, *named.values()) if t is not None)
        raise TypeError(f"batch_norm: one floating type is needed, not {types}")


def memory_order(x):
    """The axes of x from the farthest apart in memory to the closest; of equal ones that with a
    single element is last.
    """
    return sorted(range(x.ndim), key=lambda axis: (-abs(x.strides[axis]), x.shape[axis] == 1))


def in_order(x, order):
    """x with its axes in `order`, contiguous; float16 becomes float32."""
    return np.ascontiguousarray(x.transpose(order), np.float32 if x.dtype == np.float16 else None)


def _blocks(x, order):
    """(x as (A, C, B) with its axes in `order`, the function that undoes this).

    A view if `order` is that of the memory of x.
    """
    a = in_order(x, order)
    shape, channel = a.shape, order.index(1)
    inverse = sorted(range(x.ndim), key=order.__getitem__)
    blocks = a.reshape(math.prod(shape[:channel]), shape[channel], math.prod(shape[channel + 1:]))
    return blocks, lambda b: b.reshape(shape).transpose(inverse)


def _parts(blocks):
    """Slices of A, of about _BLOCK elements each."""
    step = max(1, _BLOCK // max(1, blocks.shape[1] * blocks.shape[2]))
    return [slice(start, start + step) for start in range(0, len(blocks), step)]


def _statistics(blocks, n):
    """Mean and variance of each channel, float64, in one pass over the memory.

    Sums of squares about the mean of each run of B elements, which is in the cache, then of all
    runs together: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance".
    """
    runs, width = blocks.shape[:2], blocks.shape[2]
    if not n:
        return np.zeros(runs[1]), np.zeros(runs[1])
    means, squares = np.empty(runs, blocks.dtype), np.empty(runs, blocks.dtype)
    for part in _parts(blocks):
        np.divide(run_sums(blocks[part]), width, out=means[part])
        centred = blocks[part] - means[part][:, :, None]
        squares[part] = _run_dots(centred, centred)
    means = means.astype(np.float64)
    mean = means.sum(0) * (width / n)
    means -= mean
    return mean, (squares.sum(0, dtype=np.float64) + width * np.vecdot(means.T, means.T)) / n


def _follow(running, value, momentum):
    with no_grad():
        running.copy_((1 - momentum) * running.array + momentum * value)


def run_sums(a):
    """(A, C, B) -> (A, C)."""
    return a @ ones(a.shape[2], a.dtype) if a.shape[2] != 1 else a[:, :, 0]


def _run_dots(a, b):
    """The sums of a * b: (A, C, B) -> (A, C). vecdot is slow for runs of one element."""
    return np.vecdot(a, b) if a.shape[2] != 1 else a[:, :, 0] * b[:, :, 0]


def _channel_sums(g, x, mean, scale):
    """The gradients of bias and weight (C,), float64: sums of g and of g scale (x - mean).

    g, x: (A, C, B). The latter is None if x is.
    """
    sums, products = (np.empty(g.shape[:2], g.dtype) for _ in range(2))
    for part in _parts(g):
        sums[part] = run_sums(g[part])
        if x is not None:
            products[part] = _run_dots(g[part], x[part] - mean)
    return sums.sum(0, dtype=np.float64), (
        None if x is None else products.sum(0, dtype=np.float64) * scale[:, 0])


def _input_gradient(g, x, mean, scale, offset, slope):
    """g - offset - slope scale (x - mean), a new array; offset and slope: (C,)."""
    offset, slope = (a.astype(g.dtype)[:, None] for a in (offset, slope))
    slope, gx = slope * scale, np.empty_like(g)
    for part in _parts(g):
        np.subtract(x[part], mean, out=gx[part])
        gx[part] *= slope
        np.subtract(g[part], gx[part], out=gx[part])
        gx[part] -= offset
    return gx
