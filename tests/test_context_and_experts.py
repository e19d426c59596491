"""Ring attention and mixtures of experts: the ranks together compute what one does."""

import numpy as np
import pytest

import minipar
from gradcheck import gradcheck
from minipar import nn
from minipar.comm import run_threads, world
from minipar.nn import functional as F
from minipar.parallel import MixtureOfExperts, ring_attention
from minipar.tensor import Tensor, backward

EXACT = dict(rtol=1e-12, atol=1e-13)


def on(ranks, function, *args):
    def rank():
        minipar.manual_seed(5)
        minipar.set_default_dtype("float64")
        return function(*args)
    return run_threads(rank, ranks)


def pieces(a, parts, dim):
    return np.split(a, parts, axis=dim)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("ranks, scale", [(1, None), (2, 0.3), (3, None), (4, 20.0)])
def test_ring_attention_is_attention_over_the_whole_sequence(ranks, scale, is_causal):
    rng = np.random.default_rng(0)
    q, k, v, g = (rng.standard_normal((2, 3, 12, n)) for n in (4, 4, 5, 5))
    if scale == 20.0:
        k[..., -1, :] *= 50  # the largest score comes last, and is far larger

    def run(attention, *arrays):
        tensors = [Tensor(a, requires_grad=True) for a in arrays[:3]]
        out = attention(*tensors)
        backward([out], [arrays[3]])
        return [out.array, *(t.grad.array for t in tensors)]

    def ring():
        mine = [pieces(a, ranks, 2)[world().rank] for a in (q, k, v, g)]
        return run(lambda *t: ring_attention(*t, world(), is_causal=is_causal, scale=scale), *mine)

    def whole():
        minipar.context.set_kernels("reference")
        return run(lambda *t: F.scaled_dot_product_attention(*t, is_causal=is_causal, scale=scale),
                   q, k, v, g)
    results = on(ranks, ring)
    for i, expected in enumerate(on(1, whole)[0]):
        found = np.concatenate([result[i] for result in results], axis=2)
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12 * abs(expected).max())


def test_ring_attention_of_one_rank_passes_gradcheck():
    q, k, v = np.random.default_rng(1).standard_normal((3, 2, 4, 3))
    on(1, lambda: gradcheck(lambda *t: ring_attention(*t, world(), is_causal=True), q, k, v))


def test_ring_attention_refuses_shapes_and_types_that_do_not_belong_together():
    a, b = Tensor(np.zeros((4, 3))), Tensor(np.zeros((5, 3)))

    def rank():
        with pytest.raises(ValueError, match=r"query \(4, 3\), key \(5, 3\), value \(5, 3\): exp"):
            ring_attention(a, b, b, world())
        with pytest.raises(TypeError, match="not float64, float64, float32"):
            ring_attention(a, a, Tensor(np.zeros((4, 3), np.float32)), world())
    on(1, rank)


def mixture(x, g, experts, k):
    """(output, x's gradient, {name: gradient}) of a mixture for this rank's rows."""
    def make():
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    model = MixtureOfExperts(3, experts, k, make, world()).materialize()
    x = Tensor(x, requires_grad=True)
    y = model(x)
    backward([y], [g])
    return y.array, x.grad.array, {n: p.grad.array for n, p in model.named_parameters()}


@pytest.mark.parametrize("rows", [[7, 2, 4, 11], [0, 5, 0, 1]])
@pytest.mark.parametrize("ranks, experts, k", [(2, 4, 1), (2, 5, 2), (4, 4, 2), (4, 7, 3)])
def test_experts_on_several_ranks_do_what_they_do_on_one(ranks, experts, k, rows):
    rng, ends = np.random.default_rng(2), np.cumsum([0, *rows[:ranks]])
    x, g = rng.standard_normal((2, ends[-1], 3))
    (y, gx, gradients), = on(1, mixture, x, g, experts, k)

    def cut():
        mine = slice(*ends[world().rank:world().rank + 2])
        return mixture(x[mine], g[mine], experts, k)
    results = on(ranks, cut)
    np.testing.assert_allclose(np.concatenate([r[0] for r in results]), y, **EXACT)
    np.testing.assert_allclose(np.concatenate([r[1] for r in results]), gx, **EXACT)
    np.testing.assert_allclose(sum(r[2]["gate.weight"] for r in results),
                               gradients.pop("gate.weight"), **EXACT)
    seen = {}
    for *_, grads in results:
        grads.pop("gate.weight")
        assert not seen.keys() & grads.keys()
        seen.update(grads)
    assert set(seen) == set(gradients)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(seen[name], gradient, **EXACT)


def test_a_mixture_goes_back_where_its_input_needs_no_gradient_and_a_rank_had_no_row():
    def rank():
        model = MixtureOfExperts(2, 2, 1, lambda: nn.Linear(2, 2), world())
        model.gate.requires_grad_(False)
        model.materialize().gate.weight.array[...] = [[1, 0], [0, 0]]  # expert 0, if x[0] > 0
        model(Tensor(np.ones((3, 2)))).sum().backward()
        return {n: p.grad.array.tolist() for n, p in model.experts.named_parameters()}
    first, second = on(2, rank)
    assert first == {"0.weight": [[6.0, 6.0]] * 2, "0.bias": [6.0, 6.0]}
    assert second == {"1.weight": [[0.0, 0.0]] * 2, "1.bias": [0.0, 0.0]}


def test_a_mixture_is_the_weighted_sum_of_the_likeliest_experts():
    x = np.random.default_rng(3).standard_normal((2, 4, 3))

    def rank():
        model = MixtureOfExperts(3, 5, 2, lambda: nn.Linear(3, 3), world()).materialize()
        found = model(Tensor(x)).array
        for at in np.ndindex(2, 4):
            logits = model.gate.weight.array @ x[at]
            best = sorted(range(5), key=lambda e: -logits[e])[:2]
            weights = np.exp(logits[best]) / np.exp(logits[best]).sum()
            layers = [model.experts[str(e)] for e in best]
            expected = sum(w * (layer.weight.array @ x[at] + layer.bias.array)
                           for w, layer in zip(weights, layers))
            np.testing.assert_allclose(found[at], expected, **EXACT)
    on(1, rank)


def test_mixtures_that_cannot_be_are_refused_with_the_arithmetic():
    def rank():
        for experts, k, words in ((4, 5, "5 of 4 experts cannot be chosen"),
                                  (4, 0, "0 of 4 experts cannot be chosen"),
                                  (1, 1, "1 experts do not give each of 2 ranks one")):
            with pytest.raises(ValueError, match=f"^{words}$"):
                MixtureOfExperts(3, experts, k, lambda: nn.Linear(3, 3), world())
    on(2, rank)


def test_ring_attention_of_16_bits_is_rounded_once():
    rng = np.random.default_rng(4)
    arrays = rng.standard_normal((4, 2, 8, 4)).astype(np.float16)

    def ring(dtype):
        q, k, v, g = (pieces(a.astype(dtype), 2, 1)[world().rank] for a in arrays)
        q, k, v = (Tensor(a, requires_grad=True) for a in (q, k, v))
        out = ring_attention(q, k, v, world(), is_causal=True)
        backward([out], [g])
        return [out.array, *(t.grad.array for t in (q, k, v))]
    for low, high in zip(on(2, ring, np.float16), on(2, ring, np.float32)):
        for a, b in zip(low, high):
            assert a.dtype == np.float16
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
