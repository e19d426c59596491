"""Functions of one element.

Of integers and bools, those that can leave the integers make the default dtype.
"""

import math

import numpy as np

from ..device import as_array
from ..dtypes import FLOATING
from ..execution import Kernel
from ..tensor import record
from .base import floating, gradient_by_kernel, method
from .elementwise import pow
from .erf import erf as erf_of
from .precision import arithmetic, autocasts

_TANH_BACKWARD = Kernel("activation.cu", "tanh_backward", elements="n")


@method()
@autocasts("float32")
@arithmetic
def exp(x):
    """e ** x."""
    out = np.exp(floating(x.array))
    return record(out, (x,), lambda g: (g * out,), saves_output=True)


@method()
@autocasts("float32")
@arithmetic
def log(x):
    """Natural logarithm."""
    a = floating(x.array)
    return record(np.log(a), (x,), lambda g: (g / a,), (x,))


@method()
@arithmetic
def sqrt(x):
    """Square root."""
    out = np.sqrt(floating(x.array))
    return record(out, (x,), lambda g: (g / (2 * out),), saves_output=True)


@method()
@autocasts("float32")
@arithmetic
def rsqrt(x):
    """1 / square root."""
    out = 1 / np.sqrt(floating(x.array))
    return record(out, (x,), lambda g: (-0.5 * g * (out * out * out),), saves_output=True)


@method()
@autocasts("float32")
@arithmetic
def reciprocal(x):
    """1 / x."""
    out = 1 / floating(x.array)
    return record(out, (x,), lambda g: (-g * (out * out),), saves_output=True)


@method()
def square(x):
    """x ** 2."""
    return pow(x, 2)


@method()
@arithmetic
def sin(x):
    """Sine of an angle in radians."""
    a = floating(x.array)
    return record(np.sin(a), (x,), lambda g: (g * np.cos(a),), (x,))


@method()
@arithmetic
def cos(x):
    """Cosine of an angle in radians."""
    a = floating(x.array)
    return record(np.cos(a), (x,), lambda g: (-g * np.sin(a),), (x,))


@method()
@arithmetic
def tanh(x):
    """Hyperbolic tangent."""
    out = np.tanh(floating(x.array))

    def backward(g):
        gx = gradient_by_kernel(_TANH_BACKWARD, out, g)
        if gx is not None:
            return (gx,)
        gx = as_array(out * out)  # of 0-d arrays NumPy makes scalars, which out= refuses
        np.subtract(1, gx, out=gx)
        return (np.multiply(gx, g, out=gx),)
    return record(out, (x,), backward, saves_output=True)


@method()
@arithmetic
def erf(x):
    """The error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
    a = floating(x.array)

    def backward(g):
        return (g * (2 / math.sqrt(math.pi) * np.exp(-a * a)),)
    return record(erf_of(a), (x,), backward, (x,))


def _numeric(name, x):
    """The array of x. Raises TypeError for bools."""
    if x.array.dtype.kind == "b":
        raise TypeError(f"{name}: a number type is needed, not {x.dtype}")
    return x.array


def _sign(a):
    """1, 0 or -1 in the type of `a`; 0 for NaN."""
    return np.subtract(a > 0, a < 0, dtype=a.dtype)


@method("abs", "__abs__")
def abs(x):
    """The absolute value. Its gradient at 0 and at NaN is 0. Raises TypeError for bools."""
    a = _numeric("abs", x)
    return record(np.abs(a), (x,), lambda g: (g * _sign(a),), (x,))


@method()
def sign(x):
    """1, 0 or -1; 0 for NaN, as in PyTorch. The gradient is 0."""
    a = x.array
    return record(a.copy() if a.dtype.kind == "b" else _sign(a), (x,),
                  lambda g: (np.zeros_like(g),))


def _step(name, function, x):
    """function(x), which changes in steps, so that its gradient is 0; integers as they are."""
    a = _numeric(name, x)
    return function(a) if a.dtype.kind in FLOATING else a.copy()


@method()
def floor(x):
    """The largest integer that is not above x, in x's type. The gradient is 0.

    Raises TypeError for bools, as `ceil` and `round` do.
    """
    return record(_step("floor", np.floor, x), (x,), lambda g: (np.zeros_like(g),))


@method()
def ceil(x):
    """The smallest integer that is not below x, in x's type. The gradient is 0."""
    return record(_step("ceil", np.ceil, x), (x,), lambda g: (np.zeros_like(g),))


@method()
def round(x):
    """The nearest integer, of two the even one, in x's type. The gradient is 0."""
    return record(_step("round", np.rint, x), (x,), lambda g: (np.zeros_like(g),))
