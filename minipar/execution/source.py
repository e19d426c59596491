"""What a kernel's source says about itself: its folder, its parameters, how it can be run.

Read with regular expressions, from text that is never more than CUDA C++.
"""

import ctypes
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import dtypes

EXECUTIONS = ("gpu", "compiled", "emulated")

# What a kernel computes with, for each type that its numbers are stored in.
ACCUMULATE = {"float": "float", "double": "double", "half": "float", "bfloat16": "float"}
REAL = {"float16": "half", "bfloat16": "bfloat16", "float32": "float", "float64": "double"}

# Types of parameters: of numbers for ctypes, of an array's elements for NumPy.
SCALARS = {"int64": ctypes.c_longlong, "int32": ctypes.c_int, "int": ctypes.c_int,
           "uint32": ctypes.c_uint, "uint64": ctypes.c_ulonglong, "float": ctypes.c_float,
           "double": ctypes.c_double, "bool": ctypes.c_bool}
ELEMENTS = {"int64": np.int64, "int32": np.int32, "int": np.int32, "uint8": np.uint8,
            "uint32": np.uint32, "uint64": np.uint64, "int16": np.int16, "uint16": np.uint16,
            "int8": np.int8, "float": np.float32, "double": np.float64, "bool": np.bool_,
            "half": np.float16}

# C++'s own words for the types above.
_WORDS = {"unsigned int": "uint32", "unsigned": "uint32", "long": "int64",
          "long long": "int64", "unsigned long": "uint64", "unsigned long long": "uint64",
          "size_t": "uint64", "unsigned char": "uint8",
          "char": "int8", "signed char": "int8", "short": "int16", "unsigned short": "uint16",
          **{f"{u}int{n}_t": f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)}}


class BuildError(RuntimeError):
    """A kernel cannot be built here. The message is one line, or the compiler's."""


class EmulationError(RuntimeError):
    """A kernel does what a GPU does not forgive. The message names kernel, threads and lines."""


class Parameter(NamedTuple):
    """A parameter of a kernel, as its source declares it."""

    name: str
    type: str  # without const, * and __restrict__
    pointer: bool
    const: bool

    def plain(self, real):
        """The type, with `real` and `acc` replaced by what they are in a build for `real`."""
        return {"real": real, "acc": ACCUMULATE.get(real)}.get(self.type, self.type)


def element(name):
    """The NumPy dtype of an array's elements that are `name` in a kernel. KeyError for another."""
    return dtypes.bfloat16.storage if name == "bfloat16" else np.dtype(ELEMENTS[name])


def kernels_folder():
    """Where the .cu files are: the installed package, or beside this package in a checkout."""
    package = Path(__file__).parent.parent
    for folder in (package / "kernels", package.parent / "kernels"):
        if (folder / "common.cuh").is_file():
            return folder
    raise BuildError("the kernels are not installed: there is no kernels/common.cuh")


def _without_comments(text):
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)


def signatures(text):
    """{kernel: [Parameter]} of all `__global__ void name(...)` in CUDA source text.

    Templates are left out: what is launched is an instance of one.
    """
    found = {}
    for template, name, parameters in re.findall(
            r"(template\s*<[^;{}()]*>\s*)?(?:static\s+|inline\s+)*__global__\s+"
            r"(?:__launch_bounds__\([^)]*\)\s*)?void\s+(?:__launch_bounds__\([^)]*\)\s*)?"
            r"(\w+)\s*\(([^)]*)\)", _without_comments(text)):
        if not template:
            found[name] = [_parameter(p) for p in parameters.split(",")
                           if p.strip() not in ("", "void")]
    return found


def _parameter(text):
    words = re.findall(r"\w+|\*|\[", text)
    const, pointer = "const" in words, words.count("*") + words.count("[")
    words = [w for w in words if w not in (
        "const", "volatile", "*", "[", "__restrict__", "__restrict")]
    type_, name = " ".join(words[:-1]), words[-1]
    type_ = _WORDS.get(type_, type_)
    if not type_ or " " in type_ or pointer > 1:
        raise BuildError(f"a kernel's parameter is `type name` or `type *name`, not {text!r}")
    return Parameter(name, type_, bool(pointer), const)


def executions(text):
    """How the kernels of a file can be run: what its line `// executions: ...` names, or all."""
    line = re.search(r"^//\s*executions:(.*)$", text, re.M)
    if line is None:
        return EXECUTIONS
    names = tuple(re.findall(r"\w+", line[1]))
    if not names or set(names) - set(EXECUTIONS):
        raise BuildError(f"executions are {', '.join(EXECUTIONS)}, not{line[1]}")
    return names


def reads_padding(text):
    """Whether a file has a line `// uninitialised: why`: its kernels read shared memory that nobody
    has written, and drop what they compute from it. (The emulator fills it with NaN.)"""
    return re.search(r"^//\s*uninitialised:", text, re.M) is not None


def misfit(name, parameter, array, reason, real):
    """The exception for an array that a kernel cannot take.

    reason: 0 another type, 1 not contiguous, 2 read-only where the kernel writes, 3 no array.
    """
    if reason == 3:
        return TypeError(f"{name}: {parameter.name} is a {type(array).__name__}, not an ndarray")
    if reason == 0:
        expected = element(parameter.plain(real))
        return TypeError(f"{name}: {parameter.name} is of {array.dtype}, not {expected}")
    what = ("is not contiguous", "is read-only")[reason - 1]
    return ValueError(f"{name}: {parameter.name} of shape {array.shape} {what}")
