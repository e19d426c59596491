"""Kernels of convolution beside NumPy and the definition."""

import numpy as np
import pytest

from minipar import execution
from minipar.context import set_kernels
from minipar.nn import functional as F
from minipar.ops import direct_conv, mec
from minipar.tensor import Tensor

pytestmark = pytest.mark.skipif(execution.compiler() is None, reason="there is no C++ compiler")
rng = np.random.default_rng(41)
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


@pytest.fixture(autouse=True)
def _compiled_again():
    yield
    set_kernels("compiled")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kernel, stride, padding", [
    ((3, 3), 1, 1), ((3, 3), 2, 1), ((1, 1), 1, 0), ((2, 3), (3, 1), (0, 2)), ((5, 4), (1, 3), 4),
    ((1, 2), 3, 0)])
@pytest.mark.parametrize("n", [8, 31, 33, 64])
@pytest.mark.parametrize("op", [F.conv2d, F.conv_transpose2d])
def test_depthwise_convolution_is_the_same_with_kernels_and_without(op, n, kernel, stride, padding,
                                                                    dtype):
    arrays = [rng.standard_normal(s).astype(dtype) for s in ((n, 3, 9, 8), (3, 1, *kernel), (3,))]
    assert_same(op, arrays, stride, padding, groups=3)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kernel, stride, padding, dilation", [
    ((3, 3), 1, 1, 1), ((3, 3), 2, 1, 1), ((1, 1), 2, 0, 1), ((2, 3), (3, 1), (0, 2), 1),
    ((5, 4), (1, 3), 4, 1), ((3, 2), 2, (2, 1), 2), ((2, 2), 2, 3, 3), ((1, 3), 4, 1, 1)])
@pytest.mark.parametrize("n, channels, outputs, groups", [
    (16, 8, 8, 1), (40, 9, 35, 1), (31, 22, 24, 2), (64, 40, 8, 1)])
@pytest.mark.parametrize("op", [F.conv2d, F.conv_transpose2d])
def test_convolution_is_the_same_without_lowered_matrices(op, n, channels, outputs, groups, kernel,
                                                          stride, padding, dilation, dtype,
                                                          monkeypatch):
    if op is F.conv2d:
        w = outputs, channels // groups, *kernel
    else:
        w = channels, outputs // groups, *kernel
    arrays = [rng.standard_normal(s).astype(dtype) for s in ((n, channels, 9, 8), w, (outputs,))]
    launched = []
    for name in ("_TAPS", "_WEIGHT"):
        kernel = getattr(direct_conv, name)
        monkeypatch.setattr(direct_conv, name, Counted(kernel, launched))
    assert_same(op, arrays, stride, padding, groups=groups, dilation=dilation)
    assert launched == ["conv_taps"] * 2 + ["conv_weight_gradient"]


@pytest.mark.parametrize("n, channels, outputs, kernel", [
    (16, 8, 8, (9, 8)), (15, 8, 8, (3, 3)), (16, 7, 8, (3, 3)), (16, 8, 7, (3, 3)),
    (16, 8, 8, (1, 1))])
def test_a_convolution_that_the_kernels_do_not_serve_is_lowered(n, channels, outputs, kernel):
    s = mec.Geometry((n, channels, 9, 8), (outputs, channels, *kernel), (9, 8), (1, 1), (0, 0),
                     (1, 1), 1)
    x = np.zeros((9, channels, 8, n), np.float32)
    sides = {direct_conv._build(name, s, x, rows) for name, rows in (
        ("forward", outputs), ("input_gradient", channels), ("weight_gradient", channels))}
    assert None in sides
    arrays = [rng.standard_normal(a).astype(np.float64) for a in (
        (n, channels, 9, 8), (outputs, channels, *kernel), (outputs,))]
    assert_same(F.conv2d, arrays, 1, 4)


class Counted:
    """A kernel that notes when it is built for arrays that are not for the reference."""

    def __init__(self, kernel, launched):
        self.kernel, self.launched = kernel, launched

    def build(self, like):
        run = self.kernel.build(like)
        if run:
            self.launched.append(self.kernel.name)
        return run


def assert_same(op, arrays, stride, padding, **options):
    """`op` and its gradients with kernels are those without."""
    dtype = arrays[0].dtype.type
    g, results = None, []
    for kernels in ("compiled", "reference"):
        set_kernels(kernels)
        operands = [Tensor(a, True) for a in arrays]
        out = op(*operands, stride, padding, **options)
        g = rng.standard_normal(out.shape).astype(dtype) if g is None else g
        out.backward(Tensor(g))
        results.append([out.array, *(t.grad.array for t in operands)])
    for ours, reference in zip(*results, strict=True):
        size = max(1, np.abs(reference).max())
        assert np.abs(ours - reference).max() <= TOLERANCE[dtype] * size


def test_depthwise_kernels_compute_the_definition_and_write_nothing_beyond():
    n, c, h, w = 33, 2, 5, 6
    geometry = mec.Geometry((n, c, h, w), (c, 1, 3, 2), (3, 3), (2, 2), (1, 0), (1, 1), c)
    x, g = rng.standard_normal((h, c, w, n)), rng.standard_normal((3, c, 3, n))
    weight, bias = rng.standard_normal((c, 1, 3, 2)), rng.standard_normal(c)
    out, gx, gw = np.zeros(g.shape), np.zeros((h + 2, c, w, n)), np.zeros(weight.shape)
    padded = np.zeros((h + 2, c, w, n))
    padded[1:-1] = x
    out += bias[:, None, None]
    for k in range(3):
        for m in range(2):
            under = padded[k:k + 5:2, :, m:m + 5:2]
            out += weight[:, 0, k, m, None, None] * under
            gx[k:k + 5:2, :, m:m + 5:2] += weight[:, 0, k, m, None, None] * g
            gw[:, 0, k, m] = (g * under).sum((0, 2, 3))

    def run(name, *arrays, shape, rows):
        memory = np.full(np.prod(shape) + 5, 7.0)
        kernel = direct_conv._build(name, geometry, x, 1)
        kernel(*arrays, memory[:-5], *direct_conv._depthwise_sizes(geometry, rows))
        assert (memory[-5:] == 7).all()
        return memory[:-5].reshape(shape)
    close = dict(rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(run("forward", x, weight, bias, shape=g.shape, rows=3), out, **close)
    np.testing.assert_allclose(run("input_gradient", g, weight, shape=x.shape, rows=h), gx[1:-1],
                               **close)
    by_row = run("weight_gradient", g, x, shape=(3, *weight.shape), rows=3)
    np.testing.assert_allclose(by_row.sum(0), gw, **close)


@pytest.mark.parametrize("n", [16, 40, 65])
def test_convolution_kernels_read_and_write_nothing_beyond(n):
    s = mec.Geometry((n, 9, 4, 5), (11, 9, 3, 3), (2, 5), (2, 1), (1, 1), (1, 1), 1)

    def within(shape, values=None):
        """An array of the shape with NaN, which must not be read, or 7 around it."""
        memory = np.full(np.prod(shape) + 80, 7.0 if values is None else np.nan)
        a = memory[40:-40].reshape(shape)
        a[...] = 0 if values is None else values
        return a, memory
    x, g = (within(shape, rng.standard_normal(shape))[0] for shape in ((4, 9, 5, n),
                                                                      (2, 11, 5, n)))
    w = within((11, 9, 3, 3), rng.standard_normal((11, 9, 3, 3)))[0]
    for kernel, arrays, sizes, shape in (
            (direct_conv._TAPS, (x, w, np.zeros(11)), direct_conv.output_sums(s), g.shape),
            (direct_conv._TAPS, (g, w, np.zeros(9)), direct_conv._input_sums(s), x.shape),
            (direct_conv._WEIGHT, (g, x), direct_conv.weight_sums(s), (9, 9, 11))):
        out, memory = within(shape)
        kernel.build(x)(*arrays, out, *sizes)
        assert np.isfinite(out).all() and (out != 0).all()
        assert (memory[:40] == 7).all() and (memory[-40:] == 7).all()


def test_nan_and_infinity_stay_under_their_windows():
    x = np.zeros((16, 2, 5, 5), np.float32)
    x[3, 1, 2, 2], x[4, 0, 0, 0] = np.nan, np.inf
    out = F.conv2d(Tensor(x), Tensor(np.ones((2, 1, 3, 3), np.float32)), groups=2).array
    assert np.isnan(out[3, 1]).all() and np.isnan(out).sum() == 9
    assert np.isinf(out[4, 0, 0, 0]) and np.isinf(out).sum() == 1
