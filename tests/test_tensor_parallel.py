"""Tensor parallelism: a model whose layers are cut trains what one process trains."""

import numpy as np
import pytest

import minipar
from gradcheck import gradcheck
from minipar import nn, optim
from minipar.comm import run_threads, world
from minipar.context import batch_position, set_kernels
from minipar.models import CNN, GPT, MLP, GPTConfig
from minipar.nn import functional as F
from minipar.nn.placement import Shard
from minipar.ops.loss import cross_entropy_sum_count
from minipar.parallel import (ColumnParallelLinear, Mesh, Pipelined, RowParallelLinear,
                              VocabParallelEmbedding, VocabParallelHead, shard_model,
                              vocab_parallel_cross_entropy)
from minipar.parallel import mappings
from minipar.parallel.schedule import SCHEDULES
from minipar.tensor import Tensor, backward

EXACT = dict(rtol=1e-12, atol=1e-14)


def on(ranks, function, *args):
    """What `function` returns on each of so many ranks, in float64."""
    def rank():
        minipar.manual_seed(5)
        minipar.set_default_dtype("float64")
        return function(*args)
    return run_threads(rank, ranks)


def through(layer, x, direction):
    """(output, gradient of x or None, {name: gradient of a parameter}) of a module."""
    layer.materialize()
    x = Tensor(x, requires_grad=x.dtype.kind == "f")
    y = layer(x)
    backward([y], [direction])
    return (y.array, x.grad.array if x.requires_grad else None,
            {name: p.grad.array for name, p in layer.named_parameters()})


def piece(a, dim):
    """The calling rank's of equal pieces of an array."""
    return np.split(a, world().size, axis=dim)[world().rank]


# Layers

@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("ranks, parts", [(2, 1), (2, 3), (3, 2)])
def test_a_pair_of_linear_layers_is_the_unsharded_pair(ranks, parts, sequence):
    x, g = np.random.default_rng(0).standard_normal((2, 2, 6, 5))

    def pair():
        return nn.Sequential(nn.Linear(5, 18), nn.Tanh(), nn.Linear(18, 5)).assign_names()

    def cut():
        layers = pair()
        layers[0] = ColumnParallelLinear(layers[0], world(), parts, sequence)
        layers[2] = RowParallelLinear(layers[2], world(), sequence)
        inside, outside = (piece(a, 1) if sequence else a for a in (x, g))
        return through(layers, inside, outside), dict(layers.named_parameters())

    # What is between the two has its features in the first one's order: parts cut each by itself.
    def permuted(whole, rank):
        order = np.arange(18).reshape(parts, ranks, -1)[:, rank].reshape(-1)
        return whole[order]

    def plain():
        layers = pair().materialize()
        if parts > 1:  # the second layer takes the features in the order the ranks have them
            order = np.concatenate([permuted(np.arange(18), r) for r in range(ranks)])
            weight = layers[2].weight.array.copy()
            layers[2].weight.array[:, order] = weight
        return through(layers, x, g)
    (y, gx, gradients), = on(1, plain)
    results = on(ranks, cut)
    for r, ((found, found_gx, grads), parameters) in enumerate(results):
        expected = (np.split(a, ranks, axis=1)[r] if sequence else a for a in (y, gx))
        for mine, whole in zip((found, found_gx), expected):
            np.testing.assert_allclose(mine, whole, **EXACT)
        np.testing.assert_allclose(grads["0.weight"], permuted(gradients["0.weight"], r), **EXACT)
        np.testing.assert_allclose(grads["0.bias"], permuted(gradients["0.bias"], r), **EXACT)
        order = permuted(np.arange(18), r)
        np.testing.assert_allclose(grads["2.weight"], gradients["2.weight"][:, order], **EXACT)
        np.testing.assert_allclose(grads["2.bias"], gradients["2.bias"], **EXACT)
        assert parameters["0.weight"].placement == Shard(0, r, ranks, parts)
        assert parameters["2.weight"].placement == Shard(1, r, ranks)
        assert [p.counted for p in parameters.values()] == [True, True, True, r == 0]


@pytest.mark.parametrize("ranks, rows", [(2, 7), (3, 7), (4, 4)])
def test_a_vocabulary_is_cut_also_where_it_does_not_divide(ranks, rows):
    rng = np.random.default_rng(1)
    index, g = rng.integers(0, rows, (3, 4)), rng.standard_normal((3, 4, 2))
    x, targets = rng.standard_normal((3, 4, 2)), rng.integers(0, rows, 12)
    targets[2] = -100

    def layers():
        return nn.Sequential(nn.Embedding(rows, 2), nn.Linear(2, rows, bias=False)).assign_names()

    def loss_of(head, x, function, *args):
        logits = head(x)
        total, count = function(logits.reshape(12, -1), Tensor(targets), *args)
        total.backward()
        return total.item(), count, x.grad.array, head.weight.grad.array

    def cut():
        both, comm = layers(), world()
        both[0] = VocabParallelEmbedding(both[0], comm)
        both[1] = VocabParallelHead(both[1], comm, gathers=False)
        both.materialize()
        parallel = loss_of(both[1], Tensor(x, requires_grad=True), vocab_parallel_cross_entropy,
                           rows, comm)
        both[1].gathers, both[1].weight.grad = True, None
        gathered = loss_of(both[1], Tensor(x, requires_grad=True), cross_entropy_sum_count)
        return through(both[0], index, g), parallel, gathered, both.eval()[1](Tensor(x)).array

    def plain():
        both = layers().materialize()
        loss = loss_of(both[1], Tensor(x, requires_grad=True), cross_entropy_sum_count)
        return through(both[0], index, g), loss, both[1](Tensor(x)).array
    ((y, _, gradients), (total, count, gx, gw), logits), = on(1, plain)
    bounds = [i * rows // ranks for i in range(ranks + 1)]
    for r, (embedded, *losses, seen) in enumerate(on(ranks, cut)):
        mine = slice(*bounds[r:r + 2])
        np.testing.assert_array_equal(embedded[0], y)
        np.testing.assert_allclose(embedded[2]["weight"], gradients["weight"][mine], **EXACT)
        np.testing.assert_allclose(seen, logits, **EXACT)
        for found in losses:
            assert found[0] == pytest.approx(total, rel=1e-13) and found[1] == count == 11
            np.testing.assert_allclose(found[2], gx, **EXACT)
            np.testing.assert_allclose(found[3], gw[mine], **EXACT)


def test_the_loss_of_a_cut_vocabulary_holds_large_logits_and_no_rows():
    def rank():
        start, stop = Shard(0, world().rank, 2, length=5).bounds()
        logits = np.full((2, 5), -1e4)
        logits[:, 4] = 1e4
        large, _ = vocab_parallel_cross_entropy(
            Tensor(logits[:, start:stop]), Tensor(np.array([4, 0])), 5, world())
        none, count = vocab_parallel_cross_entropy(
            Tensor(np.zeros((0, stop - start))), Tensor(np.zeros(0, int)), 5, world())
        return large.item(), none.item(), count
    assert on(2, rank) == [(2e4, 0.0, 0)] * 2


def test_each_mapping_goes_back_by_its_transposed():
    # On one rank every mapping is the identity, which proves nothing: here both ranks' inputs
    # are one vector, and <g, f(x)> = <f'(g), x> summed over the ranks.
    rng = np.random.default_rng(2)
    xs, gs = rng.standard_normal((2, 2, 3, 4, 2)), rng.standard_normal((2, 2, 3, 4, 2))

    def rank(f):
        comm = world()
        x = Tensor(xs[comm.rank], requires_grad=True)
        y = f(x, comm)
        g = np.resize(gs[comm.rank], y.shape)
        backward([y], [g])
        return (y.array * g).sum(), (x.grad.array * x.array).sum()
    for f in (lambda x, c: mappings.scatter_sum(x, c, 2),
              lambda x, c: mappings.gather_to_all(x, c, 2)):
        (a, b), (c, d) = on(2, rank, f)
        assert a + c == pytest.approx(b + d, rel=1e-13)


def test_a_piece_of_dropout_is_the_piece_of_the_whole_mask():
    x = np.ones((3, 6, 5))

    def rank():
        with batch_position(2, 4):
            whole = F.dropout(Tensor(x), 0.4, name="a").array
        for count in (2, 3, 6):
            for i in range(count):
                with batch_position(2, 4):
                    part = np.split(x, count, axis=1)[i]
                    found = F.dropout(Tensor(part), 0.4, name="a", piece=(i, count)).array
                np.testing.assert_array_equal(found, np.split(whole, count, axis=1)[i])
        return (whole == 0).mean()
    assert 0.2 < on(1, rank)[0] < 0.6


@pytest.mark.parametrize("kernels", ["compiled", "reference"])
def test_attention_of_some_heads_drops_what_attention_of_all_drops(kernels):
    q = np.random.default_rng(3).standard_normal((2, 6, 5, 3))

    def rank():
        set_kernels(kernels)

        def attention(part, **piece):
            part = Tensor(part)
            with batch_position(1, 3):
                return F.scaled_dot_product_attention(part, part, part, dropout_p=0.5, name="a",
                                                      is_causal=True, **piece).array
        whole = attention(q)
        for i in range(3):
            found = attention(q[:, 2 * i:2 * i + 2], piece=(i, 3))
            np.testing.assert_allclose(found, whole[:, 2 * i:2 * i + 2], **EXACT)
    on(1, rank)


def test_the_mappings_of_one_rank_pass_gradcheck():
    def rank():
        comm, x = world(), np.random.default_rng(4).standard_normal((2, 3))
        gradcheck(lambda t: vocab_parallel_cross_entropy(t, Tensor(np.array([0, 2])), 3, comm)[0],
                  x)
    on(1, rank)


# Training

def loss(output, targets):
    return cross_entropy_sum_count(output.reshape(-1, output.shape[-1]), targets.reshape(-1))


def model_and_data(name):
    rng = np.random.default_rng(1)
    if name == "mlp":
        return (MLP([6, 8, 8, 8, 8, 5]), rng.standard_normal((5, 11, 6)),
                rng.integers(0, 5, (5, 11)))
    tokens = rng.integers(0, 7, (5, 11, 9))
    return (GPT(GPTConfig(vocab_size=7, block_size=8, n_layer=2, n_head=4, n_embd=8, dropout=0.2)),
            tokens[..., :-1], tokens[..., 1:])


def shares(k, parts):
    return [(i + 1) * k // parts - i * k // parts for i in range(parts)]


def serial(name):
    model, inputs, targets = model_and_data(name)
    model.materialize()
    optimizer, losses, norms = optim.AdamW(model.parameters(), 0.01), [], []
    for step, (x, y) in enumerate(zip(inputs, targets)):
        optimizer.zero_grad()
        with batch_position(step, 0):
            value, count = loss(model(Tensor(x)), Tensor(y))
        value.backward()
        optimizer.step(scale=1 / count, max_norm=0.5)
        losses.append(value.item() / count)
        norms.append(optimizer.grad_norm)
    return {k: p.array for k, p in model.named_parameters()}, losses, norms


class Samples:
    def __init__(self, start, arrays):
        self.start, self.arrays = start, arrays

    def batch(self):
        return [Tensor(a) for a in self.arrays]


def parallel(name, mesh, microbatches, sequence, gathers, recompute):
    """(the whole model's parameters on rank 0, losses, norms, predictions, own sizes)."""
    comm, (model, inputs, targets) = world(), model_and_data(name)
    group = mesh.split(comm, "tp")
    shard_model(model, group, sequence_parallel=sequence, gather_logits=gathers)
    assert not any(p.is_materialized for p in model.parameters())

    def parallel_loss(logits, t):
        rows = logits.reshape(-1, logits.shape[-1]), t.reshape(-1)
        return vocab_parallel_cross_entropy(*rows, 7, group)
    trainer = Pipelined(model, lambda m: optim.AdamW(m.parameters(), 0.01),
                        loss if gathers else parallel_loss, comm, mesh,
                        SCHEDULES["1f1b"](mesh.pp, microbatches), recompute=recompute)
    losses, norms = [], []
    for step, (x, y) in enumerate(zip(inputs, targets)):
        sizes, dp = shares(len(x), mesh.dp), mesh.coordinates(comm.rank)["dp"]
        mine = slice(at := sum(sizes[:dp]), at + sizes[dp])
        shard = Samples(at, (x[mine], y[mine]))
        losses.append(trainer.step(shard.batch(), shard, step, max_norm=0.5)[0])
        norms.append(trainer.optimizer.grad_norm)
    trainer.module.eval()
    out = trainer.predict(inputs[0])
    held = sum(p.numel() for p in trainer.module.parameters())
    alike = {n: p.array for n, p in trainer.module.named_parameters() if p.placement is None}
    return trainer.parameters(), losses, norms, out is None or out.array, held, alike


LAYOUTS = [("gpt", (1, 1, 2), 1, False, False, False), ("gpt", (1, 1, 2), 3, True, False, False),
           ("gpt", (2, 1, 2), 2, False, True, False), ("gpt", (1, 2, 2), 3, False, False, True),
           ("gpt", (1, 1, 4), 1, False, False, False), ("gpt", (1, 1, 4), 2, True, True, True),
           ("gpt", (2, 2, 2), 2, True, False, False), ("gpt", (2, 2, 2), 3, False, False, False),
           ("mlp", (1, 1, 2), 2, False, True, False), ("mlp", (1, 3, 2), 3, False, True, False),
           ("mlp", (2, 1, 4), 1, False, True, False)]


@pytest.mark.parametrize("name, sizes, microbatches, sequence, gathers, recompute", LAYOUTS)
def test_a_model_whose_layers_are_cut_trains_what_one_process_trains(
        name, sizes, microbatches, sequence, gathers, recompute):
    mesh = Mesh(*sizes)
    (expected, losses, norms), = on(1, serial, name)
    results = on(mesh.size, parallel, name, mesh, microbatches, sequence, gathers, recompute)
    assert set(results[0][0]) == set(expected)
    for key, whole in expected.items():
        error = np.linalg.norm(results[0][0][key] - whole) / np.linalg.norm(whole)
        assert error <= 1e-12, f"{key}: {error:.1e}"
    for rank, (_, found, found_norms, *_, held, alike) in enumerate(results):
        np.testing.assert_allclose(found, losses, rtol=1e-12)
        np.testing.assert_allclose(found_norms, norms, rtol=1e-12)
        assert held < sum(p.size for p in expected.values())
        place = mesh.coordinates(rank)
        for key, array in alike.items():  # bitwise, on all ranks of the stage
            first = results[mesh.rank(pp=place["pp"])][-1][key]
            np.testing.assert_array_equal(array, first)


def test_every_tensor_parallel_rank_predicts_what_the_whole_model_predicts():
    def whole():
        model, inputs, _ = model_and_data("gpt")
        return model.materialize().eval()(Tensor(inputs[0])).array

    def cut(sequence):
        model, inputs, _ = model_and_data("gpt")
        shard_model(model, world(), sequence_parallel=sequence, gather_logits=False)
        return model.materialize().eval()(Tensor(inputs[0])).array
    expected, = on(1, whole)
    for sequence in (False, True):
        for found in on(4, cut, sequence):
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_a_cut_model_has_the_names_and_the_slices_of_the_whole_one():
    def whole():
        return {k: t.array for k, t in model_and_data("gpt")[0].materialize().named_state()}

    def cut():
        model = shard_model(model_and_data("gpt")[0], world()).materialize()
        assert model.lm_head.weight is model.transformer.wte.weight
        return {k: (t.array, t.placement) for k, t in model.named_state()}
    expected, = on(1, whole)
    rebuilt = {k: np.full_like(a, np.nan) for k, a in expected.items()}
    for state in on(2, cut):
        assert list(state) == list(expected)
        for key, (array, place) in state.items():
            if place is None:
                rebuilt[key] = array
            else:
                assert array.size < expected[key].size
                place.put(array, rebuilt[key])
    for key, array in expected.items():
        np.testing.assert_array_equal(rebuilt[key], array)


def test_models_that_cannot_be_cut_are_refused_with_the_arithmetic():
    def rank():
        cases = [
            (GPT(GPTConfig(n_head=2)), {}, "gpt: 2 heads do not divide into tp 3"),
            (GPT(GPTConfig(n_head=3, n_embd=6, block_size=8)), {"sequence_parallel": True},
             "gpt: a sequence of 8 tokens does not divide into tp 3"),
            (GPT(GPTConfig(n_head=3, n_embd=6, vocab_size=2)), {},
             "a vocabulary of 2 does not give each of 3 ranks a row"),
            (MLP([4, 8, 2]), {},
             "1.weight: 8 elements along dimension 0 do not divide into 3 pieces"),
            (MLP([4, 9, 2]), {"sequence_parallel": True},
             "MLP has no tensor-parallel form along a sequence"),
            (CNN((1, 8, 8), 2), {}, "CNN has no tensor-parallel form")]
        for model, options, words in cases:
            with pytest.raises(ValueError, match=f"^{words}$"):
                shard_model(model, world(), **options)
        embedding = VocabParallelEmbedding(nn.Embedding(5, 2), world()).materialize()
        for wrong in (-1, 5):
            with pytest.raises(IndexError, match=f"^index {wrong} is not in a table of 5 rows"):
                embedding(Tensor(np.array([[wrong]])))
        with pytest.raises(ValueError, match="has no bias"):
            VocabParallelHead(nn.Linear(2, 5), world())
        with pytest.raises(ValueError, match=r"logits \(1, 5\) and targets \(1,\): expected \(N, "):
            vocab_parallel_cross_entropy(Tensor(np.zeros((1, 5))), Tensor(np.zeros(1, int)), 5,
                                         world())
        with pytest.raises(ValueError, match="4 elements along dimension 1 do not divide into 3"):
            mappings.own_piece(Tensor(np.zeros((2, 4))), world(), 1)
    on(3, rank)


def test_the_loss_of_a_cut_vocabulary_of_16_bits_is_computed_in_32():
    logits = np.random.default_rng(6).standard_normal((40, 9)).astype(np.float16)
    targets = Tensor(np.arange(40) % 9)

    def rank(dtype, function, *args):
        comm = world()
        mine = logits[:, slice(*Shard(0, comm.rank, comm.size, length=9).bounds())].astype(dtype)
        mine = Tensor(mine, requires_grad=True)
        total, _ = function(mine, targets, *args, *[comm] * len(args))
        total.backward()
        return total.array, mine.grad.array
    (whole, gradient), = on(1, rank, np.float32, cross_entropy_sum_count)
    for (total, mine), expected in zip(on(2, rank, np.float16, vocab_parallel_cross_entropy, 9),
                                       np.split(gradient, [4], axis=1)):
        assert total.dtype == mine.dtype == np.float16
        np.testing.assert_allclose(total, whole, rtol=1e-3)
        np.testing.assert_allclose(mine, expected, rtol=1e-3, atol=1e-6)
