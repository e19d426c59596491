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
from ..dtypes import FLOATING
from ..tensor import record
from .base import quiet, wide
from .cast import cast_to
from .moments import (Matrices, channel_gradients, channel_numbers, follow, gradient, join_moments,
                      join_sums, moments, normalise, products, rows_of_columns)
from .softmax import ones


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
    _check(input, running_mean, running_var, weight, bias, training=training)
    n = x.size // max(1, x.shape[1])
    if training and batch is None:
        _check_count(n, input)
    order = memory_order(x)
    a, view, restore = _matrices(x, order)
    if training:
        mean, variance = _statistics(a, view, x.shape[1], n)
        if batch is not None:
            mean, variance, n = batch.moments(mean, variance, n)
            _check_count(n, input)
        if running_mean is not None and n:
            follow(mean, variance, running_mean.array, running_var.array, momentum, n / (n - 1))
            for running in (running_mean, running_var):
                running.storage.version += 1  # as every write in place
    else:
        mean, variance = (t.array.astype(np.float64) for t in (running_mean, running_var))
    w = ones(mean.size, a) if weight is None else _vector(weight.array, a)
    numbers = channel_numbers(mean, variance, w, eps)
    mean, slope = numbers[0], numbers[2]
    offset = np.zeros_like(mean) if bias is None else _vector(bias.array, a)
    out = restore(normalise(a, view, mean, slope, offset)).astype(dtype, copy=False)
    need_x = input.requires_grad
    need_w = weight is not None and weight.requires_grad
    if not (need_w or need_x and training):
        x = None
    del a  # backward finds it in input's array again

    def backward(g):
        g, gx = in_order(g, order), None
        values = g if x is None else in_order(x, order)
        both = products(g, values, view, mean)
        gw, gb, tilt, level = channel_gradients(both, numbers, n)
        if need_x:
            if training:
                if batch is not None:
                    tilt, level = _of_whole_batch(batch, both, numbers, n)
                gx = gradient(g, values, view, mean, slope, tilt, level)
            else:
                zeros = np.zeros_like(mean)
                gx = normalise(g, view, zeros, slope, zeros)
            gx = restore(gx).astype(dtype, copy=False)
        return (gx, gw.astype(dtype, copy=False) if need_w else None,
                None if bias is None else gb.astype(dtype, copy=False))
    return record(out, (input, weight, bias), backward, () if x is None else (input,))


def _of_whole_batch(batch, both, numbers, n):
    """`tilt` and `level` of the gradient from the sums of all parts, of which `both` are one's."""
    _, scale, slope = numbers
    gb, along = (join_sums(sums.reshape(-1, scale.size)) for sums in both)
    gb, gw = batch.sums(np.stack((gb, along * scale)))
    return [a.astype(scale.dtype) for a in (gw * slope * scale / n, gb * slope / n)]


def _check_count(n, input):
    if n == 1:
        raise ValueError(f"batch_norm: more than 1 value per channel is needed when training, "
                         f"not input {input.shape}")


def _vector(a, like):
    """weight or bias as the steps take them."""
    return np.ascontiguousarray(a, like.dtype, like=like)


_NAMES = "running_mean", "running_var", "weight", "bias"


def _check(input, *others, training):
    x, types = input.array, []
    size, dtype = x.shape[1:2], x.dtype
    if not size:
        raise ValueError(f"batch_norm: input {x.shape}: expected (N, C, ...)")
    for name, t in zip(_NAMES, others):
        if t is None:
            continue
        a = t.array
        if a.shape != size:
            raise ValueError(f"batch_norm: {name} {a.shape} for {size[0]} channels of "
                             f"input {x.shape}")
        if a.dtype != dtype:
            types.append(str(t.dtype))
    one_device("batch_norm", x, *[t.array for t in others if t is not None])
    if (others[0] is None) != (others[1] is None) or not training and others[0] is None:
        raise ValueError("batch_norm: running_mean and running_var are both given, or neither "
                         "when training")
    if types or dtype.kind not in FLOATING:
        raise TypeError(f"batch_norm: one floating type is needed, not "
                        f"{', '.join([str(input.dtype), *types])}")


def memory_order(x):
    """The axes of x from the farthest apart in memory to the closest; of equal ones that with a
    single element is last.
    """
    if x.flags.c_contiguous:
        return list(range(x.ndim))
    return sorted(range(x.ndim), key=lambda axis: (-abs(x.strides[axis]), x.shape[axis] == 1))


def in_order(x, order):
    """x with its axes in `order`, contiguous; 16-bit types become float32."""
    if x.flags.c_contiguous and x.itemsize > 2 and order == sorted(order):
        return x
    return np.ascontiguousarray(x.transpose(order), wide(x.dtype), like=x)


def _matrices(x, order):
    """(x with its axes in `order`, contiguous, as `Matrices`; the function that undoes this)."""
    a = in_order(x, order)
    shape, channel = a.shape, order.index(1)
    before, channels = math.prod(shape[:channel]), shape[channel]
    length = math.prod(shape[channel + 1:])
    if length == 1:
        view = rows_of_columns(before, channels, a)
    else:
        view = Matrices(before * channels, length, 1, a.size, channels)
    if a is x:
        return a, view, lambda b: b
    inverse = sorted(range(x.ndim), key=order.__getitem__)
    return a, view, lambda b: b.transpose(inverse)


def _statistics(a, view, channels, n):
    """Mean and variance of each channel, float64 (C,)."""
    mean, squares = moments(a, view)
    return join_moments(mean.reshape(-1, channels), squares.reshape(-1, channels), view.length, n)
