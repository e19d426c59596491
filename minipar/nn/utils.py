"""Clipping of gradients, under PyTorch's names (torch.nn.utils)."""

import math

import numpy as np

from ..execution import Kernel
from ..tensor import Tensor

BLOCK = 16384  # elements whose powers are held at a time
_SQUARES = Kernel("optimizer.cu", "sum_of_squares", rows="rows", width="n")
_ROW = 4096  # elements of which that kernel makes one partial sum


def _sinks(parameters):
    """The sinks that hold a gradient, each once, of one tensor or of several."""
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    return list({id(p.sink): p.sink for p in parameters if p.grad is not None}.values())


@np.errstate(all="ignore")  # Inf and NaN are answers here
def clip_grad_norm_(parameters, max_norm, norm_type=2.0, error_if_nonfinite=False):
    """Scale gradients in place so that their norm, taken as of one long vector, is <= max_norm.

    norm_type: 2, another number > 0, or math.inf for the largest absolute value.
    Returns the norm before, a 0-d tensor; it is summed in float64. A parameter that is named
    twice counts once. Raises RuntimeError if the norm is not finite and `error_if_nonfinite`,
    ValueError for another norm_type.
    """
    sinks, norm_type = _sinks(parameters), float(norm_type)
    if not norm_type > 0:
        raise ValueError(f"norm_type = {norm_type} is not > 0")
    if norm_type == math.inf:
        total = float(np.max([float(np.abs(s.buffer).max()) for s in sinks if s.buffer.size],
                             initial=0.0))
    else:
        power = sum_of_squares if norm_type == 2 else lambda g: _powers(g, norm_type)
        total = sum(power(s.buffer) for s in sinks) ** (1 / norm_type)
    if error_if_nonfinite and not math.isfinite(total):
        raise RuntimeError(f"the gradients' norm of order {norm_type} is {total}: not clipped")
    factor = float(max_norm) / (total + 1e-6)
    if not factor >= 1:  # a NaN must reach the gradients
        for sink in sinks:
            sink.buffer *= factor
    return Tensor(np.asarray(total, sinks[0].buffer.dtype if sinks else np.float32))


def _powers(gradient, order):
    """The sum of |g| ** order, in float64."""
    flat, total = gradient.reshape(-1), 0.0
    for start in range(0, flat.size, BLOCK):
        part = flat[start:start + BLOCK].astype(np.float64)
        total += float(part @ part) if order == 2 else float((np.abs(part) ** order).sum())
    return total


@np.errstate(all="ignore")
def sum_of_squares(x):
    """The sum of the squares of an array of any shape, in float64, as a Python float."""
    run = _SQUARES.build(x) if x.flags.c_contiguous else None
    if run is None:
        return _powers(x, 2)
    partial = np.empty(-(-x.size // _ROW), like=x)
    run(x, partial, len(partial), x.size)
    return float(partial.sum())


def clip_grad_value_(parameters, clip_value):
    """Clamp every gradient element to [-clip_value, clip_value], in place."""
    for sink in _sinks(parameters):
        np.clip(sink.buffer, -clip_value, clip_value, out=sink.buffer)
