"""In-place operations. They count up the storage's version, so that a graph that needs the old
values refuses to run backward.

In-place changes are not recorded. Where a gradient would have to flow through one, the methods
refuse; `x += y` then means `x = x + y`, which has the same gradients.
"""

import numpy as np

from ..context import current
from ..tensor import Tensor
from .base import method, operand


def _change(x, *others):
    """Check that `x` may be changed in place, and count the change."""
    if current().grad_enabled:
        if x.requires_grad and x.is_leaf:
            raise RuntimeError("a leaf that requires grad is changed in place: use no_grad()")
        if x.requires_grad or any(t is not None and t.requires_grad for t in others):
            raise RuntimeError("an in-place operation cannot be recorded: write x = x + y, "
                               "or use no_grad()")
    x.storage.version += 1


def _define(name, operator, ufunc):
    def change(x, y):
        value, y = operand(y)
        _change(x, y)
        ufunc(x.array, value, out=x.array, casting="same_kind")
        return x
    change.__name__ = name
    change.__doc__ = f"x {operator}= y, in place; returns x."

    def augmented(x, y):
        others = (y,) if isinstance(y, Tensor) else ()
        if current().grad_enabled and not (x.requires_grad and x.is_leaf) and any(
                t.requires_grad for t in (x, *others)):
            return NotImplemented  # Python then takes x + y, which is recorded
        return change(x, y)
    method("__itruediv__" if name == "div_" else f"__i{name[:-1]}__")(augmented)
    return method(name)(change)


add_ = _define("add_", "+", np.add)
sub_ = _define("sub_", "-", np.subtract)
mul_ = _define("mul_", "*", np.multiply)
div_ = _define("div_", "/", np.true_divide)


@method()
def copy_(x, source):
    """Copy `source` (broadcast to x's shape, converted to its dtype) into x; returns x."""
    value, source = operand(source)
    _change(x, source)
    x.array[...] = value
    return x


@method()
def fill_(x, value):
    """Set every element to a number; returns x."""
    _change(x)
    x.array.fill(value)
    return x


@method()
def zero_(x):
    """Set every element to 0; returns x."""
    return fill_(x, 0)


@method("__setitem__")
def setitem(x, index, value):
    value, source = operand(value)
    _change(x, source)
    x.array[index] = value
