"""Matrix products. Their weight gradients are Deferred: computed into the sink, or postponed."""

import math

import numpy as np

from ..device import as_array, one_device
from ..sinks import Deferred
from ..tensor import Tensor, record
from .base import Like, method, unbroadcast
from .elementwise import add_row
from .precision import arithmetic, autocasts
from .softmax import ones


@method("matmul", "__matmul__")
@autocasts("low")
@arithmetic
def matmul(x, y):
    """x @ y with NumPy's and PyTorch's rules: vectors, matrices, broadcast batches of matrices.

    Raises ValueError `matmul: (3, 4) @ (5, 6): 4 != 5` if the inner sizes differ, and TypeError if
    the types do, and for bools.
    """
    if not isinstance(y, Tensor):
        y = Tensor(as_array(y))
    a, b = x.array, y.array
    if a.dtype != b.dtype or a.dtype == bool:
        raise TypeError(f"matmul: {a.dtype} @ {b.dtype}: both need one type of numbers")
    if not a.ndim or not b.ndim:
        raise ValueError(f"matmul: {a.shape} @ {b.shape}: both need at least 1 dim")
    one_device("matmul", a, b)
    inner = b.shape[-2] if b.ndim > 1 else b.shape[0]
    if a.shape[-1] != inner:
        raise ValueError(f"matmul: {a.shape} @ {b.shape}: {a.shape[-1]} != {inner}")
    return _rows(x, y) if b.ndim <= 2 else _batches(x, y)


def _rows(x, y):
    """x (..., k) @ y (k, n) or (k,): all rows of x in one product."""
    a, b, shape = x.array, y.array, x.array.shape
    a = a.reshape(math.prod(shape[:-1]), shape[-1])
    out = np.matmul(a, b).reshape(shape[:-1] + b.shape[1:])
    need_x, need_y = x.requires_grad, y.requires_grad
    count, like_y = len(a), Like(b.shape, b.dtype, b.device)
    kept = a if need_y else None
    del a, b  # y is read again in backward: a parameter may be freed in between

    def backward(g):
        g = g.reshape((count,) + like_y.shape[1:])
        gx = gy = None
        if need_x:
            gx = np.matmul(g, y.array.T) if g.ndim > 1 else g[:, None] * y.array
            gx = gx.reshape(shape)
        if need_y:
            gy = Deferred(like_y, postponable=True,
                          write=lambda out: np.matmul(kept.T, g, out=out))
        return gx, gy
    saved = ([y] if need_x else []) + ([x] if need_y else [])
    return record(out, (x, y), backward, saved)


def _batches(x, y):
    """x (..., m, k) or (k,) @ y (..., k, n), with the leading dims broadcast."""
    vector = x.array.ndim == 1  # which is a row
    a, b = x.array[None] if vector else x.array, y.array
    try:
        out = np.matmul(a, b)
    except ValueError:
        raise ValueError(f"matmul: batch shapes {a.shape[:-2]} and {b.shape[:-2]} "
                         f"cannot be broadcast together") from None
    need_x, need_y = x.requires_grad, y.requires_grad
    like_x, like_y = Like(a.shape, a.dtype, a.device), Like(b.shape, b.dtype, b.device)
    kept = a if need_y else None
    del a, b

    def backward(g):
        g = g[..., None, :] if vector else g
        gx = gy = None
        if need_x:
            gx = unbroadcast(np.matmul(g, y.array.swapaxes(-1, -2)), like_x)
            gx = gx[0] if vector else gx
        if need_y:
            gy = unbroadcast(np.matmul(kept.swapaxes(-1, -2), g), like_y)
        return gx, gy
    saved = ([y] if need_x else []) + ([x] if need_y else [])
    return record(out[..., 0, :] if vector else out, (x, y), backward, saved)


def mm(input, mat2):
    """`matmul` of two matrices and nothing else."""
    return matmul(*_of_dims("mm", 2, input, mat2))


def bmm(input, mat2):
    """`matmul` of two batches (b, m, k) and (b, k, n) of one size."""
    if input.shape[:1] != mat2.shape[:1]:
        raise ValueError(f"bmm: {input.shape} and {mat2.shape}: the batches differ")
    return matmul(*_of_dims("bmm", 3, input, mat2))


def _of_dims(name, ndim, *tensors):
    for t in tensors:
        if t.ndim != ndim:
            raise ValueError(f"{name}: shape {t.shape}: {ndim} dims are needed")
    return tensors


@method("__rmatmul__")
def rmatmul(x, y):
    return matmul(Tensor(as_array(y)), x)


@autocasts("low")
@arithmetic
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
    one_device("linear", a, w, None if bias is None else bias.array)
    if bias is not None and bias.array.dtype != w.dtype:
        raise TypeError(f"linear: bias {bias.array.dtype} and weight {w.dtype}: one type is "
                        f"needed")
    if bias is not None and bias.array.shape != w.shape[:1]:
        raise ValueError(f"linear: bias {bias.array.shape} and weight {w.shape} (out, in)")
    # One large GEMM, where a batched matmul makes many small.
    rows = a.reshape(math.prod(a.shape[:-1]), a.shape[-1])
    out = np.matmul(rows, w.T)
    if bias is not None and add_row(out, bias.array, out) is None:
        out += bias.array
    need_x, need_w = x.requires_grad, weight.requires_grad
    shape, count, like_w = a.shape, len(rows), Like(w.shape, w.dtype, w.device)
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
            gb = ones(count, g) @ g  # a GEMV: 3 times as fast as a sum over rows
        return gx, gw, gb
    saved = ([weight] if need_x else []) + ([x] if need_w else [])
    return record(out.reshape(*shape[:-1], len(w)), (x, weight, bias), backward, saved)
