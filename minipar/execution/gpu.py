"""Kernels on a GPU, and built for one where there is none.

`Library`: by CuPy's RawModule, that is NVRTC, which keeps what it has built; launched on the
current stream of the current GPU. `cubin`: machine code, for which neither a GPU nor its driver is
needed: by nvcc where it is on PATH, else by NVRTC, which comes with CuPy or as nvidia-cuda-nvrtc.
"""

import ctypes
import hashlib
import importlib.util
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..device import device_of, import_cupy
from .blocks import Limits
from .build import run_compiler
from .source import ACCUMULATE, BuildError, element, misfit, signatures

ARCHITECTURES = ("sm_80", "sm_90")
NVRTC = ("-default-device",)  # what is not said to be for the host, such as a lambda, is not
# 256 threads, of which a row takes as many as it fills. Twice as many blocks as a multiprocessor
# holds: enough for some to compute while others wait for memory, and not so many that what each
# block does before it begins (embedding.cu reads all indices) is most of what is done.
THREADS, BLOCKS = 256, 16


class Library:
    """A .cu file of the folder of kernels, built for one type and the GPUs that are there.

    Raises BuildError with the compiler's message, RuntimeError where there is no GPU.
    """

    def __init__(self, source, real):
        cupy = import_cupy()
        self._runtime, self._real = cupy.cuda.runtime, real
        properties = self._runtime.getDeviceProperties(self._runtime.getDevice())
        self._limits = Limits(THREADS, THREADS, BLOCKS * properties["multiProcessorCount"])
        self._signatures = signatures(source.read_text(encoding="utf-8"))
        # CuPy knows a build by its text and options, not by what the text includes: the option
        # SOURCES, which nobody reads, tells builds of other texts apart.
        texts = [p.read_bytes() for p in (source, *sorted(source.parent.glob("*.cuh")))]
        module = cupy.RawModule(
            code=f'#include "{source.name}"\n', name_expressions=tuple(self._signatures),
            options=(*NVRTC, "-std=c++17", f"-I{source.parent}", f"-DREAL={real}",
                     f"-DACC={ACCUMULATE[real]}", *(f"-I{p}" for p in _header_folders()),
                     f"-DSOURCES=0x{hashlib.sha256(b''.join(texts)).hexdigest()[:16]}"))
        try:
            self._functions = {name: module.get_function(name) for name in self._signatures}
        except cupy.cuda.compiler.CompileException as error:
            raise BuildError(f"{source.name} does not compile:\n{error}") from None

    def function(self, kernel):
        """A callable with the parameters of `kernel`, which is one of this file."""
        name, launch, limits = kernel.name, self._functions[kernel.name], self._limits
        parameters = self._signatures[name]
        types = [element(p.plain(self._real)) for p in parameters]
        names = [p.name for p in parameters]
        sizes = [None if n is None else names.index(n)
                 for n in (kernel.rows, kernel.width, kernel.elements)]

        def run(*arguments):
            here, passed = self._runtime.getDevice(), []
            for p, dtype, value in zip(parameters, types, arguments, strict=True):
                if p.pointer:
                    self._check(name, p, dtype, value, here)
                    passed.append(value)
                else:
                    passed.append(dtype.type(value))
            grid, block = limits.shape(*(None if i is None else int(arguments[i]) for i in sizes))
            launch((grid,), (block,), tuple(passed))
        run.__name__ = name
        return run

    def _check(self, name, parameter, dtype, array, here):
        """Raise TypeError or ValueError, naming kernel and parameter, for what does not fit."""
        if not hasattr(array, "__cuda_array_interface__"):
            if isinstance(array, np.ndarray):
                raise ValueError(f"{name}: {parameter.name} is on the CPU, not on cuda:{here}")
            raise misfit(name, parameter, array, 3, self._real)
        if array.dtype != dtype:
            raise misfit(name, parameter, array, 0, self._real)
        if not array.flags.c_contiguous:
            raise misfit(name, parameter, array, 1, self._real)
        if array.device.id != here:
            raise ValueError(f"{name}: {parameter.name} is on {device_of(array)}, and the current "
                             f"GPU is cuda:{here}: minipar.cuda.set_device({array.device.id})")


def cubin(source, arch, real="float"):
    """The machine code (bytes) of a .cu file for a GPU of architecture `arch`, such as "sm_90".

    Raises BuildError with the compiler's message, or one line if there is no CUDA compiler.
    """
    source = Path(source)
    options = ["-std=c++17", f"-I{source.parent}", f"-DREAL={real}", f"-DACC={ACCUMULATE[real]}"]
    if shutil.which("nvcc"):
        return _nvcc(source, arch, options)
    return _nvrtc(source, arch, options)


def _nvcc(source, arch, options):
    with tempfile.TemporaryDirectory(prefix="minipar-") as folder:
        target = Path(folder) / "kernels.cubin"
        run_compiler(["nvcc", f"-arch={arch}", *options, "-Werror", "all-warnings", "-cubin",
                      source, "-o", target], "", source.name)
        return target.read_bytes()


def _package_files(pattern):
    """Files of NVIDIA's packages, which all put theirs under site-packages/nvidia."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else ()
    return [path for folder in folders for path in sorted(Path(folder).rglob(pattern))]


@lru_cache(maxsize=1)
def _header_folders():
    """Where cuda_fp16.h and cuda_bf16.h are, which NVRTC does not bring: a list of one or none."""
    return [p.parent for p in _package_files("cuda_fp16.h")[:1]]


def nvrtc_library():
    """The path of NVRTC's library among the installed packages; None if there is none."""
    found = [p for p in _package_files("libnvrtc.so*") if "builtins" not in p.name]
    return found[0] if found else None


def _nvrtc(source, arch, options):
    path = nvrtc_library()
    if path is None:
        raise BuildError("there is no CUDA compiler: neither nvcc nor the package "
                         "nvidia-cuda-nvrtc")
    headers = [*_header_folders()]
    headers += [p.parent.parent for p in _package_files("crt/mma.h")[:1]]  # what <mma.h> needs
    if b"<mma.h>" in source.read_bytes() and len(headers) < 2:
        raise BuildError(f"there is no CUDA compiler for {source.name}: <mma.h> needs the package "
                         f"nvidia-cuda-nvcc")
    options = [*options, f"-arch={arch}", *NVRTC, *(f"-I{p}" for p in headers)]
    nvrtc = ctypes.CDLL(str(path))
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 0,
                             None, None)
    given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), given)
    try:
        if status:
            log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
            raise BuildError(f"{source.name} does not compile:\n{log.decode().rstrip(chr(0))}")
        return _text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(size_of, get, program):
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(max(1, size.value))
    get(program, buffer)
    return buffer.raw[:size.value]
