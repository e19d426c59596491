"""Layers: a few parameters and one call of `functional` each, with PyTorch's defaults.

Convolutions, pooling, normalisation, activations, containers and losses have files of their own.
"""

import math
from functools import partial

from ..ops.embedding import padding_row
from ..tensor import Tensor
from . import functional as F
from . import init
from .module import Module
from .parameter import Parameter


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


def _table(padding_idx, generator, shape):
    """Recipe of an embedding: standard normal, with one row of zeros."""
    values = generator.normal(size=shape)
    values[padding_idx] = 0
    return values


class Embedding(Module):
    """Rows of a table by index. weight (num_embeddings, embedding_dim), standard normal.

    padding_idx: a row that starts as zeros and has no gradient. Raises ValueError if there is no
    such row.
    """

    def __init__(self, num_embeddings, embedding_dim, padding_idx=None):
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        recipe = init.normal()
        if padding_idx is not None:
            padding_idx = padding_row(padding_idx, num_embeddings)
            recipe = partial(_table, padding_idx)
        self.padding_idx = padding_idx
        self.weight = Parameter.lazy(num_embeddings, embedding_dim, initializer=recipe)

    def forward(self, index):
        return F.embedding(index, self.weight, self.padding_idx)

    def extra_repr(self):
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


class Dropout(Module):
    """Zeroes elements with probability p while training; see ops/dropout.py for the masks.

    piece: (index, count), where dim 1 of the input is one of `count` pieces of the samples'.
    """

    piece = (0, 1)

    def __init__(self, p=0.5):
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"dropout probability {p} is not between 0 and 1")
        self.p = p

    def forward(self, x):
        if not self.training or not self.p:
            return x
        return F.dropout(x, self.p, name=self.qualified_name(), piece=self.piece)

    def extra_repr(self):
        return f"p={self.p}"


class Flatten(Module):
    """Merges the dims from start_dim to end_dim."""

    def __init__(self, start_dim=1, end_dim=-1):
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor):
        return x.flatten(self.start_dim, self.end_dim)


class Identity(Module):
    """Its input."""

    def forward(self, x):
        return x
