"""--ranks: the main job on ranks that it starts itself, equal to those of mpirun."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from launch import ROOT, mpirun, python

from minipar.checkpoint import CheckpointFolder

JOB = ["-m", "minipar.train", "--steps", "15", "--hidden", "16", "--dtype", "float32"]


def end(path):
    return json.loads(path.read_text().splitlines()[-1])


def test_the_same_program_on_4_ranks_ends_with_the_same_bits_however_they_were_started(tmp_path):
    ends = []
    for how in ("processes", "threads", "mpi"):
        done = python(*JOB, "--ranks", "4", "--launcher", how, "--metrics", tmp_path / how)
        assert done.returncode == 0 and done.stdout.count("4 ranks") == 1, done.stderr
        ends.append(end(tmp_path / how))
    assert mpirun(4, *JOB, "--metrics", tmp_path / "mpirun").returncode == 0
    ends.append(end(tmp_path / "mpirun"))
    assert {e["world_size"] for e in ends} == {4}
    assert len({e["params_sha256"] for e in ends}) == 1


@pytest.mark.parametrize("how", ["processes", "threads", "mpi"])
def test_what_cannot_be_is_said_once_and_ends_with_status_2(how):
    start = ["-m", "minipar.train", "--ranks", "3", "--launcher", how]
    for args, said in ((["--batch-size", "2"], "global batch 2 < 3 ranks"),
                       (["--data", "none.npz"], "none.npz")):
        done = python(*start, *args)
        assert done.returncode == 2 and done.stdout == "", done
        assert done.stderr.count("minipar: error:") == 1 and said in done.stderr
        assert "Traceback" not in done.stderr


def test_ranks_that_differ_from_those_of_the_launcher_are_refused():
    done = mpirun(2, "-m", "minipar.train", "--ranks", "3")
    assert done.returncode == 2 and "world size 2 != ranks 3" in done.stderr


def test_one_rank_that_fails_ends_all_with_its_line_and_status_1(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(12):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / label / f"{i}.png")
    bad = tmp_path / "a" / "3.png"
    bad.write_bytes(bad.read_bytes()[:120])
    done = python("-m", "minipar.train", "--ranks", "3", "--data", tmp_path, "--image-size", "8",
                  "--batch-size", "6", "--epochs", "2")
    assert done.returncode == 1 and "3.png" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["processes", "threads"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_one_that_started_the_ranks_writes_a_checkpoint(how, number, tmp_path):
    folder = CheckpointFolder(tmp_path / "c")
    command = [sys.executable, *JOB[:2], "--steps", "100000", "--hidden", "16", "--ranks", "2",
               "--launcher", how, "--checkpoint", folder.path, "--metrics", tmp_path / "m"]
    process = subprocess.Popen([*map(str, command)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 30
    while not (tmp_path / "m").exists() or (tmp_path / "m").stat().st_size < 2000:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    out = process.communicate(timeout=20)[0]
    assert process.returncode == 0 and "Traceback" not in out, out
    assert "interrupted after step" in out and end(tmp_path / "m")["event"] == "interrupted"
    assert folder.steps()[-1] == end(tmp_path / "m")["step"]


def test_ctrl_c_without_a_checkpoint_ends_the_job_in_one_line():
    process = subprocess.Popen([sys.executable, *JOB[:2], "--steps", "100000", "--ranks", "2"],
                               cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err == "minipar: interrupted\n", err
