"""Average pooling, adaptive pooling, pooling of lines, ceil_mode: values, gradients, refusals."""

import numpy as np
import pytest
from gradcheck import gradcheck
from peer import REFUSALS, both, memory_orders, single_threaded_torch

import minipar as mp
from minipar.nn import functional as F
from minipar.tensor import Tensor

rng = np.random.default_rng(19)
X = (2, 3, 7, 6)


def normal(*shape):
    return np.asarray(rng.standard_normal(shape))


@pytest.mark.parametrize("shape, options", [
    (X, {"kernel_size": 2}), (X, {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)}),
    (X, {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
    (X, {"kernel_size": 2, "stride": 4, "ceil_mode": True}),
    (X, {"kernel_size": (7, 6)}), (X, {"kernel_size": 1, "stride": 3}),
    (X, {"kernel_size": 3, "divisor_override": -2}), ((1, 1, 1, 1), {"kernel_size": 1}),
    ((0, 2, 4, 4), {"kernel_size": 2}),
])
def test_avg_pool2d_has_the_gradients_that_differences_show(shape, options):
    for array in memory_orders(normal(*shape)):
        gradcheck(lambda x: F.avg_pool2d(x, **options), array)


@pytest.mark.parametrize("size", [1, 2, 3, (7, 6), (None, 4), (9, 1), None])
def test_adaptive_avg_pool2d_averages_the_windows_of_its_definition(size):
    x = normal(*X)
    high, wide = (n if s is None else s for s, n in
                  zip(size if isinstance(size, tuple) else (size, size), X[2:]))
    expected = np.empty((2, 3, high, wide))
    for i in range(high):
        for j in range(wide):
            rows = slice(int(np.floor(i * 7 / high)), int(np.ceil((i + 1) * 7 / high)))
            columns = slice(int(np.floor(j * 6 / wide)), int(np.ceil((j + 1) * 6 / wide)))
            expected[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
    for array in memory_orders(x):
        out = F.adaptive_avg_pool2d(Tensor(array), size)
        np.testing.assert_allclose(out.array, expected, rtol=1e-12)
        gradcheck(lambda x: F.adaptive_avg_pool2d(x, size), array)


def test_pooling_keeps_the_layout_of_convolutions():
    x = Tensor(normal(6, 7, 4, 5).transpose(3, 2, 0, 1))
    for out in (F.avg_pool2d(x, 2), F.adaptive_avg_pool2d(x, 3), F.max_pool2d(x, 2)):
        strides = out.array.strides
        assert sorted(range(4), key=lambda i: -strides[i]) == [2, 3, 1, 0]


def test_pooling_of_a_line_is_that_of_an_image_of_one_row():
    x = normal(2, 3, 9)
    for line, image in ((F.max_pool1d, F.max_pool2d), (F.avg_pool1d, F.avg_pool2d)):
        out = line(Tensor(x), 3, 2, 1)
        expected = image(Tensor(x[:, :, None]), (1, 3), (1, 2), (0, 1))
        np.testing.assert_array_equal(out.array, expected.array[:, :, 0])
        gradcheck(lambda x: line(x, 2), x[:, :, ::-1])


@pytest.mark.parametrize("kernel, stride, padding, size", [
    (2, 2, 0, 5), (3, 2, 1, 6), (2, 3, 0, 5), (3, 3, 0, 2), (2, 4, 1, 4), (1, 5, 0, 3),
])
def test_ceil_mode_adds_the_window_that_ends_beyond_the_padding_but_starts_before(
        kernel, stride, padding, size):
    x = normal(1, 1, size, 3)
    starts = [s for s in range(-padding, size, stride)
              if s + kernel <= size + padding or s + kernel < size + padding + stride]
    largest = [x[0, 0, max(s, 0):s + kernel, :].max(0) for s in starts]
    options = (kernel, 1), (stride, 1), (padding, 0)
    out = F.max_pool2d(Tensor(x), *options, ceil_mode=True)
    np.testing.assert_array_equal(out.array[0, 0], largest)
    means = [x[0, 0, max(s, 0):s + kernel, :].mean(0) for s in starts]
    out = F.avg_pool2d(Tensor(x), *options, ceil_mode=True, count_include_pad=False)
    np.testing.assert_allclose(out.array[0, 0], means)
    gradcheck(lambda x: F.max_pool2d(x, *options, ceil_mode=True), x)


def test_the_average_of_float16_does_not_overflow():
    x = Tensor(np.full((1, 1, 40, 40), 60000, np.float16), requires_grad=True)
    for out in (F.adaptive_avg_pool2d(x, 1), F.avg_pool2d(x, 40)):
        assert out.dtype is mp.float16 and out.item() == 60000
    out.backward()
    assert x.grad.dtype is mp.float16


@pytest.mark.parametrize("call, message", [
    (lambda x: F.avg_pool2d(x, 8), "8 > 7"), (lambda x: F.avg_pool2d(x, 0), "kernel_size"),
    (lambda x: F.avg_pool2d(x, 2, 0), "stride"), (lambda x: F.avg_pool2d(x, 2, 1, 2), "half"),
    (lambda x: F.avg_pool2d(x, 2, divisor_override=0), "divisor_override"),
    (lambda x: F.avg_pool2d(x[0], 2), r"\(N, C, H, W\)"),
    (lambda x: F.avg_pool1d(x, 2), r"\(N, C, L\)"), (lambda x: F.max_pool1d(x, 2), "N, C, L"),
    (lambda x: F.max_pool1d(x[0], (1, 2)), "kernel_size is an int >= 1"),
    (lambda x: F.adaptive_avg_pool2d(x, (1,)), "pair"),
    (lambda x: F.adaptive_avg_pool2d(x, -1), ">= 0"),
    (lambda x: F.adaptive_avg_pool2d(x[:, :, :0], 1), "no element"),
    (lambda x: F.adaptive_avg_pool2d(x[0], 1), r"\(N, C, H, W\)"),
])
def test_windows_that_cannot_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Tensor(normal(*X)))


def test_averages_of_integers_are_refused():
    for call in (lambda x: F.avg_pool2d(x, 1), lambda x: F.adaptive_avg_pool2d(x, 1)):
        with pytest.raises(TypeError, match="floating type"):
            call(Tensor(np.ones((1, 1, 2, 2), np.int64)))


SAME = [
    ("avg_pool2d", X, [2], {}), ("avg_pool2d", X, [(3, 2), (2, 1), (1, 0)], {}),
    ("avg_pool2d", X, [3, 2, 1], {"count_include_pad": False}),
    ("avg_pool2d", X, [3, 2, 1, True], {}), ("avg_pool2d", X, [3, 2, 1, True, False], {}),
    ("avg_pool2d", X, [2, 4, 0, True], {}), ("avg_pool2d", X, [4, 5, 2, True], {}),
    ("avg_pool2d", X, [2, 1], {"divisor_override": 3}),
    ("avg_pool2d", X, [8, 8, 1, True], {"divisor_override": -1}),
    ("avg_pool2d", (0, 2, 4, 4), [2], {}), ("avg_pool2d", (1, 1, 1, 1), [3, 1, 1], {}),
    ("avg_pool1d", X[:3], [2], {}), ("avg_pool1d", X[:3], [3, 2, 1, True, False], {}),
    ("max_pool1d", X[:3], [2], {}), ("max_pool1d", X[:3], [3, 2, 1], {"ceil_mode": True}),
    ("max_pool2d", X, [2, 2], {"ceil_mode": True}), ("max_pool2d", X, [2, 4], {"ceil_mode": True}),
    ("max_pool2d", X, [(8, 3), 3], {"ceil_mode": True}),
    ("adaptive_avg_pool2d", X, [1], {}), ("adaptive_avg_pool2d", X, [(2, 4)], {}),
    ("adaptive_avg_pool2d", X, [(None, 3)], {}), ("adaptive_avg_pool2d", X, [(10, 6)], {}),
    ("adaptive_avg_pool2d", (0, 3, 4, 4), [2], {}),
]
REFUSED = [
    ("avg_pool2d", X, [8], {}), ("avg_pool2d", X, [2, 0], {}), ("avg_pool2d", X, [2, 2, 2], {}),
    ("avg_pool2d", X, [2], {"divisor_override": 0}), ("avg_pool2d", (7, 6), [2], {}),
    ("avg_pool2d", X, [9, 2, 0, True], {}), ("avg_pool1d", X, [2], {}),
    ("max_pool1d", X, [2], {}), ("max_pool2d", X, [9, 2], {"ceil_mode": True}),
    ("adaptive_avg_pool2d", X, [(1, 2, 3)], {}), ("adaptive_avg_pool2d", X, [-1], {}),
    ("adaptive_avg_pool2d", (2, 3, 0, 2), [2], {}),
]


@pytest.mark.peer
@pytest.mark.parametrize("name, shape, arguments, options", SAME)
def test_values_and_gradients_are_pytorchs(name, shape, arguments, options):
    torch = single_threaded_torch()
    for array in memory_orders(normal(*shape)):
        both(torch, name, [array, *arguments], options)


@pytest.mark.peer
@pytest.mark.parametrize("name, shape, arguments, options", REFUSED)
def test_what_pytorch_refuses_is_refused(name, shape, arguments, options):
    torch = single_threaded_torch()
    x = normal(*shape)
    with pytest.raises(REFUSALS):
        getattr(torch.nn.functional, name)(torch.tensor(x), *arguments, **options)
    with pytest.raises((ValueError, TypeError)):
        getattr(F, name)(Tensor(x), *arguments, **options)
