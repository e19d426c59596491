"""Elements chosen by a mask or by the side of a diagonal they lie on."""

import numpy as np

from ..device import as_array, beside
from ..tensor import Tensor, record
from .base import method, operand, quiet, unbroadcast, wanted
from .elementwise import keep


@method()
@quiet
def masked_fill(x, mask, value):
    """x with `value` where `mask` is True, of x's dtype.

    mask: bool, broadcast together with x. value: a number or a 0-d tensor, which takes the sum of
    the gradient where the mask is True. Raises TypeError for a mask of another type, ValueError
    for shapes that cannot be broadcast, and for a value of more dims or out of an integer type's
    range.
    """
    m, number, value = fill_operands("masked_fill", x, mask, value)
    a = x.array
    try:
        out = np.where(m, beside(a, as_array(number)).astype(a.dtype), a)
    except ValueError:
        raise ValueError(f"masked_fill: input {a.shape} and mask {m.shape} cannot be broadcast "
                         f"together") from None
    want_x, want_value = wanted(x), wanted(value)

    def backward(g):
        return (unbroadcast(keep(g, ~m), want_x) if want_x else None,
                unbroadcast(keep(g, m), want_value) if want_value else None)
    return record(out, (x, value), backward, (mask,))


def fill_operands(name, x, mask, value):
    """(array of the mask, value as array or number, value as tensor or None), or an error."""
    if not isinstance(mask, Tensor) or mask.array.dtype != bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name}: the mask is a tensor of bools, not {found}")
    number, value = operand(value)
    if np.ndim(number):
        raise ValueError(f"{name}: the value is a number or a 0-d tensor, not of shape "
                         f"{np.shape(number)}")
    dtype = x.array.dtype
    if dtype.kind in "iu" and not np.iinfo(dtype).min <= number <= np.iinfo(dtype).max:
        raise ValueError(f"{name}: {number} does not fit into {dtype}")
    return mask.array, number, value


@method()
def tril(x, diagonal=0):
    """The matrices of x (..., m, n) with zeros above the diagonal: 0 the main one, 1 the one
    above it, -1 the one below it. Raises ValueError for fewer than 2 dims.
    """
    _check_matrices("tril", x)
    return record(np.tril(x.array, diagonal), (x,), lambda g: (np.tril(g, diagonal),))


@method()
def triu(x, diagonal=0):
    """The matrices of x (..., m, n) with zeros below the diagonal, which is counted as in `tril`.

    Raises ValueError for fewer than 2 dims.
    """
    _check_matrices("triu", x)
    return record(np.triu(x.array, diagonal), (x,), lambda g: (np.triu(g, diagonal),))


def _check_matrices(name, x):
    if x.array.ndim < 2:
        raise ValueError(f"{name}: shape {x.shape} has fewer than 2 dims")
