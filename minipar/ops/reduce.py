"""Sums over all elements or along dims, and what is made of sums: mean, variance, norm, ...

The largest and the smallest elements stand in `extremes.py`.
"""

import math

import numpy as np

from ..device import as_array
from ..sinks import Deferred
from ..tensor import Tensor, record
from . import unary
from .base import Like, floating, method, normal_dim
from .extremes import amax, reduced_axes
from .precision import arithmetic, autocasts


def _total(a, axes, keepdim):
    """Sum over `axes`. Integers and bools sum to int64."""
    if a.dtype.kind != "f":
        return a.sum(axis=axes, dtype=np.int64, keepdims=keepdim)
    return a.sum(axis=axes, keepdims=keepdim)


def _spread(g, like, axes):
    """The gradient of a sum: `g` at every element of an array of `like`'s shape."""
    g = g.reshape([1 if i in axes else n for i, n in enumerate(like.shape)])
    return Deferred(like, write=lambda out: np.copyto(out, g),
                    add=lambda out: np.add(out, g, out=out))


@method()
@autocasts("float32")
@arithmetic
def sum(x, dim=None, keepdim=False):
    """Sum over `dim` (int or tuple; None: all). Integers and bools give int64; empty sums are 0.

    Raises IndexError for a dim that x has not, RuntimeError for one named twice.
    """
    a = x.array
    axes, like = reduced_axes("sum", dim, a.ndim), Like(a.shape, a.dtype, a.device)
    out = _total(a, axes, keepdim)
    return record(out, (x,), lambda g: (_spread(g, like, axes),))


@method()
@autocasts("float32")
@arithmetic
def mean(x, dim=None, keepdim=False):
    """Mean over `dim` (int or tuple; None: all); of nothing it is NaN.

    Raises RuntimeError for integers and bools, and otherwise what `sum` raises.
    """
    a = x.array
    if a.dtype.kind != "f":
        raise RuntimeError(f"mean: a floating type is needed, not {x.dtype}")
    axes, like = reduced_axes("mean", dim, a.ndim), Like(a.shape, a.dtype, a.device)
    count = 1
    for axis in axes:
        count *= a.shape[axis]
    out = np.true_divide(_total(a, axes, keepdim), count).astype(a.dtype, copy=False)
    return record(out, (x,), lambda g: (_spread(g / count, like, axes),))


def _variance(name, x, dim, unbiased, keepdim, correction):
    """(variance of x with the reduced dims kept, shape of the result, function from the gradient
    of the variance to that of x).
    """
    a = x.array
    if a.dtype.kind != "f":
        raise RuntimeError(f"{name}: a floating type is needed, not {x.dtype}")
    if isinstance(dim, bool):  # x.var(False) is x.var(unbiased=False)
        dim, unbiased = None, dim
    if unbiased is not None and correction is not None:
        raise TypeError(f"{name}: unbiased and correction exclude each other")
    if correction is None:
        correction = 1 if unbiased is None else int(unbiased)
    axes = reduced_axes(name, dim, a.ndim)
    count = math.prod([a.shape[axis] for axis in axes])
    free = float(count - correction) if count > correction else 0.0
    mean = as_array(_total(a, axes, True) / count)
    squares = as_array(a - mean)
    squares *= squares
    out = as_array(_total(squares, axes, True) / free)

    def slope(g):
        gx = as_array(a - mean)
        gx *= 2 * g.reshape(mean.shape)
        gx /= free
        return gx.astype(a.dtype, copy=False)
    return out, _shape_without(axes, a.shape, keepdim), slope


def _shape_without(axes, shape, keepdim):
    return tuple(1 if i in axes else n for i, n in enumerate(shape) if keepdim or i not in axes)


@method()
@autocasts("float32")
@arithmetic
def var(x, dim=None, unbiased=None, keepdim=False, *, correction=None):
    """Variance over `dim` (int or tuple; None: all): squared deviations over count - correction.

    correction: 1 if None; unbiased=False means 0. Of too few elements the variance is NaN or Inf.
    Raises RuntimeError for integers and bools, and otherwise what `sum` raises.
    """
    out, shape, slope = _variance("var", x, dim, unbiased, keepdim, correction)
    out = out.astype(x.array.dtype, copy=False).reshape(shape)
    return record(out, (x,), lambda g: (slope(g),), (x,))


@method()
@autocasts("float32")
@arithmetic
def std(x, dim=None, unbiased=None, keepdim=False, *, correction=None):
    """Standard deviation over `dim`: the root of `var`. Where it is 0 so is the gradient."""
    out, shape, slope = _variance("std", x, dim, unbiased, keepdim, correction)
    root = np.sqrt(out, out=out)

    def backward(g):
        return (slope(np.where(root == 0, 0, g.reshape(root.shape) / (2 * root))),)
    return record(root.astype(x.array.dtype).reshape(shape), (x,), backward, (x,))


@method()
@autocasts("float32")
@arithmetic
def norm(x, p="fro", dim=None, keepdim=False):
    """The p-norm over `dim` (int or tuple; None: all) of a floating tensor as one long vector.

    p: 2 (or "fro"), 1, or inf, the largest absolute value. The gradient at 0 is 0.
    Raises RuntimeError for integers and bools, ValueError for another p.
    """
    if not x.dtype.is_floating_point:
        raise RuntimeError(f"norm: a floating type is needed, not {x.dtype}")
    if p not in ("fro", 1, 2, math.inf):
        raise ValueError(f"norm: p is 1, 2 or inf, not {p!r}")
    if p == 1:
        return sum(unary.abs(x), dim, keepdim)
    if p == math.inf:
        return amax(unary.abs(x), () if dim is None else dim, keepdim)
    a = x.array
    axes = reduced_axes("norm", dim, a.ndim)
    root = np.sqrt(_total(np.square(a), axes, True))

    def backward(g):
        scale = np.where(root == 0, 0, g.reshape(root.shape) / root)
        return ((a * scale).astype(a.dtype, copy=False),)
    out = root.astype(a.dtype).reshape(_shape_without(axes, a.shape, keepdim))
    return record(out, (x,), backward, (x,))


@method()
@autocasts("float32")
@arithmetic
def logsumexp(x, dim, keepdim=False):
    """log(sum of exp(x)) over `dim` (int or tuple), without overflow; -inf of nothing."""
    a = floating(x.array)
    axes = reduced_axes("logsumexp", dim, a.ndim)
    if 0 in [a.shape[axis] for axis in axes]:
        largest = a.sum(axis=axes, keepdims=True)  # of nothing: 0
    else:
        largest = a.max(axis=axes, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, 0)
    total = np.exp(a - largest).sum(axis=axes, keepdims=True)
    out = np.log(total) + largest

    def backward(g):
        # The softmax of x: exp(x - out)
        return (g.reshape(out.shape) * np.exp(a - out),)
    result = out.reshape(_shape_without(axes, a.shape, keepdim))
    return record(result, (x,), backward, (x,))


@method()
@autocasts("float32")
@arithmetic
def cumsum(x, dim):
    """Sums of the elements up to each one along `dim` (int); integers and bools give int64."""
    a = x.array
    axis, shape = normal_dim(dim, a.ndim), a.shape
    dtype = a.dtype if a.dtype.kind == "f" else np.int64

    def add_up(a):
        return np.cumsum(a.reshape(shape or 1), axis, dtype)

    def backward(g):
        return (np.flip(add_up(np.flip(g.reshape(shape or 1), axis)), axis).reshape(shape),)
    return record(add_up(a).reshape(shape), (x,), backward)


@method()
@autocasts("float32")
@arithmetic
def prod(x, dim=None, keepdim=False):
    """Product along `dim` (int; None: of all elements); integers and bools give int64.

    The product of nothing is 1. The gradient is right where elements are 0.
    """
    a = x.array
    axis = None if dim is None else normal_dim(dim, a.ndim)
    rows = a.reshape(1, -1) if dim is None or not a.ndim else np.moveaxis(a, axis, -1)
    dtype = a.dtype if a.dtype.kind == "f" else np.int64
    out = rows.prod(axis=-1, dtype=dtype)
    axes = range(a.ndim) if dim is None else (axis,)

    def backward(g):
        # Of each element the product of those before it times the product of those after it.
        before, after = np.ones_like(rows), np.ones_like(rows)
        before[..., 1:] = np.cumprod(rows[..., :-1], -1)
        after[..., -2::-1] = np.cumprod(rows[..., :0:-1], -1)
        before *= after
        before *= g.reshape(out.shape)[..., None]
        gx = before if dim is None or not a.ndim else np.moveaxis(before, -1, axis)
        return (gx.reshape(a.shape),)
    return record(out.reshape(_shape_without(axes, a.shape, keepdim)), (x,), backward, (x,))


def _truth(name, x, dim, keepdim, method):
    """Bools, but uint8 of uint8, as in PyTorch."""
    a = x.array
    axes = reduced_axes(name, dim, a.ndim)
    out = as_array(getattr(a.astype(bool), method)(axis=axes, keepdims=keepdim))
    return Tensor(out.astype(np.uint8 if a.dtype == np.uint8 else bool))


@method()
def any(x, dim=None, keepdim=False):
    """Whether an element over `dim` (int or tuple; None: all) is not 0; False of nothing."""
    return _truth("any", x, dim, keepdim, "any")


@method()
def all(x, dim=None, keepdim=False):
    """Whether no element over `dim` (int or tuple; None: all) is 0; True of nothing."""
    return _truth("all", x, dim, keepdim, "all")
