"""Ranks that are processes of an MPI launcher. Pytest itself never loads MPI."""

import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ENVIRONMENT = {  # Open MPI counts cores and users; other libraries do not read these
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
RAISED = "Planted: on purpose"  # the last line of a traceback of mpi_programs/failing.py


@cache
def launcher():
    """The path of mpirun, beside this Python or else on PATH; None if there is none."""
    return (shutil.which("mpirun", path=os.path.dirname(sys.executable))
            or shutil.which("mpirun"))


def mpirun(n, script, *args, timeout=60):
    """Run tests/mpi_programs/`script` on n ranks; returns the CompletedProcess, with text."""
    if launcher() is None:
        pytest.skip("no mpirun: install minipar[mpi]")
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [launcher(), "-n", str(n), sys.executable, str(TESTS / "mpi_programs" / script),
               *map(str, args)]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher passes it on to the ranks; a SIGKILL would not
        try:
            out, err = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        raise AssertionError(f"{script} {args} on {n} ranks still ran after {timeout} s\n"
                             f"{out}{err}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_every_case_holds_between_processes_and_nothing_is_printed(n):
    done = mpirun(n, "cases.py", n, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""


def failure_cases(count, seed):
    """(ranks, rank that fails, step, how), drawn from the seed; every `how` equally often."""
    hows = ["raise", "raise in a thread", "exit 3", "exit text", "_exit 1", "_exit 0", "kill"]
    draw = random.Random(seed)
    cases = []
    for i in range(count):
        n = draw.choice([2, 3, 4])
        cases.append((n, draw.randrange(n), draw.choice([0, 1, 2, 50]), hows[i % len(hows)]))
    return cases


def outcome(case):
    """What a rank that fails does to its job, as a line if that is wrong."""
    n, rank, step, how = case
    begin = time.monotonic()
    try:
        done = mpirun(n, "failing.py", rank, step, how, timeout=30)
    except AssertionError as error:
        return f"{case}: {error}"
    took = time.monotonic() - begin
    if done.returncode == 0:
        return f"{case}: status 0\n{done.stderr}"
    if took > 10:
        return f"{case}: took {took:.1f} s\n{done.stderr}"
    if how.startswith("raise") and [done.stderr.count(s) for s in ("Traceback", RAISED)] != [1, 1]:
        return f"{case}: not one traceback\n{done.stderr}"
    if how.startswith("raise") and f"rank {rank} of {n} failed" not in done.stderr:
        return f"{case}: the rank is not named\n{done.stderr}"
    if how == "exit text" and done.stderr.count("leaves with a text") != 1:
        return f"{case}: the text is not there once\n{done.stderr}"
    if not how.startswith("raise") and "Traceback" in done.stderr:
        return f"{case}: a traceback\n{done.stderr}"
    return None


@pytest.mark.parametrize("cases", [failure_cases(14, 1), failure_cases(14, 2)],
                         ids=["seed 1", "seed 2"])
def test_a_rank_that_fails_in_any_way_ends_the_job_within_ten_seconds(cases):
    if launcher() is None:
        pytest.skip("no mpirun: install minipar[mpi]")
    with ThreadPoolExecutor(3) as pool:
        wrong = [line for line in pool.map(outcome, cases) if line]
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("n, rank", [(2, 1), (3, 0)])
def test_a_rank_that_ends_normally_while_others_wait_for_it_ends_the_job_as_failed(n, rank):
    done = mpirun(n, "failing.py", rank, 20, "exit 0", timeout=30)
    assert done.returncode != 0
    assert f"waits for rank {rank}, which has left the job" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("n", [1, 2, 4])
def test_ranks_that_end_normally_at_different_times_end_the_job_well(n):
    done = mpirun(n, "leaving.py", 0.5)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split("\n")[:-1]) == [f"rank {rank} leaves" for rank in range(n)]


def test_a_launcher_of_another_mpi_library_is_named_in_one_line():
    import subprocess
    import sys

    from launch import ROOT, environment
    own = mpirun(1, "-c", "from minipar.comm.transport import mpi; print(mpi.version())").stdout
    launcher, variable = (("Open MPI", "OMPI_COMM_WORLD_SIZE") if "MPICH" in own
                          else ("MPICH", "HYDI_CONTROL_FD"))
    extra = {variable: "1", "OMPI_COMM_WORLD_RANK": "0"} if "MPICH" in own else {
        variable: "1", "PMI_SIZE": "1", "PMI_RANK": "0"}
    clean = {k: v for k, v in environment(**extra).items() if not k.startswith("OMPI_COMM") or
             k in extra}
    done = subprocess.run([sys.executable, "-m", "minipar.train"], capture_output=True, text=True,
                          timeout=30, cwd=ROOT, env=clean)
    assert done.returncode == 1
    assert done.stderr.startswith(f"minipar: error: {launcher}'s mpirun started this process")
    assert done.stderr.count("\n") == 1
