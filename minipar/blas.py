"""Has NumPy's BLAS use the vectors of this CPU; imported before NumPy is.

OpenBLAS chooses its kernels by the CPU's maker and model, and gives AMD's CPUs those for vectors
of 256 bits, also where they have AVX-512: float32 products ran at 115 GF/s so, at 215 with the
kernels that it has for Intel's (Zen 5, one thread). The choice is an environment variable that
OpenBLAS reads once, when NumPy is imported. It changes the last bits of products: where NumPy was
imported first, MINIPAR_BLAS=off tells child processes to do without as well, so that all ranks
of a job compute alike. Set that, or OPENBLAS_CORETYPE, to decide otherwise.
"""

import os
import sys

NEEDED = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


def chosen(cpuinfo):
    """The OPENBLAS_CORETYPE for a machine with this /proc/cpuinfo; None to leave it alone."""
    fields = dict(line.split(":", 1) for line in cpuinfo.split("\n\n")[0].splitlines()
                  if ":" in line)
    fields = {key.strip(): value.split() for key, value in fields.items()}
    if fields.get("vendor_id") == ["AuthenticAMD"] and NEEDED <= set(fields.get("flags", ())):
        return "SkylakeX"
    return None


def choose(environment, cpuinfo, numpy_is_there):
    """Set what is to be set in `environment`."""
    core = chosen(cpuinfo)
    if (core is None or environment.get("OPENBLAS_CORETYPE")
            or environment.get("MINIPAR_BLAS") == "off"):
        return
    if numpy_is_there:
        environment["MINIPAR_BLAS"] = "off"
    else:
        environment["OPENBLAS_CORETYPE"] = core


try:
    with open("/proc/cpuinfo", encoding="utf-8") as _file:
        choose(os.environ, _file.read(), "numpy" in sys.modules)
except OSError:
    pass  # not Linux
