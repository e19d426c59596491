"""Kernels compiled for this CPU: one thread a block, so every loop is one the compiler vectorises.

A large launch is cut into some blocks for each thread that it may take (threads.py), and OpenMP
runs them side by side; a small one is one block. How many there are changes no bit of a result.

The wrapper that is generated for each kernel is a builtin function of Python (native/call.h): it
takes NumPy arrays as objects, reads their memory from NumPy's own structure and checks type,
contiguity and writability there. A launch costs 0.1 us, a tenth of what ctypes takes to convert
the arguments.
"""

import ctypes
import functools
import os

import numpy as np

from .build import NATIVE, build, compiler, run_compiler
from .source import ACCUMULATE, BuildError, element, misfit, signatures
from .threads import get_num_threads

FLAGS = ("-std=c++17", "-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno",
         "-fno-trapping-math", "-ffp-contract=off", "-fopenmp-simd", "-fno-plt",
         "-fno-loop-unroll-and-jam", "-fvisibility=hidden", "-shared", "-fPIC")

GRAIN = 1 << 15  # elements of its largest array for which a launch gets a block
BLOCKS = 4       # at most, for each thread: who is late, as its core is busy, takes fewer

# Objects of Python's interface that call.h wants, in the order of its `struct Python`.
_PYTHON = ("PyLong_AsLongLong", "PyLong_AsUnsignedLongLongMask", "PyFloat_AsDouble",
           "PyObject_IsTrue", "PyErr_Occurred", "PyObject_CallFunction", "Py_IncRef", "Py_DecRef",
           "PyEval_SaveThread", "PyEval_RestoreThread")

_CALL = """
static __attribute__((noinline)) void block_of_{name}(int block_, int blocks_{taken}) {{
    gridDim.x = blocks_, blockIdx.x = block_;
    {name}({names});
}}
EXPORT void *minipar_{name}(void *refuse_, void *const *given_, ptrdiff_t count_) {{
    if (count_ != {count} && count_ != {count} + 1)
        return python.call(refuse_, "iiO", int(count_), 0, python.none);
    ptrdiff_t most_ = count_ > {count} ? number<ptrdiff_t>(given_[{count}]) : 0;
    {given}
    if (python.error()) return 0;
    int threads_ = threads_for(most_), blocks_ = blocks_for(most_, threads_);
    if (!threads_) return 0;
    if (Aside aside_(most_); blocks_ == 1) {{
        block_of_{name}(0, 1{passed});
    }} else {{
        if (threads_ > blocks_) threads_ = blocks_;
        #pragma omp parallel for num_threads(threads_) schedule(dynamic, 1)
        for (int i_ = 0; i_ < blocks_; i_++) block_of_{name}(i_, blocks_{passed});
    }}
    return nothing();
}}"""


class Library:
    """A .cu file of the folder of kernels, built for one type. Raises BuildError, OSError."""

    def __init__(self, source, real):
        text = source.read_text(encoding="utf-8")
        self._signatures, self._real = signatures(text), real
        self._dll = _load(_built(source, text, real))
        probe = np.zeros(1, np.float32)
        table = (ctypes.c_void_p * (len(_PYTHON) + 2))(
            *(ctypes.cast(ctypes.pythonapi[name], ctypes.c_void_p).value for name in _PYTHON),
            id(None), id(get_num_threads))
        self._dll.minipar_begin.argtypes = [ctypes.py_object, ctypes.c_void_p]
        self._dll.minipar_begin.restype = ctypes.c_void_p
        if self._dll.minipar_begin(probe, table) != probe.ctypes.data:
            raise BuildError(f"NumPy {np.__version__} keeps its arrays in another way than "
                             f"the kernels' wrappers know")

    def function(self, kernel):
        """A callable with the parameters of `kernel`, which is one of this file."""
        name, real = kernel.name, self._real
        parameters = self._signatures[name]

        def refuse(number, reason, argument):
            if not reason:
                raise TypeError(f"{name}: {number} arguments for {len(parameters)} parameters")
            raise misfit(name, parameters[number], argument, reason - 1, real)
        call = _builtin(name, self._dll[f"minipar_{name}"], refuse)

        # A kernel that goes by strides is given the first rows of its arrays.
        names = [p.name for p in parameters]
        if "strides" in names and kernel.rows and kernel.width:
            rows, width = names.index(kernel.rows), names.index(kernel.width)
            return lambda *arguments: call(*arguments, arguments[rows] * arguments[width])
        return call


class _Method(ctypes.Structure):
    """PyMethodDef: what a builtin function is made of."""

    _fields_ = [("name", ctypes.c_char_p), ("call", ctypes.c_void_p), ("flags", ctypes.c_int),
                ("doc", ctypes.c_char_p)]


_FASTCALL = 0x80  # call(self, arguments, their number)
_methods = []  # Python's functions point to them


def _builtin(name, function, self):
    """A C function of objects as a function of Python."""
    method = _Method(name.encode(), ctypes.cast(function, ctypes.c_void_p), _FASTCALL, None)
    _methods.append(method)
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.argtypes, make.restype = [ctypes.c_void_p] + [ctypes.py_object] * 2, ctypes.py_object
    return make(ctypes.addressof(method), self, None)


def _load(path):
    """The library. OpenMP's runtime reads its settings when it is loaded with the first one."""
    told = "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ
    if not told:  # threads without work sleep at once: to wake one takes 5 us, and its core is
        os.environ["GOMP_SPINCOUNT"] = "0"  # wanted by BLAS, or by who has work
    try:
        return ctypes.CDLL(str(path))
    finally:
        if not told:
            os.environ.pop("GOMP_SPINCOUNT", None)


@functools.cache
def _openmp(compiler):
    """The flags for threads: those of OpenMP if this compiler has it, else none."""
    flags = "-fopenmp", "-shared", "-fPIC"

    def make(command, target):
        library = target.with_suffix(".so")
        try:
            run_compiler([*command, "-x", "c++", "-", "-o", library],
                         "#include <omp.h>\nint f() { return omp_get_max_threads(); }", "OpenMP")
            target.write_text(flags[0], encoding="utf-8")
        except BuildError:
            target.write_text("", encoding="utf-8")
        finally:
            library.unlink(missing_ok=True)
    return build("openmp.txt", [], flags, make).read_text(encoding="utf-8").split()


def _built(source, text, real):
    wrapper, folder = _wrapper(text, real), source.parent
    program = (f'#define MINIPAR_HOST\n#define REAL {real}\n#define ACC {ACCUMULATE[real]}\n'
               f'#include "{source}"\n{wrapper}')

    def make(command, target):
        run_compiler([*command, f"-I{folder}", f"-I{NATIVE}", "-x", "c++", "-", "-o", target],
                     program, source.name)
    return build(f"{source.stem}-{real}.so", [text, wrapper, *(
        p.read_text(encoding="utf-8") for p in (*sorted(folder.glob("*.cuh")), *(
            NATIVE / name for name in ("host.h", "half.h", "call.h"))))],
                 (*FLAGS, *_openmp(" ".join(compiler() or ()))), make)


def _wrapper(text, real):
    """C++ that makes every kernel of `text` callable with arrays as objects."""
    out = [f"#define HEAD {object.__basicsize__}\n#define GRAIN {GRAIN}\n#define BLOCKS {BLOCKS}\n"
           f'#include "call.h"']
    for name, parameters in signatures(text).items():
        given, taken, passed = [], [], []
        for i, p in enumerate(parameters):
            if p.pointer:
                number = element(p.plain(real)).num
                given.append(f"Array *{p.name} = (Array *)given_[{i}];")
                given.append(f"if (int r = misfit({p.name}, {number}, {int(not p.const)})) "
                             f'return python.call(refuse_, "iiO", {i}, r, {p.name});')
                given.append(f"if (elements({p.name}) > most_) most_ = elements({p.name});")
                taken.append(f"{'const ' * p.const}{p.type} *{p.name}")
                passed.append(f"({'const ' * p.const}{p.type} *){p.name}->data")
            else:
                given.append(f"{p.type} {p.name} = number<{p.type}>(given_[{i}]);")
                taken.append(f"{p.type} {p.name}")
                passed.append(p.name)
        out.append(_CALL.format(
            name=name, count=len(parameters), given="\n    ".join(given),
            taken="".join(f", {t}" for t in taken), passed="".join(f", {p}" for p in passed),
            names=", ".join(p.name for p in parameters)))
    return "\n".join(out) + "\n"
