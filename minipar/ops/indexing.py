"""Indexing, splitting and joining.

Ints, slices, None and Ellipsis make views; tensors and arrays of integers or bools make copies.
Both gradients are Deferred: they touch only their own region of a gradient that has others too,
so that splitting a tensor in three costs one filling with zeros and three writes of a third.
"""

from operator import index as as_int

import numpy as np

from ..sinks import Deferred
from ..tensor import Tensor, record
from .base import Like, method, normal_dim, promote, wanted

_ALL = slice(None)


@method("__getitem__")
def getitem(x, index):
    """x[index], with PyTorch's rules: each int takes its dim away before arrays are looked at.

    A view for ints, slices, None and Ellipsis. A copy for integer arrays (broadcast together) and
    for bool arrays, which stand for as many dims as they have. Raises ValueError for a negative
    step, IndexError for what is out of range and for other types (uint8 too: PyTorch takes it
    for a mask, NumPy for integers).
    """
    index = index if isinstance(index, tuple) else (index,)
    items = [_item(i) for i in index]
    dims = sum(i.ndim if isinstance(i, np.ndarray) and i.dtype.kind == "b" else 1
               for i in items if i is not None and i is not Ellipsis)
    ellipses = sum(i is Ellipsis for i in items)
    if dims > x.array.ndim or ellipses > 1:
        raise IndexError(f"an index of {dims} dims and {ellipses} ellipses "
                         f"for a tensor of shape {x.shape}")
    if not any(isinstance(i, np.ndarray) for i in items):
        # Without an Ellipsis NumPy makes a copy, a scalar, of a single element.
        return _slice(x, tuple(items) if ellipses else (*items, ...))
    basic, arrays = [], []
    for i in items if ellipses else (*items, ...):
        if i is Ellipsis:
            basic += [_ALL] * (x.array.ndim - dims)
            arrays += [_ALL] * (x.array.ndim - dims)
        elif isinstance(i, np.ndarray):
            basic += [_ALL] * (i.ndim if i.dtype.kind == "b" else 1)
            arrays.append(i)
        else:
            basic.append(i)
            if i is None or isinstance(i, slice):
                arrays.append(_ALL)
    if any(i != _ALL for i in basic):
        x = _slice(x, (*basic, ...))
    return _gather(x, tuple(arrays), [i for i in index if isinstance(i, Tensor)])


def _item(i):
    """One part of an index as an int, slice, None, Ellipsis or array of integers or bools."""
    if i is None or i is Ellipsis:
        return i
    if isinstance(i, slice):
        if i.step is not None and as_int(i.step) <= 0:
            raise ValueError(f"a slice's step must be greater than zero, not {i.step}")
        return i
    if isinstance(i, (Tensor, np.ndarray, list)):
        a = i.array if isinstance(i, Tensor) else np.asarray(i)
        if isinstance(i, list) and not a.size:
            a = a.astype(np.int64)
        if a.dtype.kind == "i" or a.dtype.kind == "b" and a.ndim:
            return a if a.ndim else int(a)
        raise IndexError(f"an index array holds signed integers, or bools in at least one dim; "
                         f"not {a.dtype} in {a.ndim}")
    if not isinstance(i, (bool, np.bool_)):
        try:
            return as_int(i)
        except TypeError:
            pass
    raise IndexError(f"an index consists of ints, slices, None, ..., tensors and arrays; "
                     f"not of {type(i).__name__}")


def _slice(x, index):
    """x[index] for an index of ints, slices and None, with an Ellipsis."""
    a = x.array
    out, like = a[index], Like(a.shape, a.dtype)
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


def _gather(x, index, tensors):
    """x[index] for an index of arrays and full slices; `tensors` are those the arrays came from."""
    a = x.array
    out, like = a[index], Like(a.shape, a.dtype)
    unique = all(isinstance(i, slice) or i.dtype.kind == "b" for i in index)

    def backward(g):
        def add(gx):
            if unique:
                gx[index] += g
            else:
                np.add.at(gx, index, g)  # an element that was taken twice gets both
        return (Deferred(like, add=add),)
    return record(out, (x,), backward, saved=tensors)


@method()
def split(x, split_size_or_sections, dim=0):
    """x cut along `dim` in views of one size (the last may be smaller), or of a list of sizes.

    Raises ValueError for negative sizes and for sizes that do not add up: `split: 1 + 1 = 2 of 3`.
    """
    if not x.array.ndim:
        raise ValueError("split: a 0-d tensor has no dim to split")
    dim = normal_dim(dim, x.array.ndim)
    length, sizes = x.array.shape[dim], split_size_or_sections
    if not isinstance(sizes, (tuple, list)):
        size = as_int(sizes)
        if size < 0 or size == 0 and length:
            raise ValueError(f"split: pieces of size {size} for dim {dim} of shape {x.shape}")
        sizes = [min(size, length - i) for i in range(0, length, size)] if length else [0]
    elif any(size < 0 for size in sizes):
        raise ValueError(f"split: negative sizes in {sizes}")
    elif sum(sizes) != length:
        raise ValueError(f"split: {' + '.join(map(str, sizes))} = {sum(sizes)} of {length}, "
                         f"dim {dim} of shape {x.shape}")
    pieces, start = [], 0
    for size in sizes:
        pieces.append(_slice(x, (_ALL,) * dim + (slice(start, start + size), ...)))
        start += size
    return tuple(pieces)


def cat(tensors, dim=0):
    """The tensors joined along `dim`, in their common type.

    Raises ValueError for no tensors, 0-d ones, and shapes that differ in another dim.
    """
    tensors = list(tensors)
    if not tensors:
        raise ValueError("cat: no tensors")
    arrays = [t.array for t in tensors]
    shapes = [a.shape for a in arrays]
    if any(not shape for shape in shapes):
        raise ValueError("cat: a 0-d tensor has no dim to join along")
    dim = normal_dim(dim, len(shapes[0]))
    for shape in shapes:
        if len(shape) != len(shapes[0]) or any(
                n != m for i, (n, m) in enumerate(zip(shape, shapes[0])) if i != dim):
            raise ValueError(f"cat: shapes {shapes[0]} and {shape} differ in more than dim {dim}")
    dtype = arrays[0].dtype
    for a in arrays[1:]:
        if a.dtype != dtype:
            dtype = promote(np.empty(1, dtype), np.empty(1, a.dtype))[0].dtype
    out = np.concatenate(arrays, dim, dtype=dtype)
    wants = [wanted(t) for t in tensors]
    ends = np.cumsum([shape[dim] for shape in shapes]).tolist()

    def backward(g):
        def part(want, end):
            size = want.shape[dim]
            return g[(_ALL,) * dim + (slice(end - size, end),)].astype(want.dtype, copy=False)
        return tuple([part(want, end) if want else None for want, end in zip(wants, ends)])
    return record(out, tensors, backward)
