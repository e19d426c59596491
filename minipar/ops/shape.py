"""Shapes: views where NumPy can make one, as in PyTorch, else copies.

A view shares its tensor's storage, so an in-place change of one counts as a change of the other.
Indexing stands in `indexing.py`, conversion of types in `cast.py`.
"""

import math
from operator import index

import numpy as np

from ..tensor import Tensor, record
from .base import Like, method, normal_dim, unbroadcast


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


@method()
def movedim(x, source, destination):
    """x with the dims `source` (int or tuple) moved to the places `destination`: a view.

    The others keep their order. Raises ValueError for lengths that differ and dims named twice.
    """
    ndim = x.array.ndim
    moved, places = ([normal_dim(d, ndim) for d in (dims if isinstance(dims, (tuple, list))
                                                    else (dims,))]
                     for dims in (source, destination))
    if len(moved) != len(places) or len({*moved}) < len(moved) or len({*places}) < len(places):
        raise ValueError(f"movedim: {source} to {destination}: each names as many dims as the "
                         f"other, none twice")
    order = [d for d in range(ndim) if d not in moved]
    for place, d in sorted(zip(places, moved)):
        order.insert(place, d)
    return permute(x, order)


@method()
def t(x):
    """The transpose of a matrix: a view; tensors of fewer dims as they are."""
    if x.array.ndim > 2:
        raise ValueError(f"t: shape {x.shape} has more than 2 dims: use permute or mT")
    return record(x.array.T, (x,), lambda g: (g.T,), view_of=x)


@property
def _matrices_transposed(x):
    """The transpose of each matrix of a batch (..., m, n): a view."""
    if x.array.ndim < 2:
        raise ValueError(f"mT: shape {x.shape} has fewer than 2 dims")
    return transpose(x, -1, -2)


Tensor.T = property(t)
Tensor.mT = _matrices_transposed


@method()
def squeeze(x, dim=None):
    """x without its dims of size 1, or without those among `dim` (int or tuple): a view.

    A dim of another size stays. Raises IndexError for a dim that x has not, ValueError for one
    that is named twice.
    """
    shape = x.array.shape
    dims = range(len(shape)) if dim is None else dim if isinstance(dim, (tuple, list)) else (dim,)
    dims = [normal_dim(d, len(shape)) for d in dims]
    if len({*dims}) < len(dims):
        raise ValueError(f"squeeze: dims {tuple(dim)} of shape {shape} name one dim twice")
    out = x.array.squeeze(tuple(d for d in dims if shape and shape[d] == 1))
    return record(out, (x,), lambda g: (g.reshape(shape),), view_of=x)


@method()
def unsqueeze(x, dim):
    """x with a new dim of size 1 at `dim`, from -(ndim + 1) to ndim: a view."""
    shape = x.array.shape
    out = np.expand_dims(x.array, normal_dim(dim, len(shape) + 1))
    return record(out, (x,), lambda g: (g.reshape(shape),), view_of=x)


@method("expand", "broadcast_to")
def broadcast_to(x, *size):
    """x repeated without a copy: new dims in front, and dims of size 1 stretched; -1 keeps a size.

    A view in which several elements lie in one place: it cannot be changed in place. Raises
    ValueError `expand: (3, 4) cannot become (6, 4): 3 != 6 in dim 0`.
    """
    a, size = x.array, [index(n) for n in _sizes(size)]
    added = len(size) - a.ndim
    if added < 0:
        raise ValueError(f"expand: {a.shape} cannot become {tuple(size)}: of {a.ndim} dims none "
                         f"is left out")
    for d, n in enumerate(size):
        if n < 0 and (n < -1 or d < added):
            raise ValueError(f"expand: {a.shape} cannot become {tuple(size)}: {n} in dim {d}")
        old = a.shape[d - added] if d >= added else 1
        if n == -1:
            size[d] = old
        elif old not in (1, n):
            raise ValueError(f"expand: {a.shape} cannot become {tuple(size)}: {old} != {n} "
                             f"in dim {d}")
    like = Like(a.shape, a.dtype, a.device)
    # NumPy's result is not writeable, which is right where elements share a place, and only there.
    same = tuple(size) == (1,) * added + a.shape
    out = a[(None,) * added] if same else np.broadcast_to(a, size)
    return record(out, (x,), lambda g: (unbroadcast(g, like),), view_of=x)


@method()
def expand_as(x, other):
    """x expanded to the shape of `other`: a view."""
    return broadcast_to(x, other.shape)


@method()
def contiguous(x):
    """x itself if its elements lie in C order, else a copy that does."""
    if x.array.flags.c_contiguous:
        return x
    return record(np.ascontiguousarray(x.array, like=x.array), (x,), lambda g: (g,))
