"""Operations run by kernels and by the NumPy reference compute the same, of whatever inputs."""

import math

import numpy as np
import pytest

import minipar as mp
from minipar import execution
from minipar.context import set_kernels
from minipar.nn import functional as F
from minipar.ops.dropout import keep_mask
from minipar.ops.loss import cross_entropy_sum_count
from minipar.tensor import Tensor

pytestmark = [
    pytest.mark.skipif(execution.compiler() is None, reason="there is no C++ compiler"),
    pytest.mark.filterwarnings("error")]


@pytest.fixture(autouse=True)
def kernels():
    """What was chosen before the test is chosen again after it."""
    before = mp.context.current().kernels
    yield
    set_kernels(before)


def both(function):
    """What `function` returns with compiled kernels and with the reference."""
    results = []
    for kernels in ("compiled", "reference"):
        set_kernels(kernels)
        results.append(function())
    return results


def off_alignment(a):
    """A copy whose numbers start at an odd address."""
    memory = np.empty(a.nbytes + 1, np.uint8)[1:]
    memory[:] = a.reshape(-1).view(np.uint8)
    return memory.view(a.dtype).reshape(a.shape)


# How an input may lie in memory.
LAYOUTS = {
    "in order": lambda a: a, "transposed": lambda a: np.asfortranarray(a),
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2], "backwards": lambda a: a[::-1],
    "off alignment": off_alignment, "read-only": lambda a: np.broadcast_to(a, a.shape)}

ACTIVATIONS = {
    "relu": F.relu, "sigmoid": F.sigmoid, "tanh": F.tanh, "silu": F.silu, "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, "tanh"), "softmax": lambda x: F.softmax(x, -1),
    "softmax of columns": lambda x: F.softmax(x, 0), "log_softmax": lambda x: F.log_softmax(x, -1),
    "dropout": lambda x: F.dropout(x, 0.3, name="a")}

TOLERANCE = {np.float16: 2e-3, np.float32: 1e-6, np.float64: 1e-13}


def value_and_gradient(function, a, g):
    x = Tensor(a)
    x.requires_grad_()
    with mp.batch_position(3, 5):
        out = function(x)
    out.backward(Tensor(g))
    assert out.array.dtype == x.grad.array.dtype == a.dtype and out.shape == g.shape
    with mp.no_grad(), mp.batch_position(3, 5):
        np.testing.assert_array_equal(function(x).array, out.array)
    return out.array, x.grad.array


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_by_kernels_are_those_of_the_reference(name, layout):
    rng = np.random.default_rng(4)
    for shape in ((5, 33), (4, 3, 16), (0, 7), (1,)):
        for dtype, tolerance in TOLERANCE.items():
            a, g = rng.normal(0, 2, (2, *shape)).astype(dtype)
            if name == "gelu tanh":
                tolerance *= 4  # the reference's slope takes numbers near 1 from 1
            for x, dy in ((LAYOUTS[layout](a), g), (a, LAYOUTS[layout](g))):
                ours, reference = both(lambda: value_and_gradient(ACTIVATIONS[name], x, dy))
                for mine, theirs in zip(ours, reference):
                    np.testing.assert_allclose(mine, theirs, tolerance, tolerance)


@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh", "silu", "gelu", "softmax", "dropout"])
def test_0_d_tensors_take_the_same_values_and_gradients(name):
    for dtype in (np.float32, np.float64):
        a, g = np.array(0.7, dtype), np.array(-1.5, dtype)
        ours, reference = both(lambda: value_and_gradient(ACTIVATIONS[name], a, g))
        np.testing.assert_allclose(ours, reference, TOLERANCE[dtype])
        # In a chain the gradients are NumPy's scalars.
        ours, reference = both(lambda: value_and_gradient(
            lambda x: ACTIVATIONS[name](ACTIVATIONS[name](x * 2)) * 3, a, g))
        np.testing.assert_allclose(ours, reference, TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh", "silu", "gelu"])
def test_gradients_are_written_into_sinks_of_any_memory_order(name):
    a, g = np.random.default_rng(5).standard_normal((2, 6, 4)).astype(np.float32)
    _, expected = value_and_gradient(ACTIVATIONS[name], a, g)
    for buffer in (np.empty((4, 6), np.float32).T, np.empty((6, 8), np.float32)[:, ::2],
                   off_alignment(a)):
        x = Tensor(a, requires_grad=True)
        x.sink.place(buffer)
        for times in (1, 2):  # written, then added
            ACTIVATIONS[name](x).backward(Tensor(g))
            np.testing.assert_allclose(buffer, times * expected, 1e-6)


def test_relu_of_integers_stays_integer():
    for out in both(lambda: F.relu(mp.tensor([-1, 2])).array):
        assert out.tolist() == [0, 2] and out.dtype == np.int64


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("shape", [(9, 5), (1, 3), (6, 4, 3), (4,), (0, 3), (20, 70)])
def test_cross_entropy_by_kernels_is_that_of_the_reference(shape, ignore_index, reduction):
    rng = np.random.default_rng(len(shape))
    classes = shape[0] if len(shape) == 1 else shape[1]
    target_shape = shape[:1] * (len(shape) > 1) + shape[2:]
    for dtype, tolerance in TOLERANCE.items():
        a = rng.normal(0, 3, shape).astype(dtype)
        target = rng.integers(0, classes, target_shape)
        if ignore_index < 0 and target.size > 1:
            target.reshape(-1)[1] = ignore_index
        g = rng.normal(0, 1, target_shape if reduction == "none" else ()).astype(dtype)
        for gradient in (g, np.ones_like(g)):
            ours, reference = both(lambda: value_and_gradient(
                lambda x: F.cross_entropy(x, Tensor(target), ignore_index=ignore_index,
                                          reduction=reduction), a, gradient))
            for mine, theirs in zip(ours, reference):
                np.testing.assert_allclose(mine, theirs, 4 * tolerance, 4 * tolerance)


def test_cross_entropy_takes_targets_and_logits_of_any_memory_order():
    rng = np.random.default_rng(0)
    logits, target = rng.normal(0, 1, (12, 7)), rng.integers(0, 7, 12)
    expected = F.cross_entropy(Tensor(logits), Tensor(target)).item()
    for place in LAYOUTS.values():
        for t in (place(target), target.astype(np.int32), target.astype(np.uint64),
                  target.astype(">i8")):
            order = (place(np.arange(12)) if t.dtype == np.int64 else np.arange(12))
            x = Tensor(np.asfortranarray(logits[order]))
            assert math.isclose(F.cross_entropy(x, Tensor(t)).item(), expected, rel_tol=1e-12)
        x = Tensor(place(logits))
        t = Tensor(target[::-1].copy() if place is LAYOUTS["backwards"] else target)
        assert math.isclose(F.cross_entropy(x, t).item(), expected, rel_tol=1e-12)


def test_the_sum_and_count_of_cross_entropy_leave_ignored_targets_out():
    def run():
        x = Tensor(np.linspace(-2, 2, 15, dtype=np.float32).reshape(5, 3), requires_grad=True)
        total, count = cross_entropy_sum_count(x, mp.tensor([0, -100, 2, 1, -100]))
        total.backward()
        return total.item(), count, x.grad.array
    ours, reference = both(run)
    assert ours[1] == reference[1] == 3 and math.isclose(ours[0], reference[0], rel_tol=1e-6)
    np.testing.assert_allclose(ours[2], reference[2], atol=1e-6)
    assert not ours[2][[1, 4]].any()


def test_backward_of_cross_entropy_can_run_twice_and_leaves_what_it_gave_alone():
    x = Tensor(np.linspace(-2, 2, 15, dtype=np.float32).reshape(5, 3), requires_grad=True)
    loss = F.cross_entropy(x * 2, mp.tensor([0, 1, 2, 1, 0]))
    loss.backward(retain_graph=True)
    once = x.grad.array.copy()
    loss.backward()
    np.testing.assert_array_equal(x.grad.array, 2 * once)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.int8])
def test_embedding_by_the_kernel_is_that_of_the_reference(dtype):
    rng = np.random.default_rng(1)
    table = rng.standard_normal((11, 17))
    for shape in ((), (3,), (4, 6), (0, 2)):
        index = rng.integers(0, 11, shape).astype(dtype)
        for real, tolerance in TOLERANCE.items():
            g = rng.standard_normal((*shape, 17)).astype(real)
            for padding in (None, 3):
                ours, reference = both(lambda: value_and_gradient(
                    lambda w: F.embedding(Tensor(index), w, padding), table.astype(real), g))
                for mine, theirs in zip(ours, reference):
                    np.testing.assert_allclose(mine, theirs, 4 * tolerance, 4 * tolerance)


def test_an_index_that_is_not_in_the_table_is_refused_whatever_its_type():
    w = Tensor(np.zeros((200, 2), np.float32))
    for index, named in ((np.array([0, -1], np.int8), -1), (np.array([200]), 200),
                         (np.array([5, 255], np.uint8), 255), (np.array([-2**40, 300]), -2**40),
                         (np.array([2**64 - 1], np.uint64), 2**64 - 1)):
        with pytest.raises(IndexError, match=f"index {named} is not in a table of 200 rows"):
            F.embedding(Tensor(index), w)


@pytest.mark.parametrize("start", [0, 7, 10**12, 2**58, 2**61 - 3, 2**70])
def test_masks_of_dropout_are_the_same_bits_with_and_without_kernels(start):
    for shape in ((), (1,), (4, 8), (3, 5), (6, 3, 11), (5, 0), (2, 1000)):
        for p in (2.0**-40, 0.1, 0.5, 1 - 2.0**-33, 1.0):
            def masks():
                with mp.batch_position(2, start):
                    return [keep_mask(shape, p, "layer") for _ in range(2)]
            for mine, theirs in zip(*both(masks)):
                assert mine.dtype == bool and mine.shape == shape and mine.flags.c_contiguous
                np.testing.assert_array_equal(mine, theirs)


def test_dropout_gives_the_same_bits_with_and_without_kernels():
    x = np.random.default_rng(2).standard_normal((6, 5, 7)).astype(np.float32)
    x[0, 0, :3] = np.nan, np.inf, -0.0
    for shape in ((6, 35), (6, 5, 7), (210,), (2, 105)):
        ours, reference = both(lambda: value_and_gradient(
            ACTIVATIONS["dropout"], x.reshape(shape), np.ones(shape, np.float32)))
        for mine, theirs in zip(ours, reference):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape, of", [((5, 7), 7), ((2, 3, 1), 1), ((4,), 4), ((0, 3), 3),
                                       ((3, 0), 0), ((3, 4), 1)])
def test_a_row_is_added_to_every_row(shape, of, layout):
    rng = np.random.default_rng(of)
    x, row = (rng.standard_normal(s).astype(np.float32) for s in (shape, (of,)))
    (ours, gx, gb), (reference, *_) = both(lambda: _added(LAYOUTS[layout](x), row))
    assert ours.dtype == reference.dtype and (ours == reference).all()
    assert (gx == 1).all() and (gb == x.size // max(1, of)).all()
    (ours, *_), (reference, *_) = both(lambda: _added(x, LAYOUTS[layout](row)))
    assert (ours == reference).all()


def _added(x, row):
    """The sum and the gradients of both."""
    a, b = Tensor(x, True), Tensor(row, True)
    out = a + b
    out.sum().backward()
    return out.array, a.grad.array, b.grad.array
