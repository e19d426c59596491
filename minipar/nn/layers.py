"""Layers: a few parameters and one call of `functional` each, with PyTorch's defaults."""

import math

from ..tensor import Tensor
from . import functional as F
from . import init
from .module import Module
from .parameter import Parameter


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


class Linear(Module):
    """x @ weight.T + bias. weight (out, in), bias (out,), both uniform in +-1/sqrt(in)."""

    def __init__(self, in_features, out_features, bias=True):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        bound = 1 / math.sqrt(in_features) if in_features else 0.0
        recipe = init.uniform(-bound, bound)
        self.weight = Parameter.lazy(out_features, in_features, initializer=recipe)
        self.register_parameter(
            "bias", Parameter.lazy(out_features, initializer=recipe) if bias else None)

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self):
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Conv2d(Module):
    """2-D convolution. weight (out, in, kh, kw), bias (out,), uniform in +-1/sqrt(in kh kw)."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, bias=True):
        super().__init__()
        self.stride, self.padding = stride, padding
        kernel = _pair(kernel_size)
        bound = 1 / math.sqrt(in_channels * math.prod(kernel))
        recipe = init.uniform(-bound, bound)
        self.weight = Parameter.lazy(out_channels, in_channels, *kernel, initializer=recipe)
        self.register_parameter(
            "bias", Parameter.lazy(out_channels, initializer=recipe) if bias else None)

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)

    def extra_repr(self):
        out, inp, *kernel = self.weight.shape
        return f"{inp}, {out}, kernel_size={tuple(kernel)}"


class MaxPool2d(Module):
    """The largest element of each window."""

    def __init__(self, kernel_size, stride=None, padding=0):
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x):
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding)

    def extra_repr(self):
        return f"kernel_size={self.kernel_size}"


class LayerNorm(Module):
    """Normalises over the last dims, then weight * x + bias (Ba et al. 2016)."""

    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, bias=True):
        super().__init__()
        shape = ((normalized_shape,) if isinstance(normalized_shape, int)
                 else tuple(normalized_shape))
        self.normalized_shape, self.eps = shape, eps
        weight = Parameter.lazy(*shape, initializer=init.constant(1.0))
        self.register_parameter("weight", weight if elementwise_affine else None)
        zeros = Parameter.lazy(*shape, initializer=init.constant(0.0))
        self.register_parameter("bias", zeros if elementwise_affine and bias else None)

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self):
        return f"{self.normalized_shape}"


class Embedding(Module):
    """Rows of a table by index. weight (num_embeddings, embedding_dim), standard normal."""

    def __init__(self, num_embeddings, embedding_dim):
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = Parameter.lazy(num_embeddings, embedding_dim, initializer=init.normal())

    def forward(self, index):
        return F.embedding(index, self.weight)

    def extra_repr(self):
        return f"{self.num_embeddings}, {self.embedding_dim}"


class Dropout(Module):
    """Zeroes elements with probability p while training; see ops/dropout.py for the masks."""

    def __init__(self, p=0.5):
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"dropout probability {p} is not between 0 and 1")
        self.p = p

    def forward(self, x):
        if not self.training or not self.p:
            return x
        return F.dropout(x, self.p, name=self.qualified_name())

    def extra_repr(self):
        return f"p={self.p}"


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x):
        return F.relu(x)


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, x):
        return F.tanh(x)


class GELU(Module):
    """x times the normal distribution function at x; `approximate="tanh"` is GPT-2's form."""

    def __init__(self, approximate="none"):
        super().__init__()
        self.approximate = approximate

    def forward(self, x):
        return F.gelu(x, self.approximate)


class Flatten(Module):
    """Merges the dims from start_dim to end_dim."""

    def __init__(self, start_dim=1, end_dim=-1):
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor):
        return x.flatten(self.start_dim, self.end_dim)
