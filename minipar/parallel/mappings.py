"""What passes between ranks inside a layer that is cut: collectives as operations of autograd.

They come in pairs, of which each is the other's backward (Shoeybi et al. 2019, "Megatron-LM", f
and g; Korthikanti et al. 2022, "Reducing activation recomputation", their forms along the
sequence). All ranks of `comm` call each with tensors of equal shapes, and go back in equal order.

    copy_to_ranks       x on every rank -> itself            backward: sum of the gradients
    sum_over_ranks      partial sums -> sum on every rank    backward: the gradient as it is
    scatter_sum         partial sums -> a piece of the sum   backward: the pieces together
    gather_to_all       pieces -> whole, used by every rank  backward: a piece of the sum
    gather_alike        pieces -> whole, used alike          backward: a piece of the gradient
    own_piece           x on every rank -> a piece           backward: the pieces together
"""

import numpy as np

from ..device import as_array
from ..tensor import record


def copy_to_ranks(x, comm):
    """x, which is equal on every rank, for what each rank does differently with it."""
    return record(x.array, (x,), lambda g: (_sum(g, comm),), view_of=x)


def sum_over_ranks(x, comm):
    """The sum of all ranks' x, on every rank."""
    return record(_sum(x.array, comm), (x,), lambda g: (g,))


def scatter_sum(x, comm, dim):
    """This rank's piece along `dim` of the sum of all ranks' x. ValueError if it does not divide.
    """
    return record(_scatter_sum(x.array, comm, dim), (x,), lambda g: (_gather(g, comm, dim),))


def gather_to_all(x, comm, dim):
    """All ranks' x one after another along `dim`, for what each rank does differently with it."""
    return record(_gather(x.array, comm, dim), (x,), lambda g: (_scatter_sum(g, comm, dim),))


def gather_alike(x, comm, dim, length=None):
    """All ranks' x one after another along `dim`, for what every rank does alike with it.

    length: of the whole, where rank i has elements [i length // size, (i + 1) length // size).
    """
    n = x.array.shape[dim]
    first = comm.rank * (n * comm.size if length is None else length) // comm.size
    where = (*[slice(None)] * (dim % x.ndim), slice(first, first + n))
    return record(_gather(x.array, comm, dim, length), (x,), lambda g: (g[where],))


def own_piece(x, comm, dim):
    """This rank's piece along `dim` of x, which is equal on every rank. ValueError if it does not
    divide."""
    return record(_split(x.array, comm, dim)[comm.rank], (x,),
                  lambda g: (_gather(g, comm, dim),), view_of=x)


def _sum(a, comm):
    out = as_array(a).copy(order="C")
    comm.all_reduce(out)
    return out


def _split(a, comm, dim):
    if a.shape[dim] % comm.size:
        raise ValueError(f"{a.shape[dim]} elements along dimension {dim} do not divide into "
                         f"{comm.size} pieces")
    return np.split(a, comm.size, axis=dim)


def _scatter_sum(a, comm, dim):
    pieces = np.stack(_split(a, comm, dim))  # rank i's lie together: the elements that it gets
    return comm.reduce_scatter(pieces).reshape(pieces.shape[1:])


def _gather(a, comm, dim, length=None):
    n = a.shape[dim]
    if length is None:
        pieces = comm.all_gather(np.ascontiguousarray(a, like=a))
        return np.concatenate(list(pieces), axis=dim)
    longest, before = -(-length // comm.size), (slice(None),) * dim
    if n < longest:  # all ranks send as much
        a = np.concatenate([a, np.zeros_like(a[(*before, slice(1))])], axis=dim)
    pieces = comm.all_gather(np.ascontiguousarray(a, like=a))
    ends = [i * length // comm.size for i in range(comm.size + 1)]
    return np.concatenate([piece[(*before, slice(stop - start))] for piece, start, stop in
                           zip(pieces, ends, ends[1:])], axis=dim)
