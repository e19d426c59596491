"""Shapes and types: views where NumPy can make one, as in PyTorch, else copies.

A view shares its tensor's storage, so an in-place change of one counts as a change of the other.
Indexing stands in `indexing.py`.
"""

import math
from operator import index

import numpy as np

from .. import dtypes
from ..tensor import Tensor, record
from .base import method, normal_dim, quiet


def _sizes(args):
    """reshape(2, 3) and reshape((2, 3)) alike."""
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else args


def _fit(name, old, new):
    """The shape `new` with its -1 filled in, for the elements of shape `old`."""
    count, new = math.prod(old), [index(n) for n in new]
    known = math.prod(n for n in new if n != -1)
    if any(n < -1 for n in new) or new.count(-1) > 1:
        raise ValueError(f"{name}: {tuple(new)} is no shape: sizes are 0 or more, and one of them "
                         f"may be -1")
    text = f"{tuple(new)} = {' x '.join(str(n) for n in new if n != -1)}"
    if -1 in new:
        if not known:
            raise ValueError(f"{name}: -1 in {tuple(new)} may be any size: the others make 0")
        if count % known:
            raise ValueError(f"{name}: {count} elements do not fit {tuple(new)}: {count} is no "
                             f"multiple of {known}")
        new[new.index(-1)] = count // known
    elif count != known:
        raise ValueError(f"{name}: {count} elements do not fit {tuple(new)} = {known}")
    return tuple(new)


@method()
def reshape(x, *shape):
    """x with another shape, given as numbers or as a tuple; one size may be -1.

    A view if the strides of x allow it, else a copy. Raises ValueError with the arithmetic:
    `reshape: 12 elements do not fit (5, 3) = 15`.
    """
    a = x.array
    old = a.shape
    out = a.reshape(_fit("reshape", old, _sizes(shape)))
    shared = a.flags.c_contiguous or np.may_share_memory(a, out)
    return record(out, (x,), lambda g: (g.reshape(old),), view_of=x if shared else None)


@method()
def view(x, *shape):
    """`reshape` that shares memory with x. Raises ValueError where it would have to copy."""
    out = reshape(x, *shape)
    if out.storage is not x.storage and x.array.size:
        raise ValueError(f"view: shape {out.shape} needs a copy of the tensor of shape {x.shape} "
                         f"and strides {x.array.strides} bytes: use reshape")
    return out


@method()
def flatten(x, start_dim=0, end_dim=-1):
    """The dims from `start_dim` to `end_dim` as one; a 0-d tensor becomes 1-d.

    x itself if there is nothing to join. Raises ValueError if `start_dim` stands after `end_dim`.
    """
    shape = x.array.shape
    start, end = normal_dim(start_dim, len(shape)), normal_dim(end_dim, len(shape))
    if start > end:
        raise ValueError(f"flatten: start_dim {start_dim} stands after end_dim {end_dim} "
                         f"in shape {shape}")
    if start == end and shape:
        return x
    return reshape(x, shape[:start] + (math.prod(shape[start:end + 1]),) + shape[end + 1:])


@method()
def transpose(x, dim0, dim1):
    """x with two dims exchanged: a view."""
    ndim = x.array.ndim
    dim0, dim1 = normal_dim(dim0, ndim), normal_dim(dim1, ndim)
    out = x.array.swapaxes(dim0, dim1) if ndim else x.array
    return record(out, (x,), lambda g: (g.swapaxes(dim0, dim1) if ndim else g,), view_of=x)


@method()
def permute(x, *dims):
    """x with its dims in the order `dims` (numbers or a tuple): a view.

    Raises ValueError if `dims` does not name each dim once.
    """
    ndim, dims = x.array.ndim, _sizes(dims)
    order = tuple(normal_dim(d, ndim) for d in dims)
    if sorted(order) != list(range(ndim)):
        raise ValueError(f"permute: {tuple(dims)} does not name each of the {ndim} dims of shape "
                         f"{x.shape} once")
    inverse = sorted(range(ndim), key=order.__getitem__)
    return record(x.array.transpose(order), (x,), lambda g: (g.transpose(inverse),), view_of=x)


@property
def _transposed(x):
    """The transpose of a matrix: a view; tensors of fewer dims as they are."""
    if x.array.ndim > 2:
        raise ValueError(f"T: shape {x.shape} has more than 2 dims: use permute")
    return record(x.array.T, (x,), lambda g: (g.T,), view_of=x)


Tensor.T = _transposed


@method()
def contiguous(x):
    """x itself if its elements lie in C order, else a copy that does."""
    if x.array.flags.c_contiguous:
        return x
    return record(np.ascontiguousarray(x.array), (x,), lambda g: (g,))


@method()
@quiet
def to(x, dtype):
    """x converted to `dtype`; x itself if it has that type.

    Between floating types the gradient is converted back; to others there is none.
    """
    a, dtype = x.array, dtypes.dtype(dtype)
    old = a.dtype
    if dtype.storage == old:
        return x
    out = a.astype(dtype.storage)
    if not dtype.is_floating_point:
        return Tensor(out)
    return record(out, (x,), lambda g: (g.astype(old),))


def _cast(name, dtype):
    def convert(x):
        return to(x, dtype)
    convert.__name__ = name
    convert.__doc__ = f"x.to({dtype!r})."
    method(name)(convert)


_cast("half", dtypes.float16)
_cast("float", dtypes.float32)
_cast("double", dtypes.float64)
_cast("long", dtypes.int64)
