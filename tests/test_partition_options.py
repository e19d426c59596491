"""--partition and --stage-speeds of the main job: what lies where, and that it trains the same."""

import numpy as np
import pytest
from pipeline_cases import own_model

import minipar
from minipar import data, options, train
from minipar.build import build_model, stage_counts
from minipar.comm import run_threads, world
from minipar.context import current
from minipar.nn.blocks import blocks_of
from minipar.options import UsageError
from minipar.parallel.measure import block_seconds
from minipar.parallel.partition import parameter_counts

ARGS = ["--quiet", "--model", "mlp", "--hidden", "12", "--steps", "3", "--dtype", "float64"]


def counts(*more, ranks=2):
    """The counts that the options lead to, the same on every rank."""
    o = options.parse([*ARGS, "--pp", str(ranks), *more], ranks)

    def rank():
        minipar.set_default_dtype("float64")
        found = data.load("digits", dtype=minipar.float64)
        return stage_counts(o, build_model(o, found), found, world())
    found = run_threads(rank, ranks)
    assert all(c == found[0] for c in found)
    return found[0]


def test_blocks_lie_where_the_options_say():
    blocks = len(blocks_of(build_model(options.parse(ARGS, 1), data.load("digits"))))
    assert counts("--partition", "1,5") == [1, 5]
    assert counts() == counts("--partition", "parameters")
    # The first layer has most of the parameters: a slow device in front gets no more than it.
    assert counts("--stage-speeds", "1,100")[0] <= counts("--stage-speeds", "100,1")[0]
    assert sum(counts("--partition", "measured")) == blocks
    assert sum(counts("--partition", "measured", "--stage-speeds", "1,0.5")) == blocks


@pytest.mark.parametrize("more", [["--partition", "1,5"], ["--partition", "measured"],
                                  ["--stage-speeds", "1,0.01"]])
def test_any_partition_trains_the_same(more, monkeypatch):
    kept = {}
    monkeypatch.setattr(train, "params_sha256", lambda parameters: kept.update(
        {name: array.copy() for name, array in parameters.items()}) or "hash")
    run_threads(lambda: train.run(options.parse(ARGS, 1), world()), 1)
    expected = dict(kept)
    run_threads(lambda: train.run(options.parse([*ARGS, "--pp", "2", *more], 2), world()), 2)
    for name, value in expected.items():
        np.testing.assert_allclose(kept[name], value, rtol=1e-11, atol=1e-14)


def test_every_block_of_a_users_sequential_is_timed_and_random_state_stays():
    minipar.manual_seed(3)
    before = current().random_state()
    found = block_seconds(own_model, np.ones((2, 1, 4, 4), np.float32))
    assert len(found) == 9 == len(parameter_counts(own_model())) and min(found) > 0
    assert current().random_state() == before


@pytest.mark.parametrize("more, words", [
    (["--partition", "3,2,1"], "stages of 3 \\+ 2 \\+ 1 blocks for 6 blocks and 2 stages"),
    (["--partition", "1,2"], "stages of 1 \\+ 2 blocks for 6 blocks and 2 stages"),
    (["--partition", "2,0"], "'2,0' is neither parameters, measured, nor numbers of blocks"),
    (["--stage-speeds", "1,1,2"], "speeds 1.0, 1.0, 2.0 for 2 stages: one for each is needed"),
    (["--stage-speeds", "1,0"], "'1,0' is not speeds > 0"),
    (["--stage-speeds", "1,2", "--partition", "4,2"], "--partition 4,2 leaves nothing to balance"),
])
def test_what_does_not_fit_is_refused_with_the_arithmetic(more, words):
    def rank():
        with pytest.raises(UsageError, match=words):
            train.run(options.parse([*ARGS, "--pp", "2", *more], 2), world())
    run_threads(rank, 2)


@pytest.mark.parametrize("option", ["--partition 3,3", "--schedule zb-h1", "--chunks 2",
                                    "--stage-speeds 1"])
def test_what_is_of_a_pipeline_is_refused_without_one(option):
    for layout in ["--dp", "2"], ["--tp", "2"]:
        with pytest.raises(UsageError, match=f"^{option.split()[0]} is of a pipeline: give --pp$"):
            options.parse([*ARGS, *option.split(), *layout], 2)


def test_recomputing_is_refused_where_nothing_is_cut():
    with pytest.raises(UsageError, match="^--recompute is of a model that is cut: give --pp or"):
        options.parse([*ARGS, "--recompute"], 1)
    for cut in "--pp", "--tp":
        assert options.parse([*ARGS, "--recompute", cut, "2"], 2).recompute


@pytest.mark.parametrize("text, words", [
    ("0F0,0X0\n1F0,1B0", "line 1, cell 2: no action '0X0'.*\\[0X0\\]"),
    ("0F0,0F1,0B0\n1F0,1F1,1B0,1B1", "stage 0 has no backward of micro-batch 1.*\\[0F1\\]"),
    ("0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1", "deadlock.*\\[0B0\\]"),
    ("0F0,0B0", "my.csv has 1 rank, not 2"),
])
def test_a_wrong_schedule_file_is_refused_before_anything_starts(tmp_path, text, words):
    (tmp_path / "my.csv").write_text(text)
    with pytest.raises(UsageError, match=f"(?s){words}"):
        options.parse([*ARGS, "--pp", "2", "--schedule", str(tmp_path / "my.csv")], 2)


@pytest.mark.parametrize("ranks, more, words", [
    (7, ["--pp", "7"], "6 blocks do not make 7 stages"),
    (2, ["--pp", "2", "--schedule", "interleaved", "--chunks", "4"],
     "6 blocks do not make 8 stages"),
    (2, ["--pp", "2", "--schedule", "interleaved", "--microbatches", "3"],
     "interleaved: 3 micro-batches are no multiple of 2 ranks"),
    (2, ["--pp", "2", "--batch-size", "4", "--microbatches", "5"],
     "global batch 4 < 1 replica x 5 micro-batches = 5"),
    (4, ["--pp", "3", "--dp", "2"], "world size 4 != dp 2 x pp 3 x tp 1 = 6"),
])
def test_a_layout_that_cannot_be_is_refused_with_the_arithmetic(ranks, more, words):
    def rank():
        with pytest.raises(UsageError, match=f"^{words}$"):
            train.run(options.parse([*ARGS, *more], ranks), world())
    run_threads(rank, ranks)
