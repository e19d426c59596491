"""x[index], and taking elements along a dim by their numbers.

Ints, slices, None and Ellipsis make views; tensors and arrays of integers or bools make copies.
Gradients are Deferred: they touch only their own region of a gradient that has others too, so
that splitting a tensor in three costs one filling with zeros and three writes of a third.
"""

from operator import index as as_int

import numpy as np

from ..device import as_array, beside, module_of, one_device
from ..sinks import Deferred
from ..tensor import Tensor, record
from .base import Like, method, normal_dim
from .shape import broadcast_to, reshape

_ALL = slice(None)


@method("__getitem__")
def getitem(x, index):
    """x[index], with PyTorch's rules: each int takes its dim away before arrays are looked at.

    A view for ints, slices, None and Ellipsis. A copy for integer arrays (broadcast together; a
    slice between two of them puts their dims in front) and for bool arrays, which stand for as
    many dims as they have: none for True and False, which add a dim of size 1 or 0.
    Raises ValueError for a negative step, IndexError for what is out of range and for other types
    (uint8 too: PyTorch takes it for a mask, NumPy for integers).
    """
    region, arrays = resolve(x.array.shape, index)
    if arrays is None:
        return slice_view(x, region)
    if any(i != _ALL for i in region[:-1]):
        x = slice_view(x, region)
    items = index if isinstance(index, tuple) else (index,)
    return _gather(x, arrays, [i for i in items if isinstance(i, Tensor)])


def resolve(shape, index):
    """The two steps of an index for an array of `shape`: (region, arrays).

    region: a tuple of ints, slices and None, with an Ellipsis at its end, which makes a view.
    arrays: index of that view, a tuple of arrays and full slices; None if there are no arrays.
    """
    if isinstance(index, list) and any(isinstance(i, (list, tuple)) for i in index):
        raise IndexError("a list of lists as an index: write a tuple, or a tensor")
    items = [_item(i) for i in (index if isinstance(index, tuple) else (index,))]
    dims = sum(i.ndim if _is_array(i) and i.dtype.kind == "b" else 1
               for i in items if i is not None and i is not Ellipsis)
    ellipses = sum(i is Ellipsis for i in items)
    if dims > len(shape) or ellipses > 1:
        raise IndexError(f"an index of {dims} dims and {ellipses} ellipses "
                         f"for a tensor of shape {shape}")
    region, arrays = [], []
    for i in items if ellipses else (*items, ...):
        if i is Ellipsis:
            region += [_ALL] * (len(shape) - dims)
            arrays += [_ALL] * (len(shape) - dims)
        elif _is_array(i):
            if i.dtype.kind == "b" and not i.ndim:
                region.append(None)
                arrays.append(np.zeros(int(i), np.int64))
            else:
                region += [_ALL] * (i.ndim if i.dtype.kind == "b" else 1)
                arrays.append(i)
        else:
            region.append(i)
            if i is None or isinstance(i, slice):
                arrays.append(_ALL)
    found = any(_is_array(i) for i in arrays)
    # Without the Ellipsis NumPy makes a copy, a scalar, of a single element.
    return (*region, ...), tuple(arrays) if found else None


def _is_array(i):
    return hasattr(i, "dtype")


def on_device_of(a, arrays):
    """The arrays of an index where the array `a` is."""
    return tuple([beside(a, i) if _is_array(i) else i for i in arrays])


def _item(i):
    """One part of an index as an int, slice, None, Ellipsis or array of integers or bools."""
    if i is None or i is Ellipsis:
        return i
    if isinstance(i, slice):
        if i.step is not None and as_int(i.step) <= 0:
            raise ValueError(f"a slice's step must be greater than zero, not {i.step}")
        return i
    if isinstance(i, (Tensor, list, tuple, range, bool)) or (
            _is_array(i) and not isinstance(i, np.generic)):
        a = i.array if isinstance(i, Tensor) else as_array(i)
        if isinstance(i, (list, tuple, range)) and not a.size:
            a = a.astype(np.int64)
        if a.dtype.kind in "ib":
            return a if a.ndim or a.dtype.kind == "b" else int(a)
        raise IndexError(f"an index array holds signed integers or bools, not {a.dtype}")
    try:
        return as_int(i)
    except TypeError:
        raise IndexError(f"an index consists of ints, slices, None, ..., tensors and arrays; "
                         f"not of {type(i).__name__}") from None


@method("__index__")
def as_index(x):
    """A one-element integer tensor where Python needs an int: `x[:n]`, `range(n)`."""
    if x.array.size != 1 or x.array.dtype.kind not in "iu":
        raise TypeError(f"an index is an integer tensor of one element, not {x.dtype} of shape "
                        f"{x.shape}")
    return int(x.array.item())


def slice_view(x, index):
    """x[index], a view, for an index of ints, slices and None, with an Ellipsis."""
    a = x.array
    out, like = a[index], Like(a.shape, a.dtype, a.device)
    if out.size == a.size:  # nothing is left out: the gradient needs no zeros
        return record(out, (x,), lambda g: (g.reshape(like.shape),), view_of=x)

    def backward(g):
        def write(gx):
            gx.fill(0)
            gx[index] = g

        def add(gx):
            region = gx[index]
            region += g
        return (Deferred(like, write=write, add=add),)
    return record(out, (x,), backward, view_of=x)


def _gather(x, index, tensors, once=False):
    """x[index] for an index of arrays and full slices; `tensors` are those the arrays came from.

    once: no element is taken twice, so that its gradient needs no sum; seen here for bool arrays.
    """
    a = x.array
    index = on_device_of(a, index)
    one_device("indexing", a, *filter(_is_array, index))
    out, like = a[index], Like(a.shape, a.dtype, a.device)
    once = once or all(isinstance(i, slice) or i.dtype.kind == "b" for i in index)

    def backward(g):
        def add(gx):
            if once:
                gx[index] += g
            else:
                module_of(gx).add.at(gx, index, g)  # an element that was taken twice gets both
        return (Deferred(like, add=add),)
    return record(out, (x,), backward, saved=tensors)


@method()
def index_select(x, dim, index):
    """The slices of x along `dim` whose numbers are in `index`: a copy.

    index: (n,) or () of int32 or int64 -> shape of x with n at `dim`. Raises IndexError for a
    number outside 0 ... size - 1, TypeError and ValueError for another type and shape.
    """
    dim, i = normal_dim(dim, x.array.ndim), _numbers("index_select", index)
    if i.ndim > 1 or not x.array.ndim and i.size != 1:
        raise ValueError(f"index_select: index of shape {i.shape} for dim {dim} of shape {x.shape}")
    _check_range("index_select", i, dim, x.array.shape or (1,))
    if not x.array.ndim:
        return _gather(x, (), (index,))
    return _gather(x, (_ALL,) * dim + (i.reshape(-1),), (index,))


@method()
def gather(x, dim, index):
    """out[i, j, ...] = x[i, index[i, j, ...], ...], with the index at `dim`: a copy.

    index: int32 or int64, of x's number of dims, and no larger than x but at `dim`; the result has
    its shape. Raises IndexError for a number outside 0 ... size - 1, TypeError and ValueError for
    another type and shape.
    """
    i, shape = _numbers("gather", index), x.array.shape or (1,)
    dim = normal_dim(dim, x.array.ndim)
    if (i.ndim or 1) != len(shape):
        raise ValueError(f"gather: index {i.shape} and input {x.shape}: both need the same number "
                         f"of dims")
    for d, (n, size) in enumerate(zip(i.shape, shape)):
        if d != dim and n > size:
            raise ValueError(f"gather: index {i.shape} and input {x.shape}: {n} > {size} in "
                             f"dim {d}")
    _check_range("gather", i, dim, shape)
    return _along(x, dim, i, index)


@method()
def take_along_dim(x, indices, dim=None):
    """`gather` with x and `indices` broadcast together but for `dim`; numbers may count from the
    end. Of the flattened x if dim is None.
    """
    i = _numbers("take_along_dim", indices)
    if dim is None:
        return _along(reshape(x, -1), 0, i.reshape(-1), indices)
    dim = normal_dim(dim, x.array.ndim)
    if not i.ndim == x.array.ndim > 0:
        raise ValueError(f"take_along_dim: indices {i.shape} and input {x.shape}: both need the "
                         f"same number of dims")
    sizes = [(1, 1) if d == dim else pair for d, pair in enumerate(zip(i.shape, x.array.shape))]
    if any(n != m and 1 not in (n, m) for n, m in sizes):
        raise ValueError(f"take_along_dim: indices {i.shape} and input {x.shape} cannot be "
                         f"broadcast together but for dim {dim}")
    shape = [n if m == 1 else m for n, m in sizes]
    shape[dim:dim + 1] = x.array.shape[dim:dim + 1]
    x = broadcast_to(x, shape)
    shape[dim:dim + 1] = i.shape[dim:dim + 1]
    return _along(x, dim, np.broadcast_to(i, shape), indices)


def _along(x, dim, i, tensor):
    """x's elements at the numbers `i` along `dim`, and at their own places in the other dims."""
    if not i.ndim:
        return reshape(_along(x, dim, i.reshape(1), tensor), ())
    index = [np.arange(n).reshape([-1 if e == d else 1 for e in range(i.ndim)])
             for d, n in enumerate(i.shape)]
    index[dim] = i
    x = x if x.array.ndim else reshape(x, 1)
    return _gather(x, tuple(index), (tensor,), once=i.shape[dim] == 1)


def _numbers(name, index):
    """The array of an index tensor, or TypeError."""
    if not isinstance(index, Tensor) or index.array.dtype.kind != "i":
        found = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"{name}: the index is a tensor of int32 or int64, not {found}")
    return index.array


def _check_range(name, i, dim, shape):
    """Raise IndexError unless the numbers `i` are some along `dim` of `shape`."""
    if i.size:
        for extreme in (i.min(), i.max()):
            if not 0 <= extreme < shape[dim]:
                raise IndexError(f"{name}: index {extreme} is not in dim {dim} of shape {shape}, "
                                 f"0 to {shape[dim] - 1}")
