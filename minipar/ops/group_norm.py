"""Group normalisation (Wu & He 2018, "Group normalization").

Arrays are taken as they lie in memory: (A, G, C / G, P, B) with the samples first, if they are
(A = N, B = 1), or last, as what comes from a convolution has them (A = H, P = W, B = N). A run is
what one group has at one place of A and B.
"""

import math

import numpy as np

from ..tensor import record
from .base import quiet
from .batch_norm import in_order, memory_order, run_sums
from .softmax import ones

_BLOCK = 65536  # elements that are taken through all steps while in the cache


@quiet
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
    blocks, restore = _blocks(x, order, num_groups)
    mean, scale = _statistics(blocks, samples_last, eps)

    def per_channel(t):
        return t.array.reshape(*blocks.shape[1:3], 1, 1)
    out = np.empty_like(blocks)
    for part in _parts(blocks):
        np.subtract(blocks[part], mean[part], out=out[part])
        out[part] *= scale[part]
        if weight is not None:
            out[part] *= per_channel(weight)
        if bias is not None:
            out[part] += per_channel(bias)
    need_x, need_w = input.requires_grad, weight is not None and weight.requires_grad

    def backward(g):
        w = 1 if weight is None else per_channel(weight)
        g, _ = _blocks(g, order, num_groups)
        gx, gw, gb = _gradients(g, blocks, mean, scale, w, samples_last)
        return (restore(gx).astype(dtype, copy=False) if need_x else None,
                gw.astype(dtype, copy=False) if need_w else None,
                None if bias is None else gb.astype(dtype, copy=False))
    saved = [input] + ([weight] if need_x and weight is not None else [])
    out = restore(out).astype(dtype, copy=False)
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


def _blocks(x, order, groups):
    """(x as (A, G, C / G, P, B), the function that undoes this), with the axes in `order`."""
    a = in_order(x, order)
    shape, channel = a.shape, order.index(1)
    last = len(shape) - (order[-1] == 0)
    inverse = sorted(range(x.ndim), key=order.__getitem__)
    blocks = a.reshape(math.prod(shape[:channel]), groups, shape[channel] // groups,
                       math.prod(shape[channel + 1:last]), math.prod(shape[last:]))
    return blocks, lambda b: b.reshape(shape).transpose(inverse)


def _parts(blocks):
    """Slices of A, of about _BLOCK elements each."""
    step = max(1, _BLOCK // max(1, math.prod(blocks.shape[1:])))
    return [slice(start, start + step) for start in range(0, len(blocks), step)]


def _sums(a):
    """The sum of each run: (A, G, C / G, P, B) -> (A, G, 1, 1, B)."""
    length = a.shape[2] * a.shape[3]
    by_run = ones(length, a.dtype) @ a.reshape(*a.shape[:2], length, a.shape[4])
    return by_run[:, :, None, None]


def _statistics(blocks, over_a, eps):
    """(mean, 1 / sqrt(variance + eps)) at each place of A and B, (A, G, 1, 1, B).

    over_a: whether a group's elements are all runs along A, or one. The sums of squares are about
    each run's own mean first, as in `batch_norm.py`.
    """
    length = blocks.shape[2] * blocks.shape[3]
    shape = (*blocks.shape[:2], 1, 1, blocks.shape[4])
    means, squares = np.empty(shape, blocks.dtype), np.empty(shape, blocks.dtype)
    for part in _parts(blocks):
        means[part] = _sums(blocks[part]) / length
        centred = blocks[part] - means[part]
        squares[part] = _sums(centred * centred)
    mean, variance = means, squares / length
    if over_a:
        count = max(1, len(means))
        mean = means.sum(0, dtype=np.float64) / count
        offsets = means - mean
        variance = (variance + offsets * offsets).sum(0) / count
    scale = 1 / np.sqrt(variance + eps)
    return (np.broadcast_to(a.astype(blocks.dtype), shape) for a in (mean, scale))


def _gradients(g, x, mean, scale, w, over_a):
    """The gradients of x, weight and bias, from g and x (A, G, C / G, P, B):
    gx = scale (g w - mean(g w) - normal mean(g w normal)), normal = scale (x - mean).
    """
    sums, products = np.empty(mean.shape, g.dtype), np.empty(mean.shape, g.dtype)
    a, groups, c, p, b = g.shape
    gw, gb = np.zeros(groups * c, g.dtype), np.zeros(groups * c, g.dtype)

    def by_channel(part):
        return run_sums(part.reshape(len(part), groups * c, p * b)).sum(0)
    for part in _parts(g):
        normal = (x[part] - mean[part]) * scale[part]
        gb += by_channel(g[part])
        sums[part] = _sums(g[part] * w)
        normal *= g[part]
        gw += by_channel(normal)
        normal *= w
        products[part] = _sums(normal)
    n = c * p
    if over_a:
        n *= a
        sums, products = (np.broadcast_to(t.sum(0), t.shape) for t in (sums, products))
    gx = np.empty_like(g)
    for part in _parts(g):
        np.subtract(x[part], mean[part], out=gx[part])
        gx[part] *= scale[part] * products[part] / n
        gx[part] += sums[part] / n
        np.subtract(g[part] * w, gx[part], out=gx[part])
        gx[part] *= scale[part]
    return gx, gw, gb
