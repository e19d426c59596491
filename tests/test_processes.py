"""Ranks that are processes without MPI: messages, the launcher, and how jobs end."""

import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import launch as programs
import minipar
import process_cases as cases
from minipar.comm import RankFailed, launch
from minipar.comm.transport import shared

HAS_RINGS = shared.machine() is not None
ROOT = Path(__file__).parent.parent


def gone(pids, count=None, within=5.0):
    """Assert that `count` processes wrote their number into the folder, and that none is left."""
    numbers = [int(p.read_text()) for p in pids.iterdir()]
    assert count is None or len(numbers) == count
    deadline = time.monotonic() + within
    left = numbers
    while left and time.monotonic() < deadline:
        left = [n for n in left if alive(n)]
        time.sleep(0.02)
    assert not left


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return not Path("/proc").is_dir()


# ------------------------------------------------------------------ messages


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_every_case_holds_between_processes(n):
    paths = launch(cases.every_case, n, timeout=100)
    name = "shared memory" if HAS_RINGS else "sockets"
    assert paths == [{peer: name for peer in range(n) if peer != rank} for rank in range(n)]


def test_every_case_holds_over_sockets(monkeypatch):
    monkeypatch.setenv("MINIPAR_SHARED_MEMORY", "off")
    assert launch(cases.every_case, 3, timeout=100) == [
        {peer: "sockets" for peer in range(3) if peer != rank} for rank in range(3)]


@pytest.mark.skipif(not HAS_RINGS, reason="processes share no memory here")
def test_one_sided_programs_compute_what_they_promise_between_processes():
    assert launch(cases.one_sided, 3, timeout=60) == [True] * 3


def test_a_training_gives_the_same_bits_on_threads_processes_and_mpi():
    hashes = launch(cases.train, 4, how="threads") + launch(cases.train, 4, timeout=60)
    assert len(set(hashes)) == 1 and len(hashes) == 8
    programs.launcher()
    assert launch(cases.train, 4, how="mpi", timeout=60) == hashes[:4]


# ------------------------------------------------------------------ what travels


def test_results_come_in_the_order_of_ranks_and_ranks_have_the_callers_context(monkeypatch):
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # what the user says stands
    before = minipar.context.current()
    with minipar.context.use(minipar.context.Context(seed=7, default_dtype=minipar.float64)):
        found = launch(cases.echo, 3, args=("x", [2]))
    assert found == [(rank, 3, "x", [2], "float64", 1.0, 7, ("1", "2")) for rank in range(3)]
    assert minipar.context.current() is before
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_the_same_call_runs_threads_and_refuses_what_there_is_not(monkeypatch):
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    assert [r[:4] for r in launch(cases.echo, 2, args=(1, 2), how="threads")] == [
        (0, 2, 1, 2), (1, 2, 1, 2)]
    with pytest.raises(ValueError, match="'fibers'.*processes, mpi, threads"):
        launch(cases.echo, 2, how="fibers")
    with pytest.raises(ValueError, match="at least 1 rank, not 0"):
        launch(cases.echo, 0)


def run(code, **extra):
    """Run a program that comes through a pipe, as the cells of a notebook do."""
    done = subprocess.run([sys.executable, "-W", "error", "-"], input=textwrap.dedent(code),
                          text=True, capture_output=True, timeout=60, cwd=ROOT,
                          env={**os.environ, **extra})
    return done


CELLS = """
    import sys
    {}
    from minipar.comm import launch, world

    scale = 10

    class Point:
        def __init__(self, x):
            self.x = x

    def cell(p):
        return Point(p.x + scale * world().rank)

    print([p.x for p in launch(cell, 2, args=(Point(3),))],
          launch(lambda: world().size, 2, timeout=30))
"""


def test_functions_of_a_notebook_travel_by_cloudpickle():
    pytest.importorskip("cloudpickle")
    done = run(CELLS.format(""))
    assert (done.stdout, done.stderr) == ("[3, 13] [2, 2]\n", "")


def test_without_cloudpickle_one_line_says_what_is_needed():
    done = run(CELLS.format("sys.modules['cloudpickle'] = None"))
    assert done.returncode == 1 and done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(r"TypeError: cell cannot be sent to other processes \(.*notebook.*\): .*"
                        r"cloudpickle.*", last)


SCRIPT = """
    from minipar.comm import launch, world
    from beside import shift

    class Point:
        def __init__(self, x):
            self.x = x

    def job(p):
        return Point(p.x + shift * world().rank)

    {}print([p.x for p in launch(job, 2, args=(Point(3),), timeout=30)])
"""


def test_a_scripts_functions_and_classes_travel_by_name(tmp_path):
    folder = tmp_path / "a folder with ünusual name"
    folder.mkdir()
    (folder / "beside.py").write_text("shift = 100")
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format("if __name__ == '__main__':\n    "))
    done = programs.python(script)
    assert (done.stdout, done.stderr) == ("[3, 103]\n", "")


def test_a_script_that_launches_when_it_is_imported_is_told_so(tmp_path):
    (tmp_path / "beside.py").write_text("shift = 100")
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT).format(""))
    done = programs.python(tmp_path / "script.py")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        "RuntimeError: launch() was called while a rank imported the script: call it under "
        "`if __name__ == \"__main__\":`")


def test_what_cannot_be_sent_back_is_named():
    with pytest.raises(TypeError, match="a lock cannot be sent to the parent"):
        launch(cases.cannot_be_sent, 2, timeout=30)


# ------------------------------------------------------------------ failures

FAILURES = {"raise": (KeyError, "this one"), "raise with a child": (KeyError, "this one"),
            "raise in a thread": (KeyError, "this one"),
            "raise what pickle cannot read": (RankFailed, "Planted: planted: on purpose"),
            "exit 3": (RankFailed, "ended with status 3 before"),
            "exit text": (RankFailed, "status 1 before.*: leaves with a text"),
            "_exit 4": (RankFailed, "ended with status 4 before"),
            "kill": (RankFailed, "was killed by SIGKILL before"),
            "return": (RankFailed, "waits for rank {}, which has left the job"),
            "lengths": (ValueError, "a message of 24 bytes from rank {} meets a receive of 40")}


@pytest.mark.parametrize("how", FAILURES)
def test_a_rank_that_fails_ends_the_job_and_is_named_with_its_traceback(how, tmp_path):
    kind, words = FAILURES[how]
    draw = random.Random(how)
    n = draw.choice([2, 3])
    culprit, step = draw.randrange(1, n), draw.choice([0, 1, 50])
    begin = time.monotonic()
    with pytest.raises(kind, match=words.format(culprit)) as caught:
        launch(cases.fail, n, args=(tmp_path, culprit, step, how), timeout=60)
    assert time.monotonic() - begin < 10
    gone(tmp_path, 2 * n if "child" in how else n)
    error = caught.value
    if kind is not RankFailed:
        assert isinstance(error.__cause__, RankFailed)
        error = error.__cause__
    who = {"return": r"\d", "lengths": "0"}.get(how, culprit)
    assert re.match(f"rank {who} of {n}", str(error))
    assert str(error).count("Traceback") == (
        1 if "raise" in how or how in ("return", "lengths") else 0)


def test_when_time_is_up_the_ranks_end(tmp_path):
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="2 of 2 ranks still ran after 1.5 s"):
        launch(cases.fail, 2, args=(tmp_path, 1, 5, "sleep"), timeout=1.5)
    assert time.monotonic() - begin < 8
    gone(tmp_path)


@pytest.mark.parametrize("how, signal_name", [("processes", "SIGINT"), ("processes", "SIGKILL"),
                                              ("mpi", "SIGINT"), ("mpi", "SIGKILL"),
                                              ("threads", "SIGINT")])
def test_ranks_end_when_their_parent_is_interrupted_or_killed(how, signal_name, tmp_path):
    if how == "mpi":
        programs.launcher()
    (tmp_path / "pids").mkdir()
    code = (f"import pathlib, process_cases as c\nfrom minipar.comm import launch\n"
            f"launch(c.fail, 2, args=(pathlib.Path({str(tmp_path / 'pids')!r}), 1, 5, "
            f"'sleep'), how={how!r})")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        try:
            assert parent.stdout.readline() == "all are here\n"
            begin = time.monotonic()
            parent.send_signal(getattr(signal, signal_name))
            parent.wait(10)
            assert time.monotonic() - begin < 5
            gone(tmp_path / "pids", 2)
            errors = parent.stderr.read()
            assert ("KeyboardInterrupt" in errors) == (signal_name == "SIGINT")
        finally:
            parent.kill()


def test_an_exception_under_mpi_is_raised_with_its_ranks_traceback(tmp_path):
    programs.launcher()
    with pytest.raises(KeyError, match="this one") as caught:
        launch(cases.fail, 3, args=(tmp_path, 2, 1, "raise"), how="mpi", timeout=60)
    assert str(caught.value.__cause__).startswith("rank 2 of 3 failed:\n\nTraceback")
    gone(tmp_path, 3)


# ------------------------------------------------------------------ started by the environment

NAMES = {"ours": ("MINIPAR_RANK", "MINIPAR_WORLD_SIZE", "MINIPAR_ADDR", "MINIPAR_PORT"),
         "PyTorch's": ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}


def free_port():
    import socket
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def started(n, *program, names="ours", change=lambda rank, variables: None):
    """Start a program as n ranks by hand; returns their (status, output, errors), by rank."""
    port, processes = free_port(), []
    for rank in range(n):
        variables = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
                     "MINIPAR_TOKEN": "a word", "OPENBLAS_NUM_THREADS": "1",
                     **dict(zip(NAMES[names], (str(rank), str(n), "127.0.0.1", str(port))))}
        change(rank, variables)
        processes.append(subprocess.Popen([sys.executable, *map(str, program)], env=variables,
                                          text=True, stdout=subprocess.PIPE,
                                          stderr=subprocess.PIPE, cwd=ROOT))
    results = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=30)
            results.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return results


@pytest.mark.parametrize("names", NAMES)
def test_ranks_started_by_hand_meet_and_leave_in_any_order(names):
    program = Path(__file__).parent / "mpi_programs" / "leaving.py"
    assert started(3, program, 0.2, names=names) == [
        (0, f"rank {rank} leaves\n", "") for rank in range(3)]


def test_ranks_of_which_not_all_share_memory_pass_every_case():
    def change(rank, variables):
        if rank == 1:
            variables["MINIPAR_SHARED_MEMORY"] = "off"
    program = Path(__file__).parent / "mpi_programs" / "cases.py"
    assert started(3, program, 3, change=change) == [(0, "", "")] * 3


@pytest.mark.parametrize("how, status", [("raise", 1), ("exit 3", 1), ("_exit 0", 1),
                                         ("kill", -9)])
def test_a_rank_started_by_hand_that_fails_ends_the_others_with_a_status(how, status):
    program = Path(__file__).parent / "mpi_programs" / "failing.py"
    results = started(3, program, 1, 20, how)
    assert results[1][0] == status and results[0][0] == results[2][0] == 1
    assert sum(err.count("Traceback") for *_, err in results) == (how == "raise")
    for rank in (0, 2):
        assert "ending the job" in results[rank][2]
    if how == "raise":
        assert "rank 1 of 3 failed" in results[1][2]


WRONG = {"MINIPAR_WORLD_SIZE": ("3", "rank 1 was told of 3 ranks, rank 0 of 2"),
         "MINIPAR_RANK": ("0", "rank 0 cannot listen on 127.0.0.1"),
         "MINIPAR_TOKEN": ("another", "rank 1 of 2 lost the meeting.*another token")}


@pytest.mark.parametrize("name", WRONG)
def test_ranks_that_do_not_fit_together_are_told_so_in_one_line(name):
    value, words = WRONG[name]

    def change(rank, variables):
        if rank == 1:
            variables[name] = value
    code = ("import minipar.comm.transport.rendezvous as r; r.PATIENCE = 1.0; import sys; "
            "from minipar.train import main; sys.exit(main(['--steps', '1', '--quiet']))")
    results = started(2, "-c", code, change=change)
    errors = [err for *_, err in results]
    assert [status for status, *_ in results] == [1, 1] and "Traceback" not in str(errors)
    assert [err.count("\n") for err in errors] == [1, 1]
    assert any(re.match(f"minipar: error: {words}", err) for err in errors), errors
    if name != "MINIPAR_WORLD_SIZE":
        assert any("not all of 2 ranks have come" in err for err in errors), errors


@pytest.mark.parametrize("variables, words", [
    ({"MINIPAR_RANK": "0"}, "MINIPAR_RANK is set, but not MINIPAR_WORLD_SIZE"),
    ({"MINIPAR_RANK": "2", "MINIPAR_WORLD_SIZE": "2", "MINIPAR_ADDR": "x", "MINIPAR_PORT": "1"},
     "MINIPAR_RANK=2 is not in [0, MINIPAR_WORLD_SIZE=2)"),
    ({"MINIPAR_RANK": "a", "MINIPAR_WORLD_SIZE": "2", "MINIPAR_ADDR": "x", "MINIPAR_PORT": "1"},
     "are whole numbers, not a, 2 and 1")])
def test_an_environment_that_makes_no_sense_is_named_in_one_line(variables, words):
    done = programs.python("-m", "minipar.train", **variables)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("minipar: error: ") and words in done.stderr


def test_strangers_without_the_token_do_not_disturb_a_meeting():
    import socket
    import threading

    from minipar.comm.transport import rendezvous
    listener = rendezvous.listen("127.0.0.1")
    address = listener.getsockname()
    found = {}

    def rank_main(rank):
        with rendezvous.Meeting(rank, 2, *address, "word",
                                listener if rank == 0 else None) as meeting:
            found[rank] = meeting.exchange({"I am": rank})
    zero = threading.Thread(target=rank_main, args=(0,))
    zero.start()
    for hello in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\xff", b"\x02\x00\x00\x00{}"):
        with socket.create_connection(address) as stranger:
            stranger.sendall(hello)
    one = threading.Thread(target=rank_main, args=(1,))
    one.start()
    for thread in (zero, one):
        thread.join(10)
    assert found == {rank: [{"I am": 0}, {"I am": 1}] for rank in range(2)}
