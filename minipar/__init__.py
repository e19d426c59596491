"""minipar: a parallel runtime for deep learning of which every layer can be read.

Importing it imports neither MPI nor a compiler, and starts nothing.
"""

from . import cuda, hooks, memory  # noqa: F401  (hooks of Tensor; the allocator keeps its pages)
from .amp import autocast
from .context import (batch_position, enable_grad, get_default_dtype, manual_seed, no_grad,
                      set_default_dtype)
from .device import device
from .dtypes import bfloat16, bool_, dtype, float16, float32, float64, int32, int64, uint8
from .execution.threads import get_num_threads, set_num_threads
from .random import Generator
from .tensor import Tensor, from_numpy
from .ops import *  # noqa: F401,F403  (minipar.exp, minipar.matmul, ... as in PyTorch)

__version__ = "0.1.0"


def __getattr__(name):
    if name == "launch":  # brings the whole of `comm`, which a program without ranks does not need
        from .comm import launch
        return launch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
