"""Finds, builds and launches the kernels of kernels/: one source, three executions.

    softmax = Kernel("softmax.cu", "softmax_forward", rows="rows", width="n")
    run = softmax.build(x.dtype)             # None where the NumPy reference has to do
    run(x, y, rows, n)

`compiled`: the file is built for this CPU by the system's C++ compiler, once per dtype, when a
kernel of it is first needed; the library is cached by content, compiler, flags and CPU, and called
through ctypes. The wrapper that is generated for each kernel takes NumPy arrays as objects, reads
their memory from NumPy's own structure and checks type, contiguity and writability there: 0.1 us
an array, where asking the array for its address takes ten times as long.
"""

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .context import current

NATIVE = Path(__file__).parent / "native"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno",
         "-fno-trapping-math", "-ffp-contract=off", "-fopenmp-simd", "-fno-plt",
         "-fno-loop-unroll-and-jam",
         "-fvisibility=hidden", "-shared", "-fPIC")

# What a kernel computes with, for each type that its numbers are stored in.
ACCUMULATE = {"float": "float", "double": "double"}
_REAL = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}
_SCALARS = {"int64": ctypes.c_longlong, "int32": ctypes.c_int, "int": ctypes.c_int,
            "uint32": ctypes.c_uint, "uint64": ctypes.c_ulonglong, "float": ctypes.c_float,
            "double": ctypes.c_double}
_ELEMENTS = {"int64": np.int64, "int32": np.int32, "int": np.int32, "uint8": np.uint8,
             "uint32": np.uint32, "uint64": np.uint64, "float": np.float32, "double": np.float64,
             "bool": np.bool_}


class Parameter(NamedTuple):
    """A parameter of a kernel, as its source declares it."""

    name: str
    type: str  # without const, * and __restrict__
    pointer: bool
    const: bool


class BuildError(RuntimeError):
    """A kernel cannot be built here. The message is one line, or the compiler's."""


def kernels_folder():
    """Where the .cu files are: the installed package, or beside this package in a checkout."""
    for folder in (Path(__file__).parent / "kernels", Path(__file__).parent.parent / "kernels"):
        if (folder / "common.cuh").is_file():
            return folder
    raise BuildError("the kernels are not installed: there is no kernels/common.cuh")


def signatures(text):
    """{kernel: [Parameter]} of all `__global__ void name(...)` in CUDA source text."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
    found = {}
    for name, parameters in re.findall(
            r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)", text):
        found[name] = [_parameter(p) for p in parameters.split(",") if p.strip()]
    return found


def _parameter(text):
    words = re.findall(r"\w+|\*", text)
    const, pointer = "const" in words, "*" in words
    words = [w for w in words if w not in ("const", "*", "__restrict__")]
    if len(words) != 2:
        raise BuildError(f"a kernel's parameter is `type name` or `type *name`, not {text!r}")
    return Parameter(words[1], words[0], pointer, const)


class Kernel:
    """One `__global__` function of a file in kernels/, built when it is first needed.

    rows, width: the parameters that tell how many blocks there is work for, and for how many
                 threads in each; elements: the one that tells for how many threads in all.
    """

    def __init__(self, file, name, *, rows=None, width=None, elements=None):
        self.file, self.name, self._built = file, name, {}
        self.rows, self.width, self.elements = rows, width, elements

    def build(self, dtype):
        """A callable with the kernel's parameters, for numbers of `dtype`; None for the reference.

        Arguments are NumPy arrays for pointers, numbers for the rest. The callable raises
        TypeError or ValueError, naming kernel and parameter, for an array that does not fit.
        """
        if current().kernels == "reference":
            return None
        try:
            return self._built[dtype]
        except KeyError:
            run = self._built[dtype] = self._find(np.dtype(dtype))
            return run

    def _find(self, dtype):
        if dtype not in _REAL:
            return None
        library = _library(self.file, _REAL[dtype])
        return None if library is None else library.function(self.name)


class _Library:
    """A .cu file, built for one type."""

    def __init__(self, path, text, real):
        self._dll = ctypes.CDLL(str(path))
        self._signatures, self._real, self._file = signatures(text), real, path
        probe = np.zeros(1, np.float32)
        self._dll.minipar_probe.argtypes = [ctypes.py_object]
        self._dll.minipar_probe.restype = ctypes.c_void_p
        if self._dll.minipar_probe(probe) != probe.ctypes.data:
            raise BuildError(f"NumPy {np.__version__} keeps its arrays in another way than "
                             f"the kernels' wrappers know")

    def function(self, name):
        parameters = self._signatures[name]
        call = self._dll[f"minipar_{name}"]
        call.restype = ctypes.c_int
        call.argtypes = [ctypes.c_int] + [
            ctypes.py_object if p.pointer else _SCALARS[_plain(p.type, self._real)]
            for p in parameters]

        def run(*arguments):
            if problem := call(1, *arguments):
                raise _misfit(name, parameters, problem, arguments, self._real)
        run.__name__ = name
        return run


def _plain(type_, real):
    """A type name with `real` and `acc` replaced by what they are in this build."""
    return {"real": real, "acc": ACCUMULATE[real]}.get(type_, type_)


def _misfit(name, parameters, problem, arguments, real):
    """The exception for what a wrapper has found: argument number and reason."""
    number, reason = divmod(problem - 1, 4)
    p, array = parameters[number], arguments[number]
    if reason == 3:
        return TypeError(f"{name}: {p.name} is a {type(array).__name__}, not an ndarray")
    if reason == 0:
        expected = np.dtype(_ELEMENTS[_plain(p.type, real)])
        return TypeError(f"{name}: {p.name} is of {array.dtype}, not {expected}")
    what = ("is not contiguous", "is read-only")[reason - 1]
    return ValueError(f"{name}: {p.name} of shape {array.shape} {what}")


# Building

_WRAPPER_HEAD = r"""
// NumPy's array object as its C interface lays it out (ndarraytypes.h), after Python's own head.
struct Array { char head[HEAD - sizeof(void *)]; void *type; char *data; int nd; void *dims, *strides, *base;
               struct { char head[HEAD]; void *type; char kind, code, order, flags; int number; } *descr;
               int flags; };
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


def _wrapper(text, real):
    """C++ that makes every kernel of `text` callable with arrays as objects."""
    out = [_WRAPPER_HEAD.replace("HEAD", str(object.__basicsize__))]
    for name, parameters in signatures(text).items():
        declared, checks, passed = ["int blocks"], [], []
        for i, p in enumerate(parameters):
            plain = _plain(p.type, real)
            if p.pointer:
                number = np.dtype(_ELEMENTS[plain]).num
                declared.append(f"Array *{p.name}")
                checks.append(f"if (int r = misfit({p.name}, {number}, {int(not p.const)})) "
                              f"return {i * 4} + r;")
                passed.append(f"({'const ' * p.const}{p.type} *){p.name}->data")
            else:
                declared.append(f"{p.type} {p.name}")
                passed.append(p.name)
        out.append(f"EXPORT int minipar_{name}({', '.join(declared)}) {{\n    "
                   + "\n    ".join(checks)
                   + f"\n    gridDim.x = blocks;\n    for (int b = 0; b < blocks; b++) {{\n"
                     f"        blockIdx.x = b;\n        {name}({', '.join(passed)});\n    }}\n"
                     f"    return 0;\n}}")
    return "\n".join(out) + "\n"


_libraries, _told = {}, set()


def _library(file, real):
    """The built file, from memory, from the cache, or from the compiler; None if it cannot be."""
    if (file, real) not in _libraries:
        try:
            _libraries[file, real] = _open(file, real)
        except (BuildError, OSError) as error:
            _libraries[file, real] = None
            _tell(f"minipar: kernels run as NumPy reference: {error}")
    return _libraries[file, real]


def _tell(line):
    """Say something once, by the first rank of a launched job."""
    ranks = {os.environ.get(name, "0") for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK",
                                                    "PMIX_RANK", "MINIPAR_RANK")}
    if line not in _told and ranks == {"0"}:
        print(line, file=sys.stderr)
    _told.add(line)


def compiler():
    """The command of the system's C++ compiler: $CXX, or the first of c++, g++, clang++; None."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name.split()[0]):
            return name.split()
    return None


def _open(file, real):
    folder = kernels_folder()
    source = folder / file
    text = source.read_text(encoding="utf-8")
    command = compiler()
    if command is None:
        raise BuildError("there is no C++ compiler (c++, g++ or clang++)")
    wrapper = _wrapper(text, real)
    parts = [text, wrapper, *(p.read_text(encoding="utf-8") for p in
                              (*sorted(folder.glob("*.cuh")), *sorted(NATIVE.glob("*.h")))),
             " ".join((*command, *FLAGS)), _identity(command[0]), _cpu()]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    name = f"{source.stem}-{real}-{key}.so"
    cached = cache_folder() / name
    if not cached.exists():
        cached = _compile(command, source, wrapper, real, cached)
    return _Library(cached, text, real)


def cache_folder():
    """Where built kernels are kept: $MINIPAR_CACHE, or `minipar` in the user's cache folder."""
    if os.environ.get("MINIPAR_CACHE"):
        return Path(os.environ["MINIPAR_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "minipar"


def _compile(command, source, wrapper, real, cached):
    """Build into the cache; into a folder of this process, if that cannot be written."""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with _lock(cached.with_suffix(".lock")):
            if not cached.exists():
                _run_compiler(command, source, wrapper, real, cached)
        return cached
    except OSError as error:
        private = Path(tempfile.mkdtemp(prefix="minipar-")) / cached.name
        _tell(f"minipar: kernels are built anew by each process: {cached.parent} cannot be "
              f"written ({error.strerror})")
        _run_compiler(command, source, wrapper, real, private)
        return private


@contextmanager
def _lock(path):
    """One builder at a time: the other ranks that start at once wait, and find it done."""
    with open(path, "w") as file:
        try:
            import fcntl
        except ImportError:  # Windows: each builds, and the last rename stays
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the process ends, however it does
        yield


def _run_compiler(command, source, wrapper, real, target):
    draft = target.with_name(f"{target.stem}-{os.getpid()}.new")
    program = (f'#define MINIPAR_HOST\n#define REAL {real}\n#define ACC {ACCUMULATE[real]}\n'
               f'#include "{source}"\n{wrapper}')
    try:
        done = subprocess.run(
            [*command, *FLAGS, f"-I{source.parent}", f"-I{NATIVE}", "-x", "c++", "-", "-o",
             str(draft)], input=program, capture_output=True, text=True)
        if done.returncode:
            raise BuildError(f"{source.name} does not compile:\n{done.stderr}")
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _identity(compiler):
    """What changes when another version of the compiler is installed, without running it."""
    path = os.path.realpath(shutil.which(compiler))
    about = os.stat(path)
    return f"{path} {about.st_size} {about.st_mtime_ns}"


def _cpu():
    """What -march=native depends on."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return "".join(sorted({line for line in file if line.startswith(
                ("model name", "flags", "Features", "CPU part"))}))
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
