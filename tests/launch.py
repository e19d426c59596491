"""Starts programs under mpirun with a timeout. pytest itself never imports MPI."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Open MPI refuses root and more ranks than cores unless told; MPICH ignores these.
_OPEN_MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
             "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
             "OMPI_MCA_rmaps_base_oversubscribe": "1"}


def launcher():
    """The path of mpirun: the environment's own, else the system's; skips if there is none."""
    own = Path(sys.executable).with_name("mpirun")
    found = str(own) if own.exists() else shutil.which("mpirun")
    if found is None:
        pytest.skip("no mpirun: pip install minipar[mpi]")
    return found


def environment(**extra):
    """The environment of a rank: the checkout importable, one BLAS thread."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **_OPEN_MPI, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", **extra}


def mpirun(n, *program, timeout=60):
    """Run `python *program` on n ranks; returns the CompletedProcess."""
    command = [launcher(), "-n", str(n), sys.executable, *map(str, program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT,
                          env=environment())


def python(*program, timeout=60):
    """Run `python *program` alone; returns the CompletedProcess."""
    return subprocess.run([sys.executable, *map(str, program)], capture_output=True, text=True,
                          timeout=timeout, cwd=ROOT, env=environment())
