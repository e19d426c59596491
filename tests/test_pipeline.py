"""Pipelines: for any schedule and cut, the training is that of one process."""

import numpy as np
import pytest

import minipar
from minipar import optim
from minipar.comm import run_threads, world
from minipar.context import batch_position
from minipar.models import GPT, MLP, GPTConfig
from minipar.ops.loss import cross_entropy_sum_count
from minipar.parallel.mesh import Mesh
from minipar.parallel.partition import Part, balanced, parameter_counts
from minipar.parallel.pipeline import Pipeline
from minipar.parallel.schedule import SCHEDULES, parse
from minipar.tensor import Tensor

ZERO_BUBBLE = "0F0,0F1,0I0,0F2,0W0,0I1,0W1,0I2,0W2\n1F0,1I0,1F1,1I1,1W0,1F2,1I2,1W1,1W2\n"


def loss(output, targets):
    return cross_entropy_sum_count(output.reshape(-1, output.shape[-1]), targets.reshape(-1))


def model_and_data(name):
    minipar.manual_seed(7)
    minipar.set_default_dtype("float64")
    rng = np.random.default_rng(1)
    if name == "mlp":
        model = MLP([6, 8, 8, 8, 5])
        return model, rng.standard_normal((5, 11, 6)), rng.integers(0, 5, (5, 11))
    model = GPT(GPTConfig(vocab_size=7, block_size=6, n_layer=3, n_head=2, n_embd=8, dropout=0.2))
    tokens = rng.integers(0, 7, (5, 11, 7))
    return model, tokens[..., :-1], tokens[..., 1:]


def cut(k, parts):
    return [(i + 1) * k // parts - i * k // parts for i in range(parts)]


def serial(name, microbatches):
    """Parameters after 5 steps on one rank, and the losses."""
    model, inputs, targets = model_and_data(name)
    model.materialize()
    optimizer, losses = optim.AdamW(model.parameters(), 0.01), []
    for step, (x, y) in enumerate(zip(inputs, targets)):
        optimizer.zero_grad()
        total, count, at = 0.0, 0, 0
        for size in cut(len(x), microbatches):
            with batch_position(step, at):
                value, n = loss(model(Tensor(x[at:at + size])), Tensor(y[at:at + size]))
            value.backward()
            total, count, at = total + value.item(), count + n, at + size
        optimizer.step(scale=1 / count, max_norm=0.5)
        losses.append(total / count)
    return {k: p.array for k, p in model.named_parameters()}, losses


def pipelined(name, make, mesh, chunks, microbatches, recompute=False, varying=False):
    """The same on the calling rank of a mesh: what it holds, and the losses."""
    model, inputs, targets = model_and_data(name)
    comm = world()
    place, schedule = mesh.coordinates(comm.rank), make(mesh.pp, microbatches)
    counts = balanced(parameter_counts(model), mesh.pp * chunks)
    part = Part(model, counts, schedule.rank_of, place["pp"]).materialize()
    pipeline = Pipeline(part, schedule, mesh.split(comm, "pp"), mesh.split(comm, "dp"), loss,
                        recompute=recompute, varying=varying)
    optimizer, losses = optim.AdamW(part.parameters(), 0.01), []
    stages = mesh.split(comm, "pp")

    def everywhere(squares):
        total = np.array([squares])
        stages.all_reduce(total)
        return float(total[0])
    optimizer.sum_over_ranks = everywhere
    for step, (x, y) in enumerate(zip(inputs, targets)):
        optimizer.zero_grad()
        shards = cut(len(x), mesh.dp)
        at, size = sum(shards[:place["dp"]]), shards[place["dp"]]
        totals = np.array(pipeline.step(x[at:at + size], y[at:at + size],
                                        cut(size, microbatches), step, at), float)
        comm.all_reduce(totals)
        optimizer.step(scale=1 / totals[1], max_norm=0.5)
        losses.append(totals[0] / totals[1])
    return {k: p.array for k, p in part.named_parameters()}, losses


CASES = [
    ("gpt", SCHEDULES["gpipe"], Mesh(pp=2), 1, 3, {}),
    ("gpt", SCHEDULES["1f1b"], Mesh(pp=4), 1, 4, {}),
    ("gpt", SCHEDULES["1f1b"], Mesh(pp=2, dp=2), 1, 3, {}),
    ("gpt", SCHEDULES["1f1b"], Mesh(pp=3), 1, 5, {"recompute": True}),
    ("mlp", SCHEDULES["sequential"], Mesh(pp=3), 1, 4, {}),
    ("mlp", SCHEDULES["gpipe"], Mesh(pp=3, dp=2), 1, 7, {"varying": True}),
    ("mlp", SCHEDULES["1f1b"], Mesh(pp=1), 1, 3, {}),
    ("gpt", lambda ranks, m: parse(ZERO_BUBBLE), Mesh(pp=2, dp=2), 1, 3, {}),
    ("mlp", lambda ranks, m: parse(ZERO_BUBBLE), Mesh(pp=2), 1, 3, {"recompute": True}),
]


@pytest.mark.parametrize("name, make, mesh, chunks, microbatches, options", CASES)
def test_a_pipeline_trains_what_one_process_trains(name, make, mesh, chunks, microbatches,
                                                   options):
    results = run_threads(lambda: pipelined(name, make, mesh, chunks, microbatches, **options),
                          mesh.size)
    expected, losses = run_threads(lambda: serial(name, microbatches), 1)[0]
    seen = set()
    for held, found in results:
        np.testing.assert_allclose(found, losses, rtol=1e-12)
        for key, array in held.items():
            np.testing.assert_allclose(array, expected[key], rtol=1e-11, atol=1e-14)
            seen.add(key)
    assert seen == set(expected)


def test_copies_of_a_tied_parameter_stay_bitwise_equal():
    results = run_threads(lambda: pipelined("gpt", SCHEDULES["1f1b"], Mesh(pp=2, dp=2), 1, 3), 4)
    first = results[0][0]["transformer.wte.weight"]
    for held, _ in results[1:]:
        np.testing.assert_array_equal(held["transformer.wte.weight"], first)


def test_prediction_through_the_stages_is_the_models():
    def work():
        model, inputs, _ = model_and_data("gpt")
        schedule = SCHEDULES["1f1b"](3, 2)
        part = Part(model, [1, 3, 1], schedule.rank_of, world().rank).materialize().eval()
        pipeline = Pipeline(part, schedule, world(), Mesh(pp=3).split(world(), "dp"), loss)
        out = pipeline.predict(inputs[0])
        again = pipeline.predict(inputs[1][:3])
        return (out, again) if out is None else (out.array, again.array)

    def whole():
        model, inputs, _ = model_and_data("gpt")
        model.materialize().eval()
        return model(Tensor(inputs[0])).array, model(Tensor(inputs[1][:3])).array
    results, (expected, *_) = run_threads(work, 3), run_threads(whole, 1)
    assert results[0] == results[1] == (None, None)
    np.testing.assert_array_equal(results[2][0], expected[0])
    np.testing.assert_array_equal(results[2][1], expected[1])


def test_what_cannot_be_is_refused_with_the_arithmetic():
    def wrong_ranks():
        model, *_ = model_and_data("mlp")
        schedule = SCHEDULES["gpipe"](2, 2)
        part = Part(model, [4, 4], schedule.rank_of, 0).materialize()
        with pytest.raises(ValueError, match="schedule gpipe is for 2 ranks, the pipeline has 1"):
            Pipeline(part, schedule, world(), world(), loss)
        schedule = SCHEDULES["gpipe"](1, 2)
        model, *_ = model_and_data("mlp")
        part = Part(model, [8], schedule.rank_of, 0).materialize()
        pipeline = Pipeline(part, schedule, world(), world(), loss)
        with pytest.raises(ValueError, match="3 micro-batches for schedule gpipe of 2"):
            pipeline.step(None, None, [1, 1, 1])
    run_threads(wrong_ranks, 1)
