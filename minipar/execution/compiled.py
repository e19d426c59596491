"""Kernels compiled for this CPU: one thread a block, so every loop is one the compiler vectorises.

The wrapper that is generated for each kernel takes NumPy arrays as objects, reads their memory
from NumPy's own structure and checks type, contiguity and writability there: 0.1 us an array,
where asking the array for its address takes ten times as long.
"""

import ctypes

import numpy as np

from .build import NATIVE, build, run_compiler
from .source import ACCUMULATE, SCALARS, BuildError, element, misfit, signatures

FLAGS = ("-std=c++17", "-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno",
         "-fno-trapping-math", "-ffp-contract=off", "-fopenmp-simd", "-fno-plt",
         "-fno-loop-unroll-and-jam", "-fvisibility=hidden", "-shared", "-fPIC")

_HEAD = r"""
// NumPy's array object as its C interface lays it out (ndarraytypes.h), after Python's own head.
struct Descriptor { char head[HEAD]; void *type; char kind, code, order, flags; int number; };
struct Array { char head[HEAD - sizeof(void *)]; void *type; char *data; int nd;
               void *dims, *strides, *base; Descriptor *descr; int flags; };
#define EXPORT extern "C" __attribute__((visibility("default")))
static void *array_type;
EXPORT void *minipar_probe(Array *a) {
    array_type = a->type;
    return a->nd == 1 && a->descr->number == 11 && (a->flags & 0x501) == 0x501 ? a->data : 0;
}
static inline int misfit(Array *a, int number, int write) {
    if (a->type != array_type) return 4;
    if (a->descr->number != number || a->descr->order == '>') return 1;
    if ((a->flags & 0x101) != 0x101) return 2;  // C-contiguous and aligned
    return write && !(a->flags & 0x400) ? 3 : 0;
}
"""


class Library:
    """A .cu file of the folder of kernels, built for one type. Raises BuildError, OSError."""

    def __init__(self, source, real):
        text = source.read_text(encoding="utf-8")
        self._signatures, self._real = signatures(text), real
        self._dll = ctypes.CDLL(str(_built(source, text, real)))
        probe = np.zeros(1, np.float32)
        self._dll.minipar_probe.argtypes = [ctypes.py_object]
        self._dll.minipar_probe.restype = ctypes.c_void_p
        if self._dll.minipar_probe(probe) != probe.ctypes.data:
            raise BuildError(f"NumPy {np.__version__} keeps its arrays in another way than "
                             f"the kernels' wrappers know")

    def function(self, kernel):
        """A callable with the parameters of `kernel`, which is one of this file."""
        name, real = kernel.name, self._real
        parameters = self._signatures[name]
        call = self._dll[f"minipar_{name}"]
        call.restype = ctypes.c_int
        call.argtypes = [ctypes.c_int] + [
            ctypes.py_object if p.pointer else SCALARS[p.plain(real)] for p in parameters]

        def run(*arguments):
            if problem := call(1, *arguments):
                number, reason = divmod(problem - 1, 4)
                raise misfit(name, parameters[number], arguments[number], reason, real)
        run.__name__ = name
        return run


def _built(source, text, real):
    wrapper, folder = _wrapper(text, real), source.parent
    program = (f'#define MINIPAR_HOST\n#define REAL {real}\n#define ACC {ACCUMULATE[real]}\n'
               f'#include "{source}"\n{wrapper}')

    def make(command, target):
        run_compiler([*command, f"-I{folder}", f"-I{NATIVE}", "-x", "c++", "-", "-o", target],
                     program, source.name)
    return build(f"{source.stem}-{real}.so", [text, wrapper, *(
        p.read_text(encoding="utf-8") for p in (*sorted(folder.glob("*.cuh")), NATIVE / "host.h",
                                                NATIVE / "half.h"))], FLAGS, make)


def _wrapper(text, real):
    """C++ that makes every kernel of `text` callable with arrays as objects."""
    out = [_HEAD.replace("HEAD", str(object.__basicsize__))]
    for name, parameters in signatures(text).items():
        declared, checks, passed = ["int blocks"], [], []
        for i, p in enumerate(parameters):
            if p.pointer:
                number = element(p.plain(real)).num
                declared.append(f"Array *{p.name}")
                checks.append(f"if (int r = misfit({p.name}, {number}, {int(not p.const)})) "
                              f"return {i * 4} + r;")
                passed.append(f"({'const ' * p.const}{p.type} *){p.name}->data")
            else:
                declared.append(f"{p.type} {p.name}")
                passed.append(p.name)
        out.append(f"EXPORT int minipar_{name}({', '.join(declared)}) {{\n    "
                   + "\n    ".join(checks)
                   + f"\n    gridDim.x = blocks;\n"
                     f"    for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++)\n"
                     f"        {name}({', '.join(passed)});\n"
                     f"    return 0;\n}}")
    return "\n".join(out) + "\n"
