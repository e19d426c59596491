"""Normalisation over the last dims: layer norm (Ba, Kiros & Hinton 2016, "Layer normalization")
and its form without a mean (Zhang & Sennrich 2019, "Root mean square layer normalization").

Of channels: `batch_norm.py`, `group_norm.py`.
"""

import math

import numpy as np

from ..device import device_of, one_device
from ..execution import Kernel
from ..tensor import record
from .base import quiet, wide
from .precision import autocasts, in_float32
from .softmax import constant, ones, row_dots

_KERNELS = {name: Kernel("norm.cu", name, rows="rows", width="n") for name in (
    "layer_norm_forward", "rms_norm_forward")}
_KERNELS |= {name: Kernel("norm.cu", name, rows="parts", width="n") for name in (
    "layer_norm_backward", "rms_norm_backward")}
_KERNELS["add_parts"] = Kernel("norm.cu", "add_parts", elements="n")
_PART = 32  # rows: ROWS of norm.cu
_BLOCK = 65536  # elements, of whole rows, that the reference takes through all steps in the cache


@autocasts("float32")
@quiet
def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    """weight * (x - mean) / sqrt(variance + eps) + bias, each over the last dims.

    input (..., *normalized_shape); normalized_shape: an int or a tuple of at least one; weight,
    bias: of normalized_shape or None. All of one floating type. The variance is over n, not n - 1.
    Raises ValueError with the shapes if they do not match; TypeError for other types.
    """
    shape = _shape("layer_norm", input, normalized_shape, weight, bias)
    x, run = input.array, _kernel("layer_norm_forward", input.array)
    if run is None and x.itemsize == 2:
        return in_float32(layer_norm, input, normalized_shape, weight, bias, eps)
    rows, n = _rows(x, shape)
    w = ones(n, rows) if weight is None else _vector(weight, rows)
    b = _zeros(n, rows) if bias is None else _vector(bias, rows)
    # What is saved: of each row its mean and 1 / sqrt(variance + eps).
    out = np.empty_like(rows)
    mean, scale = np.empty((2, len(rows)), wide(rows.dtype), like=rows)
    if run:
        run(rows, w, b, out, mean, scale, len(rows), n, eps)
    else:
        for part in _parts(rows):
            _normalise(rows[part], w, b, out[part], mean[part], scale[part], eps)
    need_x, x_shape = input.requires_grad, x.shape

    def backward(g):
        g = np.ascontiguousarray(g, rows.dtype, like=g).reshape(rows.shape)
        w = ones(n, g) if weight is None else _vector(weight, g)
        gx = np.empty_like(g)
        if run := _kernel("layer_norm_backward", g):
            gw, gb = _in_parts(run, (2, n), rows, g, w, mean, scale, gx)
        else:
            gw, gb = np.zeros((2, n), g.dtype, like=g)
            for part in _parts(g):
                _gradients(g[part], rows[part], mean[part], scale[part], w, gx[part], gw, gb)
        return (gx.reshape(x_shape) if need_x else None,
                None if weight is None else gw.reshape(shape).astype(g.dtype, copy=False),
                None if bias is None else gb.reshape(shape).astype(g.dtype, copy=False))
    saved = [input] + ([weight] if need_x and weight is not None else [])
    return record(out.reshape(x_shape), (input, weight, bias), backward, saved)


@autocasts("float32")
@quiet
def rms_norm(input, normalized_shape, weight=None, eps=None):
    """weight * x / sqrt(mean(x^2) + eps), over the last dims.

    input (..., *normalized_shape); normalized_shape: an int or a tuple of at least one; weight: of
    normalized_shape or None. Both of one floating type. eps: of None, the distance from 1 to the
    next number of the type that is computed in, float32 for float16.
    Raises what `layer_norm` does.
    """
    shape = _shape("rms_norm", input, normalized_shape, weight)
    x, run = input.array, _kernel("rms_norm_forward", input.array)
    if run is None and x.itemsize == 2:
        return in_float32(rms_norm, input, normalized_shape, weight, eps)
    rows, n = _rows(x, shape)
    w = ones(n, rows) if weight is None else _vector(weight, rows)
    eps = np.finfo(wide(rows.dtype)).eps if eps is None else eps
    if run:
        out, scale = np.empty_like(rows), np.empty(len(rows), wide(rows.dtype), like=rows)
        run(rows, w, out, scale, len(rows), n, eps)
    else:
        scale = 1 / np.sqrt(row_dots(rows, rows) / n + eps)
        out = rows * scale[:, None]
        out *= w
    need_x, x_shape = input.requires_grad, x.shape

    def backward(g):
        g = np.ascontiguousarray(g, rows.dtype, like=g).reshape(rows.shape)
        w = ones(n, g) if weight is None else _vector(weight, g)
        gx = np.empty_like(g)
        if run := _kernel("rms_norm_backward", g):
            gw, = _in_parts(run, (1, n), rows, g, w, scale, gx)
        else:
            gw = np.zeros(n, g.dtype, like=g)
            for part in _parts(g):
                normal, weighted = rows[part] * scale[part, None], g[part] * w
                gw += ones(len(normal), g) @ (normal * g[part])
                # The part of the gradient along the row itself changes nothing.
                normal *= row_dots(normal, weighted)[:, None] / n
                np.subtract(weighted, normal, out=gx[part])
                gx[part] *= scale[part, None]
        return (gx.reshape(x_shape) if need_x else None,
                None if weight is None else gw.reshape(shape).astype(g.dtype, copy=False))
    saved = [input] + ([weight] if need_x and weight is not None else [])
    return record(out.reshape(x_shape), (input, weight), backward, saved)


def _shape(name, input, normalized_shape, weight=None, bias=None):
    """normalized_shape as a tuple; ValueError or TypeError if the operands do not match it."""
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    x = input.array
    if not shape or x.shape[x.ndim - len(shape):] != shape or x.ndim < len(shape):
        raise ValueError(f"{name}: input {x.shape} does not end in normalized_shape {shape}")
    for what, t in (("weight", weight), ("bias", bias)):
        if t is not None and t.shape != shape:
            raise ValueError(f"{name}: {what} {t.shape} is not of normalized_shape {shape}")
    if not input.dtype.is_floating_point or any(
            t is not None and t.dtype is not input.dtype for t in (weight, bias)):
        types = ", ".join(str(t.dtype) for t in (input, weight, bias) if t is not None)
        raise TypeError(f"{name}: one floating type is needed, not {types}")
    return shape


def _rows(x, shape):
    """(x as contiguous rows of the last dims `shape`, their length)."""
    n = math.prod(shape)
    rows = x.reshape(math.prod(x.shape[:x.ndim - len(shape)]), n)
    return np.ascontiguousarray(rows, like=rows), n


def _vector(parameter, rows):
    """weight or bias as the rows take them."""
    one_device("normalisation", rows, parameter.array)
    return np.ascontiguousarray(parameter.array, rows.dtype, like=rows).reshape(-1)


def _zeros(count, like):
    return constant(0, count, like.dtype, device_of(like))


def _kernel(name, rows):
    return _KERNELS[name].build(rows) if rows.size else None


def _in_parts(run, shape, rows, *arrays):
    """Run a backward kernel: the gradients of the parameters, of `shape` (how many, n).

    It adds them up in parts of _PART rows; the parts are added here.
    """
    parts = -(-len(rows) // _PART)
    partial, total = (np.empty(s, wide(rows.dtype), like=rows) for s in ((parts, *shape), shape))
    run(rows, *arrays, partial, *rows.shape, parts)
    _KERNELS["add_parts"].build(rows)(partial, total, parts, total.size)
    return total


def _parts(rows):
    """Slices of consecutive rows, of about _BLOCK elements each."""
    step = max(1, _BLOCK // max(1, rows.shape[1]))
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def _normalise(x, w, b, out, mean, scale, eps):
    """mean (rows,), scale = 1 / sqrt(variance + eps), out = (x - mean) scale w + b."""
    n = x.shape[1]
    # A product with a vector is the fastest sum of short rows: 4 times as fast as np.mean.
    np.divide(x @ ones(n, x), n, out=mean)
    np.subtract(x, mean[:, None], out=out)
    np.divide(1, np.sqrt(row_dots(out, out) / n + eps), out=scale)
    out *= scale[:, None]
    out *= w
    out += b


def _gradients(g, x, mean, scale, w, gx, gw, gb):
    """Add the gradients of weight and bias to gw and gb; write that of x to gx:
    gx = scale (d - mean(d) - normal mean(d normal)) with d = g w, normal = (x - mean) scale.
    """
    normal = x - mean[:, None]
    normal *= scale[:, None]
    product = g * normal
    column = ones(len(g), g)
    gw += column @ product
    gb += column @ g
    share = w / len(w)
    level, tilt = g @ share, product @ share
    normal *= tilt[:, None]
    normal += level[:, None]
    np.multiply(g, w, out=gx)
    gx -= normal
    gx *= scale[:, None]
