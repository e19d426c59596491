"""Finds, builds and launches the kernels of kernels/: one source, three executions.

    softmax = Kernel("softmax.cu", "softmax_forward", rows="rows", width="n")
    run = softmax.build(x)                   # None where the array functions have to do
    run(x, y, rows, n)

Arrays on a GPU are for its compiler and its blocks (gpu.py). For those on the CPU there are two:
`compiled` (compiled.py): the file is built for this CPU, once per dtype, when a kernel of it is
first needed. `emulated` (emulated.py): every CUDA thread is run, slowly, and what would go wrong
on a GPU is reported.
"""

import numpy as np

from ..context import current
from .build import cache_folder, compiler, tell
from .source import (EXECUTIONS, REAL, BuildError, EmulationError, Parameter, element,
                     executions, kernels_folder, signatures)

__all__ = ["EXECUTIONS", "BuildError", "EmulationError", "Kernel", "Parameter", "cache_folder",
           "compiler", "executions", "kernels_folder", "signatures"]


class Kernel:
    """One `__global__` function of a file in kernels/, built when it is first needed.

    rows, width: the parameters that tell how many blocks there is work for, and for how many
                 threads in each; elements: the one that tells for how many threads in all.
    """

    def __init__(self, file, name, *, rows=None, width=None, elements=None):
        self.file, self.name, self._built = file, name, {e: {} for e in EXECUTIONS}
        self.rows, self.width, self.elements = rows, width, elements

    def build(self, like, dtype=None):
        """A callable with the kernel's parameters, for arrays where `like` is, with numbers of its
        dtype, or of `dtype`; (or for NumPy arrays of a dtype); None for the reference.

        Arguments are arrays for pointers, numbers for the rest. The callable raises TypeError or
        ValueError, naming kernel and parameter, for an array that does not fit; emulated,
        EmulationError for what would go wrong on a GPU.
        """
        execution = current().kernels
        if execution == "reference":
            return None
        if like.__class__ is np.ndarray:
            dtype = like.dtype if dtype is None else dtype
        elif hasattr(like, "__cuda_array_interface__"):
            dtype, execution = like.dtype if dtype is None else dtype, "gpu"
        else:
            dtype = np.dtype(like)
        try:
            return self._built[execution][dtype]
        except KeyError:
            run = self._built[execution][dtype] = self._find(execution, dtype)
            return run

    def _find(self, execution, dtype):
        real = REAL.get(dtype.name)
        if real is None or dtype != element(real):  # of another byte order
            return None
        library = _library(self.file, real, execution)
        return None if library is None else library.function(self)


_libraries = {}


def _library(file, real, execution):
    """The built file, from memory, from the cache, or from the compiler; None if it cannot be."""
    if (file, real, execution) not in _libraries:
        try:
            library = _open(file, real, execution)
        except (BuildError, OSError) as error:
            library = None
            tell(f"minipar: kernels run as NumPy reference: {error}")
        _libraries[file, real, execution] = library
    return _libraries[file, real, execution]


def _open(file, real, execution):
    source = kernels_folder() / file
    named = executions(source.read_text(encoding="utf-8"))
    if execution not in named:
        raise BuildError(f"{file} has no {execution} execution, only {', '.join(named)}")
    if execution == "gpu":
        from .gpu import Library
    elif execution == "emulated":
        from .emulated import Library
    else:
        from .compiled import Library
    return Library(source, real)
