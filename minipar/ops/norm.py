"""Normalisation over the last dims: layer norm (Ba, Kiros & Hinton 2016, "Layer normalization")
and its form without a mean (Zhang & Sennrich 2019, "Root mean square layer normalization").

Of channels: `batch_norm.py`, `group_norm.py`.
"""

import math

import numpy as np

from ..tensor import record
from .base import quiet
from .softmax import ones

_BLOCK = 65536  # elements, of whole rows, that are taken through all steps while in the cache


@quiet
def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    """weight * (x - mean) / sqrt(variance + eps) + bias, each over the last dims.

    input (..., *normalized_shape); normalized_shape: an int or a tuple of at least one; weight,
    bias: of normalized_shape or None. All of one floating type. The variance is over n, not n - 1.
    Raises ValueError with the shapes if they do not match; TypeError for other types.
    """
    x, shape = input.array, _shape("layer_norm", input, normalized_shape, weight, bias)
    n, dtype = math.prod(shape), x.dtype
    rows = x.reshape(math.prod(x.shape[:x.ndim - len(shape)]), n)
    if dtype == np.float16:
        rows = rows.astype(np.float32)  # sums of squares leave the range of float16
    # What is saved: the normalised rows, and 1 / sqrt(variance + eps) of each as a column.
    normal, scale = np.empty_like(rows), np.empty((len(rows), 1), rows.dtype)
    out = np.empty_like(rows)
    w = None if weight is None else weight.array.reshape(n)
    b = None if bias is None else bias.array.reshape(n)
    for part in _parts(rows):
        _normalise(rows[part], normal[part], scale[part], eps)
        if w is None:
            out[part] = normal[part]
        else:
            np.multiply(normal[part], w, out=out[part])
        if b is not None:
            out[part] += b
    need_x, x_shape = input.requires_grad, x.shape

    def backward(g):
        g = g.reshape(normal.shape).astype(normal.dtype, copy=False)
        w = ones(n, g.dtype) if weight is None else weight.array.reshape(n)
        gx, gw, gb = np.empty_like(g), np.zeros(n, g.dtype), np.zeros(n, g.dtype)
        for part in _parts(g):
            _gradients(g[part], normal[part], scale[part], w, gx[part] if need_x else None, gw, gb)
        return (gx.reshape(x_shape).astype(dtype, copy=False) if need_x else None,
                None if weight is None else gw.reshape(shape).astype(dtype, copy=False),
                None if bias is None else gb.reshape(shape).astype(dtype, copy=False))
    saved = [weight] if need_x and weight is not None else []
    out = out.reshape(x_shape).astype(dtype, copy=False)
    return record(out, (input, weight, bias), backward, saved)


@quiet
def rms_norm(input, normalized_shape, weight=None, eps=None):
    """weight * x / sqrt(mean(x^2) + eps), over the last dims.

    input (..., *normalized_shape); normalized_shape: an int or a tuple of at least one; weight: of
    normalized_shape or None. Both of one floating type. eps: of None, the distance from 1 to the
    next number of the type that is computed in, float32 for float16.
    Raises what `layer_norm` does.
    """
    x, shape = input.array, _shape("rms_norm", input, normalized_shape, weight)
    n, dtype = math.prod(shape), x.dtype
    rows = x.reshape(math.prod(x.shape[:x.ndim - len(shape)]), n)
    if dtype == np.float16:
        rows = rows.astype(np.float32)
    eps = np.finfo(rows.dtype).eps if eps is None else eps
    scale = 1 / np.sqrt(np.vecdot(rows, rows)[:, None] / n + eps)  # of each row, a column
    out = rows * scale
    if weight is not None:
        out *= weight.array.reshape(n)
    need_x, need_w = input.requires_grad, weight is not None and weight.requires_grad
    x_shape = x.shape
    del x

    def backward(g):
        g = g.reshape(rows.shape).astype(rows.dtype, copy=False)
        gx, gw = np.empty_like(g), np.zeros(n, g.dtype)
        w = ones(n, g.dtype) if weight is None else weight.array.reshape(n)
        for part in _parts(g):
            normal, weighted = rows[part] * scale[part], g[part] * w
            if need_w:
                gw += ones(len(normal), g.dtype) @ (normal * g[part])
            if need_x:
                # d out / d x: the part of the gradient along the row itself changes nothing.
                normal *= np.vecdot(normal, weighted)[:, None] / n
                np.subtract(weighted, normal, out=gx[part])
                gx[part] *= scale[part]
        return (gx.reshape(x_shape).astype(dtype, copy=False) if need_x else None,
                gw.reshape(shape).astype(dtype, copy=False) if need_w else None)
    saved = [input] + ([weight] if need_x and weight is not None else [])
    return record(out.reshape(x_shape).astype(dtype, copy=False), (input, weight), backward, saved)


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


def _parts(rows):
    """Slices of consecutive rows, of about _BLOCK elements each."""
    step = max(1, _BLOCK // max(1, rows.shape[1]))
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def _normalise(x, normal, scale, eps):
    """normal = (x - mean) scale, with scale = 1 / sqrt(variance + eps)."""
    n = x.shape[1]
    # A product with a vector is the fastest sum of short rows: 4 times as fast as np.mean.
    mean = x @ ones(n, x.dtype)
    mean /= n
    np.subtract(x, mean[:, None], out=normal)
    variance = np.vecdot(normal, normal)
    variance /= n
    variance += eps
    np.divide(1, np.sqrt(variance, out=variance)[:, None], out=scale)
    normal *= scale


def _gradients(g, normal, scale, w, gx, gw, gb):
    """Add the gradients of weight and bias to gw and gb; write that of x to gx, unless None:
    gx = scale (d - mean(d) - normal mean(d normal)) with d = g w.
    """
    product = g * normal
    column = ones(len(g), g.dtype)
    gw += column @ product
    gb += column @ g
    if gx is None:
        return
    share = w / len(w)
    mean, slope = g @ share, product @ share
    np.multiply(normal, slope[:, None], out=product)
    product += mean[:, None]
    np.multiply(g, w, out=gx)
    gx -= product
    gx *= scale
