"""Reductions: sum, mean, max, argmax, over all elements or along dims."""

from typing import NamedTuple

import numpy as np

from ..sinks import Deferred
from ..tensor import Tensor, record
from .base import Like, method, normal_dim, quiet


def _axes(name, dim, ndim):
    """The dims to reduce as a tuple from the front; None and () mean all, as in PyTorch."""
    if dim is None or dim == () or dim == []:
        return tuple(range(ndim))
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    axes = tuple(normal_dim(d, ndim) for d in dims)
    if len(set(axes)) < len(axes):
        raise RuntimeError(f"{name}: dims {tuple(dims)} of a tensor with {ndim} dims name one "
                           f"dim twice")
    return axes if ndim else ()


def _total(a, axes, keepdim):
    """Sum over `axes`. Integers and bools sum to int64, float16 through float32."""
    if a.dtype.kind != "f":
        return np.add.reduce(a, axis=axes, dtype=np.int64, keepdims=keepdim)
    if a.dtype == np.float16:
        return np.add.reduce(a, axis=axes, dtype=np.float32, keepdims=keepdim)
    return np.add.reduce(a, axis=axes, keepdims=keepdim)


def _spread(g, like, axes):
    """The gradient of a sum: `g` at every element of an array of `like`'s shape."""
    g = g.reshape([1 if i in axes else n for i, n in enumerate(like.shape)])
    return Deferred(like, write=lambda out: np.copyto(out, g),
                    add=lambda out: np.add(out, g, out=out))


@method()
@quiet
def sum(x, dim=None, keepdim=False):
    """Sum over `dim` (int or tuple; None: all). Integers and bools give int64; empty sums are 0.

    Raises IndexError for a dim that x has not, RuntimeError for one named twice.
    """
    a = x.array
    axes, like = _axes("sum", dim, a.ndim), Like(a.shape, a.dtype)
    out = _total(a, axes, keepdim)
    if out.dtype != a.dtype and a.dtype.kind == "f":
        out = out.astype(a.dtype)
    return record(out, (x,), lambda g: (_spread(g, like, axes),))


@method()
@quiet
def mean(x, dim=None, keepdim=False):
    """Mean over `dim` (int or tuple; None: all); of nothing it is NaN.

    Raises RuntimeError for integers and bools, and otherwise what `sum` raises.
    """
    a = x.array
    if a.dtype.kind != "f":
        raise RuntimeError(f"mean: a floating type is needed, not {x.dtype}")
    axes, like = _axes("mean", dim, a.ndim), Like(a.shape, a.dtype)
    count = 1
    for axis in axes:
        count *= a.shape[axis]
    out = np.true_divide(_total(a, axes, keepdim), count).astype(a.dtype, copy=False)
    return record(out, (x,), lambda g: (_spread(g / count, like, axes),))


class Max(NamedTuple):
    """What `max` along a dim returns."""

    values: Tensor
    indices: Tensor


@method()
def max(x, dim=None, keepdim=False):
    """The largest value; with `dim` (int), (values, indices int64) along it. NaN is largest.

    Without `dim` the gradient is shared equally among the elements that are largest, and with it
    it goes to the one at the index, the first. Raises RuntimeError for an empty tensor and
    IndexError for a dim of size 0.
    """
    a = x.array
    if dim is not None:
        return _max_along(x, dim, keepdim)
    if keepdim:
        raise TypeError("max: keepdim needs a dim")
    if not a.size:
        raise RuntimeError(f"max: no largest element in shape {a.shape}")
    largest = a.max()

    def backward(g):
        if largest != largest:  # NaN: PyTorch's gradient goes to the first
            hits = np.zeros(a.shape, bool)
            hits[np.unravel_index(a.argmax(), a.shape)] = True
        else:
            hits = a == largest
        return (np.where(hits, g / np.count_nonzero(hits), 0).astype(a.dtype, copy=False),)
    return record(largest, (x,), backward, (x,))


def _max_along(x, dim, keepdim):
    a, axis, shape = _along("max", x.array, dim, keepdim)
    indices = a.argmax(axis, keepdims=True).astype(np.int64, copy=False)
    values = np.take_along_axis(a, indices, axis)
    at_least_1d, x_shape, dtype = a.shape, x.array.shape, a.dtype

    def backward(g):
        gx = np.zeros(at_least_1d, dtype)
        np.put_along_axis(gx, indices, g.reshape(indices.shape), axis)
        return (gx.reshape(x_shape),)
    return Max(record(values.reshape(shape), (x,), backward), Tensor(indices.reshape(shape)))


def _along(name, a, dim, keepdim):
    """(array of at least one dim, `dim` from its front, shape of the result without that dim)."""
    axis = normal_dim(dim, a.ndim)
    if not a.ndim:
        return a.reshape(1), axis, ()
    if not a.shape[axis]:
        raise IndexError(f"{name}: dim {dim} of shape {a.shape} has size 0")
    return a, axis, a.shape[:axis] + ((1,) if keepdim else ()) + a.shape[axis + 1:]


@method()
def argmax(x, dim=None, keepdim=False):
    """Index (int64) of the first largest element along `dim`; None: in the flattened tensor.

    Raises IndexError if there is no element to choose.
    """
    a = x.array
    if dim is None:
        if not a.size:
            raise IndexError(f"argmax: no largest element in shape {a.shape}")
        return Tensor(np.full((1,) * a.ndim if keepdim else (), a.argmax(), np.int64))
    a, axis, shape = _along("argmax", a, dim, keepdim)
    return Tensor(a.argmax(axis).astype(np.int64, copy=False).reshape(shape))
