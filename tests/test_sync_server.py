"""Parameter servers under stress: bounds on staleness, and every update exactly once."""

import threading
import time

import numpy as np
import pytest

import minipar as mp
from minipar import nn, optim
from minipar.comm import run_threads, world
from minipar.parallel import Mesh
from minipar.parallel.sync import Method, make_trainer
from minipar.parallel.sync.line import shares
from minipar.tensor import Tensor

STEPS = 25


class shard:
    def __init__(self, rank, size):
        self.start, self.size = rank, size


def value(worker, step):
    """The gradient of that push: no two are equal, nor are sums of a few of them."""
    return float(1000 * (worker + 1) + step)


class Model(nn.Module):
    """Two parameters, for two servers; the gradient of each is the input."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

    def forward(self, x):
        return self.a(x) + self.b(x)


def serve(method, n, before=lambda rank, step, began: None, lr=1.0):
    """Train on n ranks; returns what each rank saw, and the parameters at the end.

    before: called on workers before each push, with the steps that each has begun.
    """
    workers = n - method.servers
    began, most_ahead = [0] * workers, [0] * workers

    def work():
        mp.set_default_dtype("float64")
        mp.manual_seed(0)
        rank = world().rank
        trainer = make_trainer(method, Model(), lambda m: optim.SGD(m.parameters(), lr),
                               lambda out, _: (out.sum(), 1), world(), Mesh(workers))
        if rank >= workers:
            start = {k: float(p.array[0, 0]) for k, p in trainer.share.named_parameters()}
            log = record(trainer)
            for step in range(STEPS):
                trainer.step(None, None, step)
            trainer.finish()
            trainer.parameters()
            return trainer, log, start
        for step in range(STEPS):
            began[rank] = step + 1
            # Whoever begins step c has c pushes behind it, and each has what it has begun, less 1.
            most_ahead[rank] = max(most_ahead[rank], step - (min(began) - 1))
            before(rank, step, began)
            x = Tensor(np.array([[value(rank, step)]]))
            trainer.step((x, x), shard(rank, workers), step)
        trainer.finish()
        return {k: float(v[0, 0]) for k, v in trainer.parameters().items()}, trainer.pushes
    return run_threads(work, n, timeout=30), most_ahead


def record(server):
    """A list that gets (gradient, rate) of every update that the server makes."""
    log, step = [], server.optimizer.step

    def recording(scale, max_norm=None):
        p = next(server.share.parameters())
        log.append((float(p.grad.array[0, 0]), server.optimizer.param_groups[0]["lr"] * scale))
        step(scale=scale, max_norm=max_norm)
    server.optimizer.step = recording
    return log


def at_random(seed):
    rngs = [np.random.default_rng((seed, rank)) for rank in range(8)]

    def before(rank, step, began):
        if rngs[rank].random() < 0.3:
            time.sleep(rngs[rank].random() * 2e-3 * (1 + 2 * (rank == 1)))
    return before


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("method", [("ps", None), ("ps", "async"), ("ssp", 0), ("ssp", 1),
                                    ("ssp", 3)])
def test_no_update_is_lost_or_made_twice_and_staleness_stays_in_its_bound(method, servers):
    method, workers = Method(*method, servers), 4
    ranks, most_ahead = serve(method, workers + servers, at_random(servers))
    parameters = ranks[:workers]
    assert all(p == parameters[0] for p in parameters) and parameters[0][1] == STEPS
    expected = sorted(value(w, t) for w in range(workers) for t in range(STEPS))
    ends = set()
    for server, log, start in ranks[workers:]:
        assert server.pushes == [STEPS] * workers
        if str(method) == "ps":
            assert [g for g, _ in log] == [sum(value(w, t) for w in range(workers))
                                           for t in range(STEPS)]
        else:
            assert sorted(g for g, _ in log) == expected
        assert server.updates == len(log)
        ends.update((k, round(w - sum(g * rate for g, rate in log), 6)) for k, w in start.items())
        if method.name == "ssp":
            s = method.argument
            assert server.ahead <= s and server.stalest <= (workers - 1) * (2 * s + 1)
    assert ends == {(k, round(v, 6)) for k, v in parameters[0][0].items()}
    if method.name == "ssp":
        # A worker that began has its answer from all servers; a push on its way is not counted.
        assert max(most_ahead) <= method.argument + 1


@pytest.mark.parametrize("s", [0, 2])
def test_a_fast_worker_waits_when_it_is_s_steps_ahead_and_not_before(s):
    seen = []

    def before(rank, step, began):
        if rank == 0 and step == 0:  # the slow one, until the others come no further
            deadline = time.monotonic() + 10
            while min(began[1:]) <= s and time.monotonic() < deadline:
                time.sleep(1e-3)
            time.sleep(0.05)
            seen.append(list(began))
    ranks, _ = serve(Method("ssp", s, 1), 4, before)
    assert seen == [[1, s + 1, s + 1]]
    assert ranks[3][0].ahead == s


def test_an_asynchronous_worker_waits_for_nobody_and_a_late_gradient_takes_a_smaller_step():
    done, workers = threading.Event(), 3

    def before(rank, step, began):
        if rank == 0 and step == 0:
            assert done.wait(10)
            time.sleep(0.05)  # until the last pushes of the others are in
        elif rank > 0 and min(began[1:]) == STEPS:
            done.set()
    ranks, _ = serve(Method("ps", "async", 1), workers + 1, before)
    server, log, _ = ranks[workers]
    at = [g for g, _ in log].index(value(0, 0))
    assert at >= 2 * (STEPS - 1)  # nearly all of the others before it
    assert server.stalest == at
    assert log[at][1] == pytest.approx(1 / workers / (at / workers))
    assert log[0][1] == pytest.approx(1 / workers)


def test_a_push_that_comes_twice_is_found():
    def work():
        mp.set_default_dtype("float64")
        method = Method("ps", "async", 1)
        trainer = make_trainer(method, Model(), lambda m: optim.SGD(m.parameters(), 1.0),
                               lambda out, _: (out.sum(), 1), world(), Mesh(1))
        x = Tensor(np.ones((1, 1)))
        for step in range(2):
            trainer.step((x, x), shard(0, 1), step)
            if world().rank == 0:
                trainer.pushes = 0
    with pytest.raises(RuntimeError, match="push 1 of worker 0 came after its push 1"):
        run_threads(work, 2, timeout=20)


def test_a_worker_that_leaves_is_missed_and_not_waited_for():
    def work():
        method = Method("ps", None, 1)
        trainer = make_trainer(method, Model(), lambda m: optim.SGD(m.parameters(), 1.0),
                               lambda out, _: (out.sum(), 1), world(), Mesh(2))
        if world().rank:
            x = Tensor(np.ones((1, 1), np.float32))
            trainer.step((x, x), shard(0, 2), 0)
    with pytest.raises(RuntimeError, match="waits for rank 0, which has left the job"):
        run_threads(work, 3, timeout=20)


@pytest.mark.parametrize("servers", [1, 2, 3, 4])
def test_every_parameter_has_one_server_and_the_servers_have_about_as_much(servers):
    module = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 30), nn.Linear(30, 20)).materialize()
    parts = shares(module, servers)
    names = [name for part in parts for name in part]
    assert sorted(names) == sorted(name for name, _ in module.named_parameters())
    loads = [sum(p.numel() for p in part.values()) for part in parts]
    assert max(loads) - min(loads) <= 600 and all(loads)
