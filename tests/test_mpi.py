"""Ranks that are processes of an MPI launcher. Pytest itself never loads MPI."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launch import launcher, mpirun, python

PROGRAMS = Path(__file__).parent / "mpi_programs"
RAISED = "Planted: on purpose"  # the last line of a traceback of mpi_programs/failing.py


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_every_case_holds_between_processes_and_nothing_is_printed(n):
    done = mpirun(n, PROGRAMS / "cases.py", n, timeout=120)
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
        done = mpirun(n, PROGRAMS / "failing.py", rank, step, how, timeout=30)
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
    launcher()  # skips here, and not in a thread of the pool
    with ThreadPoolExecutor(3) as pool:
        wrong = [line for line in pool.map(outcome, cases) if line]
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("n, rank", [(2, 1), (3, 0)])
def test_a_rank_that_ends_normally_while_others_wait_for_it_ends_the_job_as_failed(n, rank):
    done = mpirun(n, PROGRAMS / "failing.py", rank, 20, "exit 0", timeout=30)
    assert done.returncode != 0
    assert f"waits for rank {rank}, which has left the job" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("n", [1, 2, 4])
def test_ranks_that_end_normally_at_different_times_end_the_job_well(n):
    done = mpirun(n, PROGRAMS / "leaving.py", 0.5)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split("\n")[:-1]) == [f"rank {rank} leaves" for rank in range(n)]


def test_a_launcher_of_another_mpi_library_is_named_in_one_line():
    own = mpirun(1, "-c", "from minipar.comm.transport import mpi; print(mpi.version())")
    other, variable = (("Open MPI", "OMPI_COMM_WORLD_SIZE") if "MPICH" in own.stdout
                       else ("MPICH", "HYDI_CONTROL_FD"))
    done = python("-m", "minipar.train", PMI_SIZE="1", PMI_RANK="0", **{variable: "1"})
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"minipar: error: {other}'s mpirun started this process")
