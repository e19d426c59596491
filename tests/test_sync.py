"""Replicas that are kept together otherwise than by DDP: limits that are DDP, and whole runs."""

import json
import time

import numpy as np
import pytest
from wish import Wish

import minipar as mp
from minipar import nn, optim, options, train
from minipar.comm import run_threads, world
from minipar.interrupt import Interrupt
from minipar.options import UsageError
from minipar.parallel import Mesh
from minipar.parallel.sync import Method, make_trainer, mixing_matrix
from minipar.tensor import Tensor

SGD = ["--optimizer", "sgd", "--lr", "0.05", "--lr-schedule", "constant"]
PLAIN = [*SGD, "--momentum", "0", "--weight-decay", "0"]


@pytest.fixture
def job(monkeypatch):
    """Runs the main job on n threads; returns what all ranks end with, and the parameters."""
    digest = train.params_sha256

    def run(n, sync, *more, after=None, asked=0):
        ends = {}

        def digest_and_keep(parameters):
            ends[world().rank] = {k: a.copy() for k, a in parameters.items()}
            return digest(parameters)
        monkeypatch.setattr(train, "params_sha256", digest_and_keep)
        o = options.parse(["--hidden", "24", "--batch-size", "26", "--dtype", "float64", "--steps",
                           "20", "--quiet", "--sync", sync, *map(str, more)], n)

        def rank():
            told = after is not None and world().rank == asked
            return train.run(o, world(), Wish(after) if told else Interrupt())
        results = run_threads(rank, n)
        assert len({result and result["params_sha256"] for result in results}) == 1
        return results[0], ends.get(0)
    return run


def assert_close(params, expected, relative=1e-12):
    assert params.keys() == expected.keys()
    for name, value in expected.items():
        worst = np.abs(params[name] - value).max()
        assert worst <= relative * np.abs(value).max(), f"{name} is off by {worst}"


# Limits: 20 steps of each are 20 steps of DDP. Shards of 26 samples on 3 ranks are unequal.


@pytest.mark.parametrize("sync, n, workers, optimizer", [
    ("local:1", 3, 3, SGD), ("gossip:complete", 3, 3, SGD), ("gossip:complete", 4, 4, PLAIN),
    ("gossip:0-1,1-2,0-2", 3, 3, PLAIN), ("ps", 4, 3, SGD), ("ps", 4, 3, ["--clip", "0.5"]),
    ("ssp:0", 4, 3, PLAIN), ("ssp:0", 2, 1, SGD), ("ps:async", 2, 1, [])])
def test_in_the_limit_each_method_is_synchronous_sgd(job, sync, n, workers, optimizer):
    ours, params = job(n, sync, *optimizer)
    ddp, expected = job(workers, "ddp", *optimizer)
    assert_close(params, expected)
    assert abs(ours["loss"] - ddp["loss"]) <= 1e-12 * ddp["loss"]
    assert ours["test_accuracy"] == ddp["test_accuracy"] and ours["sync"] == sync


@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("more", [[], SGD, ["--microbatches", "2"]])
def test_two_workers_and_synchronous_servers_have_the_bits_of_ddp_on_two_ranks(
        job, servers, more):
    ours, _ = job(2 + servers, "ps", "--servers", servers, *more)
    assert ours["params_sha256"] == job(2, "ddp", *more)[0]["params_sha256"]
    assert ours["servers"] == servers and ours["dp"] == 2


def test_clipping_counts_the_gradients_of_all_servers(job, tmp_path):
    def norms(n, *more):
        _, params = job(n, *more, *SGD, "--clip", "0.3", "--metrics", tmp_path / "m")
        lines = (tmp_path / "m").read_text().splitlines()
        return params, [json.loads(line)["grad_norm"] for line in lines[:20]]
    params, found = norms(4, "ps", "--servers", "2")
    expected, known = norms(2, "ddp")
    assert_close(params, expected)
    np.testing.assert_allclose(found, known, rtol=1e-12)


@pytest.mark.parametrize("sync", ["local:3", "diloco:3", "delayed", "gossip:ring", "ps"])
def test_deterministic_methods_give_the_same_bits_twice(job, sync):
    first, second = (job(4, sync)[0] for _ in range(2))
    assert first["params_sha256"] == second["params_sha256"]


@pytest.mark.parametrize("sync", ["local:7", "diloco:7", "gossip:ring"])
def test_replicas_that_have_drifted_are_evaluated_as_their_average_and_go_on_as_they_were(
        job, sync):
    plain, params = job(4, sync)
    seen, expected = job(4, sync, "--eval-every", "3")
    assert plain["params_sha256"] == seen["params_sha256"]
    assert plain["params_sha256"] != job(4, "ddp")[0]["params_sha256"]


# One at a time, against arithmetic


def quadratic(method, steps, n=2, lr=0.1, **options):
    """The weights on every rank after steps on (w x - y)^2 / 2, one sample a rank."""
    def work():
        mp.set_default_dtype("float64")
        mp.manual_seed(0)
        module = nn.Linear(1, 1, bias=False)
        trainer = make_trainer(method, module, lambda m: optim.SGD(m.parameters(), lr),
                               lambda out, y: (((out - y) ** 2).sum() / 2, len(y)), world(),
                               Mesh(n))
        for name, value in options.items():
            setattr(trainer, name, value)
        trace = [float(module.weight.array[0, 0])]
        for step in range(steps):
            trainer.step(sample(world().rank, step), shard(world().rank, n), step)
            trace.append(float(module.weight.array[0, 0]))
        trainer.finish()
        return trace, float(trainer.parameters()["weight"][0, 0])
    return run_threads(work, n)


class shard:
    def __init__(self, rank, n):
        self.start, self.size = rank, n


def sample(rank, step):
    return Tensor(np.array([[1.0 + rank + 0.1 * step]])), Tensor(np.array([[2.0 - rank]]))


def gradient(w, rank, step):
    x, y = 1.0 + rank + 0.1 * step, 2.0 - rank
    return x * (w * x - y)


def test_local_sgd_averages_every_h_steps():
    (first, _), (second, average) = quadratic(Method("local", 3), 5)
    w = [first[0]] * 2
    for step in range(5):
        w = [w[r] - 0.1 * gradient(w[r], r, step) for r in range(2)]
        if step == 2:
            w = [sum(w) / 2] * 2
        np.testing.assert_allclose([first[step + 1], second[step + 1]], w, rtol=1e-13)
    assert w[0] != w[1]
    np.testing.assert_allclose(average, sum(w) / 2, rtol=1e-13)


def test_the_gradient_of_a_step_is_applied_one_step_later():
    (first, _), (second, _) = quadratic(Method("delayed"), 6)
    assert first == second and first[1] == first[0]
    w = [first[0]]
    for step in range(6):
        late = sum(gradient(w[step - 1], r, step - 1) for r in range(2)) / 2 if step else 0
        w.append(w[step] - 0.1 * late)
    np.testing.assert_allclose(first, w, rtol=1e-13)


def test_diloco_is_nesterovs_momentum_along_what_the_inner_steps_amount_to():
    (first, _), (second, _) = quadratic(Method("diloco", 2), 6)
    begin = w = [first[0]] * 2
    velocity = 0
    for step in range(6):
        w = [w[r] - 0.1 * gradient(w[r], r, step) for r in range(2)]
        if step % 2:
            outer = begin[0] - sum(w) / 2
            velocity = 0.9 * velocity + outer
            begin = w = [begin[0] - 0.7 * (outer + 0.9 * velocity)] * 2
        np.testing.assert_allclose([first[step + 1], second[step + 1]], w, rtol=1e-12)


def test_diloco_without_an_outer_rate_and_momentum_is_local_sgd():
    ours = quadratic(Method("diloco", 3), 9, outer_lr=1.0, outer_momentum=0.0)
    np.testing.assert_allclose(ours[0][0], quadratic(Method("local", 3), 9)[0][0], rtol=1e-13)


def test_gossip_mixes_with_neighbours_after_each_step():
    n, mixing = 5, mixing_matrix("ring", 5)
    results = quadratic(Method("gossip", "ring"), 4, n, lr=0.02)
    w = np.full(n, results[0][0][0])
    for step in range(4):
        w = mixing @ [w[r] - 0.02 * gradient(w[r], r, step) for r in range(n)]
        np.testing.assert_allclose([trace[step + 1] for trace, _ in results], w, rtol=1e-12)
    np.testing.assert_allclose([average for _, average in results], w.mean(), rtol=1e-12)


@pytest.mark.parametrize("graph, n", [("ring", 4), ("torus", 8), ("0-1,0-2,3-0", 4), ("ring", 2)])
def test_asynchronous_gossip_keeps_the_sum_and_brings_the_ranks_together(graph, n):
    def work():
        mp.set_default_dtype("float64")
        module, rng = nn.Linear(1, 1, bias=False), np.random.default_rng(world().rank)
        trainer = make_trainer(Method("adpsgd", graph), module,
                               lambda m: optim.SGD(m.parameters(), 0.0),
                               lambda out, y: ((out - y).sum(), len(y)), world(), Mesh(n))
        trainer.flats[0].data[0] = world().rank
        for step in range(60):
            if rng.random() < 0.2:
                time.sleep(rng.random() * 2e-3)
            trainer.step(sample(0, 0), shard(0, n), step)
            if step == 29:
                middle = trainer.parameters()["weight"][0, 0]
        trainer.finish()
        return (middle, float(module.weight.array[0, 0]), trainer.active, trainer.exchanges)
    results = run_threads(work, n)
    middles, weights, active, exchanges = map(np.array, zip(*results))
    np.testing.assert_allclose(middles, (n - 1) / 2, rtol=1e-14)
    np.testing.assert_allclose(weights.mean(), (n - 1) / 2, rtol=1e-14)
    assert weights.std() < 1e-2 * n
    # every active rank has asked once a step, and each was answered once
    assert (exchanges[active] == 60).all() and exchanges[~active].sum() == 60 * active.sum()


# Whole runs


@pytest.mark.parametrize("sync, n, more", [
    ("local:8", 3, []), ("diloco:8", 3, []), ("delayed", 3, []), ("gossip:ring", 4, []),
    ("adpsgd:ring", 4, []), ("gossip:torus", 4, []),
    ("gossip:exponential", 4, []), ("ps", 3, []), ("ps:async", 4, []),
    ("ps:async", 5, ["--servers", "2"]), ("ssp:4", 4, ["--servers", "2"])])
def test_every_method_learns_the_digits_in_4_epochs(job, sync, n, more, tmp_path):
    o = options.parse(["--epochs", "4", "--sync", sync, "--quiet", "--metrics",
                       str(tmp_path / "m"), *more], n)
    end = run_threads(lambda: train.run(o, world()), n)[0]
    assert end["test_accuracy"] >= 0.85
    lines = [json.loads(line) for line in (tmp_path / "m").read_text().splitlines()]
    assert lines[-1]["event"] == "end" and lines[-1]["sync"] == sync
    stale = sync in ("delayed", "ps:async", "ssp:4")
    assert all(("staleness" in e) == stale for e in lines if e["event"] == "step")


EXACT = ["local:4", "diloco:4", "delayed", "gossip:ring", "ps"]


@pytest.mark.parametrize("optimizer", [SGD, ["--lr-schedule", "constant"]])
@pytest.mark.parametrize("sync", EXACT)
def test_a_run_that_goes_on_from_a_checkpoint_has_the_bits_of_one_that_never_stopped(
        job, sync, optimizer, tmp_path):
    expected, _ = job(3, sync, *optimizer)
    job(3, sync, *optimizer, "--steps", "10", "--checkpoint", tmp_path)
    found, _ = job(3, sync, *optimizer, "--checkpoint", tmp_path, "--resume")
    assert found["params_sha256"] == expected["params_sha256"]


@pytest.mark.parametrize("sync", ["local:4", "local:7", "diloco:5", "gossip:complete", "ps"])
def test_a_finished_run_that_is_resumed_ends_with_the_same_bits(job, sync, tmp_path):
    end, _ = job(4, sync, "--checkpoint", tmp_path)
    again, _ = job(4, sync, "--checkpoint", tmp_path, "--resume")
    assert again["params_sha256"] == end["params_sha256"] and again["loss"] == end["loss"]


@pytest.mark.parametrize("sync, n, asked", [
    ("local:4", 3, 2), ("diloco:4", 3, 1), ("delayed", 3, 1), ("gossip:ring", 5, 3),
    ("ps", 4, 2), ("ps", 4, 0), ("ps", 3, 2)])  # rank 2 is the first server
def test_ranks_agree_on_when_to_stop_and_a_resumed_run_has_the_same_bits(
        job, sync, n, asked, tmp_path):
    more = ["--servers", "2"] if (sync, n) == ("ps", 4) else []
    more += ["--lr-schedule", "constant"]
    expected, _ = job(n, sync, *more)
    more += ["--checkpoint", tmp_path]
    assert job(n, sync, *more, after=5, asked=asked)[0] is None
    assert job(n, sync, *more, "--resume")[0]["params_sha256"] == expected["params_sha256"]


@pytest.mark.parametrize("sync", ["ps:async", "ssp:1"])
def test_asynchronous_servers_stop_and_go_on_too(job, sync, tmp_path):
    more = ["--servers", "2", "--checkpoint", tmp_path, "--checkpoint-every", "3"]
    assert job(5, sync, *more, after=5, asked=1)[0] is None
    end, _ = job(5, sync, *more, "--resume")
    assert end["steps"] == 20 and end["loss"] < 2.25


def test_a_run_goes_on_with_another_number_of_servers(job, tmp_path):
    more = ["--lr-schedule", "constant"]
    expected, _ = job(3, "ps", *more)
    job(4, "ps", "--servers", "2", "--steps", "9", "--checkpoint", tmp_path, *more)
    end, _ = job(5, "ps", "--servers", "3", "--checkpoint", tmp_path, "--resume", *more)
    assert end["params_sha256"] == expected["params_sha256"]


@pytest.mark.parametrize("then, message", [
    ((3, "ddp"), "has sync local:4 on 3 ranks, not ddp"),
    ((3, "local:5"), "not local:5 on 3 ranks"),
    ((2, "local:4"), "has sync local:4 on 3 ranks, not local:4 on 2 ranks")])
def test_a_checkpoint_that_would_lose_state_is_refused(job, then, message, tmp_path):
    job(3, "local:4", "--steps", "3", "--checkpoint", tmp_path)
    with pytest.raises(UsageError, match=message):
        job(*then, "--checkpoint", tmp_path, "--resume")


@pytest.mark.parametrize("sync", ["local:2", "gossip:ring", "delayed", "ps", "ps:async"])
def test_a_loss_that_is_not_finite_ends_the_run(job, sync):
    with pytest.raises(train.Diverged, match="loss is (nan|inf) at step"):
        job(3, sync, "--optimizer", "sgd", "--lr", "1e200", "--warmup", "0")


def test_batch_norm_statistics_of_local_sgd_are_averaged_with_the_parameters(tmp_path):
    def work():
        mp.set_default_dtype("float64")
        mp.manual_seed(0)
        module = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
        trainer = make_trainer(Method("local", 2), module,
                               lambda m: optim.SGD(m.parameters(), 0.1),
                               lambda out, y: ((out - y).sum(), len(y)), world(), Mesh(2))
        r, means = world().rank, []
        x = Tensor(np.array([[1.0], [3.0]]) + 4 * r)
        for step in range(2):
            part = shard(2 * r, 4)
            trainer.step((x, x), part, step)
            with trainer.evaluating():
                assert not module.training
                means.append(float(module[0].running_mean.array[0]))
            means.append(float(module[0].running_mean.array[0]))
        return means
    # momentum 0.1 of batch means 2 and 6; the average of the ranks is 0.4, then 0.19 x 4
    for r, means in enumerate(run_threads(work, 2)):
        np.testing.assert_allclose(means, [0.4, 0.2 + 0.4 * r, 0.76, 0.76], rtol=1e-12)


@pytest.mark.parametrize("args, n, message", [
    (["--sync", "lokal:3"], 4, "did you mean local:H"),
    (["--sync", "local:0"], 4, "local:0 is not local:H with H >= 1 steps"),
    (["--sync", "local"], 4, "not local:H"),
    (["--sync", "diloco:-2"], 4, "diloco:-2 is not diloco:H with H >= 1 steps"),
    (["--sync", "ssp:-1"], 4, "ssp:-1 is not ssp:S with S >= 0 steps"),
    (["--sync", "ssp:1.5"], 4, "ssp:1.5"),
    (["--sync", "ps:sync"], 4, "ps or ps:async"),
    (["--sync", "ps:"], 4, "ps or ps:async"),
    (["--sync", "delayed:2"], 4, "there is delayed"),
    (["--sync", "ps"], 1, "servers 1 >= world size 1"),
    (["--sync", "ssp:2", "--servers", "4"], 4, "servers 4 >= world size 4"),
    (["--sync", "local:2", "--servers", "1"], 4, "local:2 has none"),
    (["--servers", "0"], 4, "0 is not >= 1"),
    (["--sync", "gossip:0-1,2-3"], 4, r"not connected: \[0, 1\] and \[2, 3\]"),
    (["--sync", "gossip:star"], 4, "ring, torus, exponential, complete"),
    (["--sync", "gossip:0-4"], 4, "0-4 is no edge"),
    (["--sync", "adpsgd:ring"], 5, "5 ranks is not bipartite: it has an odd ring with 2-3"),
    (["--sync", "adpsgd:0-1,2-3"], 4, "not connected"),
    (["--sync", "adpsgd:ring", "--checkpoint", "x"], 4, "--checkpoint"),
    (["--sync", "gossip:torus"], 5, "no torus has 5 ranks"),
    (["--sync", "local:2", "--pp", "2"], 4, "not with --pp 2"),
    (["--sync", "ps", "--tp", "2"], 4, "not with --tp 2"),
    (["--sync", "ps:async", "--clip", "1"], 4, "--clip"),
    (["--sync", "ps", "--batch-size", "2"], 4, "global batch 2 < 3 ranks"),
    (["--sync", "delayed", "--amp", "float16"], 4, "--amp float16"),
    (["--sync", "delayed", "--codec", "float16"], 4, "--codec"),
])
def test_what_cannot_be_is_refused_in_one_line(args, n, message):
    with pytest.raises(UsageError, match=message) as info:
        options.parse(args, n)
    assert "\n" not in str(info.value)


def test_more_servers_than_parameters_are_refused(job):
    with pytest.raises(UsageError, match="servers 7 > 6 parameters"):
        job(8, "ps", "--servers", "7")
