"""`minipar doctor`: what this machine has, what the main job would use, and what to do about it.

Every probe asks the machine through a `Machine`, so that a test can be any machine, and a probe
that fails says "unknown (reason)".
"""

import json
import platform
import sys
from dataclasses import asdict

from .. import __version__
from .hardware import compiler, cores, gpu, memory, shared_memory
from .machine import Finding, Machine, install
from .mpi import RANKS, mpi

REQUIRED = ("numpy", "mpi4py", "threadpoolctl", "tqdm", "safetensors")
# What optional packages are for: {distribution: (extra of setup.py or None, use)}.
OPTIONAL = {"torch": ("peers", "the tests that compare with PyTorch"),
            "Pillow": ("images", "data sets that are image files"),
            "matplotlib": ("viz", "plots of benchmarks"),
            "ml_dtypes": ("bf16", "the type bfloat16"),
            "cloudpickle": ("notebook", "functions of a notebook on several processes")}


def python(machine):
    yield Finding("Python", f"{platform.python_version()} ({machine.executable})")
    yield Finding("system", f"{platform.system()} {platform.release()} {platform.machine()}")


def packages(machine):
    versions = {name: machine.installed(name) for name in REQUIRED}
    missing = [name for name, version in versions.items() if version is None]
    have = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield Finding("packages", f"{have}{'; no ' if missing else ''}{', '.join(missing)}",
                  f"pip install {' '.join(missing)}" if missing else "", bool(missing))


def blas(machine):
    import numpy
    from threadpoolctl import threadpool_info
    built = numpy.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    loaded = [lib for lib in threadpool_info() if lib["user_api"] == "blas"]
    for lib in loaded[:1]:
        yield Finding("BLAS", f"{lib['internal_api']} {lib['version']}, {lib['num_threads']} "
                              f"threads alone, 1 a rank in a job")
    if not loaded:
        yield Finding("BLAS", f"{built.get('name', 'unknown')} {built.get('version', '')}".strip(),
                      "its threads cannot be set from here: export VECLIB_MAXIMUM_THREADS=1 "
                      "before a job" if "accelerate" in str(built.get("name", "")).lower() else "")


def optional(machine):
    for name, (extra, use) in OPTIONAL.items():
        version = machine.installed(name)
        command = install(extra) if extra else f"pip install {name}"
        yield Finding(name, version or "not installed", "" if version else f"for {use}: {command}")


PROBES = {"Python": python, "packages": packages, "BLAS": blas, "MPI library": mpi,
          "cores": cores, "memory": memory, "shared memory": shared_memory,
          "C++ compiler": compiler, "GPU": gpu, "optional packages": optional}


def examine(machine):
    """The findings of every probe, in order; one that fails becomes "unknown (reason)"."""
    out = []
    for name, probe in PROBES.items():
        try:
            for finding in probe(machine):
                out.append(finding)
        except Exception as error:  # whatever a machine may come up with
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            out.append(Finding(name, f"unknown ({reason})"))
    return out


def main(argv=None, machine=None):
    """Examine this machine and tell; returns 0 if the main job can run on several ranks, else 1."""
    argv = sys.argv[1:] if argv is None else argv
    if argv in (["-h"], ["--help"]):
        print("usage: minipar doctor [--json]\n\nWhat this machine has, and what is missing.")
        return 0
    if argv not in ([], ["--json"]):
        print("minipar: error: usage: minipar doctor [--json]", file=sys.stderr)
        return 2
    findings = examine(Machine() if machine is None else machine)
    blocked = [f for f in findings if f.blocks]
    if argv:
        print(json.dumps({"minipar": __version__, "can_run": not blocked,
                          "findings": [asdict(f) for f in findings]}, indent=1))
        return 1 if blocked else 0
    width = max(len(f.name) for f in findings)
    print(f"minipar {__version__}")
    for f in findings:
        print(f"{'!' if f.blocks else ' '} {f.name:{width}}  {f.value}")
    if any(f.advice for f in findings):
        print("\nadvice")
        for f in findings:
            if f.advice:
                print(f"{'!' if f.blocks else ' '} {f.name:{width}}  {f.advice}")
    print(f"\nmpirun -n {RANKS} python -m minipar.train: " +
          (f"cannot run, see {', '.join(f.name for f in blocked)}; python -m minipar.train runs "
           f"on one rank" if blocked else "can run"))
    return 1 if blocked else 0
