"""`minipar draw SCHEDULE --recorded RUN.json`: a recorded run below the prediction."""

import re

import pytest

from minipar import options, train
from minipar.comm import run_threads, world
from minipar.commands import draw_schedule
from minipar.commands.recorded import recorded
from minipar.parallel.schedule import SCHEDULES


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """The trace of two virtual steps on 2 pipelines of 2 ranks."""
    path = tmp_path_factory.mktemp("run") / "run.json"
    o = options.parse(["--quiet", "--steps", "2", "--pp", "2", "--dp", "2", "--microbatches", "3",
                       "--schedule", "zb-h1", "--virtual-compute", "4,4,4", "--trace",
                       str(path)], 4)
    run_threads(lambda: train.run(o, world()), 4)
    return path


def test_the_last_step_is_there_in_order_and_without_its_waits(trace):
    made = SCHEDULES["zb-h1"](2, 3)
    found = recorded(trace, "zb-h1", made)
    assert 0 < found.bubble < 1
    for rank, row in enumerate(made.actions):
        spans = sorted((s for s in found.spans if s.row == rank), key=lambda s: s.start)
        assert [f"{rank}{s.kind}{s.microbatch}" for s in spans] == list(map(str, row))
        assert all(s.end - s.start >= 4 for s in spans)  # milliseconds
        assert all(a.end <= b.start for a, b in zip(spans, spans[1:]))


def test_it_is_drawn_below_the_prediction(trace, capsys):
    args = "zb-h1 --stages 2 --microbatches 3 --times 4,4,4 --width 90 --recorded".split()
    assert draw_schedule.main([*args, str(trace)]) == 0
    titles = re.findall(r"^(zb-h1.*): bubble", capsys.readouterr().out, re.M)
    assert titles == ["zb-h1", "zb-h1, recorded"]


@pytest.mark.parametrize("schedule, words", [
    ("gpipe", "has no action 0B0: it is of another schedule than gpipe on 2 ranks, 3 micro-"),
    ("gpipe,1f1b", "--recorded is of one schedule, not of gpipe,1f1b")])
def test_another_schedule_is_refused(schedule, words, trace, capsys):
    args = [schedule, "--stages", "2", "--microbatches", "3", "--recorded", str(trace)]
    assert draw_schedule.main(args) == 2
    assert words in capsys.readouterr().err


def test_what_is_no_trace_is_refused(tmp_path, capsys):
    (tmp_path / "x.json").write_text("{}", encoding="utf-8")
    for name in ("x.json", "none.json"):
        assert draw_schedule.main(["1f1b", "--stages", "2", "--microbatches", "2", "--recorded",
                                   str(tmp_path / name)]) == 2
        assert "is no trace of a run" in capsys.readouterr().err
