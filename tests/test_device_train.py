"""Whole training on a GPU, as the stand-in of fake_cupy.py sees it, against the CPU."""

import json

import fake_cupy
import numpy as np
import pytest

from minipar import train
from minipar.comm import run_threads
from minipar.checkpoint import load_file

SMALL = {
    "mlp": ["--model", "mlp", "--hidden", "16"],
    "cnn": ["--model", "cnn", "--optimizer", "sgd", "--momentum", "0.9"],
    "gpt": ["--model", "gpt", "--layers", "1", "--heads", "2", "--embedding", "16",
            "--block-size", "16", "--dropout", "0.1", "--sample", "4"],
}


def job(path, *args, ranks=1):
    """The status of the job on every rank, and what its metrics file says."""
    argv = [*args, "--quiet", "--metrics", str(path)]
    status = run_threads(train.main, ranks, argv)
    lines = path.read_text(encoding="utf-8").splitlines()
    return status, [json.loads(line) for line in lines]


def losses(events):
    return [e["loss"] for e in events if e["event"] == "step"], events[-1]["loss"]


@pytest.mark.parametrize("model", SMALL)
@pytest.mark.parametrize("ranks", (1, 2))
def test_training_on_a_gpu_is_training_on_the_cpu(model, ranks, tmp_path):
    args = [*SMALL[model], "--steps", "4", "--batch-size", "8", "--clip", "1"]
    _, expected = job(tmp_path / "cpu.jsonl", *args)
    with fake_cupy.installed() as fake:
        fake.RawModule.launches.clear()
        status, found = job(tmp_path / "gpu.jsonl", *args, "--device", "cuda", ranks=ranks)
        assert {"cross_entropy_gradient", "sgd_momentum" if model == "cnn" else "adam"} <= {
            name for name, *_ in fake.RawModule.launches}
    assert status == [0] * ranks
    np.testing.assert_allclose(np.concatenate([np.atleast_1d(v) for v in losses(found)]),
                               np.concatenate([np.atleast_1d(v) for v in losses(expected)]), 1e-5)


def test_a_checkpoint_goes_from_gpu_to_cpu_and_back(tmp_path):
    args = [*SMALL["mlp"], "--batch-size", "8", "--checkpoint-every", "2"]
    _, whole = job(tmp_path / "whole.jsonl", *args, "--steps", "6")
    with fake_cupy.installed():
        job(tmp_path / "a.jsonl", *args, "--steps", "2", "--checkpoint", str(tmp_path / "c"),
            "--device", "cuda")
        weights = load_file(tmp_path / "c" / "step-00000002" / "model.safetensors")
        assert {str(t.device) for t in weights.values()} == {"cpu"}
    job(tmp_path / "b.jsonl", *args, "--steps", "4", "--checkpoint", str(tmp_path / "c"),
        "--resume")
    with fake_cupy.installed():
        _, last = job(tmp_path / "d.jsonl", *args, "--steps", "6", "--checkpoint",
                      str(tmp_path / "c"), "--resume", "--device", "cuda")
    assert last[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-5)
