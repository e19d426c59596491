"""Conversion between data types, which gradients pass through in the opposite direction.

`Tensor.to` and `Module.to` take the same arguments, which `destination` reads.
"""

from .. import dtypes
from ..tensor import Tensor, record
from .base import method, quiet


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
    return _cast(x, x.dtype if dtype is None else dtype, copy)


def _cast(x, dtype, copy=False):
    if dtype is x.dtype and not copy:
        return x
    own = x.array.dtype
    array = x.array.astype(dtype.storage)
    if not dtype.is_floating_point:
        return Tensor(array)
    return record(array, (x,), lambda g: (g.astype(own, copy=False),))


def _define(name, dtype):
    def cast(x):
        return _cast(x, dtype)
    cast.__name__, cast.__doc__ = name, f"x as {dtype.name}: x itself if it is that already."
    method(name)(quiet(cast))


for _name, _dtype in (("half", dtypes.float16), ("float", dtypes.float32),
                      ("double", dtypes.float64), ("int", dtypes.int32),
                      ("long", dtypes.int64), ("bool", dtypes.bool_)):
    _define(_name, _dtype)
