"""Losses. Cross entropy is fused with log-softmax: one array is kept, and written once more."""

import numpy as np

from ..tensor import record
from .base import promote, quiet, unbroadcast, wanted
from .softmax import ones, row_max

_REDUCTIONS = ("mean", "sum", "none")


def _check_reduction(name, reduction):
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{name}: reduction {reduction!r} is none of {', '.join(_REDUCTIONS)}")


def cross_entropy(input, target, *, ignore_index=-100, reduction="mean"):
    """-log softmax(input)[target]: its mean over the targets, its sum, or each one.

    input (N, C), (C,) or (N, C, d1, ...) of a floating type: unnormalised log-probabilities.
    target (N,), () or (N, d1, ...) of integers: class indices. Those that equal `ignore_index`
    count neither in the sum nor in the mean's divisor; a mean of none is NaN.
    Raises ValueError for shapes that do not belong together, TypeError for types, and IndexError
    `cross_entropy: target 12 is not one of 10 classes`.
    """
    return _cross_entropy(input, target, ignore_index, reduction)[0]


def cross_entropy_sum_count(input, target, *, ignore_index=-100):
    """(sum of the losses, 0-d tensor; number of targets that are not ignored, int).

    For training on several ranks or micro-batches, which backpropagates the sums and divides by
    the count of them all: exact where means of means are not. Otherwise as `cross_entropy`.
    """
    return _cross_entropy(input, target, ignore_index, "sum")


@quiet
def _cross_entropy(input, target, ignore_index, reduction):
    """(loss, number of targets that are not ignored)."""
    _check_reduction("cross_entropy", reduction)
    _check_operands(input, target)
    a, shape = input.array, input.array.shape
    classes = shape[0] if a.ndim == 1 else shape[1]
    if a.ndim > 2:
        a = np.moveaxis(a, 1, -1)
    class_last = a.shape
    dtype, any_rows = a.dtype, a.size > 0
    if dtype == np.float16:
        a = a.astype(np.float32)
    # In C order, so that elements are found in the flat array.
    rows = np.ascontiguousarray(a).reshape(target.array.size, classes)
    t, kept, count = _check_targets(target.array.reshape(-1), classes, ignore_index)
    if any_rows:
        # exp(x - max) is kept without its division by the sum, which backward makes with its own.
        starts = np.arange(0, rows.size, classes)
        at = starts + t  # of each target in the flat array
        e = rows - row_max(rows, starts)[:, None]
        losses = e.reshape(-1).take(at)
        np.exp(e, out=e)
        sums = np.vecdot(e, ones(classes, e.dtype))
        np.subtract(np.log(sums), losses, out=losses)
        if kept is not None:
            losses[~kept] = 0
    else:
        losses = np.zeros(len(t), rows.dtype)
    out = losses.reshape(target.array.shape) if reduction == "none" else np.add.reduce(losses)
    if reduction == "mean":
        out = out / count

    def backward(g):
        # dx = (softmax(x) - one_hot(target)) * scale of the row
        if not any_rows:
            return (np.zeros(shape, dtype),)
        scale = g.reshape(-1).astype(sums.dtype, copy=False)
        if reduction == "mean":
            scale = scale / count
        if kept is not None:
            scale = np.where(kept, scale, 0).astype(sums.dtype, copy=False)
        gx = e * (scale / sums)[:, None]
        gx.reshape(-1)[at] -= scale
        gx = gx.astype(dtype, copy=False).reshape(class_last)
        return (np.moveaxis(gx, -1, 1) if gx.ndim > 2 else gx,)
    if out.dtype != dtype:
        out = out.astype(dtype)
    return record(out, (input,), backward), count


def _check_operands(input, target):
    """Raise unless types and shapes of logits and class indices belong together."""
    a, t = input.array, target.array
    if a.dtype.kind != "f":
        raise TypeError(f"cross_entropy: input of a floating type is needed, not {input.dtype}")
    if t.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: targets are class indices, integers, not {target.dtype}")
    if not a.ndim or t.shape != a.shape[:1] * (a.ndim > 1) + a.shape[2:]:
        raise ValueError(f"cross_entropy: input {a.shape} and target {t.shape}: expected "
                         f"(N, C) and (N,), (C,) and (), or (N, C, d1, ...) and (N, d1, ...)")


def _check_targets(t, classes, ignore_index):
    """(targets as int64, bool array of those to count or None for all, their number)."""
    t = t.astype(np.int64, copy=False)
    # As unsigned numbers negative targets are large: one comparison in the usual case.
    if not len(t) or not (0 <= ignore_index < classes or t.view(np.uint64).max() >= classes):
        return t, None, len(t)
    kept = t != ignore_index
    wrong = t[kept & ((t < 0) | (t >= classes))]
    if len(wrong):
        raise IndexError(f"cross_entropy: target {wrong[0]} is not one of {classes} classes")
    return np.where(kept, t, 0), kept, int(np.count_nonzero(kept))


@quiet
def mse_loss(input, target, reduction="mean"):
    """(input - target) squared: its mean, its sum, or each one.

    input and target of one shape, at least one of them of a floating type. Raises ValueError for
    shapes that differ: PyTorch broadcasts them with a warning, which hides (N, 1) against (N,).
    """
    _check_reduction("mse_loss", reduction)
    a, b = promote(input.array, target.array)
    if a.shape != b.shape:
        raise ValueError(f"mse_loss: input {a.shape} and target {b.shape}")
    if a.dtype.kind != "f":
        raise TypeError(f"mse_loss: a floating type is needed, not {input.dtype}")
    dtype, want_input, want_target = a.dtype, wanted(input), wanted(target)
    # Differences of float16 are taken in float32, whose range their squares need.
    d = np.asarray(np.subtract(a, b, dtype=np.float32 if dtype == np.float16 else dtype))
    if reduction == "none":
        out = d * d
    else:
        out = np.vdot(d, d)
        if reduction == "mean":
            out = np.true_divide(out, d.size)

    def backward(g):
        scale = 2 * (g / d.size if reduction == "mean" else g)
        gd = d * scale
        return (unbroadcast(gd, want_input) if want_input else None,
                unbroadcast(-gd, want_target) if want_target else None)
    return record(out.astype(dtype, copy=False), (input, target), backward)
