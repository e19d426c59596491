"""Checkpoints of one layout go on with any other, and train what one rank trains."""

import numpy as np
import pytest
from wish import Wish

from minipar import options, train
from minipar.comm import run_threads, world
from minipar.interrupt import Interrupt

MODELS = {
    "mlp": ["--model", "mlp", "--hidden", "16", "--batch-size", "30", "--optimizer", "adam"],
    "gpt": ["--model", "gpt", "--layers", "3", "--heads", "2", "--embedding", "8", "--block-size",
            "8", "--dropout", "0.2", "--batch-size", "13"],
}
ONE = 1, []
PP2 = 2, ["--pp", "2", "--schedule", "zb-h1", "--microbatches", "3"]
PP3 = 3, ["--pp", "3", "--schedule", "gpipe"]
CHUNKS = 2, ["--pp", "2", "--schedule", "zb-v"]
DP2 = 2, ["--dp", "2"]
BOTH = 4, ["--pp", "2", "--dp", "2", "--microbatches", "3", "--recompute"]


@pytest.fixture(autouse=True)
def a_short_test_part(monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda trainer, dataset, batch_size: (0.0, 0.0))


def run(args, n, after=None):
    """Run the main job on n threads; {name: array} of all parameters at its end, or None."""
    o, kept = options.parse(["--quiet", *map(str, args)], n), {}
    keep = train.params_sha256

    def rank():
        told = after is not None and world().rank == 0
        return train.run(o, world(), Wish(after) if told else Interrupt())

    def digest(parameters):
        kept.update({name: array.copy() for name, array in parameters.items()})
        return keep(parameters)
    train.params_sha256 = digest
    try:
        ends = run_threads(rank, n)
    finally:
        train.params_sha256 = keep
    return kept if ends[0] else None


@pytest.mark.parametrize("model, layouts", [
    ("gpt", [ONE, PP2, DP2, BOTH, PP3, ONE]), ("gpt", [BOTH, CHUNKS, ONE, PP3, DP2]),
    ("mlp", [PP2, ONE, BOTH, CHUNKS, DP2, PP3]), ("mlp", [DP2, BOTH, PP2, ONE])])
def test_a_run_goes_from_one_layout_to_the_next(model, layouts, tmp_path):
    args = [*MODELS[model], "--steps", 2 * len(layouts), "--dtype", "float64", "--clip", "0.5",
            "--lr", "0.01"]
    expected = run(args, 1)
    args += ["--checkpoint", tmp_path]
    for i, (n, layout) in enumerate(layouts):
        last = i == len(layouts) - 1
        found = run([*args, *layout, *["--resume"] * (i > 0)], n, None if last else 1)
        assert (found is None) == (not last)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        worst = np.abs(found[name] - value).max()
        assert worst <= 1e-12 * np.abs(value).max(), (name, worst)


def test_a_rank_may_hold_no_parameter():
    args = [*MODELS["mlp"], "--steps", "3", "--dtype", "float64", "--clip", "0.5"]
    found = run([*args, "--pp", "5", "--schedule", "gpipe"], 5)  # stages 1 and 3: a ReLU
    expected = run(args, 1)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-14)
