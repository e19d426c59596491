"""Cross entropy and negative log-likelihood of classes.

The usual case, class indices and no weights, is fused with log-softmax: one array is kept, and
written once more. The others are composed of operations.
"""

import numpy as np

from ..context import current
from ..device import as_array, one_device
from ..execution import Kernel
from ..sinks import Deferred
from ..tensor import record
from .base import Like, for_kernel
from .precision import arithmetic, autocasts
from .shape import reshape
from .softmax import log_softmax, ones, row_dots, row_max

_LOSS = Kernel("cross_entropy.cu", "cross_entropy", rows="rows", width="n")
_GRADIENT = Kernel("cross_entropy.cu", "cross_entropy_gradient", rows="rows", width="n")
_REDUCTIONS = ("mean", "sum", "none")


def check_reduction(name, reduction):
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{name}: reduction {reduction!r} is none of {', '.join(_REDUCTIONS)}")


def check_constant(name, what, tensor):
    """Raise for a weight that would need a gradient, which no loss computes."""
    if tensor.requires_grad:
        raise RuntimeError(f"{name}: {what} is a constant: it cannot require a gradient")


@autocasts("float32")
@arithmetic
def cross_entropy(input, target, weight=None, *, ignore_index=-100, reduction="mean",
                  label_smoothing=0.0):
    """-log softmax(input)[target]: its mean over the targets, its sum, or each one.

    input (N, C), (C,) or (N, C, d1, ...) of a floating type: unnormalised log-probabilities.
    target: class indices, integers (N,), () or (N, d1, ...); or probabilities of the classes, of
    a floating type, in the shape of the input: then -sum over C of target * log softmax(input).
    weight: (C,) of the input's type, a constant factor of each class. The mean over class indices
    is divided by the sum of their weights, that over probabilities by their number of rows.
    ignore_index: class indices equal to it count neither in the sum nor in the mean's divisor; a
    mean of none is NaN. label_smoothing: from 0 to 1, the share of the target that is spread
    evenly over all classes (Szegedy et al. 2016, "Rethinking the inception architecture").
    Raises ValueError for shapes that do not belong together, TypeError for types, and IndexError
    `cross_entropy: target 12 is not one of 10 classes`.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing {label_smoothing} is not from 0 to 1")
    if target.array.dtype.kind == "f" and target.array.shape == input.array.shape:
        return _of_probabilities(input, target, weight, ignore_index, reduction, label_smoothing)
    if weight is None and not label_smoothing:
        return _cross_entropy(input, target, ignore_index, reduction)[0]
    return _weighted(input, target, weight, ignore_index, reduction, label_smoothing)


@autocasts("float32")
@arithmetic
def cross_entropy_sum_count(input, target, *, ignore_index=-100):
    """(sum of the losses, 0-d tensor; number of targets that are not ignored, int).

    For training on several ranks or micro-batches, which backpropagates the sums and divides by
    the count of them all: exact where means of means are not. Otherwise as `cross_entropy`.
    """
    return _cross_entropy(input, target, ignore_index, "sum")


def _cross_entropy(input, target, ignore_index, reduction):
    """(loss, number of targets that are not ignored)."""
    check_reduction("cross_entropy", reduction)
    _check_operands("cross_entropy", input, target)
    a, shape = input.array, input.array.shape
    classes = shape[0] if a.ndim == 1 else shape[1]
    if a.ndim > 2:
        a = np.moveaxis(a, 1, -1)
    class_last = a.shape
    any_rows = a.size > 0
    # In C order, so that elements are found in the flat array.
    rows = np.ascontiguousarray(a, like=a).reshape(target.array.size, classes)
    t, kept, count = check_targets("cross_entropy", target.array.reshape(-1), classes,
                                   ignore_index)
    gradient = None  # from the kernel: of the losses, divided by the count already
    wanted = input.requires_grad and current().grad_enabled
    if any_rows and (run := (_GRADIENT if wanted else _LOSS).build(rows)):
        losses = np.empty(len(t), rows.dtype, like=rows)
        arrays = for_kernel(rows), for_kernel(t if kept is None else np.where(kept, t, -1)), losses
        if wanted:
            gradient = np.empty_like(rows)
            scale = 1 / count if reduction == "mean" and count else 1
            run(*arrays, gradient, scale, *rows.shape)
        else:
            run(*arrays, *rows.shape)
    elif any_rows:
        # exp(x - max) is kept without its division by the sum, which backward makes with its own.
        starts = np.arange(0, rows.size, classes, like=rows)
        at = starts + t  # of each target in the flat array
        e = rows - row_max(rows, starts)[:, None]
        losses = e.reshape(-1).take(at)
        np.exp(e, out=e)
        sums = row_dots(e, ones(classes, e))
        np.subtract(np.log(sums), losses, out=losses)
        if kept is not None:
            losses[~kept] = 0
    else:
        losses = np.zeros(len(t), rows.dtype, like=rows)
    out = losses.reshape(target.array.shape) if reduction == "none" else losses.sum()
    if reduction == "mean":
        out = out / count

    def backward(g):
        # dx = (softmax(x) - one_hot(target)) * scale of the row
        if not any_rows:
            return (np.zeros(shape, rows.dtype, like=g),)
        if gradient is not None:
            one = g.ndim == 0 and g == 1
            return (shaped(gradient if one else gradient * g.reshape(-1, 1)),)
        scale = g.reshape(-1).astype(sums.dtype, copy=False)
        if reduction == "mean":
            scale = scale / count
        if kept is not None:
            scale = np.where(kept, scale, 0).astype(sums.dtype, copy=False)
        gx = e * (scale / sums)[:, None]
        gx.reshape(-1)[at] -= scale
        return (shaped(gx),)

    def shaped(gx):
        gx = gx.reshape(class_last)
        return np.moveaxis(gx, -1, 1) if gx.ndim > 2 else gx
    return record(out, (input,), backward), count


def _of_probabilities(input, target, weight, ignore_index, reduction, label_smoothing):
    """Cross entropy with the probabilities of the classes as target."""
    check_reduction("cross_entropy", reduction)
    if ignore_index >= 0:
        raise ValueError(f"cross_entropy: ignore_index {ignore_index} is for class indices: the "
                         f"target holds probabilities")
    dim, classes = _classes("cross_entropy", input)
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / max(classes, 1)
    losses = log_softmax(input, dim) * target
    if weight is not None:
        losses = losses * _class_weights("cross_entropy", weight, input)
    losses = -losses.sum(dim if reduction == "none" else None)
    return losses / (input.array.size / max(classes, 1)) if reduction == "mean" else losses


def _weighted(input, target, weight, ignore_index, reduction, label_smoothing):
    """Cross entropy with class indices as target, weights of classes and smoothed labels."""
    _check_operands("cross_entropy", input, target)
    dim, classes = _classes("cross_entropy", input)
    logp = log_softmax(input, dim)
    exact = nll_loss(logp, target, weight, ignore_index=ignore_index, reduction=reduction)
    if not label_smoothing:
        return exact
    if weight is not None:
        logp = logp * _class_weights("cross_entropy", weight, input)
    ignored = target == ignore_index
    even = (-logp.sum(dim)).masked_fill(ignored, 0)
    if reduction != "none":
        even = even.sum()
    if reduction == "mean":
        kept = target.array[~ignored.array]
        even = even / float(kept.size if weight is None else weight.array[kept].sum())
    return exact * (1 - label_smoothing) + even * (label_smoothing / max(classes, 1))


@autocasts("float32")
@arithmetic
def nll_loss(input, target, weight=None, *, ignore_index=-100, reduction="mean"):
    """-weight[target] * input[target]: its mean over the targets, its sum, or each one.

    Negative log-likelihood of input, log-probabilities (N, C), (C,) or (N, C, d1, ...), at class
    indices (N,), () or (N, d1, ...). weight (C,), ignore_index, the divisor of the mean and what
    is raised: as in `cross_entropy`.
    """
    check_reduction("nll_loss", reduction)
    _check_operands("nll_loss", input, target)
    a, (dim, classes) = input.array, _classes("nll_loss", input)
    t, kept, count = check_targets("nll_loss", target.array.reshape(-1), classes, ignore_index)
    t, kept = (None if m is None else m.reshape(target.array.shape) for m in (t, kept))
    at, like = np.expand_dims(t, dim), Like(a.shape, a.dtype, a.device)
    factor = np.ones_like(t, a.dtype)
    if weight is not None:
        factor = _class_weights("nll_loss", weight, input).array.reshape(-1).take(t)
    if kept is not None:
        factor = np.where(kept, factor, 0)
    picked = np.take_along_axis(a, at, dim).squeeze(dim) if a.size else np.zeros_like(factor)
    losses = -picked * factor
    if kept is not None:
        losses = np.where(kept, losses, 0)  # even where the input is Inf or NaN
    divisor = count if weight is None else factor.sum()
    out = losses if reduction == "none" else losses.sum()
    if reduction == "mean":
        out = np.true_divide(out, divisor)

    def backward(g):
        def add(gx):
            part = -factor * (g / divisor if reduction == "mean" else g)
            if kept is not None:
                part = np.where(kept, part, 0)
            if gx.size:
                part = np.take_along_axis(gx, at, dim) + np.expand_dims(part, dim)
                np.put_along_axis(gx, at, part, dim)
        return (Deferred(like, add=add),)
    return record(as_array(out), (input,), backward)


def _classes(name, input):
    """(dim of the classes, their number), or ValueError."""
    shape = input.array.shape
    if not shape:
        raise ValueError(f"{name}: a 0-d input has no classes")
    dim = min(len(shape) - 1, 1)
    return dim, shape[dim]


def _class_weights(name, weight, input):
    """The weights of the classes, shaped to be broadcast to the input; or an error."""
    check_constant(name, "weight", weight)
    dim, classes = _classes(name, input)
    if weight.array.shape != (classes,):
        raise ValueError(f"{name}: weight {weight.shape} for {classes} classes: expected "
                         f"({classes},)")
    if weight.array.dtype != input.array.dtype:
        raise TypeError(f"{name}: weight {weight.dtype} and input {input.dtype}: one type is "
                        f"needed")
    return reshape(weight, [classes if d == dim else 1 for d in range(input.array.ndim)])


def _check_operands(name, input, target):
    """Raise unless types and shapes of logits and class indices belong together."""
    a, t = input.array, target.array
    one_device(name, a, t)
    if a.dtype.kind != "f":
        raise TypeError(f"{name}: input of a floating type is needed, not {input.dtype}")
    if t.dtype.kind not in "iu":
        raise TypeError(f"{name}: targets are class indices, integers, not {target.dtype}")
    if not a.ndim or t.shape != a.shape[:1] * (a.ndim > 1) + a.shape[2:]:
        raise ValueError(f"{name}: input {a.shape} and target {t.shape}: expected "
                         f"(N, C) and (N,), (C,) and (), or (N, C, d1, ...) and (N, d1, ...)")


def check_targets(name, t, classes, ignore_index):
    """(targets as int64, bool array of those to count or None for all, their number)."""
    t = t.astype(np.int64, copy=False)
    # As unsigned numbers negative targets are large: one comparison in the usual case.
    if not len(t) or not (0 <= ignore_index < classes or t.view(np.uint64).max() >= classes):
        return t, None, len(t)
    kept = t != ignore_index
    wrong = t[kept & ((t < 0) | (t >= classes))]
    if len(wrong):
        raise IndexError(f"{name}: target {wrong[0]} is not one of {classes} classes")
    return np.where(kept, t, 0), kept, int(np.count_nonzero(kept))
