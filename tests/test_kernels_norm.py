"""Kernels of layer, RMS, batch and group normalisation beside NumPy in float64."""

import numpy as np
import pytest

import minipar as mp
from minipar import execution
from minipar.context import set_kernels
from minipar.execution import Kernel
from minipar.nn import functional as F
from minipar.ops import moments
from minipar.tensor import Tensor

pytestmark = pytest.mark.skipif(execution.compiler() is None, reason="there is no C++ compiler")
rng = np.random.default_rng(31)
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}
LENGTHS = [1, 2, 15, 16, 31, 33, 64, 100, 127, 129, 1023]


@pytest.fixture(autouse=True)
def _compiled_again():
    yield
    set_kernels("compiled")


def normal(*shape):
    return np.asarray(rng.standard_normal(shape))


def aligned_nowhere(a, dtype):
    """A copy of `a`, contiguous, that starts one element after a boundary of 64 bytes."""
    memory = np.empty(a.size + 64, dtype)
    skip = (64 - memory.ctypes.data % 64) // memory.itemsize + 1
    memory[skip:skip + a.size] = a.reshape(-1)
    return memory[skip:skip + a.size].reshape(a.shape)


def guarded(*shape, dtype):
    """An array of `shape`, filled with 7, in which the last along dim 0 is to stay untouched."""
    return np.full((shape[0] + 1, *shape[1:]), 7, dtype)


def assert_filled(array, expected, dtype):
    """All but the guard of `array` are what is expected."""
    size = max(1, np.abs(expected).max(initial=0))
    assert np.abs(array[:-1] - expected).max(initial=0) <= TOLERANCE[dtype] * size
    assert (array[-1] == 7).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n", LENGTHS)
def test_rows_are_normalised_as_in_float64(n, dtype):
    rows, eps = 67, 1e-3  # two parts of 32 rows, and a third that is not full
    x, g = normal(2, rows, n) * 3 + 1
    w, b = normal(2, n)
    mean = x.mean(1)
    scale = 1 / np.sqrt(x.var(1) + eps)
    low = [aligned_nowhere(a, dtype) for a in (x, g, w, b, mean, scale)]
    y, gx = guarded(rows, n, dtype=dtype), guarded(rows, n, dtype=dtype)
    means, scales = guarded(rows, dtype=dtype), guarded(rows, dtype=dtype)
    partial, total = guarded(3, 2, n, dtype=dtype), guarded(2, n, dtype=dtype)

    def kernel(name):
        return Kernel("norm.cu", name).build(np.dtype(dtype))
    kernel("layer_norm_forward")(low[0], low[2], low[3], y, means, scales, rows, n, eps)
    kernel("layer_norm_backward")(low[0], low[1], low[2], low[4], low[5], gx, partial, rows, n, 3)
    kernel("add_parts")(partial, total, 3, 2 * n)
    unit = (x - mean[:, None]) * scale[:, None]
    d = g * w
    slope = d - d.mean(1, keepdims=True) - unit * (d * unit).mean(1, keepdims=True)
    for ours, expected in ((y, unit * w + b), (means, mean), (scales, scale),
                           (gx, slope * scale[:, None]), (total, [(g * unit).sum(0), g.sum(0)])):
        assert_filled(ours, np.asarray(expected), dtype)

    scale = 1 / np.sqrt((x * x).mean(1) + eps)
    y, gx, scales = (guarded(*s, dtype=dtype) for s in ((rows, n), (rows, n), (rows,)))
    partial = guarded(3, n, dtype=dtype)
    kernel("rms_norm_forward")(low[0], low[2], y, scales, rows, n, eps)
    kernel("rms_norm_backward")(low[0], low[1], low[2], scale.astype(dtype), gx, partial, rows, n,
                                3)
    unit = x * scale[:, None]
    slope = d - unit * (d * unit).mean(1, keepdims=True)
    for ours, expected in ((y, unit * w), (scales, scale), (gx, slope * scale[:, None])):
        assert_filled(ours, expected, dtype)
    parts = [(g * unit)[start:start + 32].sum(0) for start in (0, 32, 64)]
    assert_filled(partial, np.stack(parts), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("columns", [1, 2, 31, 32, 33, 100])
@pytest.mark.parametrize("length", [1, 17, 130])
def test_the_steps_of_channel_norms_are_those_of_float64(length, columns, dtype):
    count, period = 6, 3 if columns == 1 else 1
    view = moments.Matrices(count, length, columns, count * length, period)
    x, g = normal(2, count, length, columns) + 2
    numbers = normal(4, period, columns)
    a, up, *low = (aligned_nowhere(v, dtype) for v in (x, g, *numbers))
    mean, slope, tilt, level = np.concatenate([numbers] * (6 // period), 1)[:, :, None]

    def step(name, *arrays, outputs):
        out = [guarded(count, *shape, dtype=dtype) for shape in outputs]
        assert view.run(name, *arrays, *out)
        return out
    means, squares = step("moments", a, outputs=[(columns,)] * 2)
    assert_filled(means, x.mean(1), dtype)
    assert_filled(squares, ((x - x.mean(1, keepdims=True))**2).sum(1), dtype)
    y, = step("normalise", a, *low[:3], outputs=[(length, columns)])
    assert_filled(y, (x - mean) * slope + tilt, dtype)
    sums, along = step("products", up, a, low[0], outputs=[(columns,)] * 2)
    assert_filled(sums, g.sum(1), dtype)
    assert_filled(along, (g * (x - mean)).sum(1), dtype)
    gx, = step("gradient", up, a, *low, outputs=[(length, columns)])
    assert_filled(gx, slope * g - tilt * (x - mean) - level, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 200])
def test_parts_of_unequal_length_are_joined_as_what_they_are(rows, dtype):
    x = (normal(rows, 33) + 1000).astype(dtype)
    view = moments.rows_of_columns(rows, 33, x.dtype)
    assert view.count == -(-rows // 64)
    mean, variance = moments.join_moments(*moments.moments(x, view), view.length, rows)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-6 if dtype is np.float32 else 1e-14)
    np.testing.assert_allclose(variance, exact.var(0), rtol=1e-4 if dtype is np.float32 else 1e-11)


def laid_out(a, order):
    return np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))


CONVOLVED = (2, 1, 3, 0)
LAYOUTS = [((5, 6, 3, 7), (0, 1, 2, 3)), ((33, 6, 3, 7), CONVOLVED), ((1, 6, 3, 7), CONVOLVED),
           ((2, 6, 41, 40), CONVOLVED), ((5, 6, 3, 7), (0, 2, 3, 1)), ((70, 6), (0, 1)),
           ((70, 6), (1, 0)), ((3, 6, 5), (0, 1, 2)), ((2, 6, 1, 1), (0, 1, 2, 3))]
OPERATIONS = {
    "layer_norm": lambda x, w, b: F.layer_norm(x.transpose(1, -1), 6, w, b),
    "layer_norm without weights": lambda x, w, b: F.layer_norm(x, x.shape[1:]),
    "rms_norm": lambda x, w, b: F.rms_norm(x.transpose(1, -1), 6, w),
    "batch_norm": lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
    "batch_norm without weights": lambda x, w, b: F.batch_norm(x, None, None, training=True),
    "batch_norm in eval mode": lambda x, w, b: F.batch_norm(
        x, Tensor(b.array * 2), Tensor(w.array**2 + 1), w, b),
    "group_norm": lambda x, w, b: F.group_norm(x, 2, w, b),
    "group_norm without weights": lambda x, w, b: F.group_norm(x, 3)}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape, order", LAYOUTS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_the_same_with_kernels_and_without(name, shape, order, dtype):
    x, (w, b) = normal(*shape) * 2 + 1, normal(2, 6)
    g, results = None, []
    for kernels in ("compiled", "reference"):
        set_kernels(kernels)
        operands = [Tensor(a.astype(dtype), True) for a in (laid_out(x, order), w, b)]
        operands[0].array = laid_out(operands[0].array, order)
        out = OPERATIONS[name](*operands)
        g = rng.standard_normal(out.shape).astype(dtype) if g is None else g
        out.backward(Tensor(g))
        results.append([out.array, *(t.grad.array for t in operands if t.grad is not None)])
    for ours, reference in zip(*results, strict=True):
        size = max(1, np.abs(reference).max())
        assert np.abs(ours - reference).max() <= TOLERANCE[dtype] * size


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("samples", [1, 2, 3, 8, 15, 17, 20, 33, 48, 65, 100, 200])
def test_group_norm_takes_samples_that_are_last_in_memory_as_those_that_are_first(samples, dtype):
    w, b = normal(2, 6).astype(dtype)
    for width in (1, 4, 7):
        x, g = (normal(samples, 6, 3, width) * 2 + 1).astype(dtype), normal(samples, 6, 3, width)
        results = []
        for order in (range(4), CONVOLVED):
            operands = [Tensor(a, True) for a in (laid_out(x, order), w, b)]
            out = F.group_norm(operands[0], 3, *operands[1:])
            out.backward(Tensor(laid_out(g.astype(dtype), order)))
            results.append([out.array, *(t.grad.array for t in operands)])
        for last, first in zip(*results, strict=True):
            size = max(1, np.abs(first).max())
            assert np.abs(last - first).max() <= TOLERANCE[dtype] * size


def test_group_norm_is_right_where_rows_of_an_image_are_far_apart():
    x = normal(20, 4, 9, 16) + 1000 * np.arange(9)[:, None]
    x[3] = 1000 + normal(4, 9, 16) / 100
    rows = x.reshape(20, 2, -1)
    expected = rows - rows.mean(2, keepdims=True)
    expected /= np.sqrt(rows.var(2, keepdims=True) + 1e-9)
    for order in (range(4), CONVOLVED):
        single = F.group_norm(Tensor(laid_out(x.astype(np.float32), order)), 2, eps=1e-9).array
        error = np.abs(single - expected.reshape(x.shape)).max((1, 2, 3))
        assert error[3] < 2e-2 and np.delete(error, 3).max() < 1e-5  # as x is rounded


def test_a_row_does_not_depend_on_the_rows_beside_it():
    for n in (1, 31, 33, 256, 1023):
        x = Tensor(rng.standard_normal((37, n), np.float32))
        w = Tensor(rng.standard_normal(n, np.float32))
        for norm in (lambda x: F.layer_norm(x, n, w, w), lambda x: F.rms_norm(x, n, w)):
            whole = norm(x).array
            for rows in (slice(0, 1), slice(5, 12), slice(36, 37)):
                assert (norm(x[rows]).array == whole[rows]).all()


def test_nan_and_infinity_stay_in_their_row_and_channel():
    for kernels in ("compiled", "reference"):
        set_kernels(kernels)
        for bad in (np.nan, np.inf, -np.inf):
            x = rng.standard_normal((4, 40)).astype(np.float32)
            x[1, 37] = bad
            for out in (F.layer_norm(Tensor(x), 40).array, F.rms_norm(Tensor(x), 40).array):
                assert np.isfinite(out[[0, 2, 3]]).all() and np.isnan(out[1, 37])
            out = F.batch_norm(Tensor(x.reshape(2, 4, 20)), None, None, training=True).array
            assert np.isnan(out[:, 3]).all() and np.isfinite(out[:, :3]).all()
            out = F.group_norm(Tensor(x.reshape(2, 4, 20)), 4).array
            assert np.isnan(out[0, 3]).all()
            assert np.isfinite(out[0, :3]).all() and np.isfinite(out[1]).all()


def test_subnormal_numbers_are_not_flushed_to_zero():
    x = np.float32([[1e-40, -1e-40, 3e-40, 1e-39]] * 2)
    expected = (x - x.astype(np.float64).mean(1, keepdims=True)) / np.sqrt(1e-5)
    np.testing.assert_allclose(F.layer_norm(Tensor(x), 4).array, expected, atol=1e-42)
    y = F.rms_norm(Tensor(x), 4, eps=1.0).array
    assert (y == x).all()


def test_what_is_empty_stays_empty_and_parameters_get_zeros():
    w = Tensor(np.ones(4, np.float32), True)
    for out in (F.layer_norm(mp.zeros(0, 4), 4, w), F.rms_norm(mp.zeros(3, 0, 4), 4, w),
                F.batch_norm(mp.zeros(0, 4, 2), None, None, w, training=True),
                F.group_norm(mp.zeros(0, 4, 2), 2, w)):
        w.grad = None
        out.backward(mp.zeros(*out.shape))
        assert out.numel() == 0 and (w.grad.array == 0).all()
