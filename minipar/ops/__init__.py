"""Operations: each one's forward and backward side by side, one file per family.

Importing this package gives Tensor its methods and operators.
"""

from . import inplace  # noqa: F401  (methods only)
from .elementwise import add, div, exp, gelu, log, mul, neg, pow, relu, sqrt, sub, tanh
from .matmul import linear, matmul

__all__ = ["add", "div", "exp", "gelu", "linear", "log", "matmul", "mul", "neg", "pow", "relu",
           "sqrt", "sub", "tanh"]
