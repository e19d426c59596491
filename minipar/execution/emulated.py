"""Kernels emulated: real block sizes, every CUDA thread run, errors of a GPU's kind found.

A file is built with -fsanitize=thread, whose calls before each access go to the emulator in
native/ instead of the compiler's own runtime. A launch runs twice, threads and blocks in ascending
and in descending order, on copies of its arrays; the first one's results are copied back.
"""

import ctypes
import itertools
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .blocks import Limits
from .build import NATIVE, build, run_compiler
from .findings import CALLERS, Describer, Finding, Lines
from .memory import Memory
from .rewrite import prepare
from .source import (ACCUMULATE, SCALARS, BuildError, EmulationError, element, kernels_folder,
                     misfit, reads_padding, signatures)

# -Og: the kernel's accesses, barriers and lines as they are written.
FLAGS = ("-std=c++17", "-Og", "-gdwarf-4", "-march=native", "-ffp-contract=off", "-fno-math-errno",
         "-fno-exceptions", "-fvisibility=hidden", "-fPIC", "-U_FORTIFY_SOURCE", "-w")

MAX_THREADS = 1024
# Of a launch by an operation: loops over rows and elements take several steps.
LIMITS = Limits(threads=128, width=256, blocks=6)


class Report(NamedTuple):
    """What one launch did, in the order that did most of it."""

    barriers: int         # that a thread of a block passed, at most
    shared: int           # bytes of __shared__ variables of a block, at most
    dynamic: int          # bytes of `extern __shared__`
    atomics: int          # operations, of all threads
    warp_operations: int  # the same
    accesses: int         # to arrays and shared memory, of all threads
    differs: tuple        # arrays whose result depends on the order of threads or blocks


class _Counts(ctypes.Structure):
    _fields_ = [(n, ctypes.c_uint64) for n in (
        "accesses", "atomics", "warp_operations", "barriers", "shared", "dynamic")]


class Library:
    """A .cu file built for the emulator. Raises BuildError if it does not compile, OSError."""

    def __init__(self, source, real="float"):
        source = Path(source)
        self._real, text = real, source.read_text(encoding="utf-8")
        self.signatures, self._padding = signatures(text), reads_padding(text)
        path = _built(source, real, self.signatures)
        # PyDLL keeps Python's lock: ranks that are threads launch one at a time.
        self._dll, self._lines = ctypes.PyDLL(str(path)), Lines(path)
        self._dll.minipar_findings.restype = ctypes.POINTER(Finding)
        self._dll.minipar_counts.restype = ctypes.POINTER(_Counts)
        self._dll.minipar_array.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t,
                                            ctypes.c_uint, ctypes.c_int]
        self._dll.minipar_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
                                          ctypes.c_size_t, ctypes.c_int, ctypes.c_int]

    def function(self, kernel):
        """A callable with the parameters of `kernel`, which is one of this file."""
        names = [p.name for p in self.signatures[kernel.name]]

        def run(*arguments):
            values = dict(zip(names, arguments, strict=True))
            self.launch(kernel.name, arguments, *LIMITS.shape(
                *(values.get(p) for p in (kernel.rows, kernel.width, kernel.elements))))
        run.__name__ = kernel.name
        return run

    def launch(self, name, arguments, grid, block, dynamic=0):
        """Run a kernel and return its Report.

        arguments: NumPy arrays for pointers, which it writes to, and numbers. A kernel with a
            parameter `strides` may go through all memory that its arrays are views of.
        grid, block: an int, or up to three; dynamic: bytes of `extern __shared__` memory.
        Raises TypeError or ValueError for what does not fit, EmulationError for what a GPU would
        do wrong; arrays are then as they were.
        """
        parameters = self.signatures[name]
        if len(arguments) != len(parameters):
            raise TypeError(f"{name} takes {len(parameters)} arguments, not {len(arguments)}")
        for p, value in zip(parameters, arguments):
            if p.pointer:
                _check_array(name, p, value, self._real)
        grid, block = _three(grid), _three(block)
        if np.prod(block) > MAX_THREADS:
            raise ValueError(f"{name}: a block of {' x '.join(map(str, block))} = "
                             f"{np.prod(block)} threads > {MAX_THREADS}")
        first, second = (Memory(parameters, arguments) for _ in range(2))
        report = self._run(name, first, grid, block, dynamic, reverse=False)
        again = self._run(name, second, grid, block, dynamic, reverse=True)
        differs = tuple(p.name for p, a, b in zip(parameters, first.values, second.values)
                        if p.pointer and a.tobytes() != b.tobytes())
        if differs and not report["atomics"] and not again["atomics"]:
            raise EmulationError(f"kernel {name}, grid {_times(grid)}, block {_times(block)}: "
                                 f"{', '.join(differs)} depends on the order of threads or blocks")
        first.copy_back()
        return Report(**{k: max(v, again[k]) for k, v in report.items()}, differs=differs)

    def _run(self, name, memory, grid, block, dynamic, reverse):
        pointers, keep = [], []
        for p, value in zip(self.signatures[name], memory.values):
            cell = (ctypes.c_void_p(value.ctypes.data) if p.pointer
                    else SCALARS[p.plain(self._real)](value))
            keep.append(cell)
            pointers.append(ctypes.addressof(cell))
        for region in memory.regions:
            self._dll.minipar_array(*region)
        table = (ctypes.c_void_p * max(1, len(pointers)))(*pointers)
        size = (ctypes.c_uint * 6)(*grid, *block)
        call = ctypes.cast(self._dll[f"minipar_kernel_{name}"], ctypes.c_void_p)
        n = self._dll.minipar_run(call, table, size, dynamic, reverse, self._padding)
        if n < 0:
            raise MemoryError(f"no memory for the stacks of {np.prod(block)} threads")
        if n:
            describe = Describer(self._lines, grid, block, self._state)
            order = "descending" if reverse else "ascending"
            found = "\n".join(map(describe, self._dll.minipar_findings()[:n]))
            raise EmulationError(f"kernel {name}, grid {_times(grid)}, block {_times(block)}, "
                                 f"threads in {order} order:\n{found}")
        counts = self._dll.minipar_counts()[0]
        return {field: getattr(counts, field) for field, _ in _Counts._fields_}

    def _state(self, thread):
        kind, mask, places = ctypes.c_int(), ctypes.c_uint(), (ctypes.c_uint32 * (1 + CALLERS))()
        status = self._dll.minipar_state(thread, *map(ctypes.byref, (kind, mask, places)))
        return status, kind.value, mask.value, tuple(places)


def _three(size):
    size = (size,) if np.ndim(size) == 0 else tuple(size)
    return tuple(int(n) for n in (size + (1, 1, 1))[:3])


def _times(size):
    return " x ".join(map(str, size[:max(1, 3 - (size[2] == 1) - (size[1] == size[2] == 1))]))


def _check_array(name, parameter, array, real):
    if type(array) is not np.ndarray:
        raise misfit(name, parameter, array, 3, real)
    if array.dtype != element(parameter.plain(real)):
        raise misfit(name, parameter, array, 0, real)
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise misfit(name, parameter, array, 1, real)
    if not (parameter.const or array.flags.writeable):
        raise misfit(name, parameter, array, 2, real)


# Building

def _built(source, real, names):
    files = prepare(source, [kernels_folder()])
    main, kernels = next(iter(files)), "".join(f"KERNEL({name})\n" for name in names)
    program = ("#define MINIPAR_HOST\n#define MINIPAR_EMULATED\n"
               f"#define REAL {real}\n#define ACC {ACCUMULATE[real]}\n"
               f'#include "emulated.h"\n#include "{main}"\n{kernels}')
    emulator = _emulator()

    def make(command, target):
        with tempfile.TemporaryDirectory(prefix="minipar-") as folder:
            for name, text in {**files, "launch.cpp": program}.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            compiled = Path(folder) / "kernels.o"
            try:
                run_compiler([*command, "-fsanitize=thread", "-I", folder, "-I", NATIVE, "-c",
                              Path(folder) / "launch.cpp", "-o", compiled], "", main)
            except BuildError as error:  # name the user's file, not the copy
                raise BuildError(str(error).replace(f"{folder}/", "")) from None
            run_compiler([command[0], "-shared", compiled, emulator, "-o", target], "", main)
    return build(f"{Path(main).stem}-{real}-emulated.so",
                 [program, *itertools.chain(*files.items()), str(emulator.name),
                  *((NATIVE / name).read_text(encoding="utf-8")
                    for name in ("emulated.h", "half.h"))], FLAGS, make)


def _emulator():
    """The emulator's own object file: the same for all kernels."""
    if sys.platform != "linux":
        raise BuildError("kernels are emulated on Linux only")
    sources = [NATIVE / name for name in ("emulator.cpp", "emulator.h", "memory.h")]

    def make(command, target):
        run_compiler([*command, "-O2", "-c", sources[0], "-o", target], "", sources[0].name)
    return build("emulator.o", [p.read_text(encoding="utf-8") for p in sources], FLAGS, make)
