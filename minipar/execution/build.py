"""Runs the system's C++ compiler and keeps what it makes.

What is built is cached by everything that it depends on: sources, compiler, flags, CPU. Many ranks
may start at once: one builds, the others wait for it, and a file appears whole or not at all.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from .source import BuildError

NATIVE = Path(__file__).parent.parent / "native"


def compiler():
    """The command of the system's C++ compiler: $CXX, or the first of c++, g++, clang++; None."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name.split()[0]):
            return name.split()
    return None


def cache_folder():
    """Where built kernels are kept: $MINIPAR_CACHE, or `minipar` in the user's cache folder."""
    if os.environ.get("MINIPAR_CACHE"):
        return Path(os.environ["MINIPAR_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "minipar"


_told = set()


def tell(line):
    """Say something once, by the first rank of a launched job."""
    ranks = {os.environ.get(name, "0") for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK",
                                                    "PMIX_RANK", "MINIPAR_RANK")}
    if line not in _told and ranks == {"0"}:
        print(line, file=sys.stderr)
    _told.add(line)


def build(name, parts, flags, make):
    """The path of a built file, from the cache or made now.

    name:  file name with a suffix, such as softmax-float.so; the cache adds a key to it.
    parts: texts that the file depends on; the compiler, its flags and the CPU are added.
    make:  make(command, target) runs `command`, a list that begins with compiler and flags, in
           whatever way writes `target`.
    Raises BuildError if there is no compiler, or what `make` raises.
    """
    command = compiler()
    if command is None:
        raise BuildError("there is no C++ compiler (c++, g++ or clang++)")
    parts = [*parts, " ".join((*command, *flags)), _identity(command[0]), _cpu()]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    stem, suffix = os.path.splitext(name)
    cached = cache_folder() / f"{stem}-{key}{suffix}"
    return cached if cached.exists() else _make([*command, *flags], make, cached)


def _make(command, make, cached):
    """Build into the cache; into a folder of this process, if that cannot be written."""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with _lock(cached.with_suffix(".lock")):
            if not cached.exists():
                _draft(command, make, cached)
        return cached
    except OSError as error:
        private = Path(tempfile.mkdtemp(prefix="minipar-")) / cached.name
        tell(f"minipar: kernels are built anew by each process: {cached.parent} cannot be "
             f"written ({error.strerror})")
        _draft(command, make, private)
        return private


def _draft(command, make, target):
    draft = target.with_name(f"{target.stem}-{os.getpid()}.new")
    try:
        make(command, draft)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


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


def run_compiler(command, program, name):
    """Run a compiler's command with `program` (text) as its input; BuildError names `name`."""
    done = subprocess.run([str(word) for word in command], input=program, capture_output=True,
                          text=True)
    if done.returncode:
        raise BuildError(f"{name} does not compile:\n{done.stderr}")


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
