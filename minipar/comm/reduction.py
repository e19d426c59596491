"""What a plan reduces with: by operation and type, a function f(a, b, out=a).

NumPy's ufuncs, which run at the speed of memory, and where the arrays are. Not for 16-bit types:
there NumPy takes 5 times as long as a kernel, which reads, adds in float32 and rounds once alike
(kernels/reduce.cu).
"""

import numpy as np

from ..dtypes import FLOATING
from ..execution import Kernel

OPS = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}
_KERNELS = {op: Kernel("reduce.cu", f"reduce_{op}", elements="n") for op in OPS}


def reducer(op, dtype, like=None):
    """The function that reduces contiguous arrays of `dtype` (NumPy's): f(a, b, out=a).

    like: an array that is where they are; they are on the CPU if None. NaN passes, in max and min
    too. Raises KeyError for an `op` that is not one of OPS.
    """
    ufunc = OPS[op]
    if dtype.itemsize != 2 or dtype.kind not in FLOATING:
        return ufunc
    run = _KERNELS[op].build(dtype if like is None else like)
    if run is None:
        return np.errstate(all="ignore")(ufunc)  # of NaN in float16 NumPy warns

    def reduce(a, b, out):
        if out is not a:
            np.copyto(out, a)
        run(out, b, out.size)
    return reduce
