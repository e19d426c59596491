"""Scaled dot-product attention (Vaswani et al. 2017, "Attention is all you need").

Two ways to compute it. With products of whole matrices by NumPy's BLAS, and the probabilities of
all pairs in memory: this is the reference, and serves every mask. And tile by tile, by the kernels
of kernels/attention.cu, which were faster at every size that was measured: they serve all
types without attn_mask, where leading dims are equal and at most two, and rows of query, key and
value have at most 128 elements.
"""

import math
from functools import lru_cache

import numpy as np

from ..device import aligned, as_array, device_of, one_device, put
from ..dtypes import FLOATING
from ..execution import Kernel
from ..tensor import Tensor, record
from .base import Like, for_kernel, operand, quiet, unbroadcast, wide
from .dropout import check_probability, keep_mask
from .precision import autocasts, in_float32
from .softmax import constant, ones, row_dots, row_max

_FORWARD = Kernel("attention.cu", "attention_forward", rows="rows", width="dim")
_BACKWARD = Kernel("attention.cu", "attention_backward", rows="rows", width="dim")
_LONGEST = 128  # DIM of kernels/attention.cu
_NO_MASK = np.dtype(bool)


@lru_cache(maxsize=16)
def _causal(queries, keys, dtype, device):
    """(queries, keys): 0 where a key is not after its query, else -inf."""
    return put(np.triu(np.full((queries, keys), -np.inf, dtype), 1), device)


@autocasts("low")
@quiet
def scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0,
                                 is_causal=False, scale=None, *, name="", piece=(0, 1)):
    """softmax(query @ key.T * scale + mask) @ value, over the last two dims.

    query (..., L, E), key (..., S, E), value (..., S, Ev) -> (..., L, Ev); leading dims broadcast.
    attn_mask: broadcastable to (..., L, S); bool (True takes part) or floating (added to the
    scores). is_causal: query i sees keys 0..i. scale: 1 / sqrt(E) if None. dropout_p: applied to
    the probabilities whenever it is not 0, with the masks of `dropout` under `name`; dim 0 counts
    the samples, and `piece` says which heads dim 1 is, as for `keep_mask`. A query that sees no
    key gets zeros, as in PyTorch. NaN and infinity behind a causal mask may still make NaN of what
    does not see them: their weight is 0, and 0 * inf is NaN.
    Raises ValueError with the shapes if they do not match, for a mask beside is_causal, and unless
    0 <= dropout_p <= 1; TypeError if the types differ.
    """
    check_probability("scaled_dot_product_attention", dropout_p)
    q, k, v = query.array, key.array, value.array
    batch = _check(q, k, v)
    if attn_mask is not None and is_causal:
        raise ValueError("scaled_dot_product_attention: attn_mask and is_causal exclude each other")
    dtype = q.dtype
    scale = 1 / math.sqrt(q.shape[-1] or 1) if scale is None else float(scale)
    if attn_mask is None and _fits(q, k, v) and (forward := _FORWARD.build(q)):
        return _tiled(forward, (query, key, value), dropout_p, is_causal, scale, name, piece)
    if q.itemsize == 2:
        if isinstance(attn_mask, Tensor) and attn_mask.dtype is query.dtype:
            attn_mask = attn_mask.float()
        return in_float32(lambda q, k, v: scaled_dot_product_attention(
            q, k, v, attn_mask, dropout_p, is_causal, scale, name=name, piece=piece),
            query, key, value)
    mask, attn_mask = (None, None) if attn_mask is None else _additive(attn_mask, dtype)

    p = np.matmul(q * scale, k.swapaxes(-1, -2))
    if is_causal:
        p += _causal(*p.shape[-2:], p.dtype, device_of(p))
    elif mask is not None:
        try:
            p += mask
        except ValueError:
            raise ValueError(f"scaled_dot_product_attention: attn_mask {mask.shape} cannot be "
                             f"broadcast to the scores {p.shape}") from None
    _softmax_rows(p)
    # The scale of the kept ones goes to the output, which is smaller than the probabilities.
    kept = keep_mask(p.shape, dropout_p, name, piece, p) if dropout_p else None
    upscale = 1 / (1 - float(dropout_p)) if dropout_p < 1 else 0.0
    # In the memory order of query: heads cut from one projection are put together without a copy.
    out = np.empty_like(q, shape=(*batch, q.shape[-2], v.shape[-1]))
    np.matmul(p if kept is None else p * kept, v, out=out)
    if kept is not None:
        out *= upscale
    need_q, need_k, need_v = query.requires_grad, key.requires_grad, value.requires_grad
    need_mask = attn_mask is not None and attn_mask.requires_grad
    mask_like = Like(mask.shape, mask.dtype, mask.device) if need_mask else None

    def backward(g):
        gq = gk = gv = gm = None
        if kept is not None:
            g = g * upscale
        if need_v:
            gv = _product((p if kept is None else p * kept).swapaxes(-1, -2), g, v)
        if need_q or need_k or need_mask:
            # Of the scores: ds = p (dp - sum(dp p)), in place.
            ds = np.matmul(g, v.swapaxes(-1, -2))
            if kept is not None:
                ds *= kept
            ds -= row_dots(ds, p)[..., None]
            ds *= p
            if need_mask:
                gm = unbroadcast(ds, mask_like)
            if need_q:
                gq = _product(ds, k, q)
                gq *= scale
            if need_k:
                gk = _product(ds.swapaxes(-1, -2), q, k)
                gk *= scale
        return gq, gk, gv, gm
    return record(out, (query, key, value, attn_mask), backward,
                  (query, key, value))


def _fits(q, k, v):
    """Whether the kernels serve these arrays."""
    return (q.shape[:-2] == k.shape[:-2] == v.shape[:-2] and q.ndim <= 4
            and q.size and k.size and v.size and max(q.shape[-1], v.shape[-1]) <= _LONGEST)


def _tiled(forward, inputs, dropout_p, is_causal, scale, name, piece):
    """Attention by the kernels."""
    arrays = [t.array for t in inputs]
    rank = arrays[0].ndim
    q, k, v = (_heads(a) for a in arrays)
    batch, heads, queries, dim = q.shape
    keys, value_dim = v.shape[2:]
    kept, upscale = constant(1, 1, _NO_MASK, device_of(q)), 1.0
    if dropout_p:
        kept = keep_mask((*arrays[0].shape[:-1], keys), dropout_p, name, piece, q)
        upscale = 1 / (1 - float(dropout_p)) if dropout_p < 1 else 0.0
    sizes = (heads, batch * heads * queries, queries, keys, dim, value_dim, bool(is_causal), scale,
             bool(dropout_p), upscale)
    # In the memory order of query: heads cut from one projection are put together without a copy.
    out = _like(q, (batch, heads, queries, value_dim))
    sums = np.empty((batch, heads, queries), wide(q.dtype), like=q)
    forward(*_starts(q, k, v, out), sums, kept, _strides(q, k, v, out), *sizes)
    need = [t.requires_grad for t in inputs]

    def backward(g):
        g = _heads(g)
        gradients = [_like(q, q.shape), *(_like(a, a.shape, wide(a.dtype)) for a in (k, v))]
        _BACKWARD.build(q)(
            *_starts(q, k, v, out, g), sums, kept, *_starts(*gradients),
            _strides(q, k, v, out, g, *gradients), *sizes, queries, keys,  # one part, one pass
            need[0] | (need[1] or need[2]) << 1)
        return tuple(a.reshape(a.shape[4 - rank:]).astype(q.dtype, copy=False) if n else None
                     for a, n in zip(gradients, need))
    return record(out.reshape(out.shape[4 - rank:]), inputs, backward, inputs, saves_output=True)


def _heads(a):
    """`a` as (batch, heads, rows, columns) with rows that lie without gaps; copied if need be."""
    size = a.itemsize
    if a.strides[-1] != size or [s for s in a.strides if s % size] or not aligned(a):
        a = for_kernel(a)
    return a if a.ndim == 4 else a.reshape((1,) * (4 - a.ndim) + a.shape)


def _like(a, shape, dtype=None):
    """A new array of `shape` in the memory order of `a`, but with rows that lie without gaps."""
    new = np.empty_like(a, dtype, shape=shape)
    return new if new.strides[-1] == new.itemsize else np.empty(shape, new.dtype, like=a)


def _starts(*arrays):
    """The first row of each: how a kernel is given an array with gaps."""
    return [a[0, 0, 0] for a in arrays]


def _strides(*arrays):
    """The int64 array of the batch, head and row strides of all, counted in elements."""
    return _strides_of(tuple([(a.strides, a.itemsize) for a in arrays]), device_of(arrays[0]))


@lru_cache(maxsize=64)
def _strides_of(arrays, device):
    counted = [s // size for strides, size in arrays for s in strides[:3]]
    return put(np.array(counted, np.int64), device)


def _check(q, k, v):
    """The broadcast leading dims, or an error."""
    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(f"scaled_dot_product_attention: query {q.shape}, key {k.shape}, value "
                         f"{v.shape}: expected (..., L, E), (..., S, E), (..., S, Ev)")
    if not q.dtype == k.dtype == v.dtype or q.dtype.kind not in FLOATING:
        raise TypeError(f"scaled_dot_product_attention: one floating type is needed, "
                        f"not {q.dtype}, {k.dtype}, {v.dtype}")
    one_device("scaled_dot_product_attention", q, k, v)
    if q.shape[:-2] == k.shape[:-2] == v.shape[:-2]:
        return q.shape[:-2]
    try:
        return np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    except ValueError:
        raise ValueError(f"scaled_dot_product_attention: leading dims of {q.shape}, {k.shape}, "
                         f"{v.shape} cannot be broadcast together") from None


def _additive(attn_mask, dtype):
    """(array to add to the scores, tensor or None) of a mask."""
    mask, attn_mask = operand(attn_mask)
    mask = as_array(mask)
    if mask.dtype == bool:
        return np.where(mask, 0, -np.inf).astype(dtype), None
    if mask.dtype not in (dtype, np.float32):
        raise TypeError(f"scaled_dot_product_attention: attn_mask is bool, float32 or {dtype}, "
                        f"not {mask.dtype}")
    return mask, attn_mask


def _softmax_rows(scores):
    """Softmax over the last dim, in place; rows of -inf alone become zeros."""
    if not scores.size:
        return
    size = scores.shape[-1]
    rows = scores.reshape(-1, size)
    largest = row_max(rows, np.arange(0, rows.size, size, like=rows))
    np.maximum(largest, np.finfo(rows.dtype).min, out=largest)  # -inf - -inf would be NaN
    rows -= largest[:, None]
    np.exp(rows, out=rows)
    total = rows @ ones(size, rows)
    total[total == 0] = 1
    rows /= total[:, None]


def _product(a, b, like):
    """a @ b, summed over the leading dims that `like` was broadcast in, in its memory order."""
    shape = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if shape == like.shape[:-2]:
        return np.matmul(a, b, out=np.empty_like(like))
    return unbroadcast(np.matmul(a, b), like)
