"""The main job with --tp: the serial run's training, and checkpoints that any layout resumes."""

import json

import numpy as np
import pytest
from launch import mpirun, python

from minipar import options, train
from minipar.checkpoint import load_file
from minipar.comm import run_threads, world

SIZES = {"gpt": ["--model", "gpt", "--layers", 2, "--heads", 4, "--embedding", 16, "--block-size",
                 16, "--dropout", 0.2],
         "mlp": ["--hidden", 32]}
JOB = ["--batch-size", 8, "--dtype", "float64", "--clip", 0.5, "--lr-schedule", "constant",
       "--quiet"]


@pytest.fixture(autouse=True)
def a_short_test_part(monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda model, dataset, batch_size: (0.0, 0.0))


def run(folder, n, steps, *layout, model="gpt"):
    """Weights and losses of a run on n threads that writes checkpoints in `folder`."""
    metrics = folder / f"{steps}.jsonl"
    o = options.parse([*map(str, SIZES[model] + JOB), *map(str, layout), "--steps", str(steps),
                       "--checkpoint", str(folder), "--metrics", str(metrics)], n)
    ends = run_threads(lambda: train.run(o, world()), n)
    assert len({end["params_sha256"] for end in ends}) == 1
    newest = max(folder.glob("*/model.safetensors"))
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return ({k: t.array for k, t in load_file(newest).items()},
            [e["loss"] for e in lines if e["event"] == "step"])


def same(found, expected):
    (weights, losses), (whole, whole_losses) = found, expected
    np.testing.assert_allclose(losses, whole_losses[-len(losses):], rtol=1e-12)
    assert set(weights) == set(whole)
    for key in whole:
        error = np.linalg.norm(weights[key] - whole[key]) / np.linalg.norm(whole[key])
        assert error <= 1e-12, f"{key}: {error:.1e}"


@pytest.mark.parametrize("n, layout", [
    (2, ("--tp", 2)), (4, ("--tp", 2, "--pp", 2, "--sequence-parallel")),
    (4, ("--tp", 2, "--dp", 2, "--microbatches", 3))])
def test_the_job_with_its_layers_cut_is_the_serial_job(n, layout, tmp_path):
    for name in ("serial", "cut"):
        (tmp_path / name).mkdir()
    same(run(tmp_path / "cut", n, 3, *layout), run(tmp_path / "serial", 1, 3))


def test_an_mlp_with_its_layers_cut_is_the_serial_one(tmp_path):
    for name in ("serial", "cut"):
        (tmp_path / name).mkdir()
    same(run(tmp_path / "cut", 4, 3, "--tp", 4, model="mlp"),
         run(tmp_path / "serial", 1, 3, model="mlp"))


def test_a_checkpoint_of_one_layout_goes_on_in_any_other(tmp_path):
    (tmp_path / "serial").mkdir()
    (tmp_path / "moving").mkdir()
    whole = run(tmp_path / "serial", 1, 5)
    layouts = [(2, ("--tp", 2)), (4, ("--tp", 4)), (4, ("--pp", 2, "--tp", 2)), (2, ("--dp", 2)),
               (8, ("--dp", 2, "--pp", 2, "--tp", 2, "--sequence-parallel"))]
    for steps, (n, layout) in enumerate(layouts, 1):
        resume = () if steps == 1 else ("--resume",)
        found = run(tmp_path / "moving", n, steps, *layout, *resume)
        assert len(found[1]) == 1
    same(found, whole)


def test_in_mixed_precision_the_cut_model_trains_as_the_whole_one(tmp_path):
    job = ["--dtype", "float32", "--amp", "float16"]
    for name in ("serial", "cut"):
        (tmp_path / name).mkdir()
    _, found = run(tmp_path / "cut", 4, 4, "--tp", 2, "--pp", 2, "--sequence-parallel", *job)
    _, expected = run(tmp_path / "serial", 1, 4, *job)
    np.testing.assert_allclose(found, expected, rtol=3e-3)


@pytest.mark.parametrize("layout", [("--dp", 2, "--tp", 2), ("--pp", 2, "--tp", 2)])
def test_over_mpi_too_the_job_is_the_serial_job(layout, tmp_path):
    (tmp_path / "t.txt").write_text("to be or not to be, that is the question. " * 50)
    job = ["-m", "minipar.train", *SIZES["gpt"], *JOB, "--data", tmp_path / "t.txt", "--steps", 4,
           "--eval-every", 2, "--metrics"]
    for done in (python(*job, tmp_path / "serial"), mpirun(4, *job, tmp_path / "cut", *layout)):
        assert (done.returncode, done.stderr) == (0, "")
    found, expected = ([json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
                       for name in ("cut", "serial"))
    assert [e["event"] for e in found] == [e["event"] for e in expected]
    for ours, theirs in zip(found, expected):
        for key in {"loss", "grad_norm", "accuracy"} & theirs.keys():
            assert ours[key] == pytest.approx(theirs[key], rel=1e-12)
    assert found[-1]["tp"] == 2


REFUSED = [
    (4, ("--tp", "3"), "world size 4 != dp x pp 1 x tp 3: 4 is no multiple of 3"),
    (4, ("--dp", "4", "--tp", "2"), "world size 4 != dp 4 x pp 1 x tp 2 = 8"),
    (3, ("--tp", "3", "--model", "gpt"), "gpt: 4 heads do not divide into tp 3"),
    (3, ("--tp", "3"), "1.weight: 256 elements along dimension 0 do not divide into 3 pieces"),
    (2, ("--tp", "2", "--model", "cnn"), "CNN has no tensor-parallel form"),
    (2, ("--tp", "2", "--sequence-parallel"),
     "--sequence-parallel is for a gpt with --tp, not mlp"),
    (1, ("--model", "gpt", "--sequence-parallel"),
     "--sequence-parallel is for a gpt with --tp, not --tp 1"),
    (2, ("--tp", "2", "--model", "gpt", "--sequence-parallel", "--block-size", "31"),
     "gpt: a sequence of 31 tokens does not divide into tp 2"),
    (4, ("--tp", "2", "--batch-size", "1"), "global batch 1 < 2 replicas"),
    (4, ("--tp", "2", "--batch-size", "3", "--microbatches", "2"),
     "global batch 3 < 2 replicas x 2 micro-batches = 4"),
]


@pytest.mark.parametrize("n, args, words", REFUSED)
def test_what_cannot_be_cut_is_refused_with_the_arithmetic(n, args, words):
    def rank():
        with pytest.raises(options.UsageError) as error:
            train.run(options.parse([*args, "--quiet", "--steps", "1"], n), world())
        return str(error.value)
    assert run_threads(rank, n) == [words] * n
