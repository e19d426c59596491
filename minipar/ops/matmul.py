"""Matrix products. Their weight gradients are Deferred: computed into the sink, or postponed."""

import math

import numpy as np

from ..sinks import Deferred
from ..tensor import Tensor, record
from .base import Like, method, unbroadcast


@method("matmul", "__matmul__")
def matmul(x, y):
    """x @ y with NumPy's and PyTorch's rules: vectors, matrices, broadcast batches of matrices.

    Raises ValueError `matmul: (3, 4) @ (5, 6): 4 != 5` if the inner sizes differ, and TypeError if
    the types do.
    """
    if not isinstance(y, Tensor):
        y = Tensor(np.asarray(y))
    a, b = x.array, y.array
    if a.dtype != b.dtype:
        raise TypeError(f"matmul: {a.dtype} @ {b.dtype}: both need one type")
    if not a.ndim or not b.ndim:
        raise ValueError(f"matmul: {a.shape} @ {b.shape}: both need at least 1 dim")
    inner = b.shape[-2] if b.ndim > 1 else b.shape[0]
    if a.shape[-1] != inner:
        raise ValueError(f"matmul: {a.shape} @ {b.shape}: {a.shape[-1]} != {inner}")
    need_x, need_y = x.requires_grad, y.requires_grad
    x_vector, y_vector = a.ndim == 1, b.ndim == 1
    try:
        out = np.matmul(a, b)
    except ValueError:
        raise ValueError(f"matmul: batch shapes {a.shape[:-2]} and {b.shape[:-2]} "
                         f"cannot be broadcast together") from None

    like_a, like_b = Like(a.shape, a.dtype), Like(b.shape, b.dtype)
    left = a if need_y else None
    del a, b  # y is read again in backward: a parameter may be freed in between

    def backward(g):
        # As matrices: a vector on the left is a row, on the right a column.
        if x_vector:
            g = np.expand_dims(g, -1 if y_vector else -2)
        if y_vector:
            g = np.expand_dims(g, -1)
        gx = gy = None
        if need_x:
            b = y.array[:, None] if y_vector else y.array
            gx = np.matmul(g, b.swapaxes(-1, -2))
            gx = _leading_sum(gx) if x_vector else unbroadcast(gx, like_a)
        if need_y:
            a = left[None, :] if x_vector else left
            gy = np.matmul(a.swapaxes(-1, -2), g)
            gy = _leading_sum(gy[..., 0]) if y_vector else unbroadcast(gy, like_b)
        return gx, gy
    saved = ([y] if need_x else []) + ([x] if need_y else [])
    return record(out, (x, y), backward, saved)


def _leading_sum(g):
    """Sum over all dims but the last."""
    return g.sum(axis=tuple(range(g.ndim - 1)))


@method("__rmatmul__")
def rmatmul(x, y):
    return matmul(Tensor(np.asarray(y)), x)


def linear(x, weight, bias=None):
    """x @ weight.T + bias, over the last dim.

    x (..., in), weight (out, in), bias (out,) -> (..., out), all of one type. Raises ValueError
    with the shapes, TypeError with the types.
    """
    a, w = x.array, weight.array
    if a.dtype != w.dtype:
        raise TypeError(f"linear: input {a.dtype} and weight {w.dtype}: both need one type")
    if w.ndim != 2 or not a.ndim or a.shape[-1] != w.shape[1]:
        raise ValueError(f"linear: input {a.shape} and weight {w.shape} (out, in): the last dim "
                         f"of the input is not in")
    if bias is not None and bias.array.dtype != w.dtype:
        raise TypeError(f"linear: bias {bias.array.dtype} and weight {w.dtype}: one type is "
                        f"needed")
    if bias is not None and bias.array.shape != w.shape[:1]:
        raise ValueError(f"linear: bias {bias.array.shape} and weight {w.shape} (out, in)")
    rows = a.reshape(math.prod(a.shape[:-1]), a.shape[-1])  # one large GEMM, where a batched matmul makes many small
    out = np.matmul(rows, w.T)
    if bias is not None:
        out += bias.array
    need_x, need_w = x.requires_grad, weight.requires_grad
    shape, count, like_w = a.shape, len(rows), Like(w.shape, w.dtype)
    kept = rows if need_w else None

    def backward(g):
        g = g.reshape(count, g.shape[-1])
        gx = gw = gb = None
        if need_x:
            gx = np.matmul(g, weight.array).reshape(shape)
        if need_w:
            gw = Deferred(like_w, postponable=True,
                          write=lambda out: np.matmul(g.T, kept, out=out))
        if bias is not None and bias.requires_grad:
            gb = np.ones(count, g.dtype) @ g  # a GEMV: 3 times as fast as a sum over rows
        return gx, gw, gb
    saved = ([weight] if need_x else []) + ([x] if need_w else [])
    return record(out.reshape(*shape[:-1], len(w)), (x, weight, bias), backward, saved)
