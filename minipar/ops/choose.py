"""Choices between elements: where, maximum, minimum, clamp. What is not chosen gets no gradient."""

import numpy as np

from ..tensor import Tensor, record
from .base import NUMBERS, method, operand, promote, quiet, unbroadcast, wanted
from .creation import tensor
from .elementwise import _broadcast, keep
from .precision import arithmetic


def _tensors(*operands):
    return [t for t in operands if isinstance(t, Tensor)]


@quiet
def where(condition, input, other):
    """input where `condition` (a tensor of bools), else other; all three are broadcast.

    input, other: tensors or numbers. Raises TypeError for another condition, ValueError for
    shapes that do not fit.
    """
    chosen = operand(condition)[0]
    if getattr(chosen, "dtype", None) != np.bool_:
        raise TypeError(f"where: the condition must be a tensor of bools, not "
                        f"{getattr(condition, 'dtype', type(condition).__name__)}")
    a, x = operand(input)
    b, y = operand(other)
    want_x, want_y = wanted(x), wanted(y)
    if isinstance(a, NUMBERS) and isinstance(b, NUMBERS):
        a = tensor(a, device=condition.device).array
    a, b = promote(a, b)
    try:
        out = np.where(chosen, a, b)
    except ValueError:
        raise ValueError(f"where: shapes {chosen.shape}, {np.shape(a)} and {np.shape(b)} "
                         f"cannot be broadcast together") from None

    def backward(g):
        return (unbroadcast(keep(g, chosen), want_x) if want_x else None,
                unbroadcast(keep(g, ~chosen), want_y) if want_y else None)
    return record(out, (x, y), backward, _tensors(condition))


@method("where")
def _where(x, condition, other):
    """x where `condition`, else other: where(condition, x, other)."""
    return where(condition, x, other)


@method()
@arithmetic
def maximum(input, other):
    """The larger of two elements; NaN is largest. Two that are equal share the gradient.

    Raises TypeError unless both are tensors (see `clamp` for numbers).
    """
    return _extreme("maximum", input, other, np.maximum, np.less)


@method()
@arithmetic
def minimum(input, other):
    """The smaller of two elements; NaN is smallest. Two that are equal share the gradient.

    Raises TypeError unless both are tensors (see `clamp` for numbers).
    """
    return _extreme("minimum", input, other, np.minimum, np.greater)


@quiet
def _extreme(name, x, y, choose, loses):
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        wrong = y if isinstance(x, Tensor) else x
        raise TypeError(f"{name}: two tensors are needed, not {type(wrong).__name__}: see clamp")
    want_x, want_y = wanted(x), wanted(y)
    a, b = promote(x.array, y.array)

    def backward(g):
        equal = a == b
        if equal.any():
            g = np.where(equal, g / 2, g)
        # "does not lose": beside NaN neither does, and both take the gradient, as in PyTorch.
        return (unbroadcast(keep(g, ~loses(a, b)), want_x) if want_x else None,
                unbroadcast(keep(g, ~loses(b, a)), want_y) if want_y else None)
    backward.__qualname__ = name  # what the graph calls the node
    return record(_broadcast(name, a, b, choose), (x, y), backward, (x, y))


@method("clamp", "clip")
@arithmetic
def clamp(x, min=None, max=None):
    """x, but not below `min` and not above `max`: numbers, or tensors that are broadcast with x.

    The gradient goes to x where it lies between the bounds or on one, and else to the bound;
    nowhere for NaN. With min > max everything is max. Raises ValueError without a bound.
    """
    if min is None and max is None:
        raise ValueError("clamp: min, max or both are needed")
    low, bottom = (None, None) if min is None else operand(min)
    high, top = (None, None) if max is None else operand(max)
    wants, a = [wanted(t) for t in (x, bottom, top)], x.array
    if low is not None:
        a, low = promote(a, low)
    if high is not None:
        a, high = promote(a, high)
    if low is not None:
        a, low = promote(a, low)
    out = a if low is None else _broadcast("clamp", a, low, np.maximum)
    out = out if high is None else _broadcast("clamp", out, high, np.minimum)

    def backward(g):
        above = True if low is None else a >= low
        below = True if high is None else a <= high
        taken = [above & below,
                 False if low is None else (a < low) & (True if high is None else low < high),
                 False if high is None else (a > high) | (False if low is None else high < low)]
        return tuple([unbroadcast(keep(g, mask), want) if want else None
                      for mask, want in zip(taken, wants)])
    return record(out, (x, bottom, top), backward, _tensors(x, min, max))


clip = clamp
