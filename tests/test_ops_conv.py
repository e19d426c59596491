"""Convolutions with groups and dilation, of lines, transposed; nearest interpolation.

Oracles: differences in float64, the definition, adjointness, PyTorch. The plain convolution has
its tests in test_ops_nn.py.
"""

from itertools import product

import numpy as np
import pytest
from gradcheck import gradcheck
from peer import REFUSALS, both, memory_orders, single_threaded_torch

import minipar as mp
from minipar.nn import functional as F
from minipar.tensor import Tensor, backward

rng = np.random.default_rng(17)


def normal(*shape):
    return np.asarray(rng.standard_normal(shape))


def direct(x, w, b, stride, padding, dilation, groups):
    """The definition of conv2d, for pairs of numbers."""
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    outputs, c, kh, kw = w.shape
    ho = (x.shape[2] - (kh - 1) * dh - 1) // sh + 1
    wo = (x.shape[3] - (kw - 1) * dw - 1) // sw + 1
    out = np.empty((len(x), outputs, ho, wo))
    for o, i, j in product(range(outputs), range(ho), range(wo)):
        first = o // (outputs // groups) * c
        window = x[:, first:first + c, i * sh:i * sh + (kh - 1) * dh + 1:dh,
                   j * sw:j * sw + (kw - 1) * dw + 1:dw]
        out[:, o, i, j] = (window * w[o]).sum((1, 2, 3)) + b[o]
    return out


CONVOLUTIONS = [  # input, weight, stride, padding, dilation, groups
    ((2, 4, 7, 6), (6, 4, 3, 3), (1, 1), (2, 2), (2, 2), 1),
    ((2, 2, 9, 8), (3, 2, 3, 2), (2, 3), (1, 0), (3, 2), 1),
    ((1, 2, 9, 4), (1, 2, 4, 1), (4, 1), (3, 0), (2, 1), 1),  # stride and dilation share a factor
    ((1, 1, 9, 9), (2, 1, 2, 3), (3, 2), (0, 4), (6, 4), 1),
    ((2, 1, 2, 2), (1, 1, 2, 2), (1, 1), (3, 3), (5, 5), 1),  # rows that no tap reaches
    ((2, 4, 5, 6), (6, 2, 3, 3), (1, 1), (1, 1), (1, 1), 2),
    ((2, 6, 5, 4), (3, 2, 2, 2), (2, 1), (0, 1), (1, 1), 3),
    ((3, 4, 5, 5), (4, 1, 3, 3), (1, 1), (1, 1), (1, 1), 4),  # depthwise
    ((2, 3, 6, 5), (6, 1, 3, 2), (2, 2), (1, 1), (2, 1), 3),  # with two outputs a channel
    ((2, 4, 3, 3), (4, 2, 1, 1), (1, 1), (0, 0), (1, 1), 2),
    ((2, 4, 5, 5), (4, 2, 1, 1), (3, 3), (0, 0), (1, 1), 2),  # the stride is over the kernel
    ((0, 4, 5, 6), (6, 2, 3, 3), (1, 1), (1, 1), (2, 1), 2),
    ((1, 1, 1, 1), (2, 1, 1, 1), (1, 1), (0, 0), (3, 3), 1),
]


@pytest.mark.parametrize("x, w, stride, padding, dilation, groups", CONVOLUTIONS)
def test_conv2d_with_groups_and_dilation_is_its_definition_and_has_its_gradients(
        x, w, stride, padding, dilation, groups):
    options = stride, padding, dilation, groups
    weight, bias = normal(*w), normal(w[0])
    for array in memory_orders(normal(*x)):
        out = F.conv2d(Tensor(array), Tensor(weight), Tensor(bias), *options)
        np.testing.assert_allclose(out.array, direct(array, weight, bias, *options),
                                   rtol=1e-12, atol=1e-12)
        gradcheck(lambda x, w, b: F.conv2d(x, w, b, *options), array, weight, bias)


@pytest.mark.parametrize("kernel, dilation", [(3, 1), (3, 2), (2, 3), (4, 1), (1, 5)])
def test_same_padding_keeps_the_size_and_adds_an_odd_element_at_the_end(kernel, dilation):
    x, w = normal(2, 2, 7), normal(3, 2, kernel)
    total = dilation * (kernel - 1)
    padded = np.pad(x, ((0, 0), (0, 0), (total // 2, total - total // 2)))
    out = F.conv1d(Tensor(x), Tensor(w), padding="same", dilation=dilation)
    assert out.shape == (2, 3, 7)
    expected = F.conv1d(Tensor(padded), Tensor(w), padding="valid", dilation=dilation)
    np.testing.assert_allclose(out.array, expected.array, rtol=1e-12, atol=1e-12)
    gradcheck(lambda x, w: F.conv1d(x, w, padding="same", dilation=dilation), x, w)
    image = F.conv2d(Tensor(x[:, :, :, None]), Tensor(w[:, :, :, None]), padding="same",
                     dilation=(dilation, 1))
    np.testing.assert_allclose(image.array[..., 0], expected.array, rtol=1e-12, atol=1e-12)


def test_conv1d_is_a_sum_of_shifted_lines():
    x, w, b = normal(2, 4, 9), normal(6, 2, 3), normal(6)
    out = F.conv1d(Tensor(x), Tensor(w), Tensor(b), stride=2, padding=1, dilation=2, groups=2)
    expected = direct(x[:, :, None], w[:, :, None], b, (1, 2), (0, 1), (1, 2), 2)[:, :, 0]
    np.testing.assert_allclose(out.array, expected, rtol=1e-12, atol=1e-12)
    gradcheck(lambda x, w, b: F.conv1d(x, w, b, [2], [1], [2], 2), x[:, :, ::-1], w, b)


def test_conv1d_postpones_its_weight_gradient():
    x, w = Tensor(normal(2, 3, 5), True), Tensor(normal(4, 3, 2), True)
    out, postponed = F.conv1d(x, w), []
    backward([out], [np.ones(out.shape)], postponed=postponed)
    assert w.grad is None and x.grad is not None and len(postponed) == 1
    postponed[0]()
    assert w.grad.shape == w.shape


TRANSPOSED = [  # input, weight, stride, padding, output_padding, groups, dilation
    ((2, 3, 4, 5), (3, 2, 2, 2), 2, 0, 0, 1, 1),
    ((2, 4, 3, 4), (4, 3, 3, 3), (2, 1), (1, 0), (1, 0), 2, 1),
    ((2, 2, 3, 2), (2, 1, 3, 2), (1, 3), 1, (1, 2), 2, (2, 1)),
    ((1, 2, 4, 4), (2, 2, 1, 1), 3, 0, 2, 1, 1),
    ((0, 2, 3, 3), (2, 2, 3, 3), 2, 1, 1, 1, 1),
    ((1, 1, 1, 1), (1, 1, 1, 1), 1, 0, 0, 1, 1),
    ((2, 1, 3, 3), (1, 1, 1, 1), 1, 1, 2, 1, 3),  # more padding at the end than the stride
]


@pytest.mark.parametrize("x, w, stride, padding, more, groups, dilation", TRANSPOSED)
def test_conv_transpose2d_is_the_adjoint_of_conv2d_and_has_its_gradients(
        x, w, stride, padding, more, groups, dilation):
    a, weight, bias = normal(*x), normal(*w), normal(w[1] * groups)
    out = F.conv_transpose2d(Tensor(a), Tensor(weight), None, stride, padding, more, groups,
                             dilation)
    assert out.shape[1] == w[1] * groups
    image = normal(*out.shape)
    there = F.conv2d(Tensor(image), Tensor(weight), None, stride, padding, dilation, groups)
    there = there.array[:, :, :x[2], :x[3]]
    assert (there * a).sum() == pytest.approx((image * out.array).sum(), rel=1e-9, abs=1e-12)
    for array in memory_orders(a):
        gradcheck(lambda x, w, b: F.conv_transpose2d(x, w, b, stride, padding, more, groups,
                                                     dilation), array, weight, bias)


@pytest.mark.parametrize("call, arithmetic", [
    (lambda x, w: F.conv2d(x, w, groups=2), "4 channels != 4 x 2 groups"),
    (lambda x, w: F.conv2d(x, w[:, :2], groups=2), "3 outputs do not divide into 2 groups"),
    (lambda x, w: F.conv2d(x, w, groups=0), "groups is an int >= 1"),
    (lambda x, w: F.conv2d(x, w, dilation=0), "dilation is an int >= 1"),
    (lambda x, w: F.conv2d(x, w, dilation=4), r"9 > 5 \+ 0 \+ 0"),
    (lambda x, w: F.conv1d(x, w), r"\(N, C, L\)"),
    (lambda x, w: F.conv1d(x[:, :, 0], w[:, :, 0], stride=(1, 1)), "stride is an int >= 1"),
    (lambda x, w: F.conv1d(x[:, :, 0], w[:, :, 0], padding=-1), "padding is an int >= 0"),
    (lambda x, w: F.conv1d(x[:, :, 0], w[:, :, 0], padding="full"), "'full'"),
    (lambda x, w: F.conv_transpose2d(x, w), "4 channels != 3"),
    (lambda x, w: F.conv_transpose2d(x, w.transpose(0, 1), output_padding=1), "not smaller"),
    (lambda x, w: F.conv_transpose2d(x, w.transpose(0, 1), padding=4), "leaves -1 x -1"),
    (lambda x, w: F.conv_transpose2d(x, w.transpose(0, 1), x[0, :, 0, 0]), r"bias \(4,\) for 3"),
    (lambda x, w: F.conv_transpose2d(x[0], w), r"\(N, C, H, W\)"),
    (lambda x, w: F.interpolate(x), "one of size and scale_factor"),
    (lambda x, w: F.interpolate(x, 2, 2), "one of size and scale_factor"),
    (lambda x, w: F.interpolate(x, 0), "size is an int >= 1"),
    (lambda x, w: F.interpolate(x, scale_factor=0.1), "to 0 x 0 is empty"),
    (lambda x, w: F.interpolate(x, scale_factor=-1), "positive"),
    (lambda x, w: F.interpolate(x, 2, mode="cubic"), "'cubic'"),
    (lambda x, w: F.interpolate(x[0], 2), r"\(N, C, H, W\)"),
])
def test_what_does_not_fit_is_refused_with_the_arithmetic(call, arithmetic):
    with pytest.raises(ValueError, match=arithmetic):
        call(Tensor(normal(2, 4, 5, 5)), Tensor(normal(3, 4, 3, 3)))


def test_mixed_types_are_refused():
    x, w = Tensor(normal(1, 2, 3, 3)), Tensor(normal(2, 2, 1, 1).astype(np.float32))
    whole = Tensor(np.ones((1, 2, 3, 3), np.int64))
    for call in (lambda: F.conv_transpose2d(x, w), lambda: F.conv1d(x[:, :, 0], w[:, :, 0]),
                 lambda: F.interpolate(whole, 2)):
        with pytest.raises(TypeError, match="floating type"):
            call()


# -------------------------------------------------------------------------------- interpolation

@pytest.mark.parametrize("options", [
    {"size": 7}, {"size": (1, 11)}, {"size": [2, 3]}, {"scale_factor": 2}, {"scale_factor": (3, 1)},
    {"scale_factor": 1.7}, {"scale_factor": (0.5, 0.7)},
])
def test_interpolation_has_the_gradients_that_differences_show(options):
    for array in memory_orders(normal(2, 3, 4, 5)):
        gradcheck(lambda x: F.interpolate(x, **options), array)
    gradcheck(lambda x: F.interpolate(x, **options), normal(0, 1, 3, 3))


def test_doubling_repeats_each_element_and_adds_their_gradients():
    x = Tensor(np.arange(6.0).reshape(1, 1, 2, 3), requires_grad=True)
    out = F.interpolate(x, scale_factor=2)
    assert out.tolist() == [[[[0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 4, 4, 5, 5]] * 2]]
    out.sum().backward()
    assert (x.grad.array == 4).all()


# ------------------------------------------------------------------------------- beside PyTorch

X = (2, 4, 7, 6)
SAME = [
    ("conv2d", [X, (6, 4, 3, 3), (6,)], {"dilation": 2, "padding": 2}),
    ("conv2d", [X, (6, 4, 3, 2), (6,)], {"dilation": (2, 3), "stride": (3, 2), "padding": (1, 2)}),
    ("conv2d", [X, (6, 2, 3, 3), (6,)], {"groups": 2, "padding": "valid"}),
    ("conv2d", [X, (4, 1, 3, 3)], {"groups": 4, "padding": 1}),
    ("conv2d", [X, (8, 1, 3, 3), (8,)], {"groups": 4, "stride": 2, "dilation": 2}),
    ("conv2d", [X, (4, 2, 2, 3)], {"groups": 2, "padding": "same", "dilation": (1, 2)}),
    ("conv2d", [X, (4, 4, 4, 4)], {"padding": "same", "dilation": 3}),
    ("conv2d", [(0, 4, 7, 6), (4, 2, 2, 3), (4,)], {"groups": 2}),
    # enough samples and channels for a kernel
    ("conv2d", [(16, 9, 7, 6), (10, 9, 3, 3), (10,)], {"padding": 1, "stride": (2, 1)}),
    ("conv2d", [(24, 16, 7, 6), (18, 8, 2, 4)], {"padding": "same", "groups": 2}),
    ("conv1d", [(16, 8, 9), (9, 8, 3), (9,)], {"padding": 2, "dilation": 2}),
    ("conv_transpose2d", [(16, 9, 4, 3), (9, 8, 3, 3), (8,)],
     {"stride": 2, "padding": 1, "output_padding": 1}),
    ("conv1d", [(2, 4, 9), (6, 4, 3), (6,)], {}),
    ("conv1d", [(2, 4, 9), (6, 2, 4)], {"stride": 2, "padding": 3, "dilation": 2, "groups": 2}),
    ("conv1d", [(2, 4, 9), (6, 4, 4), (6,)], {"padding": "same"}),
    ("conv1d", [(2, 4, 9), (4, 1, 3), (4,)], {"padding": [1], "stride": [3], "groups": 4}),
    ("conv_transpose2d", [X, (4, 3, 2, 2), (3,)], {"stride": 2}),
    ("conv_transpose2d", [X, (4, 3, 3, 3), (3,)], {"stride": 2, "padding": 1, "output_padding": 1}),
    ("conv_transpose2d", [X, (4, 3, 3, 2)], {"stride": (1, 3), "groups": 2, "dilation": (2, 1)}),
    ("interpolate", [X], {"size": (3, 13)}), ("interpolate", [X], {"scale_factor": 2}),
    ("interpolate", [X], {"scale_factor": (1.3, 0.6)}),
    ("interpolate", [X], {"size": 6, "mode": "nearest"}),
]
REFUSED = [
    ("conv2d", [X, (6, 4, 3, 3)], {"groups": 2}), ("conv2d", [X, (3, 2, 3, 3)], {"groups": 2}),
    ("conv2d", [X, (4, 4, 3, 3)], {"dilation": 0}), ("conv2d", [X, (4, 4, 3, 3)], {"groups": 0}),
    ("conv2d", [X, (4, 4, 3, 3)], {"dilation": 4}), ("conv1d", [X, (4, 4, 3, 3)], {}),
    ("conv1d", [(2, 4, 3), (4, 4, 5)], {"padding": 0}),
    ("conv1d", [(2, 4, 3), (4, 4, 3)], {"padding": "same", "stride": 2}),
    ("conv_transpose2d", [X, (3, 4, 2, 2)], {}),
    ("conv_transpose2d", [X, (4, 3, 2, 2), (4,)], {}),
    ("conv_transpose2d", [X, (4, 3, 2, 2)], {"output_padding": 1}),
    ("conv_transpose2d", [X, (4, 3, 2, 2)], {"padding": 4}),
    ("interpolate", [X], {}), ("interpolate", [X], {"size": 0}),
    ("interpolate", [X], {"size": 2, "scale_factor": 2}),
]


def named(cases):
    return [pytest.param(*case, id=f"{case[0]}-{i}") for i, case in enumerate(cases)]


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore:Using padding='same' with even:UserWarning")
@pytest.mark.parametrize("name, shapes, options", named(SAME))
def test_values_and_gradients_are_pytorchs(name, shapes, options):
    torch = single_threaded_torch()
    first, *others = (normal(*s) for s in shapes)
    for array in memory_orders(first):
        both(torch, name, [array, *others], options)
    both(torch, name, [a.astype(np.float32) for a in (first, *others)], options)


@pytest.mark.peer
@pytest.mark.parametrize("name, shapes, options", named(REFUSED))
def test_what_pytorch_refuses_is_refused(name, shapes, options):
    torch = single_threaded_torch()
    arrays = [normal(*s) for s in shapes]
    with pytest.raises(REFUSALS):
        getattr(torch.nn.functional, name)(*map(torch.tensor, arrays), **options)
    with pytest.raises((ValueError, TypeError)):
        getattr(F, name)(*map(Tensor, arrays), **options)


@pytest.mark.peer
def test_interpolation_takes_the_elements_that_pytorch_takes_for_every_size():
    torch = single_threaded_torch()
    for size in range(1, 40):
        x = np.arange(float(size))[None, None, None]
        for out in range(1, 40):
            ours = F.interpolate(Tensor(x), (1, out)).array
            theirs = torch.nn.functional.interpolate(torch.tensor(x), (1, out)).numpy()
            assert (ours == theirs).all(), (size, out)
        for scale in (0.3, 0.9, 1.1, 3, 2.4):
            if int(size * scale):
                ours = F.interpolate(Tensor(x), scale_factor=(1, scale)).array
                theirs = torch.nn.functional.interpolate(torch.tensor(x), scale_factor=(1, scale))
                assert (ours == theirs.numpy()).all(), (size, scale)


def test_a_convolution_of_float16_stays_float16():
    x, w = (Tensor(normal(*s).astype(np.float16)) for s in ((1, 2, 3, 3), (2, 1, 2, 2)))
    assert F.conv2d(x, w, groups=2).dtype is mp.float16
