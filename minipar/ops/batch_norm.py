"""Batch normalisation (Ioffe & Szegedy 2015, "Batch normalization: accelerating deep network
training by reducing internal covariate shift").

Arrays are taken in the order in which they lie in memory, as (A, C, B) with the channels in the
middle: (N, C, HW) of what is contiguous, (H, C, WN) of what comes from a convolution. Then each
channel's share is runs of B elements, the matrices of one column that `moments.py` works on, and
nothing is transposed. Rows (N, C) are one matrix.
"""

import math

import numpy as np

from .. import dtypes
from ..context import current
from ..device import one_device
from ..tensor import record
from .base import quiet, wide
from .cast import cast_to
from .moments import (Matrices, gradient, join_moments, join_sums, moments, normalise, products,
                      rows_of_columns)


@quiet
def batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False,
               momentum=0.1, eps=1e-5, *, batch=None):
    """weight * (x - mean) / sqrt(variance + eps) + bias, all of them per channel.

    input (N, C, ...); the others (C,) or None; all of one floating type. If `training`, mean and
    variance (over n = N * ... elements, not n - 1) are the batch's own, and the running ones, if
    given, become (1 - momentum) running + momentum batch in place, with the variance over n - 1;
    an empty batch leaves them. Otherwise the running ones are used.
    batch: what the batch is, if `input` is a part of it only and `training`: an object with
    moments(mean, variance, n) -> those of the whole batch from those of this part (float64 (C,),
    and n = 0 for an empty one), and sums(x) -> the sum of float64 (2, C) over the parts.
    Raises ValueError with the shapes if they do not match, if n is 1 when training, and if there
    is nothing to normalise with; TypeError for other types.
    """
    if current().autocast is not None:  # the buffers, which are written to, stay what they are
        input = cast_to(input, next((t.dtype for t in (running_mean, weight) if t is not None),
                                    dtypes.float32))
    x, dtype = input.array, input.array.dtype
    batch = batch if training else None
    _check(input, running_mean, running_var, weight, bias, training, training and batch is None)
    n = x.size // max(1, x.shape[1])
    order = memory_order(x)
    a, view, restore = _matrices(x, order)
    if training:
        mean, variance = _statistics(a, view, x.shape[1], n)
        if batch is not None:
            mean, variance, n = batch.moments(mean, variance, n)
            _check_count(n, input)
        if running_mean is not None and n:
            _follow(running_mean, mean, momentum)
            _follow(running_var, variance * (n / (n - 1)), momentum)
    else:
        mean, variance = (t.array.astype(np.float64) for t in (running_mean, running_var))
    mean, scale = mean.astype(a.dtype), (1 / np.sqrt(variance + eps)).astype(a.dtype)
    slope = scale if weight is None else scale * weight.array.astype(a.dtype, copy=False)
    offset = np.zeros_like(mean) if bias is None else bias.array.astype(a.dtype, copy=False)
    out = restore(normalise(a, view, mean, slope, offset)).astype(dtype, copy=False)
    need_x = input.requires_grad
    need_w = weight is not None and weight.requires_grad
    if not (need_w or need_x and training):
        x = None
    del a  # backward finds it in input's array again

    def backward(g):
        g, gx = in_order(g, order), None
        values = g if x is None else in_order(x, order)
        gb, gw = _channel_sums(g, values, view, mean)
        gw *= scale
        if need_x:
            slope = (scale if weight is None
                     else scale * weight.array.astype(scale.dtype, copy=False))
            if training:
                b, w = (gb, gw) if batch is None else batch.sums(np.stack((gb, gw)))
                level, tilt = (a.astype(g.dtype) for a in (b * slope / n, w * slope * scale / n))
                gx = gradient(g, values, view, mean, slope, tilt, level)
            else:
                zeros = np.zeros_like(mean)
                gx = normalise(g, view, zeros, slope, zeros)
            gx = restore(gx).astype(dtype, copy=False)
        return (gx, gw.astype(dtype) if need_w else None,
                None if bias is None else gb.astype(dtype))
    saved = ([] if x is None else [input]) + ([weight] if need_x and weight is not None else [])
    return record(out, (input, weight, bias), backward, saved)


def _check_count(n, input):
    if n == 1:
        raise ValueError(f"batch_norm: more than 1 value per channel is needed when training, "
                         f"not input {input.shape}")


def _check(input, running_mean, running_var, weight, bias, training, alone):
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
    if alone:
        _check_count(math.prod(input.shape[:1] + input.shape[2:]), input)
    one_device("batch_norm", input.array, *(t.array for t in named.values() if t is not None))
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
    """x with its axes in `order`, contiguous; 16-bit types become float32."""
    return np.ascontiguousarray(x.transpose(order), wide(x.dtype), like=x)


def _matrices(x, order):
    """(x with its axes in `order`, contiguous, as `Matrices`; the function that undoes this)."""
    a = in_order(x, order)
    shape, channel = a.shape, order.index(1)
    inverse = sorted(range(x.ndim), key=order.__getitem__)
    before, channels = math.prod(shape[:channel]), shape[channel]
    length = math.prod(shape[channel + 1:])
    if length == 1:
        view = rows_of_columns(before, channels, a)
    else:
        view = Matrices(before * channels, length, 1, a.size, channels)
    return a, view, lambda b: b.reshape(shape).transpose(inverse)


def _statistics(a, view, channels, n):
    """Mean and variance of each channel, float64 (C,)."""
    mean, squares = (m.reshape(-1, channels) for m in moments(a, view))
    return join_moments(mean, squares, view.length, n)


def _follow(running, value, momentum):
    running.array[...] = (1 - momentum) * running.array.astype(value.dtype) + momentum * value
    running.storage.version += 1  # as every write in place


def _channel_sums(g, x, view, mean):
    """The sums of g and of g (x - mean) over each channel, (2, C) float64."""
    both = products(g, x, view, mean)
    return np.stack([join_sums(sums.reshape(-1, len(mean))) for sums in both])
