"""How far the ranks' gradients lie apart, against all of them in one place."""

import json

import numpy as np
import pytest

from minipar import nn, optim, set_default_dtype
from minipar import train as job
from minipar.comm import run_threads, world
from minipar.data import GlobalBatchSampler
from minipar.parallel import Measured, Mesh, Replicated
from minipar.tensor import Tensor

X = np.random.default_rng(0).standard_normal((40, 5))
Y = X @ np.arange(5.0)[:, None] + np.random.default_rng(1).standard_normal((40, 1))


def squares(output, targets):
    return ((output - targets) ** 2).sum(), len(targets)


def trained(kind, n, batch, microbatches, steps=2):
    """On each of n threads, for each step: (w, b, indices of its shard, facts)."""
    def rank():
        set_default_dtype("float64")
        comm, model = world(), nn.Linear(5, 1).materialize()
        model.weight.array[...], model.bias.array[...] = 0.5, 0.25
        trainer = kind(model, lambda m: optim.SGD(m.parameters(), 0.05), squares, comm,
                       Mesh(comm.size), microbatches=microbatches)
        sampler = GlobalBatchSampler(40, batch, rank=comm.rank, num_replicas=n)
        told = []
        for step, shard in enumerate(sampler.shards(0)):
            if step == steps:
                break
            before = model.weight.array.copy(), model.bias.array.copy()
            inside = X[shard.indices], Y[shard.indices]
            trainer.step(tuple(map(Tensor, inside)), shard, step)
            told.append((*before, *inside, trainer.facts()))
        return told, model.weight.array.copy()
    return run_threads(rank, n)


def expected(ranks):
    """The statistics by their definitions. ranks: (w, b, x, y) of each."""
    own = []
    for w, b, x, y in ranks:
        error = 2 * (x @ w.T + b - y)
        own.append(np.append((error * x).mean(0), error.mean()))
    shares = np.array([len(x) for _, _, x, _ in ranks]) / sum(len(x) for _, _, x, _ in ranks)
    own = np.array(own)
    mean = shares @ own
    return {"grad_norm": np.linalg.norm(mean),
            "grad_variance": shares @ ((own - mean) ** 2).sum(1),
            "grad_cosine": np.mean([g @ mean / np.linalg.norm(g) / np.linalg.norm(mean)
                                    for g in own])}


@pytest.mark.parametrize("n, batch, microbatches", [(1, 8, 1), (2, 8, 1), (3, 8, 1), (3, 10, 2),
                                                    (4, 7, 1)])
def test_norm_variance_and_cosine_are_those_of_the_ranks_gradients(n, batch, microbatches):
    results = [told for told, _ in trained(Measured, n, batch, microbatches)]
    for ranks in zip(*results):  # step by step; shards of 8 samples on 3 ranks are unequal
        oracle = expected([rank[:4] for rank in ranks])
        for *_, facts in ranks:
            assert facts.keys() == oracle.keys()
            for name, value in oracle.items():
                assert abs(facts[name] - value) <= 1e-12 * max(1, value), name


def test_to_measure_changes_nothing():
    for (_, ours), (_, theirs) in zip(trained(Measured, 2, 8, 1), trained(Replicated, 2, 8, 1)):
        np.testing.assert_array_equal(ours, theirs)


def test_the_job_tells_them_in_every_step_and_the_norm_without_clipping(tmp_path):
    path = tmp_path / "m.jsonl"
    base = ["--steps", "4", "--hidden", "16", "--quiet", "--ranks", "2", "--launcher", "threads",
            "--metrics", str(path), "--clip", "1000"]
    assert job.main(base) == 0
    clipped = [json.loads(line) for line in path.read_text().splitlines()]
    assert job.main([*base[:-2], "--gradient-stats"]) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for ours, theirs in zip(lines[:4], clipped):
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
        assert ours["grad_variance"] > 0 and 0 < ours["grad_cosine"] < 1
    assert lines[-1]["params_sha256"] == clipped[-1]["params_sha256"]


@pytest.mark.parametrize("more, words", [
    (["--ranks", "2", "--pp", "2"], "not with --pp 2"), (["--sync", "zero1"], "--sync zero1"),
    (["--compress", "int8"], "--compress int8"), (["--exact"], "--exact 16"),
    (["--amp", "float16"], "--amp float16"),
    (["--device", "cuda"], "--device cuda")])
def test_elsewhere_they_are_refused(more, words, capsys):
    assert job.main(["--gradient-stats", *more]) == 2
    err = capsys.readouterr().err
    assert err.startswith("minipar: error: --gradient-stats") and words in err
    assert err.count("\n") == 1


def test_bytes_of_evaluations_are_not_those_of_training(tmp_path):
    path, ends = tmp_path / "m.jsonl", []
    for more in ([], ["--eval-every", "1"]):
        assert job.main(["--steps", "4", "--hidden", "16", "--quiet", "--ranks", "2", "--launcher",
                         "threads", "--sync", "local:4", "--metrics", str(path), *more]) == 0
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        ends.append(lines[-1])
    assert ends[0]["bytes_sent"] == ends[1]["bytes_sent"] > 0
    assert [e["bytes_sent"] for e in lines if e["event"] == "eval"] == [0, 0, 0,
                                                                       ends[1]["bytes_sent"]]
    assert len(ends[1]["memory_of_ranks"]) == 2
    assert ends[1]["memory_of_ranks"][0] == sum(ends[1]["memory"].values())


def test_an_asynchronous_exchange_is_of_training_though_it_ends_in_an_evaluation(tmp_path):
    path = tmp_path / "m.jsonl"
    assert job.main(["--steps", "6", "--hidden", "16", "--quiet", "--ranks", "2", "--launcher",
                     "threads", "--sync", "adpsgd:ring", "--eval-every", "2", "--metrics",
                     str(path)]) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    parameters = 4 * (64 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10)
    for event in (e for e in lines if e["event"] == "eval"):  # one there and one back in a step
        assert 0 <= event["bytes_sent"] - 2 * parameters * event["step"] <= 200 * event["step"]
