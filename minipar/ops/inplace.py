"""In-place operations. They count up the storage's version, so that a graph that needs the old
values refuses to run backward.

In-place changes are not recorded. Where a gradient would have to flow through one, the methods
refuse; `x += y` then means `x = x + y`, which has the same gradients.
"""

import numpy as np

from ..context import current
from ..device import as_array, assign, beside, writeable
from ..tensor import Tensor
from .base import NUMBERS, method, operand, quiet
from .indexing import on_device_of, resolve
from .masking import fill_operands


def _change(x, *others):
    """Check that `x` may be changed in place, and count the change."""
    if current().grad_enabled:
        if x.requires_grad and x.is_leaf:
            raise RuntimeError("a leaf that requires grad is changed in place: use no_grad()")
        if x.requires_grad or any(t is not None and t.requires_grad for t in others):
            raise RuntimeError("an in-place operation cannot be recorded: write x = x + y, "
                               "or use no_grad()")
    if not writeable(x.array):
        raise RuntimeError(f"a tensor of shape {x.shape} cannot be changed in place: it was "
                           f"expanded, or its memory is read-only; change a copy of it")
    x.storage.version += 1


def _define(name, operator, ufunc):
    def change(x, y):
        value, y = operand(y)
        _change(x, y)
        if x.array.itemsize == 2:
            wide = ufunc(x.array.astype(np.float32), value, dtype=np.float32, casting="same_kind")
            np.copyto(x.array, wide, casting="same_kind")
        else:
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
    assign(x.array, as_array(value))
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


@method()
@quiet
def masked_fill_(x, mask, value):
    """Set the elements where `mask` (bool, broadcast to x's shape) is True to a number or a 0-d
    tensor; returns x.
    """
    m, number, source = fill_operands("masked_fill_", x, mask, value)
    if np.broadcast_shapes(x.shape, m.shape) != x.shape:
        raise ValueError(f"masked_fill_: mask {m.shape} cannot be broadcast to {x.shape}")
    _change(x, source)
    np.copyto(x.array, number, casting="unsafe", where=m)
    return x


@method("__setitem__")
@quiet
def setitem(x, index, value):
    """x[index] = value: broadcast to the shape of x[index], and converted to x's dtype.

    The index is that of `x[index]`; of values for one element that an index array names twice
    one remains. Raises ValueError with both shapes if the value cannot be broadcast.
    """
    region, arrays = resolve(x.array.shape, index)
    value, source = operand(value)
    _change(x, source)
    target, value = x.array[region], value if isinstance(value, NUMBERS) else beside(x.array, value)
    arrays = None if arrays is None else on_device_of(x.array, arrays)
    while np.ndim(value) and value.shape[0] == 1:
        value = value[0]  # as in PyTorch: a value may have dims of size 1 in front
    try:
        target[... if arrays is None else arrays] = value
    except (ValueError, TypeError):
        shape = target.shape if arrays is None else target[arrays].shape
        raise ValueError(f"a value of shape {np.shape(value)} cannot be broadcast to the {shape} "
                         f"that the index takes of {x.shape}") from None
