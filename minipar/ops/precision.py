"""In which precision an operation computes: 16-bit numbers in float32, rounded once.

`@arithmetic` says it of an operation as a whole: its 16-bit operands are converted, what it makes
of them is converted back, and gradients take the same way in the other direction. The operation
itself never sees 16 bits, and its accumulations are float32's, as PyTorch's are. What only moves
or chooses numbers (views, `where`, `relu`, ...) needs none of this, and operations that have
kernels for 16-bit numbers go through `in_float32` where no kernel serves.
"""

from functools import wraps

import numpy as np

from .. import dtypes
from ..context import current
from ..tensor import Tensor
from .base import quiet
from .cast import cast_to, converted


def arithmetic(function):
    """Decorator of an operation: `quiet`, and 16-bit operands are computed with in float32.

    The first tensor decides: `promote` takes care of two types together.
    """
    run = quiet(function)

    @wraps(function)
    def operation(*args, **kwargs):
        for a in args:
            array = getattr(a, "array", None)
            if array is not None:
                if array.itemsize != 2:
                    return run(*args, **kwargs)
                break
        return in_float32(run, *args, **kwargs)
    return operation

@quiet
def in_float32(function, *args, **kwargs):
    """function(*args, **kwargs) in float32, if all floating tensors and arrays among the arguments
    (or in lists of them) are of one 16-bit type, to which float32 results are then rounded.
    """
    narrow = {d for d in map(_floating, _flat((*args, *kwargs.values()))) if d is not None}
    if len(narrow) != 1 or next(iter(narrow)).itemsize != 2:
        return function(*args, **kwargs)
    dtype, context = dtypes.dtype(narrow.pop()), current()
    low, context.autocast = context.autocast, None  # what the operation is made of stays wide
    try:
        out = function(*map(_widened, args), **{k: _widened(v) for k, v in kwargs.items()})
    finally:
        context.autocast = low
    return _each(out, lambda t: cast_to(t, dtype) if t.dtype is dtypes.float32 else t)

def _flat(values):
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from value
        else:
            yield value

def _is_array(value):
    return isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "__cuda_array_interface__")

def _floating(value):
    """The NumPy dtype of a tensor or array of a floating type; None of all else."""
    array = value.array if isinstance(value, Tensor) else value
    if _is_array(array) and array.dtype.kind in dtypes.FLOATING:
        return array.dtype
    return None

def _widened(value):
    def widen(one):
        dtype = _floating(one)
        if dtype is None or dtype.itemsize != 2:
            return one
        return (cast_to(one, dtypes.float32) if isinstance(one, Tensor)
                else converted(one, np.dtype(np.float32)))
    return _each(value, widen)

def _each(value, function):
    """`function` of a value; of each of a tuple or list."""
    if not isinstance(value, (tuple, list)):
        return function(value) if isinstance(value, Tensor) or _is_array(value) else value
    parts = [_each(v, function) for v in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def autocasts(to):
    """Decorator of an operation that takes its operands in another type while `amp.autocast` is
    on: "low", its 16-bit type, or "float32". float64 stays as it is.
    """
    def decorate(function):
        @wraps(function)
        def operation(*args, **kwargs):
            low = current().autocast
            if low is None:
                return function(*args, **kwargs)
            dtype = low if to == "low" else dtypes.float32
            return function(*[_each(a, lambda t: _autocast(t, dtype)) for a in args],
                            **{k: _each(a, lambda t: _autocast(t, dtype))
                               for k, a in kwargs.items()})
        return operation
    return decorate


def _autocast(value, dtype):
    if isinstance(value, Tensor) and value.dtype.is_floating_point and value.dtype.itemsize < 8:
        return cast_to(value, dtype)
    return value
