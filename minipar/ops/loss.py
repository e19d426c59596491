"""Losses. Those of one number an element are here, those of classes in `cross_entropy.py`.

All are computed in float32 at least, and converted back.
"""

import numpy as np

from ..device import as_array
from ..tensor import record
from .base import promote, unbroadcast, wanted
from .cross_entropy import (check_constant, check_reduction, cross_entropy,  # noqa: F401
                            cross_entropy_sum_count, nll_loss)
from .precision import arithmetic, autocasts


def _difference(name, input, target, reduction):
    """input - target as an array, their common dtype, and a function from the gradient of the
    difference to those of both; or an error.
    """
    check_reduction(name, reduction)
    a, b = promote(input.array, target.array)
    if a.shape != b.shape:
        raise ValueError(f"{name}: input {a.shape} and target {b.shape}")
    if a.dtype.kind != "f":
        raise TypeError(f"{name}: a floating type is needed, not {input.dtype}")
    dtype, want_input, want_target = a.dtype, wanted(input), wanted(target)
    d = as_array(np.subtract(a, b))

    def share(gd):
        return (unbroadcast(gd, want_input) if want_input else None,
                unbroadcast(-gd, want_target) if want_target else None)
    return d, dtype, share


@autocasts("float32")
@arithmetic
def mse_loss(input, target, reduction="mean"):
    """(input - target) squared: its mean, its sum, or each one.

    input and target of one shape, at least one of them of a floating type. Raises ValueError for
    shapes that differ: PyTorch broadcasts them with a warning, which hides (N, 1) against (N,).
    """
    d, dtype, share = _difference("mse_loss", input, target, reduction)
    out = d * d if reduction == "none" else np.vdot(d, d)
    if reduction == "mean":
        out = np.true_divide(out, d.size)

    def backward(g):
        return share(d * (2 * (g / d.size if reduction == "mean" else g)))
    return record(out.astype(dtype, copy=False), (input, target), backward)


@autocasts("float32")
@arithmetic
def l1_loss(input, target, reduction="mean"):
    """|input - target|: its mean, its sum, or each one. Its gradient at 0 is 0.

    input and target of one shape, which is not broadcast, at least one of them of a floating type.
    Raises ValueError and TypeError otherwise.
    """
    d, dtype, share = _difference("l1_loss", input, target, reduction)
    out = _reduced(np.abs(d), reduction)
    sign = (d > 0).astype(np.int8) - (d < 0)  # 0 for NaN, as in PyTorch
    count, wide = d.size, d.dtype

    def backward(g):
        return share(sign * (g / count if reduction == "mean" else g).astype(wide, copy=False))
    return record(out.astype(dtype, copy=False), (input, target), backward)


def _reduced(losses, reduction):
    """The losses, their sum or their mean, which is NaN if there are none."""
    if reduction == "none":
        return losses
    total = losses.sum()
    return np.true_divide(total, losses.size) if reduction == "mean" else total


@autocasts("float32")
@arithmetic
def binary_cross_entropy_with_logits(input, target, weight=None, *, reduction="mean",
                                     pos_weight=None):
    """-weight (pos_weight target log(s) + (1 - target) log(1 - s)) with s = sigmoid(input).

    input and target of one shape and of floating types; weight and pos_weight are constants,
    broadcast to that shape. Computed without s, so that it is exact for large inputs:
    log(s) = min(x, 0) - log(1 + exp(-|x|)), and log(1 - s) = log(s) - x.
    Raises ValueError for shapes that do not belong together, TypeError for types.
    """
    name = "binary_cross_entropy_with_logits"
    check_reduction(name, reduction)
    x, y = promote(input.array, target.array)
    if x.shape != y.shape:
        raise ValueError(f"{name}: input {x.shape} and target {y.shape}")
    if not (input.dtype.is_floating_point and target.dtype.is_floating_point):
        raise TypeError(f"{name}: floating types are needed, not {input.dtype} and {target.dtype}")
    w, pos = (_factor(name, what, t, x.shape) for what, t in (("weight", weight),
                                                             ("pos_weight", pos_weight)))
    dtype, want_input, want_target = x.dtype, wanted(input), wanted(target)
    small = np.exp(-np.abs(x))
    tail = np.log1p(small)
    log_s = np.minimum(x, 0) - tail
    factor = 1 if pos is None else 1 + (pos - 1) * y  # of log(s): pos_weight target + (1 - target)
    losses = as_array((1 - y) * x - factor * log_s)
    out = _reduced(losses if w is None else losses * w, reduction)
    count = losses.size

    def backward(g):
        g = (g / count if reduction == "mean" else g).astype(x.dtype, copy=False)
        g = g if w is None else g * w
        gx = gy = None
        if want_input:
            # d log(s) / dx = 1 - s, which for x > 0 is small / (1 + small)
            above = np.where(x > 0, small, 1) / (1 + small)
            gx = unbroadcast(np.broadcast_to(g * ((1 - y) - factor * above), x.shape), want_input)
        if want_target:
            # log(1 - s) - pos_weight log(s)
            gy = -x if pos is None else np.minimum(-x, 0) - tail - pos * log_s
            gy = unbroadcast(np.broadcast_to(g * gy, x.shape), want_target)
        return gx, gy
    return record(as_array(out).astype(dtype, copy=False), (input, target), backward,
                  [t for t in (input, target, weight, pos_weight) if t is not None])


def _factor(name, what, tensor, shape):
    """The array of a constant weight that is broadcast to `shape`, or None."""
    if tensor is None:
        return None
    check_constant(name, what, tensor)
    if tensor.array.shape != shape:
        try:
            together = np.broadcast_shapes(tensor.array.shape, shape)
        except ValueError:
            together = None
        if together != shape:
            raise ValueError(f"{name}: {what} {tensor.shape} cannot be broadcast to {shape}")
    return tensor.array
