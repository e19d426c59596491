"""Group normalisation (Wu & He 2018, "Group normalization").

On the CPU, kernels take arrays as they lie in memory if the samples are first there, or last, as in
what comes from a convolution. For a GPU and for the reference the samples are always first.
"""

import math
from functools import lru_cache

import numpy as np

from ..device import device_of, on_gpu, one_device
from ..execution import Kernel
from ..tensor import record
from .batch_norm import in_order, memory_order
from .moments import join_sums
from .precision import arithmetic, autocasts
from .softmax import constant, ones, row_dots

_KERNELS = {name: Kernel("groupnorm.cu", name, rows="rows", width="length")
            for name in ("group_norm_forward", "group_norm_backward")}
_KERNELS |= {name: Kernel("groupnorm.cu", name, rows="groups", width="columns")
             for name in ("column_group_norm_forward", "column_group_norm_backward")}
_BLOCK = 65536  # elements, of whole samples, that the reference takes through all steps cached
_COLUMNS = 80  # that several pixels of few samples are together, at most


@autocasts("float32")
@arithmetic
def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    """weight * (x - mean) / sqrt(variance + eps) + bias, with mean and variance (over n, not
    n - 1) of each sample and each of num_groups groups of consecutive channels.

    input (N, C, ...); weight and bias (C,), per channel, or None; all of one floating type.
    Raises ValueError with the sizes if they do not match, if C is not a multiple of num_groups
    and, as PyTorch does, if one sample has one element per group; TypeError for other types.
    """
    x = input.array
    _check(input, num_groups, weight, bias)
    kernels, lies = _built(x), memory_order(x)
    order, inverse, images = _geometry(x.shape, tuple(lies), num_groups,
                                       bool(kernels) and not on_gpu(x))
    a, channels = in_order(x, order), x.shape[1]
    out, mean, scale = images.forward(kernels, a, _vector(weight, 1, channels, a),
                                      _vector(bias, 0, channels, a), eps)
    need_x, need_w = input.requires_grad, weight is not None and weight.requires_grad
    del a  # backward finds it in input's array again

    def restore(a):
        """`a`, with its axes in `order`, as an array that lies in memory as x does."""
        a = a.transpose(inverse)
        if order == lies:
            return a
        out = np.empty_like(x)
        out[...] = a
        return out

    def backward(g):
        g, a = in_order(g, order), in_order(x, order)
        gx, gw, gb = images.backward(kernels, a, g, _vector(weight, 1, channels, a), mean, scale)
        return (restore(gx) if need_x else None,
                gw.astype(x.dtype, copy=False) if need_w else None,
                None if bias is None else gb.astype(x.dtype, copy=False))
    return record(restore(out), (input, weight, bias), backward,
                  [input] if weight is None else [input, weight])


def _built(x):
    """{name: kernel} for an array; {} for the reference, and for an array without elements."""
    if not x.size or not _KERNELS["group_norm_forward"].build(x):
        return {}
    return {name: kernel.build(x) for name, kernel in _KERNELS.items()}


@lru_cache(maxsize=256)
def _geometry(shape, order, groups, may_be_last):
    """(axes in the order in which an array is taken, their inverse, its images).

    order: the axes as they lie in memory.
    """
    last = order[-1] == 0 and may_be_last
    order = list(order if last or order[:2] == (0, 1) else range(len(shape)))
    images = (_SamplesLast if last else _SamplesFirst)([shape[axis] for axis in order],
                                                      order.index(1), groups)
    return order, sorted(order, key=order.__getitem__), images


def _vector(parameter, value, channels, like):
    """weight or bias (C,) in the type to compute with; equal numbers if there is none."""
    if parameter is None:
        return constant(value, channels, like.dtype, device_of(like))
    one_device("group_norm", like, parameter.array)
    return np.ascontiguousarray(parameter.array, like.dtype, like=like)


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


class _SamplesFirst:
    """Images (N, C, ...)."""

    def __init__(self, shape, channel, groups):
        n, c, *rest = shape
        self.shape = n, groups, c // groups, math.prod(rest)
        self.sizes = n * groups, *self.shape[1:]

    def forward(self, kernels, x, w, b, eps):
        """Normalised images; mean and 1 / sqrt(variance + eps) of each group, (N, groups)."""
        y, (mean, scale) = np.empty_like(x), np.empty((2, *self.shape[:2]), x.dtype, like=x)
        if kernels:
            kernels["group_norm_forward"](x, w, b, y, mean, scale, *self.sizes, eps)
        else:
            for part in self._parts():
                self._normalise(x[part], w, b, y[part], mean[part], scale[part], eps)
        return y, mean, scale

    def backward(self, kernels, x, g, w, mean, scale):
        """Gradients of x, of the weight (C,) and of the bias (C,)."""
        gx, shares = np.empty_like(g), np.empty((2, len(g), w.size), g.dtype, like=g)
        if kernels:
            kernels["group_norm_backward"](x, g, w, mean, scale, gx, shares, *self.sizes)
        else:
            for part in self._parts():
                self._gradients(x[part], g[part], w, mean[part], scale[part], gx[part],
                                shares[:, part])
        return gx, join_sums(shares[0]), join_sums(shares[1])

    def _parts(self):
        """Slices of samples, of about _BLOCK elements each."""
        n, *sizes = self.shape
        step = max(1, _BLOCK // max(1, math.prod(sizes)))
        return [slice(start, start + step) for start in range(0, n, step)]

    def _normalise(self, x, w, b, out, mean, scale, eps):
        """The forward of some samples: fills out, mean and scale."""
        x, out = (a.reshape(len(a), *self.shape[1:]) for a in (x, out))
        w, b = (a.reshape(*self.shape[1:3], 1) for a in (w, b))
        rows = x.reshape(mean.size, x.shape[2] * x.shape[3])
        size = max(1, rows.shape[1])
        mean[...] = (rows @ ones(rows.shape[1], x)).reshape(mean.shape) / size
        np.subtract(x, mean[:, :, None, None], out=out)
        rows = out.reshape(rows.shape)
        variance = row_dots(rows, rows).reshape(mean.shape) / size
        np.divide(1, np.sqrt(variance + eps), out=scale)
        out *= scale[:, :, None, None]
        out *= w
        out += b

    def _gradients(self, x, g, w, mean, scale, gx, shares):
        """The backward of some samples: fills gx and shares (2, n, C), those of weight and bias.

        gx = scale (w g - level - unit tilt) with unit = (x - mean) scale; level and tilt are the
        means over the group of w g and of w g unit.
        """
        x, g, gx = (a.reshape(len(a), *self.shape[1:]) for a in (x, g, gx))
        w = w.reshape(*self.shape[1:3], 1)
        unit = x - mean[:, :, None, None]
        unit *= scale[:, :, None, None]
        column = ones(g.shape[3], g)
        along, sums = (a @ column for a in (g * unit, g))  # (n, groups, C / groups)
        shares[0], shares[1] = (a.reshape(len(g), -1) for a in (along, sums))
        size = max(1, g.shape[2] * g.shape[3])
        tilt, level = ((a * w[:, :, 0]).sum(2)[:, :, None, None] / size for a in (along, sums))
        unit *= tilt
        unit += level
        np.multiply(g, w, out=gx)
        gx -= unit
        gx *= scale[:, :, None, None]


class _SamplesLast:
    """Images (..., C, ..., N), for kernels only: matrices in which a column is of one sample."""

    def __init__(self, shape, channel, groups):
        length, n = math.prod(shape[channel + 1:-1]), shape[-1]
        # Of few samples, `beside` neighbouring pixels stand side by side, as more columns.
        most = min(length, _COLUMNS // n)
        beside = max((r for r in range(1, most + 1) if length % r == 0), default=1)
        if beside * n < 16 and length * n < 1024:
            beside = length
        self.sizes = (math.prod(shape[:channel]), groups, shape[channel] // groups,
                      length // beside, beside * n, n)

    def forward(self, kernels, x, w, b, eps):
        """Normalised images; mean and 1 / sqrt(variance + eps) of each group, for each column."""
        _, groups, _, _, columns, _ = self.sizes
        y, (mean, scale) = np.empty_like(x), np.empty((2, groups, columns), x.dtype)
        kernels["column_group_norm_forward"](x, w, b, y, np.empty((groups, 4, columns)), mean,
                                             scale, *self.sizes, eps)
        return y, mean, scale

    def backward(self, kernels, x, g, w, mean, scale):
        """Gradients of x, of the weight (C,) and of the bias (C,)."""
        _, groups, _, _, columns, _ = self.sizes
        gx, gradients = np.empty_like(g), np.empty((2, w.size), g.dtype)
        shares = np.empty((2, w.size, columns), g.dtype)
        kernels["column_group_norm_backward"](
            x, g, w, mean, scale, gx, np.empty((groups, 4, columns)), shares, gradients,
            *self.sizes)
        return gx, gradients[0], gradients[1]
