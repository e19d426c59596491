"""Cutting models: which blocks go where, and that what is kept is what the whole has."""

import itertools

import numpy as np
import pytest

import minipar
from minipar import nn
from minipar.models import CNN, GPT, MLP, GPTConfig, resnet18
from minipar.nn.blocks import blocks_of
from minipar.nn.placement import Shard
from minipar.parallel.partition import Part, balanced, parameter_counts
from minipar.tensor import Tensor

SMALL = GPTConfig(vocab_size=11, block_size=8, n_layer=3, n_head=2, n_embd=8)
MODELS = {
    "mlp": (lambda: MLP([6, 5, 4, 3]), lambda rng: rng.standard_normal((4, 6), np.float32)),
    "cnn": (lambda: CNN((1, 8, 8), 3), lambda rng: rng.standard_normal((2, 1, 8, 8), np.float32)),
    "resnet": (lambda: resnet18(3, in_channels=1, small_images=True),
               lambda rng: rng.standard_normal((2, 1, 8, 8), np.float32)),
    "gpt": (lambda: GPT(SMALL), lambda rng: rng.integers(0, 11, (2, 8))),
    "nested": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4)),
                                     nn.Linear(4, 2)),
               lambda rng: rng.standard_normal((4, 6), np.float32)),
}


def brute_force(weights, stages, speeds):
    """The least time of the slowest stage over all cuts."""
    best = np.inf
    for cuts in itertools.combinations(range(1, len(weights)), stages - 1):
        edges = [0, *cuts, len(weights)]
        times = [sum(weights[a:b]) / s for a, b, s in zip(edges, edges[1:], speeds)]
        best = min(best, max(times))
    return best


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_the_slowest_stage_is_as_fast_as_any_cut_makes_it(stages):
    rng = np.random.default_rng(stages)
    for _ in range(20):
        weights = rng.integers(0, 9, 7).tolist()
        speeds = rng.integers(1, 4, stages).tolist()
        counts = balanced(weights, stages, speeds)
        edges = np.cumsum([0, *counts])
        assert edges[-1] == 7 and min(counts) >= 1
        slowest = max(sum(weights[a:b]) / s for a, b, s in zip(edges, edges[1:], speeds))
        assert slowest == brute_force(weights, stages, speeds)


def test_more_stages_than_blocks_are_refused_with_the_arithmetic():
    with pytest.raises(ValueError, match="^3 blocks do not make 4 stages$"):
        balanced([1, 1, 1], 4)
    with pytest.raises(ValueError, match="^speeds 1 for 2 stages: one for each is needed"):
        balanced([1, 1, 1], 2, [1])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_stages_one_after_another_are_the_model(name, stages):
    make, draw = MODELS[name]
    x = draw(np.random.default_rng(0))
    whole = make().materialize().eval()
    expected = whole(Tensor(x)).array
    counts = balanced(parameter_counts(make()), stages)
    value, names, total = Tensor(x), set(), 0
    for rank in range(stages):
        part = Part(make(), counts, list(range(stages)), rank).eval()
        part.materialize()
        value = part.stages[rank](value)
        names |= set(dict(part.named_parameters()))
        total += sum(p.numel() for p in part.parameters() if p.counted)
    np.testing.assert_array_equal(value.array, expected)
    assert names == set(dict(whole.named_parameters()))
    assert total == sum(p.numel() for p in whole.parameters())


def test_a_rank_holds_only_its_stages_and_under_the_names_of_the_whole():
    whole = GPT(SMALL).materialize().state_dict()
    counts, seen = [2, 2, 1], {}
    for rank in range(3):
        part = Part(GPT(SMALL), counts, [0, 1, 2], rank).materialize()
        for name, tensor in part.state_dict().items():
            np.testing.assert_array_equal(tensor.array, whole[name].array)
            seen.setdefault(name, []).append(rank)
    assert set(seen) == set(whole)
    assert all(len(ranks) == 1 for ranks in seen.values())
    assert seen["transformer.wte.weight"] == [0] and seen["lm_head.weight"] == [2]


def test_a_tied_parameter_is_known_on_both_stages_and_counted_on_the_first():
    parts = [Part(GPT(SMALL), [2, 2, 1], [0, 1, 2], rank) for rank in range(3)]
    for rank, part in enumerate(parts):
        (name, p, ranks), = part.tied
        assert (name, ranks) == ("transformer.wte.weight", [0, 2])
        assert (p is None) == (rank == 1)
        assert p is None or p.counted == (rank == 0)
    together = Part(GPT(SMALL), [2, 2, 1], [0, 1, 0], 0)
    assert together.tied == []  # both ends on one rank: one parameter


def test_a_model_that_does_not_say_its_blocks_is_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return x
    with pytest.raises(ValueError, match="^Odd cannot be cut into stages: it defines no blocks"):
        blocks_of(Odd())


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("dim", [0, 1])
def test_a_sharded_parameter_is_a_slice_of_the_whole_one(dim, parts):
    def make():
        minipar.manual_seed(3)
        return nn.Sequential(nn.Linear(12, 24)).assign_names()
    whole = make().materialize()[0].weight.array
    rebuilt = np.zeros_like(whole)
    for index in range(2):
        weight = make()[0].weight
        weight.cut(Shard(dim, index, 2, parts))
        assert weight.whole_shape == (24, 12)
        weight.materialize()
        assert weight.array.shape == weight.shape == ((12, 12), (24, 6))[dim]
        weight.placement.put(weight.array, rebuilt)
        pieces = np.split(whole, 2 * parts, axis=dim)
        expected = np.concatenate(pieces[index::2], axis=dim)
        np.testing.assert_array_equal(weight.array, expected)
    np.testing.assert_array_equal(rebuilt, whole)


def test_a_shard_that_does_not_divide_is_refused_with_the_arithmetic():
    with pytest.raises(ValueError, match="^9 elements along dimension 0 do not divide into 2 p"):
        Shard(0, 0, 2).shape((9, 4))
    with pytest.raises(ValueError, match="do not divide into 3 x 2 pieces$"):
        Shard(0, 0, 2, 3).shape((8, 4))


def test_pieces_of_a_given_length_differ_by_one_and_make_the_whole():
    whole = np.arange(36.0).reshape(2, 9, 2)
    shards = [Shard(1, i, 4, length=9) for i in range(4)]
    pieces = [shard.take(whole) for shard in shards]
    assert [p.shape for p in pieces] == [(2, n, 2) for n in (2, 2, 2, 3)]
    assert [shard.whole(p.shape) for shard, p in zip(shards, pieces)] == [whole.shape] * 4
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    rebuilt = np.zeros_like(whole)
    for shard, p in zip(shards, pieces):
        assert not np.shares_memory(p, whole)
        shard.put(p, rebuilt)
    np.testing.assert_array_equal(rebuilt, whole)
    for wrong in ((2, 8, 2), (2, 2, 2)):
        with pytest.raises(ValueError, match=f"^{wrong[1]} elements along dimension 1 are no 4 p"):
            shards[0].shape(wrong)


def test_a_piece_is_no_view_that_would_keep_the_whole_alive():
    whole = np.zeros((4, 3))
    assert not np.shares_memory(Shard(0, 1, 2).take(whole), whole)
