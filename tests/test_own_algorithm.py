"""An algorithm in a file outside the package: proved, trained with, timed, with no other change."""

import json

from launch import mpirun, python

RIGHT = '''
from minipar.comm import collective, recv, recv_reduce, send


@collective("all_reduce")
def through_rank_0(rank, size, x):
    """Everybody sends to rank 0, which adds in order, and gets the sum back."""
    if rank == 0:
        for peer in range(1, size):
            yield recv_reduce(x, peer)
        yield [send(x, peer) for peer in range(1, size)]
    else:
        yield send(x, 0)
        yield recv(x, 0)
'''
TRAIN = ["-m", "minipar.train", "--steps", "8", "--dtype", "float64", "--hidden", "16"]


def loss(path):
    return json.loads(path.read_text().splitlines()[-1])["loss"]


def test_training_with_it_computes_what_the_ring_computes(tmp_path):
    file = tmp_path / "my algorithm.py"
    file.write_text(RIGHT)
    assert mpirun(3, *TRAIN, "--metrics", tmp_path / "ring").returncode == 0
    done = mpirun(3, *TRAIN, "--algorithm", f"{file}:through_rank_0", "--metrics", tmp_path / "own")
    assert done.returncode == 0, done.stderr
    assert abs(loss(tmp_path / "own") - loss(tmp_path / "ring")) < 1e-12
    assert python("-m", "minipar", "verify", file, "--ranks", "1-5").returncode == 0


def refused(file, name, *ranks):
    done = python(*TRAIN, *ranks, "--algorithm", f"{file}:{name}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_wrong_one_is_refused_before_it_runs_naming_rank_and_line(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(RIGHT.replace("range(1, size):", "range(2, size):"))
    line = refused(file, "through_rank_0", "--ranks", "3")
    assert "through_rank_0 is wrong" in line and "rank" in line and "minipar verify" in line


def test_what_is_not_there_is_refused_with_one_line(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(RIGHT)
    assert "no all_reduce program 'other'" in refused(file, "other")
    assert "no file" in refused(tmp_path / "none.py", "x")
    file.write_text("def broken(")
    assert "cannot be run" in refused(file, "x")
