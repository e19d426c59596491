"""Kernels of activations, softmax, cross-entropy, embedding, dropout: values, edges, cuts.

Each is compared with NumPy in float64, from arguments that stand in the middle of larger buffers:
the outputs are filled with a number that no result is, and the guards around them must keep it.
"""

import math

import numpy as np
import pytest
from kernel_cases import ELEMENTWISE, gelu_none, reference_loss, sigmoid, silu, softmax

from minipar import execution, random
from minipar.execution import Kernel

pytestmark = [
    pytest.mark.skipif(execution.compiler() is None, reason="there is no C++ compiler"),
    pytest.mark.filterwarnings("error")]

GUARD, POISON = 3, 77  # GUARD elements lie before and after; 3 floats is no alignment of vectors
DTYPES = (np.float32, np.float64)
EPS = {np.float32: 2.0**-23, np.float64: 2.0**-52}


def run(file, name, dtype, arguments):
    """The outputs of a kernel. arguments: arrays and numbers in order; of an output, a shape."""
    passed, outputs = [], []
    for a in arguments:
        if isinstance(a, tuple):
            shape, a_type = (a[0], a[1]) if isinstance(a[-1], type) else (a, dtype)
            whole = np.full(math.prod(shape) + 2 * GUARD, POISON).astype(a_type)
            outputs.append((whole, whole[GUARD:len(whole) - GUARD].reshape(shape)))
            passed.append(outputs[-1][1])
        elif isinstance(a, np.ndarray):
            whole = np.zeros(a.size + 2 * GUARD, a.dtype)
            whole[GUARD:len(whole) - GUARD] = a.reshape(-1)
            passed.append(whole[GUARD:len(whole) - GUARD].reshape(a.shape))
        else:
            passed.append(a)
    Kernel(file, name).build(np.dtype(dtype))(*passed)
    for whole, _ in outputs:
        assert (whole[:GUARD] == whole.dtype.type(POISON)).all()
        assert (whole[len(whole) - GUARD:] == whole.dtype.type(POISON)).all()
    return [out for _, out in outputs]


def assert_near(ours, expected, ulps, scale=1.0):
    """Within `ulps` units of the last place, of `expected` or of `scale` if that is larger."""
    assert ours.shape == expected.shape
    bound = ulps * EPS[ours.dtype.type] * np.maximum(np.abs(expected), scale)
    assert (np.abs(ours - expected) <= bound).all(), np.abs((ours - expected) / bound).max()


def assert_same_bits(a, b):
    np.testing.assert_array_equal(a.view(f"i{a.itemsize}"), b.view(f"i{b.itemsize}"))


# ----------------------------------------------------------------------------------- elementwise

def inputs(name, n, dtype, seed=0):
    rng = np.random.default_rng([seed, n])
    arrays = [rng.normal(0, 3, n) for _ in range(ELEMENTWISE[name][0])]
    if name == "relu_backward":
        arrays[0] = np.maximum(arrays[0], 0)
    return [a.astype(dtype) for a in arrays]


def elementwise(name, arrays):
    outputs = [arrays[0].shape] * (2 if name.endswith("slope") else 1)
    return run("activation.cu", name, arrays[0].dtype.type, [*arrays, *outputs, arrays[0].size])


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 31, 33, 1023])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_kernels_agree_with_float64_and_write_nothing_else(name, n):
    for dtype in DTYPES:
        arrays = inputs(name, n, dtype)
        expected = ELEMENTWISE[name][1](*(a.astype(np.float64) for a in arrays))
        for ours, e in zip(elementwise(name, arrays), expected, strict=True):
            assert_near(ours, e, 16)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_buffer_and_its_parts_give_the_same_bits(name):
    for dtype in DTYPES:
        arrays = inputs(name, 1023, dtype, 1)
        whole = elementwise(name, arrays)
        for cut in (1, 16, 500, 1008, 1022):
            parts = [elementwise(name, [a[s].copy() for a in arrays])
                     for s in (slice(cut), slice(cut, None))]
            for w, first, second in zip(whole, *parts):
                assert_same_bits(w, np.concatenate([first, second]))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_nan_passes_through_elementwise_kernels(name):
    for bits in (0x7fc00000, 0x7fc00001, 0x7f800001, 0x7fffffff, 0xffc12345, 0xff800155):
        nan = np.full(21, bits, np.uint32).view(np.float32)
        arrays = [nan] + [np.ones(21, np.float32)] * (ELEMENTWISE[name][0] - 1)
        if name == "relu_backward":
            arrays = [np.ones(21, np.float32), nan]
        for out in elementwise(name, arrays):
            assert np.isnan(out).all()


INF, TINY, HUGE = math.inf, 1e-42, 3e38


@pytest.mark.parametrize("name, x, expected", [
    ("relu_forward", [-INF, -0.0, TINY, INF], [0, 0, TINY, INF]),
    ("sigmoid_forward", [-INF, -100, -HUGE, TINY, HUGE, INF],
     [0, 3.783505853677006e-44, 0, 0.5, 1, 1]),
    ("silu", [-HUGE, TINY, 0, -0.0, HUGE, INF], [0, TINY / 2, 0, 0, HUGE, INF]),
    ("gelu_tanh", [-100, TINY, 0, 100, HUGE, INF], [0, TINY / 2, 0, 100, HUGE, INF]),
    ("gelu_none", [-100, TINY, 0, 100, HUGE, INF], [0, TINY / 2, 0, 100, HUGE, INF])])
def test_activations_of_infinities_subnormals_and_large_numbers(name, x, expected):
    for dtype in DTYPES:
        ours, = elementwise(name, [np.array(x, dtype)])
        assert np.isfinite(ours).tolist() == np.isfinite(expected).tolist()
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=3e-45)


def test_gelu_and_sigmoid_keep_their_relative_accuracy_where_they_are_small():
    x = np.linspace(-12, -2, 501).astype(np.float32)
    wide = x.astype(np.float64)
    for name, expected in (("sigmoid_forward", sigmoid(wide)), ("silu", silu(wide)[0]),
                           ("gelu_none", gelu_none(wide)[0])):
        ours, = elementwise(name, [x])
        np.testing.assert_allclose(ours, expected, rtol=2e-5)


# ------------------------------------------------------------------------- softmax, cross-entropy

ROWS, COLUMNS = (1, 7, 8, 9, 17), (1, 2, 15, 16, 17, 31, 33, 1023)


@pytest.mark.parametrize("n", COLUMNS)
@pytest.mark.parametrize("rows", ROWS)
def test_softmax_kernels_of_any_shape_agree_with_float64(rows, n):
    rng = np.random.default_rng([rows, n])
    x, g = rng.normal(0, 5, (2, rows, n))
    y = softmax(x)
    for dtype in DTYPES:
        def both(name, saved):
            forward, = run("softmax.cu", f"{name}_forward", dtype,
                           [x.astype(dtype), (rows, n), rows, n])
            backward, = run("softmax.cu", f"{name}_backward", dtype,
                            [saved.astype(dtype), g.astype(dtype), (rows, n), rows, n])
            return forward, backward
        forward, backward = both("softmax", y)
        assert_near(forward, y, 16)
        assert_near(backward, y * (g - (g * y).sum(1, keepdims=True)), 16, scale=4)
        logs = np.log(y)
        forward, backward = both("log_softmax", logs)
        assert_near(forward, logs, 16, scale=16)  # x itself is rounded
        assert_near(backward, g - y * g.sum(1, keepdims=True), 64, scale=np.abs(g).sum() / rows)


def test_a_row_of_softmax_does_not_depend_on_the_rows_beside_it():
    x = np.random.default_rng(3).normal(0, 4, (19, 37)).astype(np.float32)
    for name in ("softmax_forward", "log_softmax_forward"):
        whole, = run("softmax.cu", name, np.float32, [x, (19, 37), 19, 37])
        spoilt = x.copy()
        spoilt[9] = np.nan
        other, = run("softmax.cu", name, np.float32, [spoilt, (19, 37), 19, 37])
        assert np.isnan(other[9]).all()
        for row in range(19):
            alone, = run("softmax.cu", name, np.float32, [x[row], (1, 37), 1, 37])
            assert_same_bits(whole[row], alone[0])
            assert row == 9 or (other[row] == whole[row]).all()


@pytest.mark.parametrize("n", COLUMNS)
@pytest.mark.parametrize("rows", ROWS)
def test_cross_entropy_kernels_agree_with_float64(rows, n):
    rng = np.random.default_rng([rows, n])
    x, target = rng.normal(0, 3, (rows, n)), rng.integers(0, n, rows)
    target[rng.random(rows) < 0.25] = -1
    for dtype in DTYPES:
        a = x.astype(dtype)
        loss, gradient = reference_loss(a.astype(np.float64), target, 0.25)
        fused = run("cross_entropy.cu", "cross_entropy_gradient", dtype,
                    [a, target, (rows,), (rows, n), 0.25, rows, n])
        alone, = run("cross_entropy.cu", "cross_entropy", dtype, [a, target, (rows,), rows, n])
        assert_same_bits(fused[0], alone)
        assert_near(fused[0], loss, 8, scale=8)
        assert_near(fused[1], gradient, 8)


def test_cross_entropy_of_rows_with_nan_and_infinity():
    nan, inf = np.nan, np.inf
    x = np.array([[0, nan, 1], [inf, 0, 0], [0, -inf, 0], [0, -inf, 0], [-inf] * 3], np.float32)
    target = np.array([0, 1, 1, 0, 0])
    loss, gradient = run("cross_entropy.cu", "cross_entropy_gradient", np.float32,
                         [x, target, (5,), (5, 3), 1.0, 5, 3])
    np.testing.assert_array_equal(loss, np.float32([nan, nan, inf, math.log(2), nan]))
    assert np.isnan(gradient[[0, 1, 4]]).all()
    np.testing.assert_array_equal(gradient[2:4], np.float32([[0.5, -1, 0.5], [-0.5, 0, 0.5]]))


# ----------------------------------------------------------------------------- embedding, dropout

@pytest.mark.parametrize("width", [0, 1, 15, 17, 33])
def test_embedding_adds_to_the_rows_of_its_indices_in_their_order(width):
    rng = np.random.default_rng(width)
    for dtype in DTYPES:
        for count in (0, 1, 40):
            index, g = rng.integers(0, 7, count), rng.standard_normal((count, width)).astype(dtype)
            whole = rng.standard_normal((9, width)).astype(dtype)
            expected = whole.copy()
            for i, row in enumerate(index.tolist()):
                expected[row + 1] += g[i]
            table = whole[1:-1]  # the first and the last row are the guards
            Kernel("embedding.cu", "embedding_backward").build(np.dtype(dtype))(
                index, g, table, count, 7, width)
            assert_same_bits(whole, expected)


@pytest.mark.parametrize("first", [0, 1, 12345, 2**32 - 3, 2**63 + 5, 2**64 - 101])
def test_masks_are_those_of_numpys_philox(first):
    key = random.key("a key", first)
    for count, threshold in ((1, 2**31), (7, 1), (33, 2**32 - 1), (100, 2**30)):
        mask, = run("dropout.cu", "keep_mask", np.float32, [
            ((count,), np.uint64), key % 2**64, key >> 64, first, threshold, count])
        expected = random.bits(key, 8 * first, 8 * count) >= threshold
        np.testing.assert_array_equal(mask.view(np.uint8), expected)


@pytest.mark.parametrize("n", [0, 1, 15, 17, 33, 1000])
def test_what_a_mask_keeps_is_scaled(n):
    rng = np.random.default_rng(n)
    mask = (rng.random(n) < 0.5).astype(np.uint8)
    for dtype in DTYPES:
        x = rng.standard_normal(n).astype(dtype)
        x[:1] = np.nan
        y, = run("dropout.cu", "masked_scale", dtype, [x, mask, (n,), 1.25, n])
        np.testing.assert_array_equal(y, x * mask * dtype(1.25))
