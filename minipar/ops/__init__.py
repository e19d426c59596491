"""Operations: each one's forward and backward side by side, one file per family.

Importing this package gives Tensor its methods and operators.
"""

from . import cast, inplace  # noqa: F401  (methods only)
from .activation import gelu, relu, sigmoid
from .activation import leaky_relu, silu  # noqa: F401  (of nn.functional, as what follows so)
from .attention import scaled_dot_product_attention  # noqa: F401
from .avg_pool import adaptive_avg_pool2d, avg_pool1d, avg_pool2d  # noqa: F401
from .batch_norm import batch_norm  # noqa: F401
from .choose import clamp, clip, maximum, minimum, where
from .compare import (eq, ge, gt, isfinite, isinf, isnan, le, logical_and, logical_not, logical_or,
                      lt, ne)
from .conv import conv1d, conv2d, conv_transpose2d  # noqa: F401
from .creation import (arange, as_tensor, empty, empty_like, eye, full, full_like, linspace, ones,
                       ones_like, tensor, zeros, zeros_like)
from .dropout import dropout  # noqa: F401
from .einsum import einsum
from .elementwise import add, div, floor_divide, mul, neg, pow, remainder, sub
from .embedding import embedding  # noqa: F401
from .extremes import amax, amin, argmax, argmin, argsort, max, min, sort, topk
from .group_norm import group_norm  # noqa: F401
from .indexing import gather, index_select, take_along_dim
from .interpolate import interpolate  # noqa: F401
from .joining import cat, chunk, split, stack, unbind
from .masking import masked_fill, tril, triu
from .matmul import bmm, linear, matmul, mm
from .norm import layer_norm, rms_norm  # noqa: F401
from .pool import max_pool1d, max_pool2d  # noqa: F401
from .rearrange import flip, roll
from .reduce import all, any, cumsum, logsumexp, mean, norm, prod, std, sum, var
from .sampling import (bernoulli, multinomial, rand, rand_like, randint, randn, randn_like,
                       randperm)
from .shape import (broadcast_to, flatten, movedim, permute, reshape, squeeze, t, transpose,
                    unsqueeze)
from .softmax import log_softmax, softmax
from .unary import (abs, ceil, cos, erf, exp, floor, log, reciprocal, round, rsqrt, sign, sin, sqrt,
                    square, tanh)

__all__ = [
    "abs", "add", "all", "amax", "amin", "any", "arange", "argmax", "argmin", "argsort",
    "as_tensor", "bernoulli", "bmm", "broadcast_to", "cat", "ceil", "chunk", "clamp", "clip",
    "cos", "cumsum", "div", "einsum", "empty", "empty_like", "eq", "erf", "exp", "eye",
    "flatten", "flip", "floor", "floor_divide", "full", "full_like", "gather", "ge", "gelu",
    "gt", "index_select", "isfinite", "isinf", "isnan", "le", "linear", "linspace", "log",
    "log_softmax", "logical_and", "logical_not", "logical_or", "logsumexp", "lt", "masked_fill",
    "matmul", "max", "maximum", "mean", "min", "minimum", "mm", "movedim", "mul", "multinomial",
    "ne", "neg", "norm", "ones", "ones_like", "permute", "pow", "prod", "rand", "rand_like",
    "randint", "randn", "randn_like", "randperm", "reciprocal", "relu", "remainder", "reshape",
    "roll", "round", "rsqrt", "sigmoid", "sign", "sin", "softmax", "sort", "split", "sqrt",
    "square", "squeeze", "stack", "std", "sub", "sum", "t", "take_along_dim", "tanh", "tensor",
    "topk", "transpose", "tril", "triu", "unbind", "unsqueeze", "var", "where", "zeros",
    "zeros_like"]
