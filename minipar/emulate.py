"""`minipar emulate FILE.cu KERNEL`: run a CUDA kernel of one's own, without a GPU, and be told.

Every thread is run, in ascending and in descending order. Reported are races, divergent barriers
and shuffles, reads of shared memory that nobody has written, accesses out of bounds.
"""

import argparse
import re
import signal
import sys

import numpy as np

from .execution import BuildError, EmulationError, compiler, signatures
from .execution.emulated import MAX_THREADS, Library
from .execution.source import ELEMENTS, SCALARS

_EXAMPLE = """arguments of the kernel:
  n=1000  a=0.5                   numbers
  x=zeros(1000)  x=ones(8, 125)   arrays of the type that the kernel declares; also arange
                                  (0, 1, 2, ...) and random (normal; integers 0 to 99)
  x=@file.npy                     an array from a file

example: minipar emulate saxpy.cu saxpy --grid 4 --block 256 \\
             --arg n=1000 a=2 'x=arange(1000)' 'y=zeros(1000)'"""


class UsageError(ValueError):
    """Something was asked for that cannot be: one line, exit status 2."""


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UsageError(message)


def _size(text):
    """"4" or "4x2" or "4,2,1" -> a tuple of up to three numbers above 0."""
    parts = re.split("[x,]", text)
    if len(parts) > 3 or not all(re.fullmatch("[1-9][0-9]*", p) for p in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not one to three numbers, such as 4 or 4x2")
    return tuple(map(int, parts))


def _bytes(text):
    if not text.isdecimal() or int(text) > 227 << 10:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes <= {227 << 10:,}")
    return int(text)


def _parser():
    p = _Parser(prog="minipar emulate", description=__doc__, epilog=_EXAMPLE, allow_abbrev=False,
                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("file", metavar="FILE.cu")
    p.add_argument("kernel", metavar="KERNEL", nargs="?", help="the only one, if not given")
    p.add_argument("--grid", type=_size, default=(1,), help="blocks: 4 or 4x2 (default 1)")
    p.add_argument("--block", type=_size, default=(128,),
                   help="threads of a block: 128 or 16x16 (default 128)")
    p.add_argument("--arg", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
                   help="an argument of the kernel")
    p.add_argument("--shared", type=_bytes, default=0, metavar="BYTES",
                   help="dynamic shared memory of a block")
    p.add_argument("--seed", type=int, default=0, help="of random (default 0)")
    p.add_argument("--out", metavar="FILE.npz", help="write the arrays there, as they are after it")
    return p


def _value(parameter, text, rng):
    """The argument that `text` describes: a number or an array of the parameter's type."""
    type_ = parameter.plain("float")
    known = ELEMENTS if parameter.pointer else SCALARS
    if type_ not in known:
        raise UsageError(f"{parameter.name} is of type {parameter.type}; there are "
                         f"{', '.join(known)}")
    if not parameter.pointer:
        return _scalar(parameter.name, type_, text)
    dtype = np.dtype(ELEMENTS[type_])
    if text.startswith("@"):
        try:
            array = np.load(text[1:], allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UsageError(f"{parameter.name}={text}: {error}") from None
        if array.dtype != dtype:
            raise UsageError(f"{parameter.name}={text}: the file has {array.dtype}, the kernel "
                             f"takes {dtype}")
        return np.array(array, order="C")
    made = re.fullmatch(r"(\w+)\(([\d\s,]*)\)", text)
    makers = {"zeros": np.zeros, "ones": np.ones, "random": None,
              "arange": lambda s, d: np.arange(np.prod(s, dtype=int)).astype(d).reshape(s)}
    if made is None or made[1] not in makers:
        raise UsageError(f"{parameter.name}={text}: an array is @FILE.npy or one of "
                         f"{', '.join(f'{m}(1000)' for m in makers)}")
    shape = tuple(int(n) for n in made[2].replace(",", " ").split())
    if made[1] != "random":
        return makers[made[1]](shape, dtype)
    return (rng.standard_normal(shape) if dtype.kind == "f"
            else rng.integers(0, 2 if dtype.kind == "b" else 100, shape)).astype(dtype)


def _scalar(name, type_, text):
    integer = type_ not in ("float", "double")
    try:
        value = int(text, 0) if integer else float(text)
    except ValueError:
        raise UsageError(f"{name}={text}: the kernel takes {type_}") from None
    if integer and SCALARS[type_](value).value != value:
        raise UsageError(f"{name}={text} does not fit into {type_}")
    return value


def _arguments(name, parameters, given, rng):
    values = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--arg {text}: an argument is NAME=VALUE")
        values[key] = value
    names = [p.name for p in parameters]
    if unknown := [n for n in values if n not in names]:
        raise UsageError(f"{name} has no parameter {unknown[0]}: it has {', '.join(names)}")
    if missing := [n for n in names if n not in values]:
        raise UsageError(f"{name} takes {len(names)} arguments, {len(values)} are given: "
                         f"{', '.join(missing)} missing")
    return [_value(p, values[p.name], rng) for p in parameters]


def _choose(file, kernel):
    """(name, parameters) of the kernel to run, of those in `file`."""
    try:
        with open(file, encoding="utf-8") as opened:
            found = signatures(opened.read())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    if not found:
        raise UsageError(f"{file} has no kernel: no `__global__ void name(...)` but templates")
    if kernel is None and len(found) > 1:
        raise UsageError(f"which kernel of {file}? There are {', '.join(found)}")
    if kernel is not None and kernel not in found:
        raise UsageError(f"{file} has no kernel {kernel}: there are {', '.join(found)}")
    name = kernel or next(iter(found))
    return name, found[name]


def _summary(array):
    values = "  ".join(f"{v:.6g}" if array.dtype.kind == "f" else str(v)
                       for v in array.reshape(-1)[:6])
    return values + "  ..." * (array.size > 6)


def _emulate(options):
    name, parameters = _choose(options.file, options.kernel)
    if compiler() is None:
        raise UsageError("there is no C++ compiler (c++, g++ or clang++)")
    threads = int(np.prod(options.block))
    if threads > MAX_THREADS:
        raise UsageError(f"--block {' x '.join(map(str, options.block))} = {threads} threads > "
                         f"{MAX_THREADS} that a block can have")
    arguments = _arguments(name, parameters, options.arg, np.random.default_rng(options.seed))
    before = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    report = Library(options.file).launch(name, arguments, options.grid, options.block,
                                          options.shared)
    blocks = int(np.prod(options.grid))
    print(f"{name}: {blocks} blocks of {threads} threads, in ascending and in descending order")
    width = max([len(p.name) for p in parameters], default=0)
    for p, old, new in zip(parameters, before, arguments):
        if p.pointer:
            changed = "unchanged" if old.tobytes() == new.tobytes() else "changed"
            print(f"  {p.name:{width}}  {new.dtype} {new.shape}  {changed:9}  {_summary(new)}")
    print(f"{report.barriers} barriers a block, {report.shared} bytes of shared memory a block"
          f"{f' and {report.dynamic} dynamic' * (report.dynamic > 0)}, "
          f"{report.atomics} atomic operations, {report.warp_operations} of warps")
    if report.differs:
        print(f"{', '.join(report.differs)} depends on the order of the atomic operations")
    print("no race, no divergence, nothing out of bounds, nothing uninitialised")
    if options.out:
        np.savez(options.out, **{p.name: a for p, a in zip(parameters, arguments) if p.pointer})


def main(argv):
    """Run the command; returns 0 (no error in the kernel), 1 (an error) or 2 (cannot be run)."""
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C also ends an endless kernel
    try:
        _emulate(_parser().parse_args(argv))
    except (UsageError, TypeError, MemoryError) as error:
        print(f"minipar: error: {error}", file=sys.stderr)
        return 2
    except (BuildError, EmulationError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGINT, previous)
    return 0
