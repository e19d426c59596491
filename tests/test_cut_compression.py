"""Compression where the model is cut: the replicas of each piece exchange it compressed."""

import numpy as np
import pytest
from cut_cases import alike, assert_alike, assert_close, copies, steps, trainer
from wish import Wish

from minipar import options, train
from minipar.comm import run_threads, world
from minipar.interrupt import Interrupt
from minipar.parallel import Mesh
from minipar.parallel.gather import gather_whole
from minipar.parallel.hooks import PowerSGDState, compression, powerSGD_hook

SERIAL = Mesh(1, 1, 1)
MESHES = [Mesh(2, 2, 1), Mesh(2, 1, 2), Mesh(3, 1, 2), Mesh(2, 2, 2), Mesh(3, 3, 1)]
OWING = ["int8", "int4", "sign", "topk:0.1", "powersgd:1"]


def trained(mesh, hook=None, count=3, **options):
    """Of each rank: (the whole model on rank 0, its own whole parameters)."""
    def rank():
        t = trainer(mesh, hook=hook, **options)
        steps(t, 0, count)
        return copies(t.parameters()), alike(t)
    return run_threads(rank, mesh.size)


@pytest.fixture(scope="module")
def serial():
    return trained(SERIAL)[0][0]


def full_rank():
    return PowerSGDState(None, 1000, start_powerSGD_iter=0, min_compression_rate=0), powerSGD_hook


@pytest.mark.parametrize("make", [lambda: compression("topk:1.0"), full_rank],
                         ids=["topk", "powersgd"])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_compression_at_its_limit_is_the_serial_training(mesh, make, serial):
    results = trained(mesh, make)
    assert_close(results[0][0], serial)
    assert_alike([own for _, own in results])


@pytest.mark.parametrize("schedule, microbatches", [("zb-v", 4), ("interleaved", 2)])
def test_so_it_is_where_a_rank_has_several_stages(schedule, microbatches):
    expected = trained(SERIAL, layers=4)[0][0]
    found = trained(Mesh(2, 2, 1), lambda: compression("topk:1.0"), layers=4, schedule=schedule,
                    microbatches=microbatches)
    assert_close(found[0][0], expected)


@pytest.mark.parametrize("mesh", MESHES[:2], ids=str)
def test_halves_are_close_to_it(mesh, serial):
    found = trained(mesh, lambda: compression("fp16"))[0][0]
    differs = [name for name in serial if not np.array_equal(found[name], serial[name])]
    assert len(differs) > len(serial) / 2
    assert_close(found, serial, 2e-2)


@pytest.mark.parametrize("mesh, name", [
    *((Mesh(3, 1, 2), name) for name in OWING), (Mesh(2, 2, 1), "int4"), (Mesh(2, 2, 1), "sign"),
    (Mesh(2, 2, 2), "topk:0.1")], ids=str)
def test_tied_weights_and_what_ranks_hold_alike_stay_equal_to_the_bit(mesh, name):
    results = trained(mesh, lambda: compression(name), rows=61, layers=mesh.pp)
    assert_alike([own for _, own in results])
    assert all(np.isfinite(a).all() for a in results[0][0].values())


def summed(mesh, hook, state, first, last):
    """({name: sum of the gradients that steps leave}, optimizer's state) on rank 0, by parameters
    that stay as they are."""
    def rank():
        t, total = trainer(mesh, hook=hook), {}
        t.optimizer.param_groups[0].update(lr=0.0, weight_decay=0.0)
        t.load({}, state if t.comm.rank == 0 else {})
        for step in range(first, last):
            steps(t, step, step + 1, max_norm=None)
            for name, p in t.module.named_parameters():
                total[name] = total.get(name, 0) + p.grad.array
        places = {name: p.placement for name, p in t.module.named_parameters()}
        mine = {name: (a, places[name]) for name, a in total.items()}
        return gather_whole(t.comm, mine), t.state()[1]
    return run_threads(rank, mesh.size)[0]


@pytest.mark.parametrize("before, after, name", [
    *((Mesh(2, 2, 1), Mesh(3, 1, 2), name) for name in OWING),
    (Mesh(3, 1, 2), Mesh(2, 2, 1), "int8"), (Mesh(2, 2, 2), SERIAL, "powersgd:1")], ids=str)
def test_what_was_sent_in_two_layouts_and_is_owed_is_the_sum_of_all_gradients(
        before, after, name):
    def hook():
        return compression(name)
    first, state = summed(before, hook, {}, 0, 2)
    assert any(k.startswith("compress/owed/1/") and np.abs(a).max() > 0 for k, a in state.items())
    second, state = summed(after, hook, state, 2, 4)
    whole, _ = summed(SERIAL, None, {}, 0, 4)
    assert whole.keys() == first.keys() == second.keys()
    owed = {}
    for key, array in state.items():
        if key.startswith(("compress/owed", "compress/summed")):
            parameter = key.rpartition("/")[2]
            owed[parameter] = owed.get(parameter, 0) + array
    for key, value in whole.items():
        np.testing.assert_allclose(first[key] + second[key] + owed.get(key, 0), value, rtol=0,
                                   atol=1e-12 * np.abs(value).max())


def job(n, *args, after=None):
    o = options.parse(["--quiet", "--model", "gpt", "--steps", "5", "--batch-size", "8",
                       "--layers", "2", "--heads", "2", "--embedding", "20", "--block-size", "8",
                       "--clip", "1", *map(str, args)], n)
    ends = run_threads(lambda: train.run(o, world(), Wish(2) if after else Interrupt()), n)
    return ends[0] and ends[0]["params_sha256"]


@pytest.mark.parametrize("layout, name", [
    ("--pp", "int8"), ("--pp", "topk:0.1"), ("--tp", "sign"), ("--tp", "powersgd:1")])
def test_an_interrupted_job_goes_on_with_the_bits_of_an_uninterrupted_one(
        layout, name, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda trainer, dataset, batch_size: (0.0, 0.0))
    args = [layout, "2", "--microbatches", "2", "--compress", name]
    expected = job(4, *args)
    assert job(4, *args, "--checkpoint", tmp_path, after=2) is None
    assert job(4, *args, "--checkpoint", tmp_path, "--resume") == expected


def test_fewer_bytes_are_sent_between_replicas():
    def rank(hook):
        t = trainer(Mesh(2, 2, 1), hook=hook)
        steps(t, 0, 1)
        sent = world().bytes_sent
        steps(t, 1, 2)
        return world().bytes_sent - sent
    whole, ours = (sum(run_threads(rank, 4, hook)) for hook in (
        None, lambda: compression("topk:0.01")))
    p = 8 * sum(a.size for a in trained(SERIAL, count=0)[0][0].values())
    assert whole - ours > 0.9 * 2 * p  # two replicas sent their gradients, 1 % of them now
