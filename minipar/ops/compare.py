"""Comparisons, logic and bits: without gradients. Importing gives Tensor the operators.

`==` compares elements, so `tensor in list` does not work, as in PyTorch; the hash stays that of
the object, so tensors are keys of dicts and members of sets.
"""

import numpy as np

from ..device import as_array
from ..dtypes import FLOATING
from ..tensor import Tensor
from .base import method, operand, promote, quiet


def _operator(function):
    """`function` for Python's operators, which leave other types than these to the other side."""
    def operator(x, y):
        if not isinstance(y, (Tensor, bool, int, float, np.ndarray, np.generic)):
            return NotImplemented  # Python then answers == by identity, and refuses <
        return function(x, y)
    return operator


def _together(name, x, y, ufunc):
    """ufunc of both operands in their common type, as a tensor."""
    a, b = promote(operand(x)[0], operand(y)[0])
    try:
        return Tensor(as_array(ufunc(a, b)))
    except ValueError:
        raise ValueError(f"{name}: shapes {np.shape(a)} and {np.shape(b)} "
                         f"cannot be broadcast together") from None


def _comparison(name, operator, ufunc):
    @quiet
    def compare(x, y):
        return _together(name, x, y, ufunc)
    compare.__name__ = name
    compare.__doc__ = f"x {operator} y, element by element with broadcasting: a bool tensor."
    method(f"__{name}__")(_operator(compare))
    return method(name)(compare)


eq = _comparison("eq", "==", np.equal)
ne = _comparison("ne", "!=", np.not_equal)
lt = _comparison("lt", "<", np.less)
le = _comparison("le", "<=", np.less_equal)
gt = _comparison("gt", ">", np.greater)
ge = _comparison("ge", ">=", np.greater_equal)


@method()
def logical_and(x, y):
    """True where both tensors are not 0 (NaN is not): a bool tensor."""
    return _logical("logical_and", x, y, np.logical_and)


@method()
def logical_or(x, y):
    """True where one of two tensors or both are not 0 (NaN is not): a bool tensor."""
    return _logical("logical_or", x, y, np.logical_or)


@quiet
def _logical(name, x, y, ufunc):
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        wrong = y if isinstance(x, Tensor) else x
        raise TypeError(f"{name}: two tensors are needed, not {type(wrong).__name__}")
    return _together(name, x, y, ufunc)


def _test(name, doc, ufunc):
    def test(x):
        return Tensor(as_array(ufunc(x.array)))
    test.__name__ = name
    test.__doc__ = f"True where x {doc}: a bool tensor."
    return method(name)(test)


logical_not = _test("logical_not", "is 0", np.logical_not)
isnan = _test("isnan", "is NaN", np.isnan)
isinf = _test("isinf", "is Inf or -Inf", np.isinf)
isfinite = _test("isfinite", "is neither NaN nor Inf", np.isfinite)


def _bits(operator, ufunc):
    @_operator
    def bitwise(x, y):
        if any(as_array(operand(t)[0]).dtype.kind in FLOATING for t in (x, y)):
            raise TypeError(f"{operator}: of bools and integers, not of floating types")
        return _together(operator, x, y, ufunc)
    return bitwise


method("__and__", "__rand__")(_bits("&", np.bitwise_and))
method("__or__", "__ror__")(_bits("|", np.bitwise_or))
method("__xor__", "__rxor__")(_bits("^", np.bitwise_xor))


@method("__invert__")
def _invert(x):
    if x.dtype.is_floating_point:
        raise TypeError(f"~: of bools and integers, not {x.dtype}")
    return Tensor(as_array(~x.array))
