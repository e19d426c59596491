"""Operations: each one's forward and backward side by side, one file per family.

Importing this package gives Tensor its methods and operators.
"""

from . import compare, inplace  # noqa: F401  (methods only)
from .attention import scaled_dot_product_attention  # noqa: F401  (of nn.functional, as below)
from .conv import conv2d  # noqa: F401
from .dropout import dropout  # noqa: F401
from .einsum import einsum
from .elementwise import add, div, exp, gelu, log, mul, neg, pow, relu, sqrt, sub, tanh
from .embedding import embedding  # noqa: F401
from .indexing import gather, index_select, take_along_dim
from .joining import cat, chunk, split, stack, unbind
from .masking import masked_fill, tril, triu
from .matmul import bmm, linear, matmul, mm
from .norm import layer_norm  # noqa: F401
from .pool import max_pool2d  # noqa: F401
from .rearrange import flip, roll
from .reduce import argmax, max, mean, sum
from .shape import (broadcast_to, flatten, movedim, permute, reshape, squeeze, t, transpose,
                    unsqueeze)
from .softmax import log_softmax, softmax

__all__ = ["add", "argmax", "bmm", "broadcast_to", "cat", "chunk", "div", "einsum", "exp",
           "flatten", "flip", "gather", "gelu", "index_select", "linear", "log", "log_softmax",
           "masked_fill", "matmul", "max", "mean", "mm", "movedim", "mul", "neg", "permute", "pow",
           "relu", "reshape", "roll", "softmax", "split", "sqrt", "squeeze", "stack", "sub", "sum",
           "t", "take_along_dim", "tanh", "transpose", "tril", "triu", "unbind", "unsqueeze"]
