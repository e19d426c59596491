"""Builds kernels for a GPU. Neither a GPU nor its driver is needed for that.

By nvcc where it is on PATH, else by NVRTC, which comes with CuPy or as nvidia-cuda-nvrtc.
"""

import ctypes
import importlib.util
import shutil
import tempfile
from pathlib import Path

from .build import run_compiler
from .source import ACCUMULATE, BuildError

ARCHITECTURES = ("sm_80", "sm_90")


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


def nvrtc_library():
    """The path of NVRTC's library among the installed packages; None if there is none."""
    found = [p for p in _package_files("libnvrtc.so*") if "builtins" not in p.name]
    return found[0] if found else None


def _nvrtc(source, arch, options):
    path = nvrtc_library()
    if path is None:
        raise BuildError("there is no CUDA compiler: neither nvcc nor the package "
                         "nvidia-cuda-nvrtc")
    headers = [p.parent for p in _package_files("cuda_fp16.h")[:1]]
    headers += [p.parent.parent for p in _package_files("crt/mma.h")[:1]]  # what <mma.h> needs
    if b"<mma.h>" in source.read_bytes() and len(headers) < 2:
        raise BuildError(f"there is no CUDA compiler for {source.name}: <mma.h> needs the package "
                         f"nvidia-cuda-nvcc")
    # Without -default-device lambdas with `auto` parameters are taken for functions of the host.
    options = [*options, f"-arch={arch}", "-default-device", *(f"-I{p}" for p in headers)]
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
