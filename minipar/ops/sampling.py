"""Random tensors. They come from the rank's sequential generator, which `minipar.manual_seed`
seeds, or from `generator`: a `minipar.Generator`, or any `numpy.random.Generator`.

They are drawn on the CPU and then put on `device` (None: the CPU; of the `_like` functions: where
x is), so that every device has the same numbers. Each draw depends on all before it. What must not
depend on who draws first, initial weights and dropout, does not come from here (see
`minipar/random.py`). No draw is recorded.
"""

import numpy as np

from .. import dtypes
from ..context import current
from ..device import device_of, host
from .base import method, wide
from .creation import like, made, sizes, storage_of


def _source(name, generator):
    if generator is None:
        return current().generator
    if not isinstance(generator, np.random.Generator):
        raise TypeError(f"{name}: generator is a minipar.Generator or a numpy.random.Generator, "
                        f"not {type(generator).__name__}")
    return generator


def _floating(name, dtype):
    storage = storage_of(dtype)
    if storage.kind not in dtypes.FLOATING:
        raise TypeError(f"{name}: a floating type is needed, not {dtypes.dtype(dtype)}")
    return storage


def _uniform(name, shape, dtype, generator):
    source, dtype = _source(name, generator), _floating(name, dtype)
    if dtype.itemsize == 2:  # of float32 some would be rounded up to 1
        digits = 11 if dtype == np.float16 else 8
        return (source.integers(2**digits, size=shape) / 2**digits).astype(dtype)
    return np.asarray(source.random(shape, dtype))


def _normal(name, shape, dtype, generator):
    source, dtype = _source(name, generator), _floating(name, dtype)
    return np.asarray(source.standard_normal(shape, wide(dtype))).astype(dtype, copy=False)


def rand(*size, generator=None, dtype=None, requires_grad=False, device=None):
    """Uniform random numbers of [0, 1), in a floating dtype (None: the default)."""
    return made(_uniform("rand", sizes("rand", size), dtype, generator), requires_grad, device)


def randn(*size, generator=None, dtype=None, requires_grad=False, device=None):
    """Normal random numbers, mean 0 and variance 1, in a floating dtype (None: the default)."""
    return made(_normal("randn", sizes("randn", size), dtype, generator), requires_grad, device)


def rand_like(x, dtype=None, requires_grad=False, device=None):
    """`rand` in the shape of x, and in its dtype if `dtype` is None."""
    array, storage = like("rand_like", x, dtype)
    return made(_uniform("rand_like", array.shape, storage, None), requires_grad,
                device or device_of(array))


def randn_like(x, dtype=None, requires_grad=False, device=None):
    """`randn` in the shape of x, and in its dtype if `dtype` is None."""
    array, storage = like("randn_like", x, dtype)
    return made(_normal("randn_like", array.shape, storage, None), requires_grad,
                device or device_of(array))


def randint(low=0, high=None, size=None, *, generator=None, dtype=dtypes.int64,
            requires_grad=False, device=None):
    """Random integers of [low, high), all equally likely: randint(high, size) or with low first.

    size: a tuple. Raises ValueError if there is none, or if `dtype` does not hold them.
    """
    if size is None:
        low, high, size = 0, low, high
    elif high is None:
        low, high = 0, low
    if size is None:
        raise TypeError("randint: the size is missing: randint(high, size)")
    if low >= high:
        raise ValueError(f"randint: no integer from {low} to below {high}")
    storage, source = storage_of(dtype), _source("randint", generator)
    drawn = source.integers(low, high, sizes("randint", (size,)),
                            np.int64 if storage.kind in dtypes.FLOATING else storage)
    return made(np.asarray(drawn, storage), requires_grad, device)


def randperm(n, *, generator=None, dtype=dtypes.int64, requires_grad=False, device=None):
    """The integers below n in random order, all orders equally likely: (n,)."""
    if n < 0:
        raise ValueError(f"randperm: n must not be negative, not {n}")
    drawn = _source("randperm", generator).permutation(n)
    return made(drawn.astype(storage_of(dtype)), requires_grad, device)


@method()
def bernoulli(x, *, generator=None):
    """1 with the probability that the element of x (floating, of [0, 1]) says, else 0.

    Raises ValueError for an element that is no probability.
    """
    p = host(x.array)
    _floating("bernoulli", x.dtype)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError("bernoulli: an element of x is not between 0 and 1")
    drawn = _source("bernoulli", generator).random(p.shape)
    return made(np.asarray(drawn < p, p.dtype), False, x.device)


@method()
def multinomial(x, num_samples, replacement=False, *, generator=None):
    """Indices (int64) of dim -1, drawn with probabilities in proportion to x: (num_samples,) of
    a vector (n,), (m, num_samples) of a matrix (m, n), each row by itself.

    x: floating, not negative; rows need not sum to 1. Without replacement no index comes twice,
    and they stand in the order drawn. Raises ValueError for other shapes and values, for a row of
    zeros, and for more samples than there are elements that can be drawn.
    """
    weights = np.atleast_2d(host(x.array))
    _floating("multinomial", x.dtype)
    if x.ndim not in (1, 2):
        raise ValueError(f"multinomial: a vector or a matrix is needed, not shape {x.shape}")
    if num_samples <= 0:
        raise ValueError(f"multinomial: num_samples must be positive, not {num_samples}")
    if not np.all((weights >= 0) & (weights < np.inf)):
        raise ValueError("multinomial: an element of x is negative, Inf or NaN")
    possible = np.count_nonzero(weights, axis=1).min(initial=weights.shape[1])
    if possible < (1 if replacement else num_samples):
        raise ValueError(f"multinomial: {num_samples} samples "
                         f"{'with' if replacement else 'without'} replacement from {possible} "
                         f"elements of a row that are not 0")
    source = _source("multinomial", generator)
    draw = _with_replacement if replacement else _without_replacement
    drawn = draw(weights.astype(np.float64), num_samples, source).astype(np.int64, copy=False)
    return made(drawn.reshape(*x.shape[:-1], num_samples), False, x.device)


def _with_replacement(weights, count, source):
    """Where uniform numbers fall among the cumulative sums of each row."""
    ends = np.cumsum(weights, axis=1)
    ends /= ends[:, -1:]
    drawn = source.random((len(weights), count))
    return np.array([np.searchsorted(row, at, side="right") for row, at in zip(ends, drawn)],
                    np.int64)


def _without_replacement(weights, count, source):
    """A race (Efraimidis & Spirakis 2006): the arrival times are exponential, at rates `weights`,
    and who arrives first is drawn first. Rate 0 never arrives.
    """
    with np.errstate(divide="ignore"):
        times = source.standard_exponential(weights.shape) / weights
    return np.argsort(times, axis=1, kind="stable")[:, :count]
