"""Softmax and its logarithm, along any dim, with each row's own maximum taken off first.

A row is what lies along `dim`. Rows that hold only -inf, or +inf or NaN, become NaN, as in
PyTorch.
"""

from functools import lru_cache

import numpy as np

from ..device import device_of, on, on_gpu
from ..dtypes import FLOATING
from ..execution import Kernel
from ..tensor import record
from .base import for_kernel, method, normal_dim, quiet
from .precision import autocasts, in_float32

_KERNELS = {name: Kernel("softmax.cu", name, rows="rows", width="n") for name in (
    "softmax_forward", "softmax_backward", "log_softmax_forward", "log_softmax_backward")}


def _kernel(name, a, dim):
    """The kernel for the rows of `a` along `dim`, as a function of arrays; None without one."""
    if dim != a.ndim - 1 or not a.size or not a.flags.c_contiguous:
        return None
    run, n = _KERNELS[name].build(a), a.shape[-1]
    return run and (lambda *arrays: run(*arrays, a.size // n, n))


def ones(count, like):
    """A vector of ones of an array's dtype, where it is, that nobody writes to: a dot product with
    it is the fastest sum of a row.
    """
    return constant(1, count, like.dtype, device_of(like))


@lru_cache(maxsize=32)
def constant(value, count, dtype, device):
    """A vector of equal numbers on a device that nobody writes to."""
    with on(device) as module:
        vector = module.full(count, value, dtype)
    if module is np:
        vector.flags.writeable = False
    return vector


def row_dots(a, b):
    """The dot products of the rows of `a` and `b`: (..., n), (..., n) -> (...)."""
    return np.einsum("...i,...i->...", a, b) if on_gpu(a) else np.vecdot(a, b)


def row_max(rows, starts):
    """The largest element of each row of `rows` (n, size): (n,). NaN is largest.

    starts: np.arange(0, n * size, size). argmax is vectorised where maximum.reduce over short
    rows is not: half the time for (4096, 128).
    """
    return rows.reshape(-1).take(rows.argmax(1) + starts)


def _shifted(a, dim):
    """A new array: `a` (not empty, dim the last or not) minus the maximum along `dim`."""
    if dim != a.ndim - 1:
        return a - a.max(axis=dim, keepdims=True)
    rows = a.reshape(-1, a.shape[-1])
    largest = row_max(rows, np.arange(0, a.size, a.shape[-1], like=a))
    return np.subtract(rows, largest[:, None]).reshape(a.shape)


def _row_sum(a, dim):
    """Sum along `dim`, which is kept."""
    if dim != a.ndim - 1:
        return a.sum(axis=dim, keepdims=True)
    return row_dots(a, ones(a.shape[-1], a))[..., None]


def _input(name, x, dim):
    """(array to compute with, dim from the front) or an error."""
    a = x.array
    if a.dtype.kind not in FLOATING:
        raise TypeError(f"{name}: a floating type is needed, not {x.dtype}")
    dim = normal_dim(dim, a.ndim)
    return a if a.ndim else a.reshape(1), dim


@method()
@autocasts("float32")
@quiet
def softmax(x, dim):
    """exp(x) / sum of exp(x) along `dim`. Raises TypeError unless x is of a floating type."""
    a, dim = _input("softmax", x, dim)
    shape, run = x.array.shape, _kernel("softmax_forward", a, dim)
    if run is None and a.itemsize == 2:
        return in_float32(softmax, x, dim)
    if run:
        y = np.empty_like(a)
        run(for_kernel(a), y)
    elif a.size:
        y = _shifted(a, dim)
        np.exp(y, out=y)
        y /= _row_sum(y, dim)
    else:
        y = a.copy()

    def backward(g):
        # dx = y (g - sum(g y)): the sum as dot products where rows are contiguous.
        g = g.astype(y.dtype, copy=False).reshape(y.shape)
        if run := _kernel("softmax_backward", y, dim):
            gx = np.empty_like(y)
            run(y, for_kernel(g), gx)
            return (gx.reshape(shape),)
        if dim == y.ndim - 1:
            gx = g - row_dots(g, y)[..., None]
        else:
            gx = g * y
            np.subtract(g, gx.sum(axis=dim, keepdims=True), out=gx)
        gx *= y
        return (gx.reshape(shape),)
    return record(y.reshape(shape), (x,), backward, saves_output=True)


@method()
@autocasts("float32")
@quiet
def log_softmax(x, dim):
    """x - log(sum of exp(x)) along `dim`. Raises TypeError unless x is of a floating type."""
    a, dim = _input("log_softmax", x, dim)
    shape, run = x.array.shape, _kernel("log_softmax_forward", a, dim)
    if run is None and a.itemsize == 2:
        return in_float32(log_softmax, x, dim)
    if run:
        y = np.empty_like(a)
        run(for_kernel(a), y)
    elif a.size:
        y = _shifted(a, dim)
        y -= np.log(_row_sum(np.exp(y), dim))
    else:
        y = a.copy()

    def backward(g):
        # dx = g - exp(y) sum(g)
        g = g.astype(y.dtype, copy=False).reshape(y.shape)
        if run := _kernel("log_softmax_backward", y, dim):
            gx = np.empty_like(y)
            run(y, for_kernel(g), gx)
            return (gx.reshape(shape),)
        gx = np.exp(y)
        gx *= _row_sum(g, dim)
        np.subtract(g, gx, out=gx)
        return (gx.reshape(shape),)
    return record(y.reshape(shape), (x,), backward, saves_output=True)
