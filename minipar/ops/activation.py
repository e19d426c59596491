"""Activation functions. Each backward keeps one array: the output, or the slope."""

import math

import numpy as np

from ..context import current
from ..device import as_array
from ..execution import Kernel
from ..sinks import Deferred
from ..tensor import record
from .base import by_kernel, floating, for_kernel, gradient_by_kernel, method, quiet
from .elementwise import keep
from .erf import erf
from .precision import arithmetic, in_float32

_KERNELS = {name: Kernel("activation.cu", name, elements="n") for name in (
    "relu_forward", "relu_backward", "sigmoid_forward", "sigmoid_backward", "silu", "silu_slope",
    "gelu_tanh", "gelu_tanh_slope", "gelu_none", "gelu_none_slope")}


@method()
def relu(x):
    """max(x, 0). Its gradient at 0 is 0; NaN passes, and so does the gradient there.

    Raises TypeError for bools.
    """
    out = by_kernel(_KERNELS["relu_forward"], x.array)
    if out is None:
        if x.array.dtype.kind == "b":
            raise TypeError(f"relu: a number type is needed, not {x.dtype}")
        out = np.maximum(x.array, 0)

    def backward(g):
        gx = gradient_by_kernel(_KERNELS["relu_backward"], out, g)
        return (keep(g, out != 0) if gx is None else gx,)
    return record(out, (x,), backward, saves_output=True)


def _floating_only(name, x):
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name}: a floating type is needed, not {x.dtype}")


@arithmetic
def leaky_relu(x, negative_slope=0.01):
    """x where x > 0, else negative_slope * x. Raises TypeError unless x is of a floating type."""
    _floating_only("leaky_relu", x)
    a = x.array
    out = as_array(a * negative_slope)
    np.copyto(out, a, where=a > 0)
    # Unless the slope turns it over, the output is positive where the input is.
    from_output = negative_slope >= 0
    source = out if from_output else a

    def backward(g):
        gx = as_array(g * negative_slope)
        np.copyto(gx, g, where=source > 0)
        return (gx,)
    return record(out, (x,), backward, () if from_output else (x,), saves_output=from_output)


@method()
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    out = by_kernel(_KERNELS["sigmoid_forward"], x.array)
    if out is None:
        if x.array.itemsize == 2:
            return in_float32(sigmoid, x)
        out = _sigmoid(x.array)

    def backward(g):
        gx = gradient_by_kernel(_KERNELS["sigmoid_backward"], out, g)
        if gx is not None:
            return (gx,)
        gx = as_array(1 - out)
        gx *= out
        return (np.multiply(gx, g, out=gx),)
    return record(out, (x,), backward, saves_output=True)


@quiet
def _sigmoid(a):
    out = as_array(np.negative(a, dtype=floating(a).dtype))
    np.exp(out, out=out)
    out += 1
    return np.divide(1, out, out=out)


_BLOCK = 65536  # elements that are taken through all steps of a formula while in the cache


def _by_kernel(name, x):
    """(f(x), f'(x)) by the kernel of that name; the slope is None where nobody will go back.

    The slope is computed here, where x is in the cache, and is all that backward keeps. None
    where there is no kernel.
    """
    a = x.array
    if not (x.requires_grad and current().grad_enabled):
        out = by_kernel(_KERNELS[name], a)
        return None if out is None else (out, None)
    run = _KERNELS[name + "_slope"].build(a)
    if run is None or not a.flags.c_contiguous:
        return None
    out, slope = np.empty_like(a), np.empty_like(a)
    run(for_kernel(a), out, slope, a.size)
    return out, slope


@quiet
def _by_steps(x, steps):
    """The same by steps(x, out, slope), which writes both for a block; slope may be None."""
    flat = x.array.reshape(-1)
    out = np.empty_like(flat)
    slope = np.empty_like(flat) if x.requires_grad and current().grad_enabled else None
    for start in range(0, flat.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        steps(flat[part], out[part], None if slope is None else slope[part])
    return out.reshape(x.shape), None if slope is None else slope.reshape(x.shape)


def _with_slope(x, out, slope):
    """`out` as the result, of which the gradient is g * slope, written where it belongs."""
    def backward(g):
        return (Deferred(slope, write=lambda to: np.multiply(g, slope, out=to)),)
    return record(out, (x,), backward)


def silu(x):
    """x sigmoid(x) (Hendrycks & Gimpel 2016; "swish"). Raises TypeError unless x is floating."""
    found = _by_kernel("silu", x)
    if found is None:
        _floating_only("silu", x)
        if x.array.itemsize == 2:
            return in_float32(silu, x)
        found = _by_steps(x, _silu)
    return _with_slope(x, *found)


def _silu(x, out, slope):
    """out = x s and slope = s + (1 - s) out, with s = 1 / (1 + exp(-x))."""
    s = np.exp(-x)
    s += 1
    np.divide(x, s, out=out)
    if slope is not None:
        np.divide(1, s, out=s)
        np.subtract(1, s, out=slope)
        slope *= out
        slope += s


def gelu(x, approximate="none"):
    """x times the normal distribution function at x (Hendrycks & Gimpel 2016).

    approximate: "none"; or "tanh", GPT-2's 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    Raises ValueError for another, TypeError unless x is of a floating type.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', not {approximate!r}")
    found = _by_kernel("gelu_" + approximate, x)
    if found is None:
        _floating_only("gelu", x)
        if x.array.itemsize == 2:
            return in_float32(gelu, x, approximate)
        found = _by_steps(x, _tanh_gelu if approximate == "tanh" else _normal_gelu_64
                          if x.array.dtype == np.float64 else _normal_gelu)
    return _with_slope(x, *found)


_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
# Of 1 / (1 + 0.23 x), from the highest power: the normal distribution's share above x, divided by
# exp(-x^2 / 2). Fitted over 0 <= x <= 13.5, beyond which float32 has only 0; error 5e-8 of it.
_ABOVE = (-0.07843162349162795, 0.290232006251254, -0.2777312092023161, 0.30099337170750956,
          -0.032566670110855525, 0.11935183475409647, 0.08580808302834306, 0.09237149060601514,
          -2.7307237222717884e-05)


def _normal_gelu(x, out, slope):
    """out = max(x, 0) - |x| above, with the share of the normal distribution above |x|, and
    (unless slope is None) slope = the share below x + x density, in the accuracy of float32.
    """
    size = np.abs(x)
    t = 0.23 * size
    t += 1
    np.divide(1, t, out=t)
    above = _ABOVE[0] * t
    for coefficient in _ABOVE[1:-1]:
        above += coefficient
        above *= t
    above += _ABOVE[-1]
    density = np.multiply(x, x, out=t)
    density *= -0.5
    np.exp(density, out=density)
    above *= density
    size *= above
    np.maximum(x, 0, out=out)
    out -= size
    if slope is not None:
        np.subtract(0.5, above, out=above)
        np.copysign(above, x, out=slope)
        slope += 0.5
        density *= 1 / math.sqrt(2 * math.pi)
        density *= x
        slope += density


def _normal_gelu_64(x, out, slope):
    share = 0.5 + 0.5 * erf(x * math.sqrt(0.5))
    np.multiply(x, share, out=out)
    if slope is not None:
        np.multiply(x, np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi)), out=slope)
        slope += share


def _tanh_gelu(x, out, slope):
    """out = x s and slope = s + 2 x s (1 - s) u', with s = (1 + tanh(u)) / 2 = sigmoid(2 u),
    u = k (x + c x^3) and u' = k (1 + 3 c x^2).
    """
    k, c = _SQRT_2_OVER_PI, 0.044715
    s = x * x
    if slope is not None:
        np.multiply(s, 6 * k * c, out=slope)
        slope += 2 * k
    s *= -2 * k * c
    s -= 2 * k
    s *= x
    np.exp(s, out=s)
    s += 1
    np.divide(1, s, out=s)
    np.multiply(x, s, out=out)
    if slope is not None:
        slope *= out
        slope *= 1 - s
        slope += s
