"""Operations: each one's forward and backward side by side, one file per family.

Importing this package gives Tensor its methods and operators.
"""

from . import compare, inplace  # noqa: F401  (methods only)
from .attention import scaled_dot_product_attention  # noqa: F401  (of nn.functional, as below)
from .conv import conv2d  # noqa: F401
from .dropout import dropout  # noqa: F401
from .elementwise import add, div, exp, gelu, log, mul, neg, pow, relu, sqrt, sub, tanh
from .embedding import embedding  # noqa: F401
from .indexing import cat, split
from .matmul import linear, matmul
from .norm import layer_norm  # noqa: F401
from .pool import max_pool2d  # noqa: F401
from .reduce import argmax, max, mean, sum
from .shape import flatten, permute, reshape, transpose
from .softmax import log_softmax, softmax

__all__ = ["add", "argmax", "cat", "div", "exp", "flatten", "gelu", "linear", "log",
           "log_softmax", "matmul", "max", "mean", "mul", "neg", "permute", "pow", "relu",
           "reshape", "softmax", "split", "sqrt", "sub", "sum", "tanh", "transpose"]
