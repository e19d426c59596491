"""Context parallelism: attention over a sequence of which every rank has a piece.

Keys and values go round the ring of ranks, while each rank's queries stay (Liu, Zaharia, Abbeel
2023, "Ring attention with blockwise transformers"). No rank ever holds the scores of more than
one piece with another: the softmax is made online (Milakov, Gimelshein 2018). For each query

    largest = max of the scores so far, total = sum of exp(score - largest),
    out     = sum of exp(score - largest) * value,

and what was summed is scaled by exp(old largest - new) when a larger score comes. Backward goes
round once more, and the gradients of keys and values travel with them until they are at home.
Each rank of p sends 2 (p - 1) n elements forward and (4 p - 2) n backward, n those of its keys;
keys and values pass while the ranks compute, their gradients after it.
"""

import math

import numpy as np

from ..dtypes import FLOATING
from ..ops.base import quiet
from ..ops.precision import autocasts
from ..ops.softmax import row_dots
from ..tensor import record


@autocasts("low")
@quiet
def ring_attention(query, key, value, comm, *, is_causal=False, scale=None):
    """The rank's piece of scaled_dot_product_attention over the sequence of all ranks of `comm`.

    query, key (..., T, E), value (..., T, Ev): pieces of T rows each, rank 0's first, of one shape
    on every rank -> (..., T, Ev). is_causal: each query sees what is not after it in the whole
    sequence; pieces that lie behind are passed on unread, so that the last rank has most to do.
    scale: 1 / sqrt(E) if None. Raises ValueError with the shapes, TypeError with the types.
    """
    q, k, v = (t.array for t in (query, key, value))
    if q.ndim < 2 or q.shape != k.shape or v.shape[:-1] != q.shape[:-1]:
        raise ValueError(f"ring_attention: query {q.shape}, key {k.shape}, value {v.shape}: "
                         f"expected (..., T, E) twice and (..., T, Ev)")
    if not q.dtype == k.dtype == v.dtype or q.dtype.kind not in FLOATING:
        raise TypeError(f"ring_attention: one floating type is needed, not {q.dtype}, {k.dtype}, "
                        f"{v.dtype}")
    dtype, scale = q.dtype, 1 / math.sqrt(q.shape[-1] or 1) if scale is None else float(scale)
    if dtype.itemsize == 2:
        q, k, v = (a.astype(np.float32) for a in (q, k, v))
    largest = np.full_like(q, -np.inf, shape=q.shape[:-1])
    total, out = np.zeros_like(largest), np.zeros_like(v)
    travelling = k, v
    for hop in range(comm.size):
        arrives = _pass_on(comm, travelling) if hop < comm.size - 1 else None
        if (behind := _behind(comm, hop, is_causal)) is not None:
            scores = _scores(q, travelling[0], scale, behind)
            new = np.maximum(largest, scores.max(axis=-1))
            shrink = np.exp(largest - new)
            p = np.exp(np.subtract(scores, new[..., None], out=scores), out=scores)
            total = total * shrink + p.sum(axis=-1)
            out = out * shrink[..., None] + p @ travelling[1]
            largest = new
        if arrives is not None:
            travelling = arrives()
    out /= total[..., None]
    logsum = largest + np.log(total)

    def backward(g):
        g = g.astype(q.dtype, copy=False)
        mean = row_dots(g, out)[..., None]  # of p's gradient, over the keys
        gq, travelling = np.zeros_like(q), (k, v)
        home = np.zeros_like(k), np.zeros_like(v)
        for hop in range(comm.size):
            arrives = _pass_on(comm, travelling) if hop < comm.size - 1 else None
            if (behind := _behind(comm, hop, is_causal)) is not None:
                p = np.exp(_scores(q, travelling[0], scale, behind) - logsum[..., None])
                ds = p * (g @ travelling[1].swapaxes(-1, -2) - mean) * scale
                gq += ds @ travelling[0]
                home[0][...] += ds.swapaxes(-1, -2) @ q
                home[1][...] += p.swapaxes(-1, -2) @ g
            home = _pass_on(comm, home, 2)()  # the last hop brings them home
            if arrives is not None:
                travelling = arrives()
        return tuple(a.astype(dtype, copy=False) for a in (gq, *home))
    return record(out.astype(dtype, copy=False), (query, key, value), backward,
                  (query, key, value))


def _behind(comm, hop, is_causal):
    """How the keys that are here after so many hops stand to this rank's queries: 0 where all are
    seen, 1 where those up to the query are, None where none is."""
    source = (comm.rank - hop) % comm.size
    if not is_causal or source < comm.rank:
        return 0
    return 1 if source == comm.rank else None


def _scores(q, k, scale, triangle):
    scores = (q * scale) @ k.swapaxes(-1, -2)
    if triangle:
        scores += np.triu(np.full_like(scores, -np.inf, shape=scores.shape[-2:]), 1)
    return scores


def _pass_on(comm, arrays, tag=0):
    """Start to send the arrays to the next rank; returns a function that waits for the previous
    rank's and returns them."""
    if comm.size == 1:
        return lambda: arrays
    arriving = tuple(np.empty(a.shape, a.dtype, like=a) for a in arrays)
    works = []
    for i, (a, new) in enumerate(zip(arrays, arriving)):
        works.append(comm.irecv(new, (comm.rank - 1) % comm.size, tag + i))
        works.append(comm.isend(a, (comm.rank + 1) % comm.size, tag + i))

    def arrived():
        for work in works:
            work.wait()
        return arriving
    return arrived
