"""`minipar verify`: what it prints and its exit status, for users' files and minipar's own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from minipar.cli import main
from minipar.comm.kinds import KINDS
from minipar.comm.program import ALGORITHMS
from minipar.parallel.schedule import SCHEDULES

ROOT = Path(__file__).parent.parent

RIGHT = """
from minipar.comm import Kind, collective, copy, recv, recv_reduce, send

@collective("all_reduce", ranks="even")
def swap_halves(rank, size, x):
    if size == 1:
        return
    half, peer = x.split(2), rank ^ 1
    mine, other = half[rank % 2], half[1 - rank % 2]
    yield send(other, peer), recv_reduce(mine, peer)
    yield send(mine, peer), recv(other, peer)

shift = Kind("shift", before=lambda rank, size, x, y: [x],
             after=lambda rank, size, x, y: [(y, [((rank + 1) % size, x)])],
             lengths=lambda rank, size, n: {"x": n, "y": n})

@collective(shift)
def pull(rank, size, x, y):
    if size == 1:
        yield copy(x, y)
    else:
        yield send(x, (rank - 1) % size), recv(y, (rank + 1) % size)
"""
WRONG = """
from minipar.comm import collective, recv, send
from minipar.comm.algorithms.ring import ring

@collective("broadcast")
def star(rank, size, x, root):
    if rank == 0:
        yield [send(x, peer) for peer in range(1, size)]
    else:
        yield recv(x, 0)
"""


def run(capsys, *argv):
    """(exit status, standard output, standard error) of `minipar verify ...`."""
    status = main(["verify", *map(str, argv)])
    out, err = capsys.readouterr()
    return status, out, err


def file(folder, text, name="mine.py"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_right_programs_of_a_file_get_a_line_each_and_status_0(tmp_path, capsys):
    status, out, err = run(capsys, file(tmp_path, RIGHT), "--ranks", "1,2")
    assert (status, err) == (0, "")
    first, second = out.splitlines()
    assert re.fullmatch(r"right  all_reduce swap_halves +ranks 1-2; on 2: 2 rounds, a rank sends "
                        r"at most 1 n", first)
    assert re.fullmatch(r"right  shift pull +ranks 1-2; on 2: 1 round, a rank sends at most 1 n",
                        second)
    assert "shift" not in KINDS


def test_by_default_many_numbers_of_ranks_are_proved(tmp_path, capsys):
    status, out, _ = run(capsys, file(tmp_path, RIGHT), "--algorithm", "pull")
    assert status == 0 and "ranks 1-9,16-17; on 17: 1 round," in out


def test_a_wrong_program_prints_its_counterexample_and_status_1(tmp_path, capsys):
    path = file(tmp_path, WRONG)
    status, out, err = run(capsys, path)
    assert (status, err) == (1, "")
    assert out.startswith("WRONG  broadcast star\nbroadcast star, 2 ranks, 2 elements, root 1: ")
    assert f"{path}:8\n    yield [send(x, peer) for peer in range(1, size)]" in out
    assert "rank 0  [>1]" in out
    assert "ring" not in out  # imported, not defined there
    status, out, _ = run(capsys, file(tmp_path, RIGHT), "--ranks", "4", "--algorithm",
                         "swap_halves")
    assert status == 1 and "without the contribution" in out


def test_an_exception_in_a_program_is_wrong_and_says_where(tmp_path, capsys):
    path = file(tmp_path, "from minipar.comm import *\n@collective('barrier')\n"
                          "def divides(rank, size, x):\n    yield 1 // (size - 2)\n")
    status, out, err = run(capsys, path, "--ranks", "2")
    assert (status, err) == (1, "")
    assert "2 ranks: ZeroDivisionError" in out and f"({path}:4)" in out


def test_ranks_that_a_program_declares_not_to_serve_are_named_and_are_no_failure(capsys):
    status, out, _ = run(capsys, "--algorithm", "swing", "--ranks", "2-5")
    assert status == 0 and "ranks 2,4; " in out and "refuses 3,5: serves 2^k ranks" in out
    status, out, _ = run(capsys, "--algorithm", "swing", "--ranks", "3")
    assert status == 0 and out.startswith("none   all_reduce swing")


def test_a_program_that_raises_for_every_number_of_ranks_has_not_been_proved(tmp_path, capsys):
    path = file(tmp_path, "from minipar.comm import *\n@collective('barrier')\n"
                          "def declines(rank, size, x):\n    raise ValueError('not today')\n"
                          "    yield\n")
    status, out, _ = run(capsys, path, "--ranks", "2,3")
    assert status == 1 and "refuses 2-3: not today" in out


@pytest.mark.parametrize("text, words", [
    ("def f(:\n", "invalid syntax (line 1)"),
    ("x = 1\n", "there is no program in"),
    ("from minipar.comm.algorithms.ring import ring\n", "there is no program in"),
    ("\nimport a_module_of_nobody\n", "No module named 'a_module_of_nobody' (line 2)"),
    ("raise SystemExit(0)\n", "SystemExit"),
    ("from minipar.comm import collective\n@collective('all_reduced')\ndef f(rank, size, x): pass",
     "no kind 'all_reduced'"),
])
def test_a_file_that_cannot_be_read_is_one_line_and_status_2(tmp_path, capsys, text, words):
    status, out, err = run(capsys, file(tmp_path, text))
    assert status == 2 and out == ""
    assert err.startswith("minipar: error: ") and words in err and err.count("\n") == 1


@pytest.mark.parametrize("argv, words", [
    (["nowhere.py"], "no file nowhere.py"), (["--ranks", "0"], "'0' is not numbers of ranks"),
    (["--ranks", "two"], "not numbers"), (["--ranks", "2-"], "not numbers"),
    (["--algorithm", "rnig"], "no program 'rnig': did you mean ring?"),
    (["--rank", "2"], "unrecognized arguments"),
])
def test_usage_errors_are_one_line_and_status_2(capsys, argv, words):
    status, out, err = run(capsys, *argv)
    assert status == 2 and out == ""
    assert err.startswith("minipar: error: ") and words in err and err.count("\n") == 1


def test_without_a_file_every_algorithm_that_comes_with_minipar_is_proved_and_named(capsys):
    status, out, _ = run(capsys, "--ranks", "1,2,4")
    assert status == 0
    names = {tuple(line.split()[:3]) for line in out.splitlines()}
    tables = {**ALGORITHMS, "schedule": SCHEDULES}
    assert names == {("right", kind, name) for kind, table in tables.items() for name in table}
    assert run(capsys, "--all", "--ranks", "1,2,4")[1] == out


def test_the_share_that_a_rank_sends_is_that_of_the_closed_forms(capsys):
    p = 8
    forms = {("all_reduce", "ring"): (2 * (p - 1), 2 * (p - 1) / p),
             ("all_gather", "ring"): (p - 1, (p - 1) / p), ("broadcast", "binomial"): (3, 3.0),
             ("barrier", "dissemination"): (3, 0.0)}
    _, out, _ = run(capsys, "--ranks", p)
    for (kind, name), (rounds, share) in forms.items():
        line = next(line for line in out.splitlines() if line.split()[1:3] == [kind, name])
        assert f"on 8: {rounds} rounds, a rank sends at most {share:.4g} n" in line


def test_it_is_a_command_of_minipar(tmp_path):
    folder = tmp_path / "with space \u00e9"
    folder.mkdir()
    path = file(folder, WRONG)
    done = subprocess.run([sys.executable, "-m", "minipar", "verify", str(path), "--ranks", "2"],
                          capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1 and "WRONG  broadcast star" in done.stdout, done
    assert "verify" in subprocess.run([sys.executable, "-m", "minipar", "--help"], cwd=ROOT,
                                      capture_output=True, text=True, timeout=60).stdout
