"""Group normalisation (Wu & He 2018, "Group normalization").

Arrays are taken as they lie in memory if the samples are first there, or last, as in what comes
from a convolution.
"""

import math

import numpy as np

from ..tensor import record
from .batch_norm import in_order, memory_order
from .moments import (Matrices, gradient, join_moments, join_sums, moments, normalise, products)
from .precision import arithmetic, autocasts


@autocasts("float32")
@arithmetic
def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    """weight * (x - mean) / sqrt(variance + eps) + bias, with mean and variance (over n, not
    n - 1) of each sample and each of num_groups groups of consecutive channels.

    input (N, C, ...); weight and bias (C,), per channel, or None; all of one floating type.
    Raises ValueError with the sizes if they do not match, if C is not a multiple of num_groups
    and, as PyTorch does, if one sample has one element per group; TypeError for other types.
    """
    x, dtype = input.array, input.array.dtype
    _check(input, num_groups, weight, bias)
    order = memory_order(x)
    samples_last = order[-1] == 0
    if not samples_last and order[:2] != [0, 1]:
        order = list(range(x.ndim))
    a = in_order(x, order)
    place = _Place(a, order, num_groups)
    mean, variance = place.statistics(a)
    scale = (1 / np.sqrt(variance + eps)).astype(a.dtype)
    mean = mean.astype(a.dtype)
    slope = scale if weight is None else scale * place.channels(weight.array)
    offset = np.zeros((), a.dtype, like=a) if bias is None else place.channels(bias.array)
    out = normalise(a, place.runs, *map(place.for_runs, (mean, slope, offset)))
    inverse = sorted(range(x.ndim), key=order.__getitem__)
    out = out.transpose(inverse).astype(dtype, copy=False)
    need_x, need_w = input.requires_grad, weight is not None and weight.requires_grad

    def backward(g):
        g, a, gx = in_order(g, order), in_order(x, order), None
        sums, along = place.sums(products(g, a, place.runs, place.for_runs(mean)))
        along = along * scale
        gw, gb = along.sum((0, 3)).reshape(-1), sums.sum((0, 3)).reshape(-1)
        if need_x:
            w = 1 if weight is None else place.channels(weight.array)
            level, tilt = ((s * w).sum(2, keepdims=True) * scale / place.size
                           for s in (sums, along))
            numbers = mean, scale * w, tilt * scale, level
            gx = gradient(g, a, place.runs, *map(place.for_runs, numbers))
            gx = gx.transpose(inverse).astype(dtype, copy=False)
        return (gx, gw.astype(dtype) if need_w else None,
                None if bias is None else gb.astype(dtype))
    saved = [input] + ([weight] if need_x and weight is not None else [])
    return record(out, (input, weight, bias), backward, saved)


def _check(input, num_groups, weight, bias):
    if input.ndim < 2:
        raise ValueError(f"group_norm: input {input.shape}: expected (N, C, ...)")
    n, c, *rest = input.shape
    if not isinstance(num_groups, (int, np.integer)) or num_groups < 1 or c % num_groups:
        raise ValueError(f"group_norm: {c} channels do not divide into {num_groups} groups")
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and t.shape != (c,):
            raise ValueError(f"group_norm: {name} {t.shape} for {c} channels of input "
                             f"{input.shape}")
    if n * c // num_groups * math.prod(rest) == 1:
        raise ValueError(f"group_norm: input {input.shape} has 1 value in each of {num_groups} "
                         f"groups: more are needed")
    if not input.dtype.is_floating_point or any(
            t is not None and t.dtype is not input.dtype for t in (weight, bias)):
        types = ", ".join(str(t.dtype) for t in (input, weight, bias) if t is not None)
        raise TypeError(f"group_norm: one floating type is needed, not {types}")


class _Place:
    """Where groups and channels are in an array with its axes in memory order.

    Numbers of each group stand as (S, G, 1, B), of each channel as (S, G, C / G, B), with the
    samples in S, if they are first in memory, or else in B. `runs`: the matrices of one channel,
    in one sample (one column) or in one row of all (a column for each).
    """

    def __init__(self, a, order, groups):
        """order: which axis of the input each axis of the array `a` is."""
        self.last, self.dtype = order[-1] == 0, a.dtype
        channel = order.index(1)
        samples, c = a.shape[order.index(0)], a.shape[channel]
        self.outer = math.prod(a.shape[:channel])
        self.inner = math.prod(a.shape[channel + 1:a.ndim - self.last])
        first, columns = (1, samples) if self.last else (samples, 1)
        self.shape = first, groups, c // groups, columns
        self.size = a.size // max(1, samples * groups)  # elements of a group
        count = self.outer * c
        self.runs = Matrices(count, self.inner, columns, count * self.inner, first * c)

    def statistics(self, a):
        """Mean and variance of each group."""
        first, groups, each, columns = self.shape
        length, count = each * self.inner, self.outer * groups
        whole = Matrices(count, length, columns, count * length, first * groups)
        mean, squares = moments(a, whole)
        if self.last:
            mean, squares = (m.reshape(self.outer, groups * columns) for m in (mean, squares))
            mean, variance = join_moments(mean, squares, length, length * self.outer)
        else:
            variance = squares / max(1, length)
        return (m.reshape(first, groups, 1, columns) for m in (mean, variance))

    def channels(self, a):
        """Numbers of each channel (C,) beside those of groups."""
        return a.reshape(1, *self.shape[1:3], 1)

    def for_runs(self, a):
        """Numbers of groups or channels, given to every run."""
        return np.ascontiguousarray(np.broadcast_to(a, self.shape), self.dtype, like=a).reshape(-1)

    def sums(self, a):
        """The sums over each channel of each sample, from those over runs (2, ...), float64."""
        if self.last:
            a = np.stack([join_sums(part.reshape(self.outer, -1)) for part in a])
        return a.reshape(2, *self.shape).astype(np.float64, copy=False)
