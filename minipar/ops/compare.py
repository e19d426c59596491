"""Comparisons: bool tensors, without gradients. Importing gives Tensor the operators.

`==` compares elements, so `tensor in list` does not work, as in PyTorch; the hash stays that of
the object, so tensors are keys of dicts and members of sets.
"""

import numpy as np

from ..tensor import Tensor
from .base import method, operand, promote, quiet


def _define(name, operator, ufunc):
    @quiet
    def compare(x, y):
        if not isinstance(y, (Tensor, bool, int, float, np.ndarray, np.generic)):
            return NotImplemented  # Python then answers == by identity, and refuses <
        a, b = promote(operand(x)[0], operand(y)[0])
        try:
            return Tensor(np.asarray(ufunc(a, b)))
        except ValueError:
            raise ValueError(f"{name}: shapes {np.shape(a)} and {np.shape(b)} "
                             f"cannot be broadcast together") from None
    compare.__name__ = name
    compare.__doc__ = f"x {operator} y, element by element with broadcasting: a bool tensor."
    return method(name, f"__{name}__")(compare)


eq = _define("eq", "==", np.equal)
ne = _define("ne", "!=", np.not_equal)
lt = _define("lt", "<", np.less)
le = _define("le", "<=", np.less_equal)
gt = _define("gt", ">", np.greater)
ge = _define("ge", ">=", np.greater_equal)
