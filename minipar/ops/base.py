"""What every operation uses: taking operands apart, and undoing a broadcast.

An operation is one function: the arithmetic on arrays, a closure that is its backward, `record`.
It stands in the file of its family; `@method` also makes it a method of Tensor.
"""

from typing import NamedTuple

import numpy as np

from ..context import current
from ..device import aligned, as_array, device_of, on_gpu, one_device, put
from ..dtypes import FLOATING
from ..sinks import Deferred
from ..tensor import Tensor

# A decorator: results are Inf and NaN as in PyTorch, without NumPy's RuntimeWarning. (`backward`
# of the engine runs under one of its own.) It costs 0.3 us.
quiet = np.errstate(all="ignore")


class Like(NamedTuple):
    """Shape, dtype and `.device` of an array, for a backward that needs no more: the array itself
    can go.
    """

    shape: tuple
    dtype: np.dtype
    device: object = "cpu"


def method(*names):
    """Make the function a method of Tensor, under its own name or under `names`."""
    def attach(function):
        for name in names or (function.__name__,):
            setattr(Tensor, name, function)
        return function
    return attach


def for_kernel(a):
    """`a` as kernels take it, copied if need be: in C order, aligned."""
    a = as_array(a)
    if not a.flags.c_contiguous:
        a = np.ascontiguousarray(a, like=a)
    return a if aligned(a) else a.copy()


def by_kernel(kernel, a):
    """A new array: what an elementwise kernel makes of `a`. None where NumPy has to do it: without
    kernels, or if `a` is not in C order.
    """
    run = kernel.build(a)
    if run is None or not a.flags.c_contiguous:
        return None
    out = np.empty_like(a)
    try:
        run(a, out, a.size)
    except (TypeError, ValueError):  # a scalar, not aligned: to ask takes longer than to run
        run(for_kernel(a), out, a.size)
    return out


def gradient_by_kernel(kernel, *arrays):
    """The same of arrays, as a `Deferred`: a leaf's is written where it belongs, with no array
    between. None, too, for arrays of several shapes or types.
    """
    a = arrays[0]
    run = kernel.build(a)
    if run is None or not a.flags.c_contiguous:
        return None
    for b in arrays:
        if b.shape != a.shape or b.dtype != a.dtype:
            return None

    def write(out):
        if out.flags.c_contiguous and aligned(out):
            run(*map(for_kernel, arrays), out, a.size)
        else:  # a sink in memory of another form
            write(part := np.empty_like(a))
            out[...] = part
    return Deferred(a, write=write)


def operand(x):
    """(array or Python number, tensor or None) of an operand of elementwise arithmetic.

    Python numbers stay what they are: NumPy then keeps the other operand's type, as PyTorch does.
    """
    if isinstance(x, Tensor):
        return x.array, x
    if isinstance(x, (bool, int, float)):
        return float(x) if x.__class__ is np.float64 else x, None  # NumPy's takes part in types
    if isinstance(x, (np.ndarray, np.generic, list, tuple)) or hasattr(x, "dtype"):
        return as_array(x), None
    raise TypeError(f"a tensor or a number was expected, not {type(x).__name__}")


def wanted(tensor):
    """The `Like` of an operand that a gradient is wanted for, else None."""
    if tensor is None or not tensor.requires_grad:
        return None
    a = tensor.array
    return Like(a.shape, a.dtype, a.device)


NUMBERS = (bool, int, float)
_KINDS = {"b": 0, "i": 1, "u": 1, "f": 2, "V": 2}  # of NumPy's dtypes, from lower to higher


def promote(a, b):
    """Both operands (arrays or Python numbers) in the type that PyTorch computes in.

    NumPy's rules make float64 of float32 with int64, and of an integer array with a Python float.
    PyTorch keeps the floating type, and takes the default dtype where there is none; a 0-d tensor
    counts only if it is of a higher kind (bool < integer < floating) than the other operand.
    """
    a_array, b_array = not isinstance(a, NUMBERS), not isinstance(b, NUMBERS)
    if a_array and b_array:
        if a.__class__ is not b.__class__:
            a, b = _together(a, b)
        if a.dtype != b.dtype:
            dtype = _common(a, b)
            a, b = a.astype(dtype, copy=False), b.astype(dtype, copy=False)
    elif a_array:
        if b.__class__ is float:
            a = floating(a)
        b = _beside(a, b)
    elif b_array:
        if a.__class__ is float:
            b = floating(b)
        a = _beside(b, a)
    return a, b


def _beside(array, number):
    """The number as one that leaves the array's type alone: NumPy asks this of its own types."""
    return array.dtype.type(number) if array.dtype.kind == "V" else number


def _together(a, b):
    """Two arrays on one device: a single number on the CPU goes where the other is."""
    if on_gpu(a) != on_gpu(b):
        if not a.ndim and on_gpu(b):
            return put(a, device_of(b)), b
        if not b.ndim and on_gpu(a):
            return a, put(b, device_of(a))
    one_device("operands", a, b)
    return a, b


def _common(a, b):
    """The type of two arrays of different types together."""
    rank_a, rank_b = _KINDS[a.dtype.kind], _KINDS[b.dtype.kind]
    if rank_a != rank_b:
        return a.dtype if rank_a > rank_b else b.dtype
    if (a.ndim == 0) != (b.ndim == 0):
        return a.dtype if a.ndim else b.dtype
    if a.itemsize == b.itemsize == 2:  # float16 and bfloat16
        return np.dtype(np.float32)
    return np.promote_types(a.dtype, b.dtype)


def floating(a):
    """`a`, converted to the default dtype if it is of integers or bools."""
    return a if a.dtype.kind in FLOATING else a.astype(current().default_dtype.storage)


def wide(dtype):
    """The type to compute in for numbers of `dtype`: float32 for those of 16 bits."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


def unbroadcast(gradient, like):
    """Sum `gradient` over the axes that broadcasting added to or stretched in `like`.

    like: an array or a `Like`. Returns an array of its shape and dtype; `gradient` itself if
    nothing was broadcast.
    """
    if gradient.shape != like.shape:
        added = gradient.ndim - len(like.shape)
        stretched = [added + i for i, n in enumerate(like.shape)
                     if n == 1 and gradient.shape[added + i] != 1]
        gradient = gradient.sum((*range(added), *stretched), wide(gradient.dtype), keepdims=True)
        gradient = gradient.reshape(like.shape)
    return gradient if gradient.dtype == like.dtype else gradient.astype(like.dtype)


def normal_dim(dim, ndim):
    """`dim` counted from the front. Raises IndexError as PyTorch does if there is none."""
    span = max(ndim, 1)
    if not -span <= dim < span:
        raise IndexError(f"dim {dim} of a tensor with {ndim} dims: expected "
                         f"{-span} to {span - 1}")
    return dim % span
