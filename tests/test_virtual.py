"""Virtual compute: sleeps in place of arithmetic, and everything else as it is."""

import json

import numpy as np
import pytest
from launch import python
from pipeline_cases import loss, make_optimizer, model

from minipar import options, train
from minipar.comm import run_threads, world
from minipar.options import UsageError
from minipar.parallel import Pipelined
from minipar.parallel.lower import lower
from minipar.parallel.mesh import Mesh
from minipar.parallel.partition import balanced, parameter_counts
from minipar.parallel.schedule import SCHEDULES, Times
from minipar.sim.schedule import simulate
from minipar.trace import record

WIDTHS = [6, 8, 8, 7, 7, 8, 8, 9, 9, 8, 8, 5]  # of what the mlp's blocks make
TIMES = Times(0.003, 0.002, 0.002)


def step(name, schedule, mesh, samples):
    """One virtual step on the calling rank: what it tells, recorded, and holds."""
    comm = world()
    trainer = Pipelined(model(name), make_optimizer(name), loss, comm, mesh, schedule,
                        virtual=TIMES)
    before = [p.array.copy() for p in trainer.module.parameters()]
    rng = np.random.default_rng(0)
    if name == "gpt":
        x, y = rng.integers(0, 7, (2, samples, 6))
    else:
        x, y = rng.standard_normal((samples, 6)), rng.integers(0, 5, samples)
    trainer.gradients(x, y, type("Shard", (), {"start": 0}), 0, False)  # shapes are told in it
    with record(comm) as recorder:
        totals = trainer.gradients(x, y, type("Shard", (), {"start": 0}), 1, False)
    changed = [p.name for p, b in zip(trainer.module.parameters(), before)
               if (p.array != b).any() or (p.grad is not None and (p.grad.array != 0).any())]
    actions = [name for category, name, *_ in recorder.spans if category == "action"]
    sent = sorted(m[2] for m in recorder.messages if m[0])
    return totals, trainer.facts()["bubble_rate"], actions, sent, changed


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb-h1"])
def test_a_virtual_step_does_all_actions_and_sends_all_messages(name):
    schedule = SCHEDULES[name](4, 8)
    counts = run_threads(lambda: balanced(parameter_counts(model("mlp")), 4), 1)[0]
    widths = [WIDTHS[sum(counts[:stage + 1]) - 1] for stage in range(4)]  # of each output
    results = run_threads(lambda: step("mlp", schedule, Mesh(pp=4), 8 * 3), 4)
    for rank, (totals, bubble, actions, sent, changed) in enumerate(results):
        assert totals.tolist() == [0, 24, 0] and not changed
        assert actions == [str(action) for action in lower(schedule)[rank]]
        there = [widths[rank]] * (rank < 3) + [widths[rank - 1]] * (rank > 0)
        messages = [3 * width * 8 for width in there for m in range(8)]
        assert [size for size in sent if size > 24] == sorted(messages)  # 24: losses and counts
        # A sleep is never too short, and what an action needs was there before it.
        assert bubble >= float(simulate(schedule, TIMES).bubble_rate)


def test_weights_that_stages_share_and_replicas_are_virtual_too():
    schedule = SCHEDULES["zb-v"](2, 4)
    results = run_threads(lambda: step("gpt", schedule, Mesh(dp=2, pp=2), 9), 4)
    for totals, bubble, actions, _, changed in results:
        assert totals.tolist() == [0, 2 * 9 * 6, 0] and not changed
        assert 0 < bubble < 1


def test_the_main_job_tells_the_measured_bubble_beside_the_predicted_one(tmp_path):
    o = options.parse(["--quiet", "--steps", "3", "--pp", "2", "--schedule", "gpipe",
                       "--microbatches", "4", "--virtual-compute", "2,1,1", "--metrics",
                       str(tmp_path / "m")], 2)
    end, _ = run_threads(lambda: train.run(o, world()), 2)
    *steps, last = map(json.loads, (tmp_path / "m").read_text(encoding="utf-8").splitlines())
    assert last["predicted_bubble_rate"] == pytest.approx(1 / 5)  # (p - 1) / (m + p - 1)
    assert last["bubble_rate"] == end["bubble_rate"] == pytest.approx(
        np.median([s["bubble_rate"] for s in steps[1:]]))
    assert 1 / 5 <= last["bubble_rate"] < 1 and len(steps) == 3


@pytest.mark.parametrize("more, words", [
    ([], "--virtual-compute is of a pipeline: give --pp"),
    (["--pp", "2", "--recompute"], "--virtual-compute trains nothing: not with --recompute"),
    (["--pp", "2", "--virtual-compute", "1:2:3,1,1"], "3 times F for 2 stages"),
    (["--pp", "2", "--virtual-compute", "1,1"], "'1,1' is not F,B,W or F,B,W,COMM: times"),
])
def test_what_cannot_be_virtual_is_refused(more, words):
    with pytest.raises(UsageError, match=words):
        options.parse(["--virtual-compute", "1,1,1", *more], 2)


def test_help_says_what_virtual_compute_is():
    assert "--virtual-compute" in python("-m", "minipar.train", "--help").stdout
