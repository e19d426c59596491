"""The largest and the smallest elements, their indices, and order. NaN counts as largest.

But it is also what `min` finds, as in PyTorch: where there is a NaN, the extremes are NaN.
"""

from typing import NamedTuple

import numpy as np

from ..device import as_array
from ..tensor import Tensor, record
from .base import method, normal_dim, quiet
from .choose import maximum, minimum
from .precision import arithmetic


class Selected(NamedTuple):
    """What a selection along a dim returns: the elements, and where they stood (int64)."""

    values: Tensor
    indices: Tensor


def reduced_axes(name, dim, ndim):
    """The dims to reduce as a tuple from the front; None and () mean all, as in PyTorch."""
    if dim is None or dim == () or dim == []:
        return tuple(range(ndim))
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    axes = tuple(normal_dim(d, ndim) for d in dims)
    if len(set(axes)) < len(axes):
        raise RuntimeError(f"{name}: dims {tuple(dims)} of a tensor with {ndim} dims name one "
                           f"dim twice")
    return axes if ndim else ()


def _no_bools(name, x):
    if x.array.dtype.kind == "b":
        raise RuntimeError(f"{name}: a number type is needed, not {x.dtype}")


@method()
@arithmetic
def max(x, dim=None, keepdim=False):
    """The largest value; with `dim` (int), (values, indices) along it; with a tensor, `maximum`.

    Without `dim` the gradient is shared equally among the elements that are largest, and with it
    it goes to the one at the index, the first. Raises RuntimeError for an empty tensor and
    IndexError for a dim of size 0.
    """
    if isinstance(dim, Tensor):
        return maximum(x, dim)
    return _extreme("max", x, dim, keepdim, np.max, np.argmax)


@method()
@arithmetic
def min(x, dim=None, keepdim=False):
    """The smallest value; with `dim` (int), (values, indices) along it; with a tensor, `minimum`.

    Gradients and errors are those of `max`.
    """
    if isinstance(dim, Tensor):
        return minimum(x, dim)
    return _extreme("min", x, dim, keepdim, np.min, np.argmin)


def _extreme(name, x, dim, keepdim, value_of, index_of):
    a = x.array
    if dim is not None:
        rows, axis, shape = _along(name, a, dim, keepdim)
        return _take(name, x, rows, axis, index_of(rows, axis, keepdims=True), shape)
    if keepdim:
        raise TypeError(f"{name}: keepdim needs a dim")
    if not a.size:
        raise RuntimeError(f"{name}: no element to choose in shape {a.shape}")
    out = value_of(a)

    def backward(g):
        hits = np.isnan(a) if out != out else a == out
        return (np.where(hits, g / np.count_nonzero(hits), 0).astype(a.dtype, copy=False),)
    backward.__qualname__ = name  # what the graph calls the node
    return record(out, (x,), backward, (x,))


def _along(name, a, dim, keepdim):
    """(array of at least one dim, `dim` from its front, shape of the result without that dim)."""
    axis = normal_dim(dim, a.ndim)
    if not a.ndim:
        return a.reshape(1), axis, ()
    if not a.shape[axis]:
        raise IndexError(f"{name}: dim {dim} of shape {a.shape} has size 0")
    return a, axis, a.shape[:axis] + ((1,) if keepdim else ()) + a.shape[axis + 1:]


def _take(name, x, rows, axis, indices, shape):
    """The elements of `rows` (x in at least one dim) at `indices` along `axis`, in `shape`."""
    indices = indices.astype(np.int64, copy=False)
    values = np.take_along_axis(rows, indices, axis)
    rows_shape, x_shape, dtype = rows.shape, x.array.shape, rows.dtype

    def backward(g):
        gx = np.zeros(rows_shape, dtype, like=g)
        np.put_along_axis(gx, indices, g.reshape(indices.shape), axis)
        return (gx.reshape(x_shape),)
    backward.__qualname__ = name
    return Selected(record(values.reshape(shape), (x,), backward), Tensor(indices.reshape(shape)))


@method()
@arithmetic
def argmax(x, dim=None, keepdim=False):
    """Index (int64) of the first largest element along `dim`; None: in the flattened tensor.

    Raises IndexError if there is no element to choose, RuntimeError for bools.
    """
    return _index("argmax", x, dim, keepdim, np.argmax)


@method()
@arithmetic
def argmin(x, dim=None, keepdim=False):
    """Index (int64) of the first smallest element along `dim`; None: in the flattened tensor.

    Raises IndexError if there is no element to choose, RuntimeError for bools.
    """
    return _index("argmin", x, dim, keepdim, np.argmin)


def _index(name, x, dim, keepdim, index_of):
    _no_bools(name, x)
    a = x.array
    if dim is None:
        if not a.size:
            raise IndexError(f"{name}: no element to choose in shape {a.shape}")
        found = as_array(index_of(a)).astype(np.int64)
        return Tensor(found.reshape((1,) * a.ndim if keepdim else ()))
    a, axis, shape = _along(name, a, dim, keepdim)
    return Tensor(index_of(a, axis).astype(np.int64, copy=False).reshape(shape))


@method()
@arithmetic
def amax(x, dim=(), keepdim=False):
    """The largest value over `dim` (int or tuple; (): all).

    The gradient is shared equally among those that are largest. Raises IndexError if there is no
    element to choose.
    """
    return _shared_extreme("amax", x, dim, keepdim, "max")


@method()
@arithmetic
def amin(x, dim=(), keepdim=False):
    """The smallest value over `dim` (int or tuple; (): all); gradients and errors as `amax`."""
    return _shared_extreme("amin", x, dim, keepdim, "min")


@quiet
def _shared_extreme(name, x, dim, keepdim, method):
    a = x.array
    axes = reduced_axes(name, dim, a.ndim)
    if 0 in [a.shape[axis] for axis in axes]:
        raise IndexError(f"{name}: no element to choose over dims {axes} of shape {a.shape}")
    kept = as_array(getattr(a, method)(axis=axes, keepdims=True))
    out = kept if keepdim else np.squeeze(kept, axes)

    def backward(g):
        hits = a == kept
        share = g.reshape(kept.shape) / hits.sum(axis=axes, keepdims=True)
        return ((hits * share).astype(a.dtype, copy=False),)  # NaN where the extreme is NaN
    backward.__qualname__ = name
    return record(out, (x,), backward, (x,), saves_output=True)


def _order(a, axis, descending):
    """Indices that sort `a` along `axis`; equal elements keep their order."""
    if not descending:
        return np.argsort(a, axis, kind="stable")
    # Backwards through the ascending order of what is backwards: equal elements come out forwards.
    return a.shape[axis] - 1 - np.flip(np.argsort(np.flip(a, axis), axis, kind="stable"), axis)


@method()
@arithmetic
def sort(x, dim=-1, descending=False, *, stable=False):
    """(values, indices) in order along `dim`: ascending, or descending.

    Equal elements keep their order, with stable=False too.
    """
    axis, rows = normal_dim(dim, x.array.ndim), np.atleast_1d(x.array)
    return _take("sort", x, rows, axis, _order(rows, axis, descending), x.shape)


@method()
@arithmetic
def argsort(x, dim=-1, descending=False, *, stable=False):
    """The indices (int64) of `sort`."""
    axis, rows = normal_dim(dim, x.array.ndim), np.atleast_1d(x.array)
    return Tensor(_order(rows, axis, descending).reshape(x.shape))


@method()
@arithmetic
def topk(x, k, dim=-1, largest=True, sorted=True):
    """(values, indices) of the k largest, or smallest, elements along `dim`, the best first.

    They are in order with sorted=False too. Of equal elements of which not all are among the k any
    may be. Raises RuntimeError unless 0 <= k <= the size of the
    dim, and for bools.
    """
    _no_bools("topk", x)
    axis, rows = normal_dim(dim, x.array.ndim), np.atleast_1d(x.array)
    size = rows.shape[axis]
    if not 0 <= k <= size:
        raise RuntimeError(f"topk: {k} of the {size} elements of dim {dim} of shape {x.shape}")
    if not 0 < k < size:
        indices = _order(rows, axis, largest)[(slice(None),) * axis + (slice(k),)]
    else:  # linear in the size, where sorting all is not
        at, best = (size - k, slice(-k, None)) if largest else (k - 1, slice(k))
        found = np.argpartition(rows, at, axis)[(slice(None),) * axis + (best,)]
        found.sort(axis)
        order = _order(np.take_along_axis(rows, found, axis), axis, largest)
        indices = np.take_along_axis(found, order, axis)
    return _take("topk", x, rows, axis, indices, indices.shape if x.array.ndim else ())
