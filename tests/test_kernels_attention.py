"""The attention kernels: tiles with the online softmax against whole matrices in float64."""

import tracemalloc

import numpy as np
import pytest
from gradcheck import gradcheck

import minipar as mp
from minipar import execution
from minipar.context import KERNELS, set_kernels
from minipar.execution import Kernel
from minipar.nn import functional as F
from minipar.ops import attention
from minipar.tensor import Tensor, backward

needs_compiler = pytest.mark.skipif(execution.compiler() is None, reason="there is no C++ compiler")
FORWARD = Kernel("attention.cu", "attention_forward")
BACKWARD = Kernel("attention.cu", "attention_backward")
TOLERANCE = {np.float32: 4e-6, np.float64: 1e-14}
NAN, INF = np.nan, np.inf

SIZES = [  # queries, keys, dim, value_dim: one tile, its edge, several; vectors and their tails
    (1, 1, 1, 1), (2, 2, 8, 8), (31, 31, 32, 32), (33, 33, 64, 64), (64, 64, 80, 80),
    (129, 129, 64, 16), (1, 129, 32, 32), (129, 1, 8, 1), (31, 130, 80, 33), (64, 31, 128, 128),
    (2, 257, 16, 64), (260, 140, 17, 16)]


@pytest.fixture(autouse=True)
def compiled_again():
    yield
    set_kernels("compiled")


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def expected(q, k, v, g, causal, scale, kept=1.0, upscale=1.0):
    """(out, log-sum-exp, gq, gk, gv) in float64, by matrices of all scores."""
    q, k, v, g = (np.asarray(a, np.float64) for a in (q, k, v, g))
    s = np.einsum("...id,...jd->...ij", q, k) * scale
    if causal:
        s = np.where(np.tri(*s.shape[-2:], dtype=bool), s, -INF)
    top = s.max(-1, keepdims=True)
    total = np.exp(s - top).sum(-1, keepdims=True)
    p = np.exp(s - top) / total
    out = upscale * (p * kept) @ v
    dp = upscale * (g @ v.swapaxes(-1, -2)) * kept
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale
    return (out, (top + np.log(total))[..., 0], ds @ k, ds.swapaxes(-1, -2) @ q,
            upscale * (p * kept).swapaxes(-1, -2) @ g)


def strides(*arrays):
    return np.array([s // a.itemsize for a in arrays for s in a.strides[:3]], np.int64)


def guarded(shape, dtype):
    """(an array as heads of one projection, what surrounds it): all of it 7."""
    batch, heads, rows, columns = shape
    around = np.full((batch, rows + 1, heads, columns + 3), 7, dtype)
    return around[:, :rows, :, :columns].swapaxes(1, 2), around


def assert_guards(inside, around):
    inside[...] = 7
    assert (around == 7).all()


def close(ours, theirs, dtype):
    assert np.abs(ours - theirs).max() <= TOLERANCE[dtype] * max(1, np.abs(theirs).max())


@needs_compiler
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("queries, keys, dim, value_dim", SIZES)
def test_the_kernels_agree_with_float64_matrices(queries, keys, dim, value_dim, dtype):
    heads, rows, scale = 3, 2 * 3 * queries, dim ** -0.5
    forward, gradients = FORWARD.build(np.dtype(dtype)), BACKWARD.build(np.dtype(dtype))
    shapes = [(2, 3, n, d) for n, d in ((queries, dim), (keys, dim), (keys, value_dim),
                                        (queries, value_dim))]
    q, k, v, g = (normal(*s, seed=i).astype(dtype) for i, s in enumerate(shapes))
    kept = np.random.default_rng(5).random((2, 3, queries, keys)) < 0.7
    for causal in (0, 1):
        for drops, keep, upscale in ((0, np.ones(1, bool), 1.0), (1, kept, 1.5)):
            results = [guarded(s, dtype) for s in (shapes[3], *shapes[:3])]
            out, gq, gk, gv = (inside for inside, _ in results)
            sums = np.full((2, 3, queries + 1), 7, dtype)
            sizes = (heads, rows, queries, keys, dim, value_dim, causal, scale, drops, upscale)
            forward(q[0, 0, 0], k[0, 0, 0], v[0, 0, 0], out[0, 0, 0],
                    sums, keep, strides(q, k, v, out), *sizes)
            assert (sums.reshape(-1)[rows:] == 7).all()
            gradients(q[0, 0, 0], k[0, 0, 0], v[0, 0, 0], out[0, 0, 0], g[0, 0, 0], sums, keep,
                      gq[0, 0, 0], gk[0, 0, 0], gv[0, 0, 0],
                      strides(q, k, v, out, g, gq, gk, gv), *sizes, queries, keys, 3)
            found = (out, sums.reshape(-1)[:rows].reshape(2, 3, queries), gq, gk, gv)
            wanted = expected(q, k, v, g, causal, scale, kept if drops else 1.0, upscale)
            for ours, theirs in zip(found, wanted, strict=True):
                close(ours, theirs, dtype)
            for inside, around in results:
                assert_guards(inside, around)


@needs_compiler
def test_gradients_in_parts_are_those_of_one_pass_bit_for_bit():
    q, k, v, g = (normal(1, 2, n, 16, seed=n).astype("f") for n in (70, 150, 150, 70))
    out, sums = np.empty_like(q), np.empty(q.shape[:3], "f")
    sizes = (2, 140, 70, 150, 16, 16, 1, 0.25, 0, 1.0)
    keep = np.ones(1, bool)
    FORWARD.build(q.dtype)(q[0, 0, 0], k[0, 0, 0], v[0, 0, 0], out[0, 0, 0], sums, keep,
                           strides(q, k, v, out), *sizes)

    def gradients(*passes):
        results = [np.full_like(a, NAN) for a in (q, k, v)]
        for parts in passes:
            BACKWARD.build(q.dtype)(
                *(a[0, 0, 0] for a in (q, k, v, out, g)), sums, keep,
                *(a[0, 0, 0] for a in results), strides(q, k, v, out, g, *results), *sizes, *parts)
        return results
    whole = gradients((70, 150, 3))
    for query_part, key_part in ((70, 150), (32, 64), (7, 9), (1, 1)):
        parts = gradients((query_part, 150, 1), (70, key_part, 2))
        for a, b in zip(parts, whole, strict=True):
            np.testing.assert_array_equal(a, b)
    assert np.isnan(gradients((70, 150, 1))[1]).all() and np.isnan(gradients((70, 150, 2))[0]).all()


def results(q, k, v, g, **options):
    """(out, gq, gk, gv) of the operation."""
    inputs = [Tensor(a, requires_grad=True) for a in (q, k, v)]
    with mp.batch_position():
        out = F.scaled_dot_product_attention(*inputs, **options)
    backward([out], [g])
    return [out.array] + [t.grad.array for t in inputs]


def head_views(shape):
    """Arrays of `shape` (batch, heads, rows, columns) that lie in memory in different ways."""
    batch, heads, rows, columns = shape
    projection = normal(batch, rows, 3, heads, columns).astype("f")
    yield "heads of a projection", projection[:, :, 1].swapaxes(1, 2)
    yield "dense", normal(*shape).astype("f")
    yield "columns apart", normal(batch, heads, columns, rows).astype("f").swapaxes(2, 3)
    yield "backwards", normal(*shape).astype("f")[::-1, :, ::-1]
    yield "one head for all", np.broadcast_to(normal(batch, 1, rows, columns).astype("f"), shape)
    yield "not aligned", np.frombuffer(b"0" + normal(*shape).astype("f").tobytes(), "f",
                                       offset=1).reshape(shape)
    records = np.zeros(shape, [("flag", "i1"), ("value", "f4")])
    records["value"] = normal(*shape)
    yield "of records", records["value"]


@pytest.mark.parametrize("kernels", KERNELS)
def test_arrays_may_lie_in_memory_in_any_way(kernels):
    set_kernels(kernels)
    shape = (2, 3, 5, 4)
    g = normal(*shape, seed=9).astype("f")
    for name, a in head_views(shape):
        for q, k, v in ((a, g, g), (g, a, g), (g, g, a), (a, a, a)):
            wanted = expected(q, k, v, a, True, 0.5)
            found = results(q, k, v, a, is_causal=True)
            for ours, theirs in zip(found, wanted[:1] + wanted[2:], strict=True):
                assert np.abs(ours - theirs).max() < 5e-6, name


@pytest.mark.parametrize("shape", [(6, 4), (3, 6, 4), (2, 3, 6, 4), (2, 1, 2, 6, 4), (1, 1)])
def test_all_kinds_of_kernels_agree_whatever_the_number_of_dims(shape):
    q, k, v, g = (normal(*shape, seed=i) for i in range(4))
    found = []
    for kernels in KERNELS:
        set_kernels(kernels)
        for options in ({}, {"is_causal": True}, {"scale": -0.7}, {"scale": 0.0},
                        {"dropout_p": 0.4, "name": "a"}, {"dropout_p": 1.0, "is_causal": True}):
            found.append(results(q, k, v, g, **options))
            assert [a.shape for a in found[-1]] == [shape] * 4
    each = len(found) // len(KERNELS)
    for i, ours in enumerate(found):
        for a, b in zip(ours, found[i % each], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@needs_compiler
def test_kernels_run_wherever_they_serve(monkeypatch):
    def refuse(scores):
        raise AssertionError("the reference ran")
    monkeypatch.setattr(attention, "_softmax_rows", refuse)
    a, long = Tensor(normal(2, 3, 6, 4)), Tensor(normal(6, 129))
    for x in (a, a.float(), a.to(mp.float16), a[0], a[0, 0]):
        for options in ({}, {"is_causal": True}, {"dropout_p": 0.3, "name": "a"}):
            assert F.scaled_dot_product_attention(x, x, x, **options).shape == x.shape
    refused = [((long, long, long), {}), ((a, a[:1], a[:1]), {}), ((a[None],) * 3, {}),
               ((a, a, a), {"attn_mask": Tensor(np.ones((6, 6), bool))})]
    for inputs, options in refused:
        with pytest.raises(AssertionError, match="the reference ran"):
            F.scaled_dot_product_attention(*inputs, **options)


@pytest.mark.parametrize("queries, keys, dim, value_dim", [(5, 5, 4, 4), (35, 3, 2, 17),
                                                           (3, 131, 5, 1)])
def test_gradients_are_those_that_differences_show(queries, keys, dim, value_dim):
    q, k, v = normal(2, queries, dim), normal(2, keys, dim), normal(2, keys, value_dim)
    for options in ({}, {"is_causal": True}, {"scale": 0.3, "dropout_p": 0.4, "name": "a"}):
        def function(*inputs):
            with mp.batch_position():
                return F.scaled_dot_product_attention(*inputs, **options)
        gradcheck(function, q, k, v, tolerance=3e-7)


@pytest.mark.peer
@pytest.mark.parametrize("queries, keys, dim", [(128, 128, 64), (100, 300, 32), (300, 100, 40)])
def test_float32_is_as_near_to_float64_as_in_pytorch(queries, keys, dim):
    torch = pytest.importorskip("torch")
    arrays = [normal(2, 2, n, dim, seed=i).astype("f")
              for i, n in enumerate((queries, keys, keys, queries))]
    for causal in (False, True):
        both = []
        for dtype in (torch.float64, torch.float32):
            q, k, v = (torch.tensor(a, dtype=dtype, requires_grad=True) for a in arrays[:3])
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
            out.backward(torch.tensor(arrays[3], dtype=dtype))
            both.append([t.detach().numpy() for t in (out, q.grad, k.grad, v.grad)])
        for ours, exact, theirs in zip(results(*arrays, is_causal=causal), *both, strict=True):
            error = np.abs(theirs - exact).max()
            assert np.abs(ours - exact).max() <= 3 * error + 1e-7


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("size", [3, 40, 140])
def test_nan_and_infinity_pass_to_the_rows_that_they_concern(kernels, size):
    set_kernels(kernels)
    last = size - 1
    for value in (NAN, INF, -INF):
        q, k, v, g = (np.ones((1, 2, size, 8), "f") for _ in range(4))
        q[0, 0, 1, 2] = value  # a query: its row; through it the gradients of all keys
        out, gq, gk, gv = results(q, k, v, g)
        if value == -INF:  # no score but -inf: it sees no key
            assert not out[0, 0, 1].any() and not gq[0, 0, 1].any()
        else:
            assert np.isnan(out[0, 0, 1]).all() and np.isnan(gq[0, 0, 1]).all()
            assert np.isnan(gk[0, 0]).all() and np.isnan(gv[0, 0]).all()
        assert np.isfinite(np.delete(out[0, 0], 1, 0)).all()
        for a in (out, gq, gk, gv):
            assert np.isfinite(a[0, 1]).all()
        q[0, 0, 1, 2] = 1
        v[0, 0, last, 3] = value  # a value: its column
        out = results(q, k, v, g)[0]
        np.testing.assert_array_equal(out[0, 0, :, 3], np.full(size, value, "f"))
        assert np.isfinite(np.delete(out[0, 0], 3, 1)).all()
        k[0, 1, last, 0] = value  # a key: all who see it; -inf: nobody sees it
        out = results(q, k, v, g)[0]
        if value == -INF:
            np.testing.assert_allclose(out[0, 1], 1, rtol=1e-5)
        else:
            assert np.isnan(out[0, 1]).all()
            out = results(q, k, v, g, is_causal=True)[0]
            assert np.isnan(out[0, 1, last]).all()
    q, k, v, g = (np.ones((1, 2, size, 8), "f") for _ in range(4))
    k[:, :, :2] = -INF  # causal: queries 0 and 1 see no other keys, and get zeros
    out = results(q, k, v, g, is_causal=True)[0]
    assert not out[:, :, :2].any()
    np.testing.assert_allclose(out[:, :, 2:], 1, rtol=1e-5)


@needs_compiler
def test_what_is_not_finite_stands_where_it_stands_in_the_reference():
    rng = np.random.default_rng(0)
    for _ in range(60):
        size = rng.integers(2, 80)
        arrays = [rng.standard_normal((size, 5)).astype("f") for _ in range(4)]
        arrays[rng.integers(4)][rng.integers(size), rng.integers(5)] = rng.choice([NAN, INF, -INF])
        found = []
        for kernels in KERNELS:
            set_kernels(kernels)
            found.append(results(*arrays))
        for other in found[1:]:
            np.testing.assert_array_equal(np.isnan(found[0][0]), np.isnan(other[0]))
            for ours, theirs in zip(found[0], other, strict=True):
                finite = np.isfinite(ours)  # one's infinity may be another's NaN in a gradient
                np.testing.assert_array_equal(finite, np.isfinite(theirs))
                np.testing.assert_allclose(ours[finite], theirs[finite], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernels", KERNELS)
def test_large_scores_neither_overflow_nor_lose_the_largest(kernels):
    set_kernels(kernels)
    q = np.full((1, 200, 1), 100, "f")
    k = np.linspace(-1000, 1000, 200, dtype="f").reshape(1, 200, 1)
    v = np.arange(200, dtype="f").reshape(1, 200, 1)
    out = results(q, k, v, np.ones_like(v), is_causal=True)[0]
    np.testing.assert_array_equal(out, v)  # each sees itself alone: the largest so far
    out = results(q, -k, v, np.ones_like(v), is_causal=True)[0]
    assert not out.any()  # the first is largest for all


@needs_compiler
def test_a_sample_gives_the_same_bits_in_any_batch_and_a_query_whatever_follows():
    q, k, v, g = (normal(4, 2, 150, 24, seed=i).astype("f") for i in range(4))
    whole = results(q, k, v, g, is_causal=True)
    for part in (slice(0, 1), slice(1, 4)):
        for a, b in zip(results(*(a[part] for a in (q, k, v, g)), is_causal=True), whole):
            np.testing.assert_array_equal(a, b[part])
    for length in (1, 40, 128, 149):
        start = results(*(a[:, :, :length] for a in (q, k, v, g)), is_causal=True)
        np.testing.assert_array_equal(start[0], whole[0][:, :, :length])
        np.testing.assert_array_equal(start[1], whole[1][:, :, :length])


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)])
def test_only_the_gradients_that_are_wanted_are_given(wanted):
    arrays = [normal(1, 9, 4, seed=i) for i in range(3)]
    inputs = [Tensor(a, requires_grad=bool(w)) for a, w in zip(arrays, wanted)]
    g = normal(1, 9, 4, seed=3)
    backward([F.scaled_dot_product_attention(*inputs)], [g])
    for t, w, theirs in zip(inputs, wanted, expected(*arrays, g, False, 0.5)[2:]):
        assert (t.grad is not None) == bool(w)
        if w:
            np.testing.assert_allclose(t.grad.array, theirs, rtol=1e-12, atol=1e-14)


@needs_compiler
def test_no_matrix_of_scores_is_kept_or_made():
    q, k, v, g = (normal(1, 2, 1024, 16, seed=i).astype("f") for i in range(4))
    results(q, k, v, g, is_causal=True)
    tracemalloc.start()
    results(q, k, v, g, is_causal=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * q.nbytes < 2 * 1024 * 1024 * 4, peak  # bytes; of one float32 matrix a head
