"""Starts programs under mpirun with a timeout. pytest itself never imports MPI."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Open MPI refuses root and more ranks than cores unless told; MPICH ignores these.
SETTINGS = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
             "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
             "OMPI_MCA_rmaps_base_oversubscribe": "1",
             "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def launcher():
    """The path of mpirun, beside this Python or else on PATH; skips the test if there is none."""
    found = (shutil.which("mpirun", path=os.path.dirname(sys.executable))
             or shutil.which("mpirun"))
    if found is None:
        pytest.skip("no mpirun: pip install minipar[mpi]")
    return found


def _run(command, timeout, extra):
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, **SETTINGS, **extra,
                   "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher passes it on to the ranks; a SIGKILL would not
        try:
            out, err = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        raise AssertionError(f"{command[1:]} still ran after {timeout} s\n{out}{err}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def mpirun(n, *program, timeout=60):
    """Run `python *program` on n ranks; returns the CompletedProcess, with text."""
    return _run([launcher(), "-n", str(n), sys.executable, *map(str, program)], timeout, {})


def python(*program, timeout=60, **extra):
    """Run `python *program` alone, with `extra` in its environment; as mpirun()."""
    return _run([sys.executable, *map(str, program)], timeout, extra)
