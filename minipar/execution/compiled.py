"""Kernels compiled for this CPU: one thread a block, so every loop is one the compiler vectorises.

A large launch is cut into some blocks for each thread that it may take (threads.py), and OpenMP
runs them side by side; a small one is one block. How many there are changes no bit of a result.

The wrapper that is generated for each kernel takes NumPy arrays as objects, reads their memory
from NumPy's own structure and checks type, contiguity and writability there: 0.1 us an array,
where asking the array for its address takes ten times as long.
"""

import ctypes
import functools
import os

import numpy as np

from .build import NATIVE, build, compiler, run_compiler
from .source import ACCUMULATE, SCALARS, BuildError, element, misfit, signatures
from .threads import get_num_threads

FLAGS = ("-std=c++17", "-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno",
         "-fno-trapping-math", "-ffp-contract=off", "-fopenmp-simd", "-fno-plt",
         "-fno-loop-unroll-and-jam", "-fvisibility=hidden", "-shared", "-fPIC")

GRAIN = 1 << 15  # elements of its largest array for which a launch gets a block
BLOCKS = 4       # at most, for each thread: who is late, as its core is busy, takes fewer

_HEAD = r"""
#ifdef _OPENMP
#include <omp.h>
#endif
#include <cstddef>
// NumPy's array object as its C interface lays it out (ndarraytypes.h), after Python's own head.
struct Descriptor { char head[HEAD]; void *type; char kind, code, order, flags; int number; };
struct Array { char head[HEAD - sizeof(void *)]; void *type; char *data; int nd;
               ptrdiff_t *dims; void *strides, *base; Descriptor *descr; int flags; };
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
static inline ptrdiff_t elements(Array *a) {
    ptrdiff_t n = 1;
    for (int i = 0; i < a->nd; i++) n *= a->dims[i];
    return n;
}
static inline int blocks_for(ptrdiff_t most, int threads) {
    if (threads == 1 || most < 2 * GRAIN) return 1;
    return int(most / GRAIN < BLOCKS * threads ? most / GRAIN : BLOCKS * threads);
}
"""

_CALL = """
static __attribute__((noinline)) void block_of_{name}(int block_, int blocks_{taken}) {{
    gridDim.x = blocks_, blockIdx.x = block_;
    {name}({names});
}}
EXPORT int minipar_{name}({given}) {{
    {checks}
    int blocks_ = blocks_for(most_, threads_);
    if (blocks_ == 1) {{
        block_of_{name}(0, 1{passed});
        return 0;
    }}
    if (threads_ > blocks_) threads_ = blocks_;
    #pragma omp parallel for num_threads(threads_) schedule(dynamic, 1)
    for (int i_ = 0; i_ < blocks_; i_++) block_of_{name}(i_, blocks_{passed});
    return 0;
}}"""


class Library:
    """A .cu file of the folder of kernels, built for one type. Raises BuildError, OSError."""

    def __init__(self, source, real):
        text = source.read_text(encoding="utf-8")
        self._signatures, self._real = signatures(text), real
        self._dll = _load(_built(source, text, real))
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
        call.argtypes = [ctypes.c_int, ctypes.c_ssize_t] + [
            ctypes.py_object if p.pointer else SCALARS[p.plain(real)] for p in parameters]

        # A kernel that goes by strides is given the first rows of its arrays.
        names, sized = [p.name for p in parameters], ()
        if "strides" in names and kernel.rows and kernel.width:
            sized = names.index(kernel.rows), names.index(kernel.width)

        def run(*arguments):
            most = arguments[sized[0]] * arguments[sized[1]] if sized else 0
            if problem := call(get_num_threads(), most, *arguments):
                number, reason = divmod(problem - 1, 4)
                raise misfit(name, parameters[number], arguments[number], reason, real)
        run.__name__ = name
        return run


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
        p.read_text(encoding="utf-8") for p in (*sorted(folder.glob("*.cuh")), NATIVE / "host.h",
                                                NATIVE / "half.h"))],
                 (*FLAGS, *_openmp(" ".join(compiler() or ()))), make)


def _wrapper(text, real):
    """C++ that makes every kernel of `text` callable with arrays as objects."""
    out = [_HEAD.replace("HEAD", str(object.__basicsize__)).replace("GRAIN", str(GRAIN)).replace(
        "BLOCKS", str(BLOCKS))]
    for name, parameters in signatures(text).items():
        given, taken, checks, passed = ["int threads_", "ptrdiff_t most_"], [], [], []
        for i, p in enumerate(parameters):
            if p.pointer:
                number = element(p.plain(real)).num
                given.append(f"Array *{p.name}")
                checks.append(f"if (int r = misfit({p.name}, {number}, {int(not p.const)})) "
                              f"return {i * 4} + r;\n    "
                              f"if (elements({p.name}) > most_) most_ = elements({p.name});")
                taken.append(f"{'const ' * p.const}{p.type} *{p.name}")
                passed.append(f"({'const ' * p.const}{p.type} *){p.name}->data")
            else:
                given.append(f"{p.type} {p.name}")
                taken.append(given[-1])
                passed.append(p.name)
        out.append(_CALL.format(
            name=name, given=", ".join(given), checks="\n    ".join(checks),
            taken="".join(f", {t}" for t in taken), passed="".join(f", {p}" for p in passed),
            names=", ".join(p.name for p in parameters)))
    return "\n".join(out) + "\n"
