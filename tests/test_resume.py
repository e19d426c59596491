"""Runs that are interrupted and go on: the same bits as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from launch import ROOT, SETTINGS, launcher, mpirun, python
from wish import Wish

from minipar import options, train
from minipar.checkpoint import CheckpointFolder, save_file
from minipar.comm import run_threads, world
from minipar.interrupt import Interrupt
from minipar.models import MLP

SIZES = {"mlp": ["--model", "mlp", "--steps", "60", "--batch-size", "100", "--hidden", "32",
                 "--clip", "1"],
         "gpt": ["--model", "gpt", "--steps", "12", "--batch-size", "8", "--layers", "1",
                 "--heads", "2", "--embedding", "16", "--block-size", "16", "--dropout", "0.2",
                 "--microbatches", "2"]}


@pytest.fixture(autouse=True)
def a_short_test_part(monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda model, dataset, batch_size: (0.0, 0.0))


def run(args, n=1, after=None):
    """What the main job ends with on n threads; `after`: the step at which rank 0 is told."""
    o = options.parse(["--quiet", *map(str, args)], n)

    def rank():
        told = after is not None and world().rank == 0
        return train.run(o, world(), Wish(after) if told else Interrupt())
    ends = run_threads(rank, n)
    assert len({end and end["params_sha256"] for end in ends}) == 1
    return ends[0]


def events(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("model", ["mlp", "gpt"])
def test_interrupted_and_resumed_10_times_the_bits_are_those_of_an_uninterrupted_run(
        model, tmp_path):
    steps, rng = int(SIZES[model][3]), np.random.default_rng(11)
    for optimizer in ("adamw", "sgd"):
        args = [*SIZES[model], "--optimizer", optimizer, "--lr", "0.01"]
        expected = run(args)["params_sha256"]
        for i in range(5):
            resumed = ["--checkpoint", tmp_path / f"{optimizer}{i}", "--checkpoint-every", "7"]
            at = sorted(rng.choice(steps - 2, 2, replace=False))
            assert run([*args, *resumed], after=at[0]) is None
            resumed.append("--resume")
            assert run([*args, *resumed], after=at[1] - at[0]) is None
            assert run([*args, *resumed])["params_sha256"] == expected, (optimizer, at)


@pytest.mark.parametrize("model", ["mlp", "gpt"])
def test_a_run_is_resumed_on_another_number_of_ranks(model, tmp_path):
    args = [*SIZES[model], "--dtype", "float64"]
    expected = run(args, 2)["params_sha256"]
    kept = {}
    digest = train.params_sha256
    train.params_sha256 = lambda m: kept.update(
        {k: a.copy() for k, a in m.items()}) or digest(m)
    try:
        serial = run(args), dict(kept)
        for before, after in ((2, 2), (3, 1), (1, 4)):
            more = ["--checkpoint", tmp_path / f"{before}{after}"]
            assert run([*args, *more], before, after=5) is None
            end = run([*args, *more, "--resume"], after)
            assert before != after or end["params_sha256"] == expected
            for name, value in serial[1].items():
                worst = np.abs(kept[name] - value).max()
                assert worst <= 1e-12 * np.abs(value).max(), (before, after, name)
    finally:
        train.params_sha256 = digest


def test_the_metrics_of_a_resumed_run_are_those_of_one_run(tmp_path):
    args = [*SIZES["mlp"], "--checkpoint", tmp_path / "c", "--checkpoint-every", "20",
            "--metrics", tmp_path / "m.jsonl"]
    run(args, after=33)
    with open(tmp_path / "m.jsonl", "a") as file:  # steps after the checkpoint, and half a line
        file.write('{"event": "step", "step": 35, "loss": 9}\n{"event": "st')
    run([*args, "--resume"])
    lines = events(tmp_path / "m.jsonl")
    assert [e["step"] for e in lines if e["event"] == "step"] == list(range(1, 61))
    assert [e["event"] for e in lines if e["event"] != "step"] == ["interrupted", "eval", "end"]
    run([*SIZES["mlp"], "--metrics", tmp_path / "once"])
    once = events(tmp_path / "once")
    assert ([e["loss"] for e in lines if e["event"] == "step"]
            == [e["loss"] for e in once if e["event"] == "step"])


def test_a_finished_run_that_is_resumed_only_evaluates(tmp_path):
    args = [*SIZES["mlp"], "--checkpoint", tmp_path]
    end = run(args)
    again = run([*args, "--resume"])
    assert again["params_sha256"] == end["params_sha256"]


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_with_the_same_bits(tmp_path, capsys):
    args = [*SIZES["mlp"], "--checkpoint", tmp_path, "--checkpoint-every", "10"]
    expected = run(args)["params_sha256"]
    (tmp_path / "step-00000060" / "model.safetensors").write_bytes(b"cut")
    assert run([*args, "--resume"], 1)["params_sha256"] == expected
    err = capsys.readouterr().err
    assert "step-00000060 is passed over: model.safetensors is not as it was written" in err
    assert CheckpointFolder(tmp_path).load()[0]["step"] == 60  # written again


def refused(args, capsys):
    """The line with which main() refuses."""
    assert train.main(["--quiet", *map(str, args)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("minipar: error: ") and err.count("\n") == 1, err
    return err


def test_what_cannot_be_resumed_is_refused_with_one_line(tmp_path, capsys):
    mlp = [*SIZES["mlp"], "--checkpoint", tmp_path / "c"]
    assert "there is no checkpoint in" in refused([*mlp, "--resume"], capsys)
    run([*mlp, "--steps", "3"])
    assert "holds the checkpoint of step 3: --resume" in refused(mlp, capsys)
    for change, expected in ((["--hidden", "8"], "has hidden 32, not 8"),
                             (["--seed", "1"], "has seed 0, not 1"),
                             (["--batch-size", "50"], "has batch-size 100, not 50"),
                             (["--optimizer", "sgd"], "has optimizer adamw, not sgd"),
                             (["--model", "cnn"], "has model mlp, not cnn")):
        assert expected in refused([*mlp, *change, "--resume"], capsys)
    assert "--checkpoint names" in refused(["--resume"], capsys)
    (tmp_path / "file").write_text("")
    assert "is a file, not a folder" in refused(["--checkpoint", tmp_path / "file"], capsys)
    assert "file/c" in refused(["--checkpoint", tmp_path / "file" / "c"], capsys)


def test_weights_of_another_model_are_refused_naming_every_key(tmp_path, capsys):
    state = MLP([64, 32, 32, 10]).materialize().state_dict()
    good = tmp_path / "good.safetensors"
    save_file(state, good)
    assert train.main(["--quiet", "--hidden", "32", "--steps", "1", "--weights", str(good)]) == 0
    del state["1.bias"]
    state["5.bias"] = np.zeros(11, np.float32)
    state["more"] = np.zeros(1, np.float32)
    save_file(state, tmp_path / "bad.safetensors")
    line = refused(["--hidden", "32", "--weights", tmp_path / "bad.safetensors"], capsys)
    assert "missing 1.bias" in line and "unexpected more" in line
    assert "5.bias is (11,) where the model has (10,)" in line
    assert "no such file" in refused(["--weights", tmp_path / "none"], capsys)
    (tmp_path / "half").write_bytes(good.read_bytes()[:100])
    assert "half: not a readable" in refused(["--weights", tmp_path / "half"], capsys)
    assert "both say" in refused(["--weights", good, "--resume", "--checkpoint", tmp_path], capsys)


def test_a_refusal_by_rank_0_alone_ends_all_ranks_with_status_2(tmp_path):
    done = mpirun(3, "-m", "minipar.train", "--checkpoint", tmp_path / "none", "--resume")
    assert done.returncode == 2 and done.stderr.count("there is no checkpoint") == 1


LONG = ["-m", "minipar.train", "--model", "gpt", "--layers", "1", "--heads", "2", "--embedding",
        "16", "--block-size", "16", "--batch-size", "4", "--dropout", "0.1", "--quiet"]


@pytest.mark.parametrize("n, number", [(1, signal.SIGTERM), (1, signal.SIGINT),
                                       (2, signal.SIGTERM)])
def test_a_signal_writes_a_checkpoint_and_ends_the_job_cleanly(n, number, tmp_path):
    folder = CheckpointFolder(tmp_path / "c")
    start = [launcher(), "-n", str(n)] if n > 1 else []
    command = [*start, sys.executable, *LONG, "--steps", "100000", "--checkpoint", folder.path,
               "--metrics", tmp_path / "m"]
    process = subprocess.Popen([*map(str, command)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, env={**os.environ, **SETTINGS})
    deadline = time.monotonic() + 30
    while not (tmp_path / "m").exists() or (tmp_path / "m").stat().st_size < 2000:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    out = process.communicate(timeout=20)[0]
    if n == 1:  # a launcher that was told to end has a status of its own
        assert process.returncode == 0, out
    assert "Traceback" not in out
    step = folder.steps()[-1]
    assert events(tmp_path / "m")[-1] == {"event": "interrupted", "step": step}
    more = ["--checkpoint", folder.path, "--resume", "--metrics", tmp_path / "r"]
    monkeyed = "import sys; from minipar import train; train.evaluate = lambda *a: (0.0, 0.0); " \
               "sys.exit(train.main(sys.argv[1:]))"
    steps = ["--steps", str(step + 3), "--lr-schedule", "constant"]
    assert python("-c", monkeyed, *LONG[2:], *steps, *more).returncode == 0
