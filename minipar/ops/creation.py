"""Tensors from nothing: zeros, ranges, the identity. None of them is recorded.

dtype: the default dtype if None, unless it says otherwise. requires_grad: makes the tensor a leaf.
device: a `device`, its name, or None for the CPU (of the `_like` functions: for where x is).
Sizes are given as numbers or as a tuple.
"""

import math
from operator import index

import numpy as np

from .. import dtypes
from ..context import current
from ..device import as_array, on, put
from ..tensor import Tensor, from_numpy
from .base import quiet
from .cast import to


def sizes(name, args):
    """A shape from (2, 3) and from ((2, 3),) alike. Raises ValueError for a negative size."""
    shape = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
    shape = tuple([index(n) for n in shape])
    if any(n < 0 for n in shape):
        raise ValueError(f"{name}: a size of shape {shape} is negative")
    return shape


def storage_of(dtype):
    """The NumPy dtype of `dtype`; of the default dtype if None."""
    return (current().default_dtype if dtype is None else dtypes.dtype(dtype)).storage


def made(array, requires_grad, device=None):
    """A new tensor of `array`, on `device` if one is given, that requires grad or not."""
    out = Tensor(array if device is None else put(array, device))
    return out.requires_grad_() if requires_grad else out


def tensor(data, dtype=None, requires_grad=False, device=None):
    """A tensor with a copy of `data` (numbers, nested lists, an array, a tensor).

    dtype: taken from `data` if None; Python floats become the default dtype, as in PyTorch.
    device: if None that of `data`, if it has one, else the CPU.
    """
    if hasattr(data, "dtype") and not isinstance(data, np.generic):
        data = dtypes.array_of(data)
    array = as_array(data).copy()
    if dtype is not None:
        array = array.astype(dtypes.dtype(dtype).storage)
    elif array.dtype == np.float64 and not hasattr(data, "dtype"):
        array = array.astype(current().default_dtype.storage)
    dtypes.of(array)  # refuses what is not a tensor's type
    result = Tensor(array if device is None else put(array, device))
    return result.requires_grad_() if requires_grad else result


def zeros(*size, dtype=None, requires_grad=False, device=None):
    """A tensor of zeros."""
    with on(device) as module:
        return made(module.zeros(sizes("zeros", size), storage_of(dtype)), requires_grad, device)


def ones(*size, dtype=None, requires_grad=False, device=None):
    """A tensor of ones."""
    with on(device) as module:
        return made(module.ones(sizes("ones", size), storage_of(dtype)), requires_grad, device)


def empty(*size, dtype=None, requires_grad=False, device=None):
    """A tensor of which nobody has set the elements."""
    with on(device) as module:
        return made(module.empty(sizes("empty", size), storage_of(dtype)), requires_grad, device)


def _number(name, value):
    if not isinstance(value, (bool, int, float, np.generic)):
        raise TypeError(f"{name}: a number is needed to fill with, not {type(value).__name__}")
    return value


def full(size, fill_value, dtype=None, requires_grad=False, device=None):
    """A tensor of shape `size` (tuple), every element the number `fill_value`.

    dtype: if None that of `tensor(fill_value)`: bool, int64 or the default dtype.
    """
    dtype = tensor(_number("full", fill_value)).dtype if dtype is None else dtype
    with on(device) as module:
        return made(module.full(sizes("full", (size,)), fill_value, storage_of(dtype)),
                    requires_grad, device)


def like(name, x, dtype):
    """(the array of x, the NumPy dtype of `dtype`; of x if None)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: a tensor is needed, not {type(x).__name__}")
    return x.array, storage_of(x.dtype if dtype is None else dtype)


def zeros_like(x, dtype=None, requires_grad=False, device=None):
    """Zeros in the shape of x, and in its dtype if `dtype` is None."""
    return made(np.zeros_like(*like("zeros_like", x, dtype)), requires_grad, device)


def ones_like(x, dtype=None, requires_grad=False, device=None):
    """Ones in the shape of x, and in its dtype if `dtype` is None."""
    return made(np.ones_like(*like("ones_like", x, dtype)), requires_grad, device)


def empty_like(x, dtype=None, requires_grad=False, device=None):
    """A tensor like x of which nobody has set the elements."""
    return made(np.empty_like(*like("empty_like", x, dtype)), requires_grad, device)


def full_like(x, fill_value, dtype=None, requires_grad=False, device=None):
    """`fill_value` in the shape of x, and in its dtype if `dtype` is None."""
    array, storage = like("full_like", x, dtype)
    made_of = np.full_like(array, _number("full_like", fill_value), storage)
    return made(made_of, requires_grad, device)


def arange(start, end=None, step=1, dtype=None, requires_grad=False, device=None):
    """start, start + step, ... below `end`: ceil((end - start) / step) numbers in one dim.

    With one number it is `end`, and start is 0. dtype: if None int64 of ints, else the default
    dtype. Raises ValueError for a step of 0 and for one that leads away from `end`.
    """
    if end is None:
        start, end = 0, start
    if dtype is None and all(isinstance(n, int) for n in (start, end, step)):
        dtype = dtypes.int64
    if not step or (end - start) / step < 0:
        raise ValueError(f"arange: no step of {step} leads from {start} to {end}")
    count = math.ceil((end - start) / step)
    out = start + step * np.arange(count)
    return made(out.astype(storage_of(dtype)), requires_grad, device)


@quiet
def linspace(start, end, steps, dtype=None, requires_grad=False, device=None):
    """`steps` numbers in one dim, at equal distances from `start` to `end`, which is the last."""
    if index(steps) < 0:
        raise ValueError(f"linspace: steps must not be negative, not {steps}")
    return made(np.linspace(start, end, steps).astype(storage_of(dtype)), requires_grad, device)


def eye(n, m=None, dtype=None, requires_grad=False, device=None):
    """The identity: a matrix (n, m), square if m is None, of ones on the diagonal, else zeros."""
    shape = sizes("eye", (n, n if m is None else m))
    return made(np.eye(*shape, dtype=storage_of(dtype)), requires_grad, device)


def as_tensor(data, dtype=None, device=None):
    """`data` as a tensor, without a copy where that can be.

    A tensor comes back as it is, an array shares its memory with the result; with another dtype
    both are converted, and so on another device. Anything else is copied, as by `tensor`.
    """
    if hasattr(data, "dtype") and not isinstance(data, (Tensor, np.generic)):
        data = from_numpy(data)
    if isinstance(data, Tensor):
        return to(data, dtype=dtype, device=device)
    return tensor(data, dtype, device=device)
