"""Initializers, under PyTorch's names.

On a parameter that is not materialised they leave a recipe, so that the values depend on the
parameter's final name; on any other tensor they fill it now.
"""

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


def uniform(a=0.0, b=1.0):
    """Recipe: uniform in [a, b)."""
    return lambda generator, shape: generator.uniform(a, b, shape)


def normal(mean=0.0, std=1.0):
    """Recipe: normal with the given mean and standard deviation."""
    return lambda generator, shape: generator.normal(mean, std, shape)


def constant(value):
    """Recipe: every element is `value`."""
    return lambda generator, shape: np.full(shape, value, dtype=np.float64)


def uniform_(tensor, a=0.0, b=1.0):
    """Fill with uniform numbers from [a, b)."""
    return _apply(tensor, uniform(a, b))


def normal_(tensor, mean=0.0, std=1.0):
    """Fill with normal numbers."""
    return _apply(tensor, normal(mean, std))


def constant_(tensor, val):
    """Fill with one value."""
    return _apply(tensor, constant(val))


def zeros_(tensor):
    """Fill with 0."""
    return constant_(tensor, 0.0)


def ones_(tensor):
    """Fill with 1."""
    return constant_(tensor, 1.0)
