"""Batch, group and RMS normalisation: values, gradients, running statistics, refusals.

Oracles: differences in float64, the formulas in float64, PyTorch. Layer norm has its tests in
test_ops_nn.py.
"""

import numpy as np
import pytest
from gradcheck import gradcheck
from peer import REFUSALS, both, memory_orders, single_threaded_torch

import minipar as mp
from minipar.nn import functional as F
from minipar.ops.batch_norm import memory_order
from minipar.tensor import Tensor, backward

rng = np.random.default_rng(23)
SHAPES = [(2, 3, 4, 5), (5, 3), (3, 2, 4), (1, 2, 3, 1), (2, 1, 3, 3), (2, 4, 1, 1), (1, 1, 2),
          (2, 3, 1, 2, 2)]


def normal(*shape):
    return np.asarray(rng.standard_normal(shape))


def channels(a, ndim):
    """(C,) in the place of dim 1 of `ndim`."""
    return a.reshape(1, -1, *(1,) * (ndim - 2))


# ---------------------------------------------------------------------------------------- batch

@pytest.mark.parametrize("shape", [*SHAPES, (0, 2, 3), (0, 3)])
def test_batch_norm_has_the_gradients_that_differences_show(shape):
    c = shape[1]
    w, b, mean, var = normal(c), normal(c), normal(c), rng.random(c) + 0.5
    for x in memory_orders(normal(*shape)):
        gradcheck(lambda x, w, b: F.batch_norm(x, None, None, w, b, True), x, w, b, tolerance=1e-6)
        gradcheck(lambda x, w: F.batch_norm(x, None, None, w, training=True, eps=0.1), x, w)
        gradcheck(lambda x, b: F.batch_norm(x, Tensor(mean), Tensor(var), None, b), x, b)
        gradcheck(lambda x, w, b: F.batch_norm(x, Tensor(mean), Tensor(var), w, b), x, w, b)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_gives_each_of_its_operands_its_gradient_alone(training):
    x, w, b, mean = normal(3, 2, 4), normal(2), normal(2), Tensor(normal(2))
    var = Tensor(rng.random(2) + 0.5)

    def norm(x, w, b):
        return F.batch_norm(x, Tensor(mean.array.copy()), Tensor(var.array.copy()), w, b, training)
    for i in range(3):
        tensors = [Tensor(a) for a in (x, w, b)]

        def alone(t):
            return norm(*(t if j == i else other for j, other in enumerate(tensors)))
        gradcheck(alone, (x, w, b)[i], tolerance=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_follows_mean_and_unbiased_variance(shape):
    c, axes = shape[1], (0, *range(2, len(shape)))
    n = np.prod(shape) // c
    for x in memory_orders(normal(*shape) * 2 + 5):
        start = normal(c), rng.random(c)
        mean, var = (Tensor(a.copy()) for a in start)
        memory = mean.array
        out = F.batch_norm(Tensor(x), mean, var, training=True, momentum=0.3)
        np.testing.assert_allclose(mean.array, 0.7 * start[0] + 0.3 * x.mean(axes), rtol=1e-12)
        np.testing.assert_allclose(var.array, 0.7 * start[1] + 0.3 * x.var(axes) * n / (n - 1),
                                   rtol=1e-12)
        assert mean.array is memory and mean.storage.version == 1 and not mean.requires_grad
        expected = x - channels(x.mean(axes), x.ndim)
        expected /= np.sqrt(channels(x.var(axes), x.ndim) + 1e-5)
        np.testing.assert_allclose(out.array, expected, rtol=1e-9, atol=1e-9)


def test_batch_norm_in_eval_mode_uses_the_running_statistics_and_leaves_them():
    x, mean, var = normal(2, 3, 4), normal(3), rng.random(3) + 0.5
    tensors = [Tensor(mean.copy()), Tensor(var.copy())]
    out = F.batch_norm(Tensor(x), *tensors)
    expected = (x - channels(mean, 3)) / np.sqrt(channels(var, 3) + 1e-5)
    np.testing.assert_allclose(out.array, expected, rtol=1e-12)
    assert (tensors[0].array == mean).all() and (tensors[1].array == var).all()
    single = F.batch_norm(Tensor(x[:1, :, :1]), *tensors)  # one value per channel: no refusal
    np.testing.assert_allclose(single.array, expected[:1, :, :1], rtol=1e-12)


def test_running_statistics_may_change_between_an_eval_forward_and_its_backward():
    x = Tensor(normal(4, 2), requires_grad=True)
    mean, var = Tensor(normal(2)), Tensor(np.full(2, 3.0))
    out = F.batch_norm(x, mean, var)
    F.batch_norm(Tensor(normal(4, 2)), mean, var, training=True)
    backward([out], [np.ones((4, 2))])
    np.testing.assert_allclose(x.grad.array, 1 / np.sqrt(3 + 1e-5))


def test_an_empty_batch_leaves_the_running_statistics():
    mean, var = Tensor(normal(2)), Tensor(np.ones(2))
    before = mean.array.copy()
    assert F.batch_norm(Tensor(normal(0, 2, 3)), mean, var, training=True).shape == (0, 2, 3)
    assert (mean.array == before).all() and (var.array == 1).all()


def test_batch_norm_of_many_blocks_is_right_far_from_zero():
    x = normal(40, 3, 70, 70) + 1000
    expected = x - x.mean((0, 2, 3), keepdims=True)
    expected /= x.std((0, 2, 3), keepdims=True)
    for array in memory_orders(x):
        double = F.batch_norm(Tensor(array), None, None, training=True, eps=0.0)
        np.testing.assert_allclose(double.array, expected, atol=1e-9)
        single = F.batch_norm(Tensor(array.astype(np.float32)), None, None, training=True)
        np.testing.assert_allclose(single.array, expected, atol=1e-3)


def test_norms_of_float16_stay_float16_and_do_not_overflow():
    x = Tensor((normal(8, 4, 5, 5) * 3000).astype(np.float16), requires_grad=True)
    w = Tensor(np.ones(4, np.float16), requires_grad=True)
    running = Tensor(np.zeros(4, np.float16)), Tensor(np.ones(4, np.float16))
    for out in (F.batch_norm(x, None, None, w, training=True), F.batch_norm(x, *running, w),
                F.group_norm(x, 2, w), F.rms_norm(x.transpose(1, 3), 4, w)):
        assert out.dtype is mp.float16 and np.isfinite(out.array).all()
        x.grad = w.grad = None
        out.sum().backward()
        assert x.grad.dtype is w.grad.dtype is mp.float16


def test_normalisation_keeps_the_layout_of_convolutions():
    x = Tensor(normal(6, 4, 7, 5).transpose(3, 1, 0, 2), requires_grad=True)
    for out in (F.batch_norm(x, None, None, training=True), F.group_norm(x, 2)):
        assert memory_order(out.array) == memory_order(x.array) == [2, 1, 3, 0]


# ---------------------------------------------------------------------------------------- group

@pytest.mark.parametrize("shape, groups", [
    ((2, 4, 3, 5), 2), ((2, 4, 3, 5), 1), ((2, 4, 3, 5), 4), ((3, 6), 2), ((3, 6), 6),
    ((2, 3, 4), 3), ((1, 2, 3, 1), 2), ((2, 1, 3, 3), 1), ((0, 4, 3), 2), ((2, 4, 0, 3), 2),
    ((1, 4, 2, 1, 3), 2),
])
def test_group_norm_is_its_formula_and_has_its_gradients(shape, groups):
    c = shape[1]
    w, b = normal(c), normal(c)
    for x in memory_orders(normal(*shape) * 2 + 5):
        out = F.group_norm(Tensor(x), groups, Tensor(w), Tensor(b))
        if x.size:
            rows = x.reshape(len(x), groups, -1)
            rows = (rows - rows.mean(2, keepdims=True)) / np.sqrt(rows.var(2, keepdims=True) + 1e-5)
            expected = rows.reshape(shape) * channels(w, x.ndim) + channels(b, x.ndim)
            np.testing.assert_allclose(out.array, expected, rtol=1e-9, atol=1e-9)
        assert out.shape == shape
        gradcheck(lambda x, w, b: F.group_norm(x, groups, w, b), x, w, b, tolerance=1e-6)
        gradcheck(lambda x, b: F.group_norm(x, groups, None, b, 0.1), x, b)
    gradcheck(lambda w, b: F.group_norm(Tensor(x), groups, w, b), w, b)


def test_group_norm_of_many_blocks_is_right_far_from_zero():
    x = normal(6, 8, 60, 50) + 1000
    rows = x.reshape(6, 4, -1)
    expected = ((rows - rows.mean(2, keepdims=True)) / rows.std(2, keepdims=True)).reshape(x.shape)
    for array in memory_orders(x):
        double = F.group_norm(Tensor(array), 4, eps=0.0).array
        np.testing.assert_allclose(double, expected, atol=1e-9)
        single = F.group_norm(Tensor(array.astype(np.float32)), 4).array
        np.testing.assert_allclose(single, expected, atol=1e-3)


# ------------------------------------------------------------------------------------------ rms

@pytest.mark.parametrize("shape, dims", [
    ((3, 4), (4,)), ((2, 3, 4), (3, 4)), ((5,), (5,)), ((0, 4), (4,)), ((3, 1), (1,)),
    ((300, 400), (400,)),  # more than one block
])
def test_rms_norm_is_its_formula_and_has_its_gradients(shape, dims):
    x, w = normal(*shape), normal(*dims)
    square = (x * x).mean(tuple(range(-len(dims), 0)), keepdims=True)
    for eps in (None, 0.1):
        out = F.rms_norm(Tensor(x), dims, Tensor(w), eps)
        expected = w * x / np.sqrt(square + (np.finfo(float).eps if eps is None else eps))
        np.testing.assert_allclose(out.array, expected, rtol=1e-12)
    gradcheck(lambda x, w: F.rms_norm(x, dims, w), x, w, tolerance=1e-6)
    gradcheck(lambda x: F.rms_norm(x, dims, eps=0.1), x[::-1])
    gradcheck(lambda w: F.rms_norm(Tensor(x), dims, w), w)


# ------------------------------------------------------------------------------------- refusals

def t(*shape):
    return Tensor(normal(*shape))


@pytest.mark.parametrize("call, message", [
    (lambda x: F.batch_norm(x[:1, :, 0, 0], None, None, training=True), "more than 1 value"),
    (lambda x: F.batch_norm(x, None, None), "both given"),
    (lambda x: F.batch_norm(x, t(4), None, training=True), "both given"),
    (lambda x: F.batch_norm(x, t(3), t(4)), r"running_mean \(3,\) for 4 channels"),
    (lambda x: F.batch_norm(x, t(4), t(4), t(1)), r"weight \(1,\) for 4 channels"),
    (lambda x: F.batch_norm(x, t(4), t(4), None, t(4, 1)), "bias"),
    (lambda x: F.batch_norm(x[0, 0, 0], t(5), t(5)), r"\(N, C, ...\)"),
    (lambda x: F.group_norm(x, 3), "4 channels do not divide into 3 groups"),
    (lambda x: F.group_norm(x, 0), "0 groups"), (lambda x: F.group_norm(x[0, 0, 0], 1), "N, C"),
    (lambda x: F.group_norm(x, 2, t(2)), r"weight \(2,\) for 4 channels"),
    (lambda x: F.group_norm(x[:1, :, 0, 0], 4), "1 value"),
    (lambda x: F.rms_norm(x, 4), "does not end"), (lambda x: F.rms_norm(x, ()), "does not end"),
    (lambda x: F.rms_norm(x, 5, t(4)), "weight"),
])
def test_shapes_that_do_not_match_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(t(2, 4, 3, 5))


def test_mixed_and_integer_types_are_refused():
    x, whole = t(2, 4), Tensor(np.ones((2, 4), np.int64))
    single = Tensor(np.ones(4, np.float32))
    for call in (lambda: F.batch_norm(x, single, single), lambda: F.group_norm(x, 2, single),
                 lambda: F.batch_norm(x, None, None, single, training=True),
                 lambda: F.rms_norm(x, 4, single), lambda: F.rms_norm(whole, 4),
                 lambda: F.batch_norm(whole, None, None, training=True),
                 lambda: F.group_norm(whole, 2)):
        with pytest.raises(TypeError, match="floating type"):
            call()


# ------------------------------------------------------------------------------- beside PyTorch

@pytest.mark.peer
@pytest.mark.parametrize("shape", [*SHAPES, (0, 2, 3)])
def test_norms_have_pytorchs_values_gradients_and_running_statistics(shape):
    torch = single_threaded_torch()
    c = shape[1]
    w, b = normal(c), normal(c)
    for x in memory_orders(normal(*shape) * 3 + 10):
        running = {"running_mean": normal(c), "running_var": rng.random(c) + 0.5}
        both(torch, "batch_norm", [x, None, None, w, b, True], {"eps": 1e-2})
        for training in (True, False):
            options = {"training": training, "momentum": 0.3}
            both(torch, "batch_norm", [x], options, running)
            for dtype in (np.float64, np.float32):
                both(torch, "batch_norm", [x.astype(dtype)],
                     {"weight": w.astype(dtype), "bias": b.astype(dtype), **options},
                     {k: a.astype(dtype) for k, a in running.items()})
        for groups in {1, c, 2 if c % 2 == 0 else 1}:
            if shape[0] * c // groups * int(np.prod(shape[2:])) != 1:
                both(torch, "group_norm", [x, groups, w, b], {"eps": 1e-3})


@pytest.mark.peer
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_rms_norm_has_pytorchs_value_and_its_default_eps(dtype):
    torch = single_threaded_torch()
    tiny = np.array([[1e-4, -2e-4, 3e-4]])  # where eps decides
    for x in (tiny, normal(4, 3)):
        both(torch, "rms_norm", [x.astype(dtype), [3], normal(3).astype(dtype)], {})
        both(torch, "rms_norm", [x.astype(dtype), [3]], {"eps": 1e-3})


REFUSED = [
    ("batch_norm", (1, 3), [None, None], {"training": True}),
    ("batch_norm", (2, 3), [None, None], {}), ("batch_norm", (2, 3), [(2,), (2,)], {}),
    ("batch_norm", (3,), [(3,), (3,)], {}), ("batch_norm", (2, 3), [(3,), (3,), (2,)], {}),
    ("group_norm", (2, 4), [3], {}), ("group_norm", (1, 4), [4], {}),
    ("group_norm", (4,), [2], {}), ("group_norm", (2, 4), [0], {}),
    ("group_norm", (2, 4), [2, (2,)], {}),
    ("rms_norm", (2, 3), [[2]], {}), ("rms_norm", (2, 3), [[]], {}),
    ("rms_norm", (2, 3), [[3], (2,)], {}),
]


@pytest.mark.peer
@pytest.mark.parametrize("name, shape, arguments, options", REFUSED)
def test_what_pytorch_refuses_is_refused(name, shape, arguments, options):
    torch = single_threaded_torch()
    arrays = [normal(*a) if isinstance(a, tuple) else a for a in (shape, *arguments)]
    for library, make, errors in ((torch.nn.functional, torch.tensor, REFUSALS),
                                  (F, Tensor, (ValueError, TypeError))):
        with pytest.raises(errors):
            getattr(library, name)(*(make(a) if isinstance(a, np.ndarray) else a for a in arrays),
                                   **options)
