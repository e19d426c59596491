"""Conversion between data types, which gradients pass through in the opposite direction.

`Tensor.to` and `Module.to` take the same arguments, which `destination` reads.
"""

import numpy as np

from .. import dtypes
from ..execution import Kernel
from ..tensor import Tensor, record
from .base import for_kernel, method, quiet

_FROM_FLOAT = Kernel("cast.cu", "from_float", elements="n")
_TO_FLOAT = Kernel("cast.cu", "to_float", elements="n")


def destination(args, kwargs):
    """The DType, or None for the one it has, that the arguments of a `.to(...)` ask for.

    They are a dtype, a device, a device and a dtype, or a tensor that has both; dtype= and
    device= too. Raises ValueError for a device that is not there, TypeError for anything else.
    """
    given = {"dtype": [], "device": []}
    for key, value in kwargs.items():
        if key not in given:
            raise TypeError(f"to() has no argument {key!r}")
        given[key] += [] if value is None else [value]
    for value in args:
        if isinstance(value, Tensor):
            value = value.dtype
        given["device" if _is_device(value) else "dtype"].append(value)
    for key, values in given.items():
        if len(values) > 1:
            raise TypeError(f"to() was given two of {key}: {values[0]} and {values[1]}")
    if given["device"] not in ([], ["cpu"]):
        raise ValueError(f"no device {given['device'][0]!r}: there is only 'cpu'")
    return dtypes.dtype(given["dtype"][0]) if given["dtype"] else None


def _is_device(value):
    """A string that is not the name of a type."""
    try:
        return isinstance(value, str) and not dtypes.dtype(value)
    except TypeError:
        return True


@method()
@quiet
def to(x, *args, copy=False, **kwargs):
    """x in another data type: to(dtype), to("cpu"), to("cpu", dtype), to(tensor).

    x itself if it has that type already, unless `copy`. Gradients come back in the type of x;
    integer types have none. Raises ValueError for a device that is not there.
    """
    dtype = destination(args, kwargs)
    return cast_to(x, x.dtype if dtype is None else dtype, copy)


def cast_to(x, dtype, copy=False):
    if dtype is x.dtype and not copy:
        return x
    own = x.array.dtype
    array = converted(x.array, dtype.storage)
    if not dtype.is_floating_point:
        return Tensor(array)

    def backward(g):
        return (g if g.dtype == own else converted(g, own),)
    backward.__qualname__ = "to"  # what the graph calls the node
    return record(array, (x,), backward)


def converted(a, dtype):
    """A copy of an array in another NumPy dtype, each number rounded to the nearest.

    By a kernel between float32 and 16-bit types, in which NumPy takes 2 to 9 times as long.
    """
    if dtype == np.float32 and a.itemsize == 2:
        run = _TO_FLOAT.build(a.dtype)
    elif a.dtype == np.float32 and dtype.itemsize == 2:
        run = _FROM_FLOAT.build(dtype)
    else:
        run = None
    if run is None:
        return a.astype(dtype)
    if a.flags.c_contiguous:
        out = np.empty(a.shape, dtype)
        run(for_kernel(a), out, 1.0, a.size)
        return out
    order = sorted(range(a.ndim), key=lambda axis: -abs(a.strides[axis]))
    if a.transpose(order).flags.c_contiguous:  # as convolutions lay their results out
        return converted(a.transpose(order), dtype).transpose(np.argsort(order))
    return a.astype(dtype)


def _define(name, dtype):
    def cast(x):
        return cast_to(x, dtype)
    cast.__name__, cast.__doc__ = name, f"x as {dtype.name}: x itself if it is that already."
    method(name)(quiet(cast))


for _name, _dtype in (("half", dtypes.float16), ("bfloat16", dtypes.bfloat16),
                      ("float", dtypes.float32), ("double", dtypes.float64), ("int", dtypes.int32),
                      ("long", dtypes.int64), ("bool", dtypes.bool_)):
    _define(_name, _dtype)
