"""Kernels of pooling beside NumPy, and what they make of padding, ties, NaN and infinity."""

import numpy as np
import pytest

from minipar import execution
from minipar.context import set_kernels
from minipar.execution import Kernel
from minipar.nn import functional as F
from minipar.ops.windows import Images
from minipar.tensor import Tensor

pytestmark = pytest.mark.skipif(execution.compiler() is None, reason="there is no C++ compiler")
rng = np.random.default_rng(37)
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}
WINDOWS = [(2, None, 0, False), (3, 2, 1, False), (3, 1, 1, False), (2, 3, 0, True),
           ((1, 3), (2, 1), (0, 1), False), ((4, 2), 3, (2, 1), True), (1, 2, 0, False)]


@pytest.fixture(autouse=True)
def _compiled_again():
    yield
    set_kernels("compiled")


def laid_out(a, order):
    return np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kernel, stride, padding, ceil_mode", WINDOWS)
@pytest.mark.parametrize("shape, order", [
    ((8, 3, 7, 9), (2, 1, 3, 0)), ((31, 2, 8, 6), (2, 1, 3, 0)), ((33, 1, 5, 5), (2, 1, 3, 0)),
    ((2, 100, 6, 7), (0, 2, 3, 1)), ((64, 2, 4, 5), (1, 2, 3, 0)), ((40, 2, 4, 4), (2, 3, 1, 0)),
    ((2, 3, 6, 71), (0, 1, 2, 3)), ((3, 2, 9, 5), (1, 0, 2, 3))])
@pytest.mark.parametrize("op", [F.max_pool2d, F.avg_pool2d])
def test_pooling_is_the_same_with_kernels_and_without(op, shape, order, kernel, stride, padding,
                                                      ceil_mode, dtype):
    x = laid_out(np.round(rng.standard_normal(shape) * 4) / 4, order).astype(dtype)  # with ties
    out_shape = op(Tensor(x), kernel, stride, padding, ceil_mode=ceil_mode).shape
    g, results = rng.standard_normal(out_shape).astype(dtype), []
    for kernels in ("compiled", "reference"):
        set_kernels(kernels)
        t = Tensor(x, True)
        out = op(t, kernel, stride, padding, ceil_mode=ceil_mode)
        out.backward(Tensor(g))
        results.append((out.array, t.grad.array))
    for ours, reference in zip(*results, strict=True):
        size = max(1, np.abs(reference).max())
        assert np.abs(ours - reference).max() <= TOLERANCE[dtype] * size
    if op is F.max_pool2d:
        assert (results[0][0] == results[1][0]).all()


@pytest.mark.parametrize("n", [8, 31, 32, 33, 65])
def test_kernels_write_their_images_and_nothing_beyond(n):
    shape, (kernel, stride, padding), size = (n, 3, 5, 6), ((3, 2), (2, 2), (1, 1)), (3, 4)
    x = laid_out(rng.standard_normal(shape), (2, 1, 3, 0))
    images = Images(x, size, kernel, stride, padding)
    assert images.fit

    def guarded(size, dtype):
        memory = np.full(n * 3 * size[0] * size[1] + 5, 7, dtype)
        return memory, memory[:-5].reshape(size[0], 3, size[1], n)

    def run(name, *arrays, rows):
        images.run(Kernel("pool.cu", name).build(x.dtype), *arrays, rows=rows)
    out, y = guarded(size, float)
    taps, tap = guarded(size, np.uint8)
    run("max_pool_forward", images.lay(x), y, tap, rows=3)
    padded = np.full((n, 3, 7, 8), -np.inf)
    padded[:, :, 1:-1, 1:-1] = x
    for i in range(3):
        for j in range(4):
            window = padded[:, :, 2 * i:2 * i + 3, 2 * j:2 * j + 2].reshape(n, 3, 6)
            assert (images.view(y)[:, :, i, j] == window.max(2)).all()
            assert (images.view(tap)[:, :, i, j] == window.argmax(2)).all()
    for name, argument in (("max_pool_backward", tap), ("average_pool_backward", np.ones(size))):
        gradient, gx = guarded((5, 6), float)
        run(name, y, argument, gx, rows=5)
        assert (gradient[-5:] == 7).all() and np.isfinite(gx).all()
    assert (out[-5:] == 7).all() and (taps[-5:] == 7).all()
    out, y = guarded(size, float)
    run("average_pool_forward", images.lay(x), np.full(size, 0.5), y, rows=3)
    first = x[:, :, :2, :1].sum((2, 3)) / 2
    np.testing.assert_allclose(images.view(y)[:, :, 0, 0], first, atol=1e-14)
    assert (out[-5:] == 7).all()


def test_the_first_of_equal_elements_takes_the_gradient_also_if_all_are_infinite():
    for kernels in ("compiled", "reference"):
        set_kernels(kernels)
        for value in (0.0, -np.inf, np.inf):
            for order in ((2, 1, 3, 0), (0, 1, 2, 3)):
                x = Tensor(laid_out(np.full((16, 2, 4, 4), value), order), True)
                F.max_pool2d(x, 3, 2, 1).sum().backward()
                taken = np.zeros((4, 4))
                taken[[0, 0, 1, 1], [0, 1, 0, 1]] = 1  # the first inside the padding
                assert (x.grad.array == taken).all()


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 1, 3, 0)])
@pytest.mark.parametrize("wants", [False, True])
def test_nan_reaches_the_windows_that_have_it_and_no_others(order, wants):
    x = laid_out(rng.standard_normal((33, 2, 4, 4)), order)
    x[5, 1, 1, 1], x[32, 0, 3, 3], x[7, 0, 0, 0] = np.nan, np.nan, 1e-310
    for kernels in ("compiled", "reference"):
        set_kernels(kernels)
        for op in (F.max_pool2d, F.avg_pool2d):
            out = op(Tensor(x, wants), 2).array
            assert np.isnan(out[5, 1, 0, 0]) and np.isnan(out[32, 0, 1, 1])
            assert np.isnan(out).sum() == 2
    assert F.max_pool2d(Tensor(x[:, :, :1, :1], wants), 1).array[7, 0, 0, 0] == 1e-310


def test_a_gradient_of_any_layout_comes_back_in_that_of_the_input():
    x = Tensor(laid_out(rng.standard_normal((16, 3, 6, 6)), (2, 1, 3, 0)), True)
    node = F.max_pool2d(x, 2).node
    g = rng.standard_normal((16, 3, 3, 3))
    one, other = (node.backward(a)[0] for a in (g, laid_out(g, (2, 1, 3, 0))))
    assert (one == other).all()
    assert np.ascontiguousarray(one.transpose(2, 1, 3, 0)).strides == one.transpose(
        2, 1, 3, 0).strides


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 1, 3, 0)])
def test_one_window_over_all_is_the_mean(order):
    x = laid_out(rng.standard_normal((16, 3, 5, 7)), order)
    t = Tensor(x, True)
    out = F.adaptive_avg_pool2d(t, 1)
    np.testing.assert_allclose(out.array[:, :, 0, 0], x.mean((2, 3)), rtol=1e-12, atol=1e-14)
    g = rng.standard_normal(out.shape)
    out.backward(Tensor(g))
    np.testing.assert_allclose(t.grad.array, np.broadcast_to(g / 35, x.shape), rtol=1e-14)
