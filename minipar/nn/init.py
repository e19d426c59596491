"""Initializers, under PyTorch's names.

On a parameter that is not materialised they leave a recipe, so that the values depend on the
parameter's final name; on any other tensor they fill it now. A recipe is called with a NumPy
generator and a shape, and can be pickled.
"""

import math
from functools import partial

import numpy as np

from ..context import current, no_grad
from .parameter import Parameter


def _apply(tensor, recipe):
    if isinstance(tensor, Parameter):
        if not tensor.is_materialized:
            tensor.initializer = recipe
            return tensor
        generator = tensor.generator()
    else:
        generator = current().generator
    with no_grad():
        tensor.copy_(recipe(generator, tensor.shape))
    return tensor


# Recipes


def uniform(a=0.0, b=1.0):
    """Recipe: uniform in [a, b)."""
    return partial(_uniform, a, b)


def _uniform(a, b, generator, shape):
    return generator.uniform(a, b, shape)


def normal(mean=0.0, std=1.0):
    """Recipe: normal with the given mean and standard deviation."""
    return partial(_normal, mean, std)


def _normal(mean, std, generator, shape):
    return generator.normal(mean, std, shape)


def constant(value):
    """Recipe: every element is `value`."""
    return partial(_constant, value)


def _constant(value, generator, shape):
    return np.full(shape, value, dtype=np.float64)


def _eye(generator, shape):
    return np.eye(*shape)


def _trunc_normal(mean, std, a, b, generator, shape):
    """By rejection: what falls outside [a, b] is drawn again.

    The draws are normal where that keeps a quarter of them or more, else uniform over the part of
    [a, b] where the density is at least e^-40 of its peak (Robert 1995, "Simulation of truncated
    normal variables").
    """
    low, high = (a - mean) / std, (b - mean) / std
    peak = min(max(low, 0.0), high)
    from_normal = low <= 0.5 and high >= -0.5 and high - low > 1.5
    reach = 80 / (abs(peak) + math.sqrt(peak * peak + 80))  # from the peak to e^-40 of it
    left, right = max(low, peak - reach), min(high, peak + reach)
    out = np.empty(math.prod(shape))
    missing = np.arange(out.size)
    while missing.size:
        if from_normal:
            x = generator.standard_normal(missing.size)
            kept = (low <= x) & (x <= high)
        else:
            x = generator.uniform(left, right, missing.size)
            kept = generator.random(missing.size) <= np.exp((peak - x) * (peak + x) / 2)
        out[missing[kept]] = x[kept]
        missing = missing[~kept]
    return np.clip(mean + std * out, a, b).reshape(shape)


def _orthogonal(gain, generator, shape):
    rows, columns = shape[0], math.prod(shape[1:])
    q, r = np.linalg.qr(generator.standard_normal((max(rows, columns), min(rows, columns))))
    q *= np.where(np.diag(r) < 0, -1.0, 1.0)  # makes it uniform over the orthogonal matrices
    return gain * (q if rows >= columns else q.T).reshape(shape)


# Initializers


def uniform_(tensor, a=0.0, b=1.0):
    """Fill with uniform numbers from [a, b)."""
    return _apply(tensor, uniform(a, b))


def normal_(tensor, mean=0.0, std=1.0):
    """Fill with normal numbers."""
    return _apply(tensor, normal(mean, std))


def trunc_normal_(tensor, mean=0.0, std=1.0, a=-2.0, b=2.0):
    """Fill with normal numbers on condition that they lie in [a, b].

    Raises ValueError unless std > 0 and a < b.
    """
    if not (std > 0 and a < b):
        raise ValueError(f"trunc_normal_: std {std} > 0 and a {a} < b {b} are needed")
    return _apply(tensor, partial(_trunc_normal, mean, std, a, b))


def constant_(tensor, val):
    """Fill with one value."""
    return _apply(tensor, constant(val))


def zeros_(tensor):
    """Fill with 0."""
    return constant_(tensor, 0.0)


def ones_(tensor):
    """Fill with 1."""
    return constant_(tensor, 1.0)


def eye_(tensor):
    """Fill a matrix with 1 on its diagonal and 0 elsewhere. ValueError unless it has two dims."""
    if tensor.ndim != 2:
        raise ValueError(f"eye_: a matrix is needed, not shape {tensor.shape}")
    return _apply(tensor, _eye)


def orthogonal_(tensor, gain=1):
    """Fill with `gain` times rows, or columns if there are fewer, of an orthogonal matrix.

    The first dim is the rows and all others the columns (Saxe et al. 2014). ValueError for a
    tensor with fewer than two dims.
    """
    if tensor.ndim < 2:
        raise ValueError(f"orthogonal_: at least two dims are needed, not shape {tensor.shape}")
    return _apply(tensor, partial(_orthogonal, gain))


def _fans(tensor):
    """(fan in, fan out) of a weight (out, in, *kernel): products of what one unit sees, or feeds.

    Raises ValueError for fewer than two dims.
    """
    if tensor.ndim < 2:
        raise ValueError(f"fan in and fan out need at least two dims, not shape {tensor.shape}")
    out, inp, *kernel = tensor.shape
    return inp * math.prod(kernel), out * math.prod(kernel)


def calculate_gain(nonlinearity, param=None):
    """The factor that keeps the variance through a nonlinearity, as PyTorch lists it.

    param: the negative slope of "leaky_relu" (0.01 if None). ValueError for an unknown name.
    """
    if nonlinearity in ("linear", "sigmoid", *(f"conv{t}{d}d" for t in ("", "_transpose")
                                               for d in (1, 2, 3))):
        return 1
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + (0.01 if param is None else param) ** 2))
    gains = {"tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4}
    if nonlinearity not in gains:
        raise ValueError(f"no gain for {nonlinearity!r}: there are linear, sigmoid, conv1d, "
                         f"conv2d, conv3d, leaky_relu, {', '.join(gains)}")
    return gains[nonlinearity]


def _xavier_std(tensor, gain):
    return gain * math.sqrt(2 / sum(_fans(tensor)))


def xavier_uniform_(tensor, gain=1.0):
    """Uniform with variance 2 gain^2 / (fan in + fan out) (Glorot & Bengio 2010)."""
    bound = math.sqrt(3) * _xavier_std(tensor, gain)
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor, gain=1.0):
    """Normal with variance 2 gain^2 / (fan in + fan out) (Glorot & Bengio 2010)."""
    return normal_(tensor, 0.0, _xavier_std(tensor, gain))


def _kaiming_std(tensor, a, mode, nonlinearity):
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode is 'fan_in' or 'fan_out', not {mode!r}")
    return calculate_gain(nonlinearity, a) / math.sqrt(_fans(tensor)[mode == "fan_out"])


def kaiming_uniform_(tensor, a=0, mode="fan_in", nonlinearity="leaky_relu"):
    """Uniform with variance gain^2 / fan (He et al. 2015).

    a: the negative slope of a leaky ReLU; mode: "fan_in" keeps the variance of the outputs,
    "fan_out" that of the gradients; nonlinearity: see `calculate_gain`.
    """
    bound = math.sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(tensor, a=0, mode="fan_in", nonlinearity="leaky_relu"):
    """Normal with variance gain^2 / fan (He et al. 2015); arguments as `kaiming_uniform_`."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity))
