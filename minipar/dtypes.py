"""Data types as objects of our own, so that a type need not be one that NumPy has.

Bottom of the stack: knows NumPy, nothing of tensors. A `DType` names how elements are stored
(`storage`, a NumPy dtype) and what they mean. The two differ for bfloat16, whose storage is
16-bit integers and whose arithmetic comes from kernels; its storage type, uint16, is therefore
not offered as a type of its own.
"""

import numpy as np


class DType:
    """A data type: `name`, `storage` (NumPy dtype), `itemsize` in bytes, `is_floating_point`."""

    __slots__ = ("name", "storage", "itemsize", "is_floating_point")

    def __init__(self, name, storage, is_floating_point):
        self.name = name
        self.storage = np.dtype(storage)
        self.itemsize = self.storage.itemsize
        self.is_floating_point = is_floating_point

    def __repr__(self):
        return f"minipar.{self.name}"

    def __reduce__(self):
        return (dtype, (self.name,))


float16 = DType("float16", np.float16, True)
float32 = DType("float32", np.float32, True)
float64 = DType("float64", np.float64, True)
int32 = DType("int32", np.int32, False)
int64 = DType("int64", np.int64, False)
uint8 = DType("uint8", np.uint8, False)
bool_ = DType("bool", np.bool_, False)

_ALL = (float16, float32, float64, int32, int64, uint8, bool_)
_BY_NAME = {d.name: d for d in _ALL}
_BY_STORAGE = {d.storage: d for d in _ALL}


def dtype(spec):
    """The `DType` that `spec` (a DType, a name, a NumPy dtype, or a Python type) stands for.

    Raises TypeError, naming the types there are, for anything else.
    """
    if isinstance(spec, DType):
        return spec
    if isinstance(spec, str) and spec in _BY_NAME:
        return _BY_NAME[spec]
    try:
        return _BY_STORAGE[np.dtype(spec)]
    except (TypeError, KeyError):
        names = ", ".join(_BY_NAME)
        raise TypeError(f"no data type {spec!r}: there are {names}") from None


def of(array):
    """The `DType` of an array's elements. Raises TypeError for a storage type that has none."""
    found = _BY_STORAGE.get(array.dtype)
    return found if found is not None else dtype(array.dtype)
