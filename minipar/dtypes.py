"""Data types as objects of our own, so that a type need not be one that NumPy has.

Bottom of the stack: knows NumPy, nothing of tensors. A `DType` names how elements are stored:
`storage`, a NumPy dtype. That of bfloat16 comes from the package ml_dtypes, which is imported when
bfloat16 is first used, and never without; NumPy knows of it only that it is 16 bits of kind "V".

16-bit types are for storing. What is computed from them is computed in float32, and rounded once
(`ops/precision.py`, `kernels/`).
"""

import numpy as np

from .device import as_array

FLOATING = "fV"  # kinds of NumPy dtypes that hold floating numbers: V is bfloat16's, no other's


class DType:
    """A data type: `name`, `storage` (NumPy dtype), `itemsize` in bytes, `is_floating_point`."""

    __slots__ = ("name", "_storage", "itemsize", "is_floating_point")

    def __init__(self, name, storage, itemsize, is_floating_point):
        self.name, self._storage = name, storage and np.dtype(storage)
        self.itemsize, self.is_floating_point = itemsize, is_floating_point

    @property
    def storage(self):
        """The NumPy dtype. Raises TypeError where bfloat16's, from ml_dtypes, is not installed."""
        if self._storage is None:
            try:
                from ml_dtypes import bfloat16
            except ImportError:
                raise TypeError("bfloat16 needs the package ml_dtypes: pip install "
                                "'minipar[bf16]'") from None
            self._storage = np.dtype(bfloat16)
            _BY_STORAGE[self._storage] = self
        return self._storage

    def __repr__(self):
        return f"minipar.{self.name}"

    def __reduce__(self):
        return (dtype, (self.name,))


float16 = DType("float16", np.float16, 2, True)
bfloat16 = DType("bfloat16", None, 2, True)
float32 = DType("float32", np.float32, 4, True)
float64 = DType("float64", np.float64, 8, True)
int32 = DType("int32", np.int32, 4, False)
int64 = DType("int64", np.int64, 8, False)
uint8 = DType("uint8", np.uint8, 1, False)
bool_ = DType("bool", np.bool_, 1, False)

_ALL = (float16, bfloat16, float32, float64, int32, int64, uint8, bool_)
_BY_NAME = {d.name: d for d in _ALL}
_BY_STORAGE = {d.storage: d for d in _ALL if d is not bfloat16}


def dtype(spec):
    """The `DType` that `spec` (a DType, a name, a NumPy dtype, or a Python type) stands for.

    Raises TypeError, naming the types there are, for anything else; and for bfloat16 where
    ml_dtypes is not installed.
    """
    found = None
    if isinstance(spec, DType):
        found = spec
    elif isinstance(spec, str):
        found = _BY_NAME.get(spec)
    if found is None:
        try:
            storage = np.dtype(spec)
            found = _BY_STORAGE.get(storage) or {"bfloat16": bfloat16}[storage.name]
        except (TypeError, KeyError):
            names = ", ".join(_BY_NAME)
            raise TypeError(f"no data type {spec!r}: there are {names}") from None
    found.storage  # of bfloat16: it is there, or is refused
    return found


def of(array):
    """The `DType` of an array's elements. Raises TypeError for a storage type that has none."""
    found = _BY_STORAGE.get(array.dtype)
    return found if found is not None else dtype(array.dtype)


def array_of(value):
    """The elements of a tensor, an array (of a GPU too), or whatever NumPy makes an array of: not
    copied if that can be. PyTorch gives NumPy no bfloat16, so its tensors of that type go through
    float32.
    """
    if hasattr(value, "array"):
        return value.array
    if str(getattr(value, "dtype", None)) == "torch.bfloat16":
        return np.asarray(value.detach().float()).astype(bfloat16.storage)
    return as_array(value)
