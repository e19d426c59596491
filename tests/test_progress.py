"""Progress by hooks and by a thread: the same results, no deadlock, and nothing left behind."""

import json
import threading
from types import SimpleNamespace

import pytest

import progress_cases
from launch import mpirun, python
from minipar.comm import CODECS, RankFailed, compressed, launch, run_threads, world
from minipar.comm.algorithms.ring import ring
from minipar.comm.communicator import Communicator
from minipar.comm.engine import PROGRESS
from minipar.comm.transport.base import Lone
from minipar.parallel.buckets import share_before

both_ways = pytest.mark.parametrize("way", PROGRESS)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    left = [t.name for t in threading.enumerate() if t.name.startswith("progress of rank")]
    assert not left


@pytest.mark.parametrize("p", [1, 2, 3, 5])
def test_every_case_of_communication_holds_with_a_thread(p):
    run_threads(progress_cases.by, p, "thread", progress_cases.cases)


def test_a_plan_goes_on_while_its_rank_sleeps_by_a_thread_and_not_by_hooks():
    assert run_threads(progress_cases.by, 3, "thread", progress_cases.goes_on_alone, 20) == [
        True] * 3
    assert not all(run_threads(progress_cases.by, 3, "hooks", progress_cases.goes_on_alone, 0.05))


@both_ways
@pytest.mark.parametrize("p", [2, 3, 4, 5])
def test_plans_on_overlapping_groups_started_in_any_legal_order_end_well(way, p):
    run_threads(progress_cases.by, p, way, progress_cases.many_in_flight)


@both_ways
def test_what_goes_wrong_in_flight_is_raised_where_it_is_waited_for(way):
    if way == "thread":
        run_threads(progress_cases.by, 3, way, progress_cases.an_error_reaches_who_waits)
    with pytest.raises(ArithmeticError, match="planted in a codec"):
        run_threads(progress_cases.by, 3, way, lambda comm: comm.broadcast(
            progress_cases.np.ones(3), algorithm=progress_cases.star))


@both_ways
def test_the_error_mode_of_arithmetic_is_that_of_whoever_starts_a_plan(way):
    run_threads(progress_cases.by, 2, way, progress_cases.settings_of_who_starts)


@both_ways
def test_a_rank_that_fails_or_leaves_ends_the_waits_of_the_others(way):
    def fails(comm):
        if comm.rank == 1:
            raise KeyError("planted")
        comm.barrier()

    def leaves(comm):
        if comm.rank != 1:
            comm.barrier()
    with pytest.raises(KeyError, match="planted"):
        run_threads(progress_cases.by, 3, way, fails)
    with pytest.raises(RankFailed, match="waits for rank 1, which has left"):
        run_threads(progress_cases.by, 3, way, leaves)


def test_what_nobody_waits_for_is_begun_and_the_thread_ends():
    def job():
        comm = world()
        comm.progress = "thread"
        x = progress_cases.np.ones(10_000)
        comm.plan("all_reduce", x).start()
    run_threads(job, 2)


def test_ways_that_are_not_there_are_refused_and_so_is_a_change_in_flight(monkeypatch):
    with pytest.raises(ValueError, match="no progress by 'magic': there are hooks, thread"):
        Communicator(Lone(), progress="magic")
    monkeypatch.setenv("MINIPAR_PROGRESS", "threads")
    with pytest.raises(RuntimeError, match="MINIPAR_PROGRESS: no 'threads'"):
        Communicator(Lone())
    monkeypatch.setenv("MINIPAR_PROGRESS", "thread")
    assert Communicator(Lone()).progress == "thread"
    assert Communicator(Lone(), progress="hooks").progress == "hooks"
    monkeypatch.delenv("MINIPAR_PROGRESS")

    def job():
        comm = world()
        work = comm.irecv(progress_cases.np.empty(1), 1 - comm.rank)
        with pytest.raises(RuntimeError, match="in flight"):
            comm.progress = "thread"
        comm.barrier()
        comm.send(progress_cases.np.ones(1), 1 - comm.rank)
        work.wait()
        half = comm.split(comm.rank)
        comm.progress = "thread"
        assert half.progress == "thread"  # a rank has one engine
        half.close()
        assert comm.progress == "thread"
        comm.barrier()
    run_threads(job, 2)


MPI_PROGRAM = """
import sys
import progress_cases
from minipar.comm import world
assert world().progress == sys.argv[1]
progress_cases.many_in_flight(world())
progress_cases.cases(world())
assert progress_cases.goes_on_alone(world(), float(sys.argv[2])) or sys.argv[1] == "hooks"
world().plan("all_reduce", progress_cases.np.ones(1000), algorithm="mpi").start()
"""


@pytest.mark.parametrize("way, p", [
    ("hooks", 2), ("thread", 4), pytest.param("hooks", 4, marks=pytest.mark.slow),
    pytest.param("thread", 2, marks=pytest.mark.slow)])
def test_all_of_it_holds_over_mpi(way, p, monkeypatch):
    monkeypatch.setenv("MINIPAR_PROGRESS", way)
    done = mpirun(p, "-c", MPI_PROGRAM, way, 20 if way == "thread" else 0.02, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def between_processes(way):
    comm = world()
    comm.progress = way
    progress_cases.many_in_flight(comm)
    progress_cases.cases(comm)
    return progress_cases.goes_on_alone(comm, 20 if way == "thread" else 0.02)


@both_ways
def test_all_of_it_holds_between_processes(way):
    assert all(launch(between_processes, 3, args=(way,), timeout=120)) or way == "hooks"


def test_an_mpi_library_that_allows_one_thread_is_refused_by_name():
    done = mpirun(2, "-c", "import mpi4py; mpi4py.rc.initialize, mpi4py.rc.finalize = False, True\n"
                  "from mpi4py import MPI; MPI.Init_thread(MPI.THREAD_SERIALIZED)\n"
                  "from minipar.comm import world\n"
                  "try: world().progress = 'thread'\n"
                  "except ValueError as error: assert 'MPI_THREAD_MULTIPLE' in str(error)\n"
                  "else: assert MPI.Query_thread() == MPI.THREAD_MULTIPLE")  # more than asked for
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ------------------------------------------------------------------ training


@pytest.mark.parametrize("algorithm", ["ring", "shared", compressed(ring, CODECS["bfloat16"])],
                         ids=str)
def test_gradients_are_the_same_bits_by_hooks_and_by_a_thread(algorithm):
    results = [run_threads(progress_cases.by, 3, way, progress_cases.gradients, algorithm)
               for way in PROGRESS]
    assert len({bits for ranks in results for bits, *_ in ranks}) == 1
    for _, before, overlap in results[0] + results[1]:
        assert before is None and 0 <= overlap <= 1
    assert progress_cases.by("hooks", progress_cases.gradients, "ring")[2] is None  # of one rank


def plan(began, ended):
    return SimpleNamespace(began=began, ended=ended)


@pytest.mark.parametrize("plans, expected", [
    ([plan(0, 10)], 0.6), ([plan(0, 3), plan(4, 5)], 1), ([plan(6, 8), plan(7, 9)], 0),
    ([plan(0, 5), plan(1, 2), plan(5, 10)], 0.6), ([plan(0, 2), plan(4, 12)], 0.4),
    ([plan(3, 3)], 0)])
def test_the_overlap_is_the_share_of_the_time_in_flight_that_lay_inside_backward(plans, expected):
    assert share_before(6, plans) == pytest.approx(expected)


@pytest.mark.parametrize("options", [(), ("--codec", "float16")], ids=str)
def test_training_tells_the_overlap_and_ends_with_the_same_bits_either_way(tmp_path, options):
    ends = []
    for way in PROGRESS:
        done = python("-m", "minipar.train", "--steps", "8", "--hidden", "16", "--ranks", "2",
                      "--progress", way, "--metrics", tmp_path / way, *options)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (tmp_path / way).read_text().splitlines()]
        steps = [line for line in lines if line["event"] == "step"]
        assert len(steps) == 8 and all(0 <= step["overlap"] <= 1 for step in steps)
        ends.append(lines[-1])
    assert ends[0]["params_sha256"] == ends[1]["params_sha256"]
    assert ("float16" in done.stdout) == bool(options)


@pytest.mark.parametrize("options, words", [
    (("--codec", "float8"), "no 'float8': did you mean float16"),
    (("--codec", "float16", "--algorithm", "auto"), "name one, --algorithm ring"),
    (("--codec", "float16", "--algorithm", "shared"), "memory of its peers"),
    (("--progress", "threads"), "did you mean thread")])
def test_what_cannot_be_is_refused_in_one_line(options, words):
    done = python("-m", "minipar.train", "--ranks", "2", *options)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and words in done.stderr


def test_a_wrong_variable_is_said_in_one_line():
    done = python("-m", "minipar.train", "--steps", "1", MINIPAR_PROGRESS="threads")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == ("minipar: error: MINIPAR_PROGRESS: no 'threads': there are hooks, "
                           "thread\n")
