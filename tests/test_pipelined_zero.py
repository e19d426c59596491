"""ZeRO-1 beside pipelines and tensor parallelism: the serial training, in less memory."""

from types import SimpleNamespace

import numpy as np
import pytest

import minipar as mp
from cut_cases import adamw, alike, assert_alike, assert_close, copies, steps, trainer
from minipar import nn, options, train
from minipar.amp import GradScaler
from minipar.comm import run_threads, world
from minipar.parallel import Diverged, Mesh, Pipelined, PipelinedZero, Zero
from minipar.parallel.schedule import SCHEDULES
from minipar.tensor import Tensor
from minipar.train import loss_and_count

SERIAL = Mesh(1, 1, 1)


def zero2(model, make_optimizer, loss, comm, mesh, schedule, **options):
    return Zero(model, make_optimizer, loss, comm, mesh, 2, microbatches=schedule.microbatches,
                **options)


MESHES = [Mesh(2, 2, 1), Mesh(2, 1, 2), Mesh(3, 1, 2), Mesh(2, 2, 2), Mesh(1, 2, 1),
          Mesh(4, 1, 1), Mesh(2, 3, 1)]


def trained(mesh, zero=PipelinedZero, **options):
    """Of each rank: (the whole model on rank 0, norms of gradients, its own whole parameters)."""
    def rank():
        t = trainer(mesh, zero or Pipelined, **options)
        norms = steps(t, 0, 5)
        return copies(t.parameters()), norms, alike(t)
    return run_threads(rank, mesh.size)


@pytest.fixture(scope="module")
def serial():
    return trained(SERIAL, zero=False)[0]


@pytest.mark.parametrize("mesh, kind", [
    *((mesh, PipelinedZero) for mesh in MESHES), (Mesh(2, 1, 2), zero2), (Mesh(3, 1, 2), zero2),
    (Mesh(1, 1, 3), zero2)], ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_cut_gpt_with_its_optimizer_in_slices_trains_what_one_process_trains(
        mesh, kind, serial):
    results = trained(mesh, kind)
    assert_close(results[0][0], serial[0])
    for _, norms, _ in results:
        np.testing.assert_allclose(norms, serial[1], rtol=1e-12)
    assert_alike([own for *_, own in results])


@pytest.mark.parametrize("schedule, microbatches", [("zb-v", 4), ("interleaved", 2), ("gpipe", 3)])
@pytest.mark.parametrize("algorithm", ["ring", "auto"])
def test_so_it_does_with_other_schedules_and_algorithms(schedule, microbatches, algorithm):
    more = {"layers": 4, "schedule": schedule, "microbatches": microbatches}
    expected = trained(SERIAL, zero=False, layers=4)[0]
    found = trained(Mesh(2, 2, 1), algorithm=algorithm, recompute=schedule == "gpipe", **more)
    assert_close(found[0][0], expected[0])


@pytest.mark.parametrize("mesh", [Mesh(2, 2, 1), Mesh(2, 1, 2), Mesh(4, 2, 1)], ids=str)
def test_memory_of_a_pipeline_is_that_of_replicas_but_for_the_optimizers_state(mesh):
    def rank(*kind):
        t = trainer(mesh, *kind, layers=4)
        steps(t, 0, 1)
        own = sum(p.nbytes for p in t.module.parameters())
        return t.memory(), own, len(t.pipeline.reducers)
    whole, ours = run_threads(rank, mesh.size), run_threads(rank, mesh.size, PipelinedZero)
    for (_, p, _), (held, same, units) in zip(whole, ours, strict=True):
        assert p == same
        padding = 64 * mesh.dp * units + 64 * 60  # of slices, and of parameters
        for what, size in (("parameters", p), ("gradients", p), ("optimizer", 2 * p / mesh.dp)):
            assert size <= held[what] <= size + padding * (2 if what == "optimizer" else 1), what
    assert sum(h["optimizer"] for h, *_ in ours) < 1.2 * sum(
        h["optimizer"] for h, *_ in whole) / mesh.dp


def test_with_tensor_parallelism_gradients_are_in_slices_too():
    def rank():
        t = trainer(Mesh(2, 1, 2), zero2, layers=4)
        steps(t, 0, 1)
        return t.memory(), sum(p.nbytes for p in t.module.parameters()), len(t._units)
    for held, p, units in run_threads(rank, 4):
        padding = 64 * 2 * units + 64 * 60
        for what, size in (("parameters", p), ("gradients", p / 2), ("optimizer", p)):
            assert size <= held[what] <= size + 2 * padding, what
        assert 0 < held["transient"] < p  # of some blocks at a time


LAYOUTS = {"serial": (SERIAL,), "pp2 dp2": (Mesh(2, 2, 1), PipelinedZero),
           "tp2 dp3": (Mesh(3, 1, 2), PipelinedZero), "all": (Mesh(2, 2, 2), PipelinedZero),
           "pp3 whole": (Mesh(1, 3, 1),), "tp2 zero2": (Mesh(2, 1, 2), zero2)}


@pytest.mark.parametrize("before, after", [
    ("serial", "all"), ("pp2 dp2", "tp2 dp3"), ("all", "pp3 whole"), ("tp2 dp3", "serial"),
    ("pp3 whole", "pp2 dp2"), ("pp2 dp2", "tp2 zero2"), ("tp2 zero2", "pp2 dp2")])
def test_any_layout_goes_on_from_the_state_of_another(before, after, serial):
    def first():
        t = trainer(*LAYOUTS[before])
        steps(t, 0, 2)
        return [copies(arrays) for arrays in t.state()]

    def then(model, state):
        t = trainer(*LAYOUTS[after])
        t.load(*((model, state) if t.comm.rank == 0 else ({}, {})))
        steps(t, 2, 5)
        return [copies(arrays) for arrays in t.state()]
    states = run_threads(first, LAYOUTS[before][0].size)
    assert all(s == [{}, {}] for s in states[1:])
    model, state = run_threads(then, LAYOUTS[after][0].size, *states[0])[0]
    assert model.keys() == serial[0].keys() | {"lm_head.weight"}
    assert_close({name: model[name] for name in serial[0]}, serial[0])
    np.testing.assert_array_equal(model["lm_head.weight"], model["transformer.wte.weight"])
    assert {int(v) for k, v in state.items() if k.endswith(".step")} == {5}
    assert {k.rpartition(".")[0] for k in state} == set(serial[0])


class Sometimes(nn.Module):
    """A layer that replica 1 alone uses, and one that none does."""

    def __init__(self, mesh):
        super().__init__()
        self.some, self.never = nn.Linear(6, 6), nn.Linear(6, 6)
        self.used = mesh.coordinates(world().rank)["dp"] == 1

    def forward(self, x):
        return self.some(x) if self.used else x.relu()


def test_partly_used_parameters_learn_and_frozen_and_unused_ones_stay():
    mesh, data = Mesh(2, 2, 1), np.random.default_rng(0)
    x, y = data.standard_normal((8, 6)), data.integers(0, 4, 8)

    def rank(kind, count):
        mp.set_default_dtype("float64")
        mp.manual_seed(5)
        model = nn.Sequential(nn.Linear(6, 6), Sometimes(mesh), nn.GELU(), nn.Linear(6, 4))
        model[0].bias.requires_grad_(False)
        t = kind(model, adamw, loss_and_count, world(), mesh, SCHEDULES["1f1b"](2, 2))
        mine = slice(4 * (world().rank % 2), 4 * (world().rank % 2) + 4)
        for step in range(count):
            t.step((Tensor(x[mine]), Tensor(y[mine])), SimpleNamespace(start=0), step)
        return copies(t.parameters()), t.memory()
    (start, _), *_ = run_threads(rank, 4, PipelinedZero, 0)
    (expected, whole), *_ = run_threads(rank, 4, Pipelined, 3)
    (found, held), *_ = run_threads(rank, 4, PipelinedZero, 3)
    assert_close(found, expected)
    assert {name for name in found if (found[name] == start[name]).all()} == {
        "0.bias", "1.never.weight", "1.never.bias"}
    assert held["parameters"] < 1.5 * whole["parameters"]


@pytest.mark.parametrize("mesh, kind", [(Mesh(2, 2, 1), PipelinedZero), (Mesh(2, 1, 2), zero2)])
def test_a_loss_that_is_not_finite_is_told_with_the_parameter_on_all_ranks(mesh, kind):
    def rank():
        t = trainer(mesh, kind)
        model, _ = t.state()
        if t.comm.rank == 0:
            model["transformer.h.1.mlp.c_fc.bias"][-1] = np.nan
        t.load(model, {})
        with pytest.raises(Diverged) as error:
            steps(t, 0, 1)
        return str(error.value)
    for message in run_threads(rank, 4):
        assert message.endswith("first bad: parameter transformer.h.1.mlp.c_fc.bias")


def test_ranks_skip_a_step_together_when_the_gradients_of_some_overflow():
    def rank():
        t = trainer(Mesh(2, 2, 1), PipelinedZero,
                    scaler=GradScaler(init_scale=1e308, comm=world()))
        t.scaler.update(1e308)
        before = copies(t.parameters())
        with np.errstate(all="ignore"):
            steps(t, 0, 1)
            t.scaler.update(2.0)
            skipped = copies(t.parameters())
            steps(t, 0, 1)
        return before, skipped, copies(t.parameters())
    before, skipped, after = run_threads(rank, 4)[0]
    assert_close(skipped, before, 0)
    assert any((after[name] != before[name]).any() for name in before)


def job(n, *args):
    kept = {}

    def digest(parameters):
        kept.update(copies(parameters))
        return "hash"
    o = options.parse(["--quiet", "--steps", "3", "--batch-size", "24", "--hidden", "16",
                       "--dtype", "float64", "--clip", "0.5", *args], n)
    before, train.params_sha256 = train.params_sha256, digest
    try:
        run_threads(lambda: train.run(o, world()), n)
    finally:
        train.params_sha256 = before
    return kept


def test_the_job_with_it_is_the_serial_job_also_where_a_rank_has_no_parameter(monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda trainer, dataset, batch_size: (0.0, 0.0))
    expected = job(1)
    assert_close(job(4, "--pp", "2", "--sync", "zero1"), expected)
    assert_close(job(4, "--tp", "2", "--sync", "zero1"), expected)
    assert_close(job(4, "--tp", "2", "--sync", "zero2", "--microbatches", "3"), expected)
    found = job(10, "--pp", "5", "--schedule", "gpipe", "--sync", "zero1")
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-14)


def test_a_stop_that_one_rank_asks_for_stops_all_where_layers_are_cut():
    def rank():
        t = trainer(Mesh(2, 1, 2), zero2)
        batch = Tensor(np.zeros((2, 8), np.int64)), Tensor(np.zeros((2, 8), np.int64))
        return t.step(batch, SimpleNamespace(start=0), 0, stop=t.comm.rank == 3)[1]
    assert run_threads(rank, 4) == [True] * 4


@pytest.mark.parametrize("argv", [["--tp", "2", "--sync", "zero3"], ["--tp", "2", "--recompute",
                                                                     "--sync", "zero2"]])
def test_what_zero_cannot_do_where_layers_are_cut_is_refused(argv):
    with pytest.raises(options.UsageError, match="whole models, not for dp 2|--recompute is for"):
        options.parse(argv, 4)


@pytest.mark.parametrize("sync", ["zero2", "zero3", "shared"])
def test_what_is_for_whole_models_is_refused(sync):
    with pytest.raises(options.UsageError, match=f"--sync {sync} is for whole models, not for dp "
                                                 "2 x pp 2 x tp 1: zero1 cuts"):
        options.parse(["--pp", "2", "--sync", sync], 4)
