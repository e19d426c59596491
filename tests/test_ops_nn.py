"""Convolution, pooling, layer normalisation, embedding, attention: values, gradients, refusals.

Oracles: differences in float64 (`gradcheck`) and the definition written as loops. Beside PyTorch
they stand in test_ops_nn_peer.py; dropout has its own file. Warnings are errors.
"""

from itertools import product

import numpy as np
import pytest
from gradcheck import gradcheck

import minipar as mp
from minipar.nn import functional as F
from minipar.tensor import Tensor, backward

pytestmark = pytest.mark.filterwarnings("error")
rng = np.random.default_rng(11)


def normal(*shape):
    return np.asarray(rng.standard_normal(shape))


def layouts(*shape):
    """An array of `shape` in C order, in the order that conv2d computes in, and with gaps."""
    yield normal(*shape)
    yield normal(*(shape[i] for i in (2, 1, 3, 0))).transpose(3, 1, 0, 2)
    yield normal(*(2 * n + 1 for n in shape))[tuple(slice(0, 2 * n, 2) for n in shape)]


# ------------------------------------------------------------------------------- convolution

CONVOLUTIONS = [  # input, weight, stride, padding
    ((2, 3, 5, 6), (4, 3, 3, 3), 1, 0),
    ((2, 3, 5, 6), (4, 3, 3, 3), 1, 1),
    ((2, 3, 7, 6), (4, 3, 3, 2), (2, 3), (1, 2)),
    ((2, 1, 5, 4), (1, 1, 1, 1), 1, 0),
    ((2, 3, 6, 7), (2, 3, 1, 1), 3, 0),  # stride over the kernel: some inputs are never read
    ((1, 2, 6, 7), (3, 2, 2, 2), (3, 4), 0),
    ((1, 2, 2, 2), (3, 2, 1, 1), 2, 1),
    ((1, 2, 3, 3), (3, 2, 1, 2), 1, 3),  # whole rows of the output see padding alone
    ((3, 2, 1, 1), (2, 2, 3, 3), 1, 1),
    ((1, 2, 4, 5), (2, 2, 4, 5), 1, 0),
    ((0, 2, 4, 5), (3, 2, 3, 3), 1, 1),
    ((1, 1, 3, 9), (1, 1, 3, 1), (2, 1), (2, 0)),
    ((2, 2, 4, 5), (3, 2, 4, 3), 1, "same"),
    ((2, 2, 4, 5), (3, 2, 2, 3), 2, "valid"),
]


def direct(x, w, b, stride, padding):
    """The definition of conv2d, for symmetric padding."""
    (sh, sw), (ph, pw) = (v if isinstance(v, tuple) else (v, v) for v in (stride, padding))
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    kh, kw = w.shape[2:]
    out = np.empty((len(x), len(w), (x.shape[2] - kh) // sh + 1, (x.shape[3] - kw) // sw + 1))
    for i, j in product(range(out.shape[2]), range(out.shape[3])):
        window = x[:, :, i * sh:i * sh + kh, j * sw:j * sw + kw]
        out[:, :, i, j] = np.einsum("nckl,ockl->no", window, w) + b
    return out


@pytest.mark.parametrize("x, w, stride, padding", CONVOLUTIONS)
def test_conv2d_computes_its_definition_and_its_gradients_in_every_layout(x, w, stride, padding):
    for array in layouts(*x):
        weight, bias = normal(*w), normal(w[0])
        if not isinstance(padding, str):
            out = F.conv2d(Tensor(array), Tensor(weight), Tensor(bias), stride, padding)
            expected = direct(array, weight, bias, stride, padding)
            np.testing.assert_allclose(out.array, expected, rtol=1e-12, atol=1e-12)
        gradcheck(lambda x, w, b: F.conv2d(x, w, b, stride, padding), array, weight, bias)
    gradcheck(lambda x, w: F.conv2d(x, w, None, stride, padding), array, weight)


def test_conv2d_postpones_its_weight_gradient_and_adds_to_one_that_is_there():
    x, w = Tensor(normal(2, 3, 5, 5), requires_grad=True), Tensor(normal(4, 3, 3, 3), True)
    g = normal(2, 4, 3, 3)
    backward([F.conv2d(x, w)], [g])
    once, w.grad = w.grad.array.copy(), None
    postponed = []
    for _ in range(2):
        backward([F.conv2d(x, w)], [g], postponed=postponed)
    assert w.grad is None and x.grad is not None and len(postponed) == 2
    for weight_gradient in postponed:
        weight_gradient()
    np.testing.assert_allclose(w.grad.array, 2 * once)


def test_conv2d_without_an_input_gradient_gives_none_to_the_input():
    x, w = Tensor(normal(1, 1, 3, 3)), Tensor(normal(1, 1, 2, 2), requires_grad=True)
    F.conv2d(x, w).sum().backward()
    assert x.grad is None and w.grad is not None


@pytest.mark.parametrize("x, w, bias, stride, padding, arithmetic", [
    ((2, 3, 8, 8), (4, 2, 3, 3), None, 1, 0, "3 channels != 2"),
    ((2, 3, 2, 8), (4, 3, 5, 3), None, 1, 1, r"5 > 2 \+ 1 \+ 1"),
    ((2, 3, 8, 2), (4, 3, 3, 3), None, 1, 0, r"3 > 2 \+ 0 \+ 0"),
    ((2, 3, 8), (4, 3, 3, 3), None, 1, 0, r"\(N, C, H, W\)"),
    ((2, 3, 8, 8), (4, 3, 3), None, 1, 0, r"\(O, C, kh, kw\)"),
    ((2, 3, 8, 8), (4, 3, 3, 3), (3,), 1, 0, r"bias \(3,\)"),
    ((2, 3, 8, 8), (4, 3, 3, 3), None, 0, 0, "stride .* >= 1"),
    ((2, 3, 8, 8), (4, 3, 3, 3), None, 1, -1, "padding .* >= 0"),
    ((2, 3, 8, 8), (4, 3, 3, 3), None, 1, (1, 1, 1), "padding"),
    ((2, 3, 8, 8), (4, 3, 3, 3), None, 2, "same", "stride 1"),
    ((2, 3, 8, 8), (4, 3, 3, 3), None, 1, "full", "padding"),
])
def test_conv2d_refuses_sizes_that_do_not_match(x, w, bias, stride, padding, arithmetic):
    bias = None if bias is None else Tensor(normal(*bias))
    with pytest.raises(ValueError, match=arithmetic):
        F.conv2d(Tensor(normal(*x)), Tensor(normal(*w)), bias, stride, padding)


# ----------------------------------------------------------------------------------- pooling

POOLS = [  # input, kernel, stride, padding
    ((2, 3, 4, 6), 2, None, 0),
    ((2, 3, 6, 6), (3, 2), None, 0),
    ((2, 3, 5, 7), 2, None, 0),  # what no window covers has gradient 0
    ((2, 2, 6, 7), 3, 2, 1),
    ((1, 2, 7, 5), (3, 2), (1, 3), (1, 0)),
    ((1, 1, 6, 6), 3, 3, 1),
    ((2, 1, 4, 4), 1, None, 0),
    ((2, 1, 5, 5), 1, 2, 0),
    ((1, 1, 1, 1), 2, 1, 1),
    ((0, 2, 4, 4), 2, None, 0),
]


@pytest.mark.parametrize("shape, kernel, stride, padding", POOLS)
def test_max_pool2d_has_the_gradients_that_differences_show(shape, kernel, stride, padding):
    for array in layouts(*shape):
        gradcheck(lambda x: F.max_pool2d(x, kernel, stride, padding), array)


def test_max_pool2d_gives_the_gradient_of_equal_elements_to_the_first_and_no_inf_to_the_others():
    x = Tensor(np.ones((1, 1, 2, 4)), requires_grad=True)
    backward([F.max_pool2d(x, 2)], [np.array([[[[np.inf, 2.0]]]])])
    assert x.grad.tolist() == [[[[np.inf, 0, 2, 0], [0, 0, 0, 0]]]]
    lowest = Tensor(np.full((1, 1, 2, 2), -np.inf), requires_grad=True)
    backward([F.max_pool2d(lowest, 2, 1, 1)], [np.ones((1, 1, 3, 3))])  # none to the padding
    assert lowest.grad.array.sum() == 9


@pytest.mark.parametrize("arguments", [(5,), (0,), (2, 0), (2, 2, 2), (2, 2, -1), ((2, 2, 2),)])
def test_max_pool2d_refuses_windows_that_cannot_be(arguments):
    with pytest.raises(ValueError, match="max_pool2d"):
        F.max_pool2d(Tensor(normal(1, 1, 4, 4)), *arguments)


# ------------------------------------------------------------------------ layer normalisation

@pytest.mark.parametrize("shape, dims", [
    ((3, 4), (4,)), ((2, 3, 4), (3, 4)), ((5,), (5,)), ((0, 4), (4,)), ((1, 1, 6), (6,)),
    ((3, 1), (1,)), ((2, 3, 1, 4), (1, 4)),
])
def test_layer_norm_has_the_gradients_that_differences_show(shape, dims):
    x, w, b = normal(*shape), normal(*dims), normal(*dims)
    gradcheck(lambda x, w, b: F.layer_norm(x, dims, w, b), x, w, b, tolerance=1e-6)
    gradcheck(lambda x: F.layer_norm(x, dims, eps=0.1), x)
    gradcheck(lambda x, w: F.layer_norm(x, dims, w), x[::-1], w, tolerance=1e-6)
    gradcheck(lambda x, b: F.layer_norm(x, dims, None, b), x.T.copy().T, b, tolerance=1e-6)


def test_layer_norm_of_many_blocks_equals_the_formula_and_is_right_far_from_zero():
    x = normal(300, 700) + 1000
    expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(F.layer_norm(Tensor(x), 700).array, expected, atol=1e-9)
    single = F.layer_norm(Tensor(x.astype(np.float32)), 700).array
    np.testing.assert_allclose(single, expected, atol=2e-3)
    half = F.layer_norm(Tensor((x * 30).astype(np.float16)), 700)  # squares are over its range
    assert half.dtype is mp.float16 and np.isfinite(half.array).all()


@pytest.mark.parametrize("shape, dims, weight, bias", [
    ((3, 4), 3, None, None), ((4,), (3, 4), None, None), ((3, 4), (), None, None),
    ((3, 4), 4, (3,), None), ((3, 4), 4, None, (3,)),
])
def test_layer_norm_refuses_shapes_that_do_not_match(shape, dims, weight, bias):
    weight, bias = (None if s is None else Tensor(normal(*s)) for s in (weight, bias))
    with pytest.raises(ValueError, match=r"layer_norm: .*\("):
        F.layer_norm(Tensor(normal(*shape)), dims, weight, bias)


# ---------------------------------------------------------------------------------- embedding

@pytest.mark.parametrize("index", [
    np.array(2), np.array([], np.int64), np.array([0, 0, 0]), np.array([[4, 1], [1, 4]], np.int32),
    rng.integers(0, 5, (3, 7)), np.array([3, 1, 2], np.uint8),
])
def test_embedding_takes_rows_and_adds_their_gradients(index):
    table, g = normal(5, 3), normal(*index.shape, 3)
    gradcheck(lambda w: F.embedding(Tensor(index), w), table)
    w = Tensor(table, requires_grad=True)
    expected = np.zeros((5, 3))
    np.add.at(expected, index, g)
    for times in (1, 2):  # the second backward adds to the first
        out = F.embedding(Tensor(index), w)
        assert (out.array == table[index]).all()
        backward([out], [g])
        np.testing.assert_allclose(w.grad.array, times * expected, atol=1e-12)


def test_embedding_refuses_what_is_not_a_row():
    w = Tensor(normal(65, 2))
    for index in (70, 65, -1):
        with pytest.raises(IndexError, match=f"index {index} is not in a table of 65 rows"):
            F.embedding(Tensor(np.array([0, index])), w)
    with pytest.raises(TypeError, match="float64"):
        F.embedding(Tensor(normal(2)), w)
    with pytest.raises(ValueError, match="rows, features"):
        F.embedding(Tensor(np.array([0])), Tensor(normal(3)))


# ---------------------------------------------------------------------------------- attention

ATTENTION = [  # query, key, value
    ((2, 3, 4, 5), (2, 3, 4, 5), (2, 3, 4, 5)),
    ((2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 2)),
    ((3, 1), (3, 1), (3, 1)),
    ((1, 5), (1, 5), (1, 5)),
    ((2, 1, 4, 3), (3, 2, 3), (2, 1, 2, 3)),  # leading dims broadcast
    ((0, 4, 3), (0, 4, 3), (0, 4, 3)),
    ((2, 0, 3), (2, 4, 3), (2, 4, 3)),
    ((2, 4, 3), (2, 0, 3), (2, 0, 3)),
]


def attention(**options):
    def function(q, k, v, *mask):
        with mp.batch_position():  # the same dropout masks at every call
            return F.scaled_dot_product_attention(q, k, v, *mask, **options)
    return function


@pytest.mark.parametrize("shapes", ATTENTION)
def test_attention_has_the_gradients_that_differences_show(shapes):
    q, k, v = (normal(*s) for s in shapes)
    size = q.shape[-2], k.shape[-2]
    for options in ({}, {"is_causal": True}, {"scale": 0.3}, {"dropout_p": 0.4, "name": "a"},
                    {"attn_mask": Tensor(rng.random(size) < 0.6)}):
        gradcheck(attention(**options), q, k, v)
        heads_inside = [np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2)
                        for a in (q, k, v)]
        gradcheck(attention(**options), *heads_inside)
    for shape in (size, size[1:], (1, 1), (size[0], 1)):
        gradcheck(attention(), q, k, v, normal(*shape))  # of the mask too


def test_attention_over_one_projection_comes_out_so_that_heads_join_without_a_copy():
    qkv = Tensor(normal(2, 4, 3, 3, 5), requires_grad=True)
    q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert np.shares_memory(out.transpose(1, 2).reshape(2, 4, 15).array, out.array)
    gradcheck(lambda a: attention(is_causal=True)(
        *(a[:, :, i].transpose(1, 2) for i in range(3))), qkv.array)


def test_a_query_that_sees_no_key_gets_zeros_and_gives_no_gradient():
    seen = np.array([[True, True], [False, False]])
    for mask in (seen, np.where(seen, 0, -np.inf)):
        q, k, v = (Tensor(normal(1, 2, 3), requires_grad=True) for _ in range(3))
        out = F.scaled_dot_product_attention(q, k, v, Tensor(mask))
        backward([out], [np.ones(out.shape)])
        assert not out.array[0, 1].any() and not q.grad.array[0, 1].any()
        assert out.array[0, 0].any() and np.isfinite(k.grad.array).all()


@pytest.mark.parametrize("q, k, v, options, error", [
    ((3, 4), (3, 5), (3, 4), {}, ValueError), ((3, 4), (3, 4), (2, 4), {}, ValueError),
    ((4,), (3, 4), (3, 4), {}, ValueError), ((2, 3, 4), (3, 3, 4), (2, 3, 4), {}, ValueError),
    ((3, 4), (3, 4), (3, 4), {"attn_mask": np.zeros((3, 3)), "is_causal": True}, ValueError),
    ((3, 4), (3, 4), (3, 4), {"attn_mask": np.zeros((2, 3))}, ValueError),
    ((3, 4), (3, 4), (3, 4), {"attn_mask": np.zeros((2, 3, 3))}, ValueError),
    ((3, 4), (3, 4), (3, 4), {"attn_mask": np.zeros((3, 3), np.int64)}, TypeError),
    ((3, 4), (3, 4), (3, 4), {"dropout_p": 1.5}, ValueError),
])
def test_attention_refuses_what_does_not_match(q, k, v, options, error):
    with pytest.raises(error, match="scaled_dot_product_attention: "):
        F.scaled_dot_product_attention(*(Tensor(normal(*s)) for s in (q, k, v)), **options)


def test_operations_refuse_mixed_and_integer_types():
    a, b = Tensor(normal(1, 1, 3, 3)), Tensor(normal(1, 1, 3, 3).astype(np.float32))
    whole = Tensor(np.ones((1, 1, 3, 3), np.int64))
    for function in (lambda: F.conv2d(a, b), lambda: F.conv2d(whole, whole),
                     lambda: F.scaled_dot_product_attention(a, a, b),
                     lambda: F.layer_norm(a, (3, 3), b[0, 0]), lambda: F.layer_norm(whole, 3),
                     lambda: F.max_pool2d(whole, 2)):
        with pytest.raises(TypeError, match="floating type"):
            function()


def test_gelu_in_float32_is_that_of_float64():
    x = np.concatenate([np.linspace(-15, 15, 70001), [0.0, -0.0, 1e4, -1e4]]).astype(np.float32)
    single, double = (Tensor(x.astype(t), True) for t in (np.float32, np.float64))
    outs = [F.gelu(single), F.gelu(double)]
    backward(outs, [single.array, double.array])
    np.testing.assert_allclose(*(out.array for out in outs), rtol=1e-6, atol=3e-7)
    np.testing.assert_allclose(single.grad.array, double.grad.array, rtol=1e-6, atol=4e-6)


def test_relu_stops_an_infinite_gradient_where_it_is_flat():
    x = Tensor(np.array([-1.0, 0, 2]), requires_grad=True)
    backward([F.relu(x)], [np.array([np.inf, np.nan, np.inf])])
    assert x.grad.tolist() == [0, 0, np.inf]
