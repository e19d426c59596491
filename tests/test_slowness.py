"""Ranks that are made slow: how long they sleep and when, on a clock that only sleeping moves."""

import json

import numpy as np
import pytest

from minipar import options, train
from minipar.comm import run_threads, world
from minipar.context import current
from minipar.options import UsageError
from minipar.parallel.buckets import Buckets
from minipar.parallel.slowness import Slowness
from minipar.parallel.sync.line import Line
from minipar.tensor import Tensor


class Clock:
    """Time that passes in sleep() and work() alone; an engine that has waited for `waited`."""

    def __init__(self):
        self.now, self.waited, self.slept, self.progressed = 0.0, 0.0, 0.0, 0

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds

    def wait(self, seconds):
        self.now += seconds
        self.waited += seconds

    def sleep(self, seconds):
        self.now += seconds
        self.slept += seconds

    def progress(self):
        self.progressed += 1


def slowness(clock, factor=1.0, delay=0.0):
    return Slowness(clock, factor, delay, clock, clock.sleep)


@pytest.mark.parametrize("factor, delay", [(1.0, 0.0), (2.0, 0.0), (3.5, 0.04), (1.0, 0.25)])
def test_a_step_takes_the_delay_and_factor_times_what_was_computed_but_not_the_waits(
        factor, delay):
    clock = Clock()
    slow = slowness(clock, factor, delay)
    for step in range(3):
        begin = clock.slept
        with slow:
            assert clock.slept - begin == pytest.approx(delay)
            clock.work(0.3)
            slow.pace()
            assert clock.slept - begin == pytest.approx(delay + 0.3 * (factor - 1))
            clock.wait(5.0)
            clock.work(0.1)
            slow.pace()
            slow.pace()  # nothing was computed since
            clock.work(0.2)
        assert clock.slept - begin == pytest.approx(delay + 0.6 * (factor - 1))
        clock.work(7.0)  # an evaluation
        slow.pace()
        assert clock.slept - begin == pytest.approx(delay + 0.6 * (factor - 1))


def test_messages_in_flight_are_attended_to_during_a_sleep():
    clock = Clock()
    with slowness(clock, delay=0.02):
        pass
    assert clock.progressed >= 20


def test_a_loss_paces_its_forward_and_its_backward_before_what_comes_after_backward():
    clock, events = Clock(), []
    slow = slowness(clock, 2.0)
    weight = Tensor(np.array([3.0]), requires_grad=True)
    loss = slow.around(lambda out, targets: ((out * targets).sum(), len(targets)))

    def hook(tensor):
        clock.work(0.5)
        current().after_backward.append(lambda: events.append(clock.slept))
    weight.register_post_accumulate_grad_hook(hook)
    with slow:
        clock.work(0.25)
        total, count = loss(weight * weight, Tensor(np.array([2.0])))
        assert clock.slept == pytest.approx(0.25)
        total.backward()
    assert events == [pytest.approx(0.75)]
    assert (total.item(), count, weight.grad.array.tolist()) == (18.0, 1, [12.0])


def test_a_rank_at_its_own_speed_has_its_loss_untouched():
    def loss(out, targets):
        return out, targets
    assert slowness(Clock()).around(loss) is loss


# In the main job


@pytest.fixture
def slept(monkeypatch):
    """{rank: seconds} that ranks would have slept for; nobody does."""
    seconds = {}

    def sleep(self, wanted):
        rank = world().rank
        seconds[rank] = seconds.get(rank, 0.0) + wanted
    monkeypatch.setattr(Slowness, "_sleep", sleep)
    return seconds


def run(n, *more, batch=24):
    o = options.parse(["--hidden", "16", "--batch-size", str(batch), "--dtype", "float64",
                       "--steps", "4", "--quiet", *map(str, more)], n)
    return run_threads(lambda: train.run(o, world()), n)[0]


LAYOUTS = [
    (2, []), (3, ["--sync", "zero1"]), (2, ["--sync", "zero3"]), (2, ["--sync", "shared"]),
    (2, ["--microbatches", "3"]), (2, ["--compress", "fp16"]), (3, ["--sync", "local:2"]),
    (2, ["--sync", "diloco:2"]), (3, ["--sync", "delayed"]), (3, ["--sync", "gossip:ring"]),
    (3, ["--sync", "ps"]), (2, ["--pp", "2"]), (2, ["--tp", "2"]),
    (4, ["--pp", "2", "--schedule", "zb-h1", "--recompute"]), (2, ["--exact", "4"])]
ASYNCHRONOUS = [
    (3, ["--sync", "ps:async"]), (3, ["--sync", "ssp:2"]), (2, ["--sync", "adpsgd:ring"])]


@pytest.mark.parametrize("n, more", LAYOUTS + ASYNCHRONOUS)
def test_a_slow_rank_of_any_method_sleeps_in_its_steps_and_no_other_rank_does(slept, n, more):
    for rank in range(n):  # the last one may be a server
        slept.clear()
        run(n, "--slow", f"{rank}:3", *more)
        assert slept.pop(rank) > 0 and not any(slept.values())
        run(n, "--delay", f"{rank}:250", *more)
        assert slept.pop(rank) == pytest.approx(4 * 0.25) and not any(slept.values())


@pytest.mark.parametrize("n, more", LAYOUTS)
def test_slow_ranks_change_no_bit(slept, n, more):
    plain, slow = run(n, *more), run(n, *more, "--slow", "0:2,1:1.5", "--delay", "1:3")
    assert plain["params_sha256"] == slow["params_sha256"] and plain["loss"] == slow["loss"]


@pytest.mark.parametrize("n, more", ASYNCHRONOUS)
def test_methods_that_wait_for_nobody_finish_with_a_straggler(n, more):
    end = run(n, *more, "--delay", "0:5", "--slow", "1:2")
    assert end["steps"] == 4 and np.isfinite(end["loss"])


def test_the_last_reduction_of_a_slow_rank_starts_after_its_backwards_sleep(monkeypatch):
    events = []
    start = Buckets.start
    monkeypatch.setattr(Slowness, "_sleep", lambda self, seconds: events.append("sleep"))
    monkeypatch.setattr(Buckets, "start", lambda self: (events.append("reduce"), start(self)))
    run(1, "--slow", "0:2")
    assert events == ["sleep", "sleep", "sleep", "reduce", "sleep"] * 4


def test_a_slow_server_answers_after_its_sleep(monkeypatch):
    events = []
    send = Line.send

    def answer(self, share, answer=None):
        events.extend(["answer"] * (answer is not None))
        send(self, share, answer)
    monkeypatch.setattr(Slowness, "_sleep", lambda self, seconds: events.append("sleep") if (
        world().rank == 2 and seconds) else None)
    monkeypatch.setattr(Line, "send", answer)
    run(3, "--sync", "ps", "--slow", "2:2")
    assert events == ["sleep", "answer", "sleep", "answer", "sleep"] * 4


def test_every_action_of_a_pipeline_is_paced(slept, monkeypatch):
    paced, pace = [], Slowness.pace
    monkeypatch.setattr(Slowness, "pace", lambda self: (
        paced.append(world().rank), pace(self)))
    run(2, "--pp", "2", "--microbatches", "4", "--slow", "1:2")
    assert paced.count(0) >= 4 * 2 * 4 and paced.count(1) >= 4 * 2 * 4


def test_auto_sees_the_slowness_and_the_metrics_have_it_as_computing(tmp_path):
    run(2, "--delay", "1:100", "--speeds", "auto", "--metrics", tmp_path / "m", "--steps", "7",
        batch=64)
    steps = [json.loads(line) for line in (tmp_path / "m").read_text().splitlines()][:7]
    first, second = steps[-1]["shares"]
    assert first > second
    run(2, "--delay", "0:40", "--metrics", tmp_path / "m", batch=64)
    steps = [json.loads(line) for line in (tmp_path / "m").read_text().splitlines()][:4]
    assert all(e["compute_s"] >= 0.04 for e in steps)


def test_options_may_be_given_again_or_with_commas():
    o = options.parse(["--slow", "1:2,3:1.5", "--slow", "0:1", "--delay", "2:10"], 4)
    assert o.slow == {1: 2.0, 3: 1.5, 0: 1.0} and o.delay == {2: 0.01}
    o = options.parse([], 4)
    assert o.slow == o.delay == {}


@pytest.mark.parametrize("args, message", [
    (["--slow", "4:2"], "argument --slow: rank 4 >= world size 4"),
    (["--slow", "-1:2"], "expected one argument|is not RANK:FACTOR"),
    (["--slow=-1:2"], "'-1:2' is not RANK:FACTOR, a rank and 1 or more"),
    (["--slow", "1:0.5"], "'1:0.5' is not RANK:FACTOR"),
    (["--slow", "1:inf"], "is not RANK:FACTOR"),
    (["--slow", "1:nan"], "is not RANK:FACTOR"),
    (["--slow", "1"], "'1' is not RANK:FACTOR"),
    (["--slow", "1:2,"], "'' is not RANK:FACTOR"),
    (["--slow", "1:2", "--slow", "1:3"], "rank 1 has 2 values"),
    (["--delay", "9:2"], "argument --delay: rank 9 >= world size 4"),
    (["--delay", "1:-3"], "'1:-3' is not RANK:MS, a rank and 0 or more milliseconds"),
    (["--delay", "1:soon"], "'1:soon' is not RANK:MS"),
])
def test_slowness_that_cannot_be_is_refused_in_one_line(args, message):
    with pytest.raises(UsageError, match=message) as info:
        options.parse(args, 4)
    assert "\n" not in str(info.value)
