"""Joining tensors to one, and cutting one in pieces, which are views."""

from operator import index as as_int

import numpy as np

from ..device import one_device
from ..tensor import record
from .base import method, normal_dim, promote, wanted
from .indexing import slice_view

_ALL = slice(None)


def _common_type(arrays):
    """The dtype that PyTorch joins the arrays in."""
    dtype = arrays[0].dtype
    for a in arrays[1:]:
        if a.dtype != dtype:
            dtype = promote(np.zeros(1, dtype), np.zeros(1, a.dtype))[0].dtype
    return dtype


def cat(tensors, dim=0):
    """The tensors joined along `dim`, in their common type.

    Those of shape (0,) add nothing and fit to all others, as in PyTorch. Raises ValueError for no
    tensors, 0-d ones, and shapes that differ in another dim.
    """
    tensors = list(tensors)
    if not tensors:
        raise ValueError("cat: no tensors")
    arrays = [t.array for t in tensors]
    if any(not a.ndim for a in arrays):
        raise ValueError("cat: a 0-d tensor has no dim to join along")
    dtype = _common_type(arrays)
    parts = [a for a in arrays if a.shape != (0,)] or arrays[:1]
    first = parts[0].shape
    dim = normal_dim(dim, len(first))
    for a in parts[1:]:
        if a.ndim != len(first) or any(n != m for i, (n, m) in enumerate(zip(a.shape, first))
                                       if i != dim):
            raise ValueError(f"cat: shapes {first} and {a.shape} differ in more than dim {dim}")
    one_device("cat", *arrays)
    out = np.concatenate(parts, dim, dtype=dtype)
    wants = [wanted(t) for t in tensors]
    sizes = [a.shape[dim] if a.shape != (0,) else 0 for a in arrays]
    ends = np.cumsum(sizes).tolist()

    def backward(g):
        def part(want, size, end):
            region = g[(_ALL,) * dim + (slice(end - size, end),)].astype(want.dtype, copy=False)
            return region if size else region.reshape(want.shape)
        return tuple([part(want, size, end) if want else None
                      for want, size, end in zip(wants, sizes, ends)])
    return record(out, tensors, backward)


def stack(tensors, dim=0):
    """Tensors of one shape, joined along a new dim at `dim`, in their common type.

    Raises ValueError for no tensors and for shapes that differ.
    """
    tensors = list(tensors)
    if not tensors:
        raise ValueError("stack: no tensors")
    arrays = [t.array for t in tensors]
    for a in arrays:
        if a.shape != arrays[0].shape:
            raise ValueError(f"stack: shapes {arrays[0].shape} and {a.shape} differ")
    dim = normal_dim(dim, arrays[0].ndim + 1)
    one_device("stack", *arrays)
    out = np.stack(arrays, dim, dtype=_common_type(arrays))
    wants = [wanted(t) for t in tensors]

    def backward(g):
        return tuple([g[(_ALL,) * dim + (i,)].astype(want.dtype, copy=False) if want else None
                      for i, want in enumerate(wants)])
    return record(out, tensors, backward)


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
        pieces.append(slice_view(x, (_ALL,) * dim + (slice(start, start + size), ...)))
        start += size
    return tuple(pieces)


@method()
def chunk(x, chunks, dim=0):
    """x cut along `dim` in `chunks` views of one size, rounded up: the last is smaller, and there
    may be fewer.

    Raises ValueError for fewer than one chunk and for a 0-d tensor.
    """
    if chunks < 1:
        raise ValueError(f"chunk: {chunks} chunks: at least 1 is needed")
    if not x.array.ndim:
        raise ValueError("chunk: a 0-d tensor has no dim to split")
    length = x.array.shape[normal_dim(dim, x.array.ndim)]
    return split(x, -(-length // chunks) if length else [0] * chunks, dim)


@method()
def unbind(x, dim=0):
    """x taken apart along `dim`: a view, without that dim, for each index along it."""
    if not x.array.ndim:
        raise ValueError("unbind: a 0-d tensor has no dim to take apart")
    dim = normal_dim(dim, x.array.ndim)
    return tuple([slice_view(x, (_ALL,) * dim + (i, ...)) for i in range(x.array.shape[dim])])
