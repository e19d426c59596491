"""Conversion between data types and devices, which gradients pass in the opposite direction.

`Tensor.to` and `Module.to` take the same arguments, which `destination` reads.
"""

import numpy as np

from .. import dtypes
from ..device import CPU, as_array, device, device_of, on, on_gpu, put, resolve
from ..execution import Kernel
from ..tensor import Tensor, record
from .base import for_kernel, method, quiet

_FROM_FLOAT = Kernel("cast.cu", "from_float", elements="n")
_TO_FLOAT = Kernel("cast.cu", "to_float", elements="n")


def destination(args, kwargs):
    """(DType, device), None for those it has, that the arguments of a `.to(...)` ask for.

    They are a dtype, a device, a device and a dtype, or a tensor that has both; dtype= and
    device= too. Raises ValueError for a device that is not there, RuntimeError where there is no
    GPU at all, TypeError for anything else.
    """
    given = {"dtype": [], "device": []}
    for key, value in kwargs.items():
        if key not in given:
            raise TypeError(f"to() has no argument {key!r}")
        given[key] += [] if value is None else [value]
    for value in args:
        if isinstance(value, Tensor):
            given["device"].append(value.device)
            value = value.dtype
        given["device" if _is_device(value) else "dtype"].append(value)
    for key, values in given.items():
        if len(values) > 1:
            raise TypeError(f"to() was given two of {key}: {values[0]} and {values[1]}")
    return (dtypes.dtype(given["dtype"][0]) if given["dtype"] else None,
            resolve(given["device"][0]) if given["device"] else None)


def _is_device(value):
    """A device, the number of a GPU, or a string that is not the name of a type."""
    if isinstance(value, (device, int)):
        return True
    try:
        return isinstance(value, str) and not dtypes.dtype(value)
    except TypeError:
        return True


@method()
@quiet
def to(x, *args, copy=False, **kwargs):
    """x in another data type or on another device: to(dtype), to("cuda"), to("cuda", dtype),
    to(tensor).

    x itself if it has that type and is there already, unless `copy`. Gradients come back in the
    type of x, and to where it is; integer types have none. Raises ValueError for a device that is
    not there, and RuntimeError, in one line, where there is no CuPy, driver or GPU at all.
    """
    dtype, place = destination(args, kwargs)
    return cast_to(x, dtype or x.dtype, copy, place)


@method()
def cpu(x):
    """x on the CPU: x itself if it is there."""
    return cast_to(x, x.dtype, place=CPU)


@method()
def cuda(x, device=None):
    """x on a GPU, the current one if None: x itself if it is there. Raises RuntimeError, in one
    line, where there is no CuPy, driver or GPU.
    """
    return cast_to(x, x.dtype, place=resolve("cuda" if device is None else device))


Tensor.is_cuda = property(lambda x: x.device is not CPU)


def cast_to(x, dtype, copy=False, place=None):
    a = x.array
    moves = place is not None and device_of(a) is not place
    if dtype is x.dtype and not copy and not moves:
        return x
    own, home = a.dtype, device_of(a)
    array = put(a, place) if moves else a
    if dtype is not x.dtype or array is a:
        if on_gpu(array):
            with on(device_of(array)):
                array = converted(array, dtype.storage)
        else:
            array = converted(array, dtype.storage)
    if not dtype.is_floating_point:
        return Tensor(array)

    def backward(g):
        return (put(g if g.dtype == own else converted(g, own), home),)
    backward.__qualname__ = "to"  # what the graph calls the node
    return record(array, (x,), backward)


def converted(a, dtype):
    """A copy of an array in another NumPy dtype, each number rounded to the nearest.

    By a kernel between float32 and 16-bit types, in which NumPy takes 2 to 9 times as long.
    """
    a = as_array(a)
    if dtype == np.float32 and a.itemsize == 2:
        run = _TO_FLOAT.build(a)
    elif a.dtype == np.float32 and dtype.itemsize == 2:
        run = _FROM_FLOAT.build(a, dtype)
    else:
        run = None
    if run is None:
        return a.astype(dtype)
    if a.flags.c_contiguous:
        out = np.empty(a.shape, dtype, like=a)
        run(for_kernel(a), out, 1.0, a.size)
        return out
    order = sorted(range(a.ndim), key=lambda axis: -abs(a.strides[axis]))
    if a.transpose(order).flags.c_contiguous:  # as convolutions lay their results out
        inverse = sorted(range(a.ndim), key=order.__getitem__)
        return converted(a.transpose(order), dtype).transpose(inverse)
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
