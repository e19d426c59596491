"""Elementwise, matmul, reduce, shape, indexing, softmax, loss: gradients, views, promises.

The oracle of gradients is differences in float64; values and refusals are compared with
PyTorch in `test_ops_peer.py`. Warnings are errors here: no operation lets NumPy's reach the user.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from gradcheck import gradcheck

import minipar as mp
from minipar.ops.loss import cross_entropy, cross_entropy_sum_count, mse_loss
from minipar.tensor import Tensor

# What torch.nn.functional has of these operations, without the layers that nn adds.
F = SimpleNamespace(cross_entropy=cross_entropy, mse_loss=mse_loss)

pytestmark = pytest.mark.filterwarnings("error")
rng = np.random.default_rng(7)


def normal(*shape):
    return np.asarray(rng.standard_normal(shape))


def layouts(*shape):
    """An array of `shape` in C order, transposed, strided, and with negative strides."""
    yield normal(*shape)
    if shape:
        yield normal(*shape[::-1]).T
        yield normal(*(2 * n + 1 for n in shape))[tuple(slice(0, 2 * n, 2) for n in shape)]
        yield normal(*shape)[tuple(slice(None, None, -1) for _ in shape)]


SHAPES = [(), (1,), (0,), (5,), (1, 1), (3, 1), (0, 3), (3, 4), (2, 3, 4)]

# ---------------------------------------------------------------- gradients by differences

UNARY = {
    "neg": lambda x: -x, "exp": mp.exp, "tanh": mp.tanh, "gelu": mp.gelu,
    "relu": lambda x: mp.relu(x + 0.25),
    "log": lambda x: mp.log(x * x + 1), "sqrt": lambda x: mp.sqrt(x * x + 1),
    "pow 3": lambda x: x ** 3, "pow 0": lambda x: x ** 0, "pow 1": lambda x: x ** 1,
    "pow -0.5": lambda x: (x * x + 1) ** -0.5,
    "add number": lambda x: 2 + x + 1, "sub number": lambda x: 2 - x - 1,
    "mul number": lambda x: 2 * x * 3, "div number": lambda x: x / 3 + 2 / (x * x + 1),
    "sum": lambda x: x.sum(),
    "sum -1": lambda x: x.sum(-1),
    "sum keepdim": lambda x: x.sum(0, True),
    "sum all dims": lambda x: x.sum(tuple(range(x.ndim))),
    "reshape": lambda x: x.reshape(-1) if x.numel() else x.reshape(0), "flatten": mp.flatten,
    "transpose": lambda x: x.transpose(0, -1), "permute": lambda x: x.permute(*range(x.ndim)[::-1]),
    "contiguous": lambda x: x.contiguous(), "None": lambda x: x[None], "...": lambda x: x[...],
    "softmax": lambda x: x.softmax(-1), "softmax 0": lambda x: x.softmax(0),
    "log_softmax": lambda x: x.log_softmax(-1), "log_softmax 0": lambda x: x.log_softmax(0),
    "mse": lambda x: F.mse_loss(x, Tensor(np.ones(x.shape)), "none"),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_gradient_of_one_operand_agrees_with_differences(name, shape):
    for array in layouts(*shape):
        gradcheck(UNARY[name], array)


@pytest.mark.parametrize("shape", [s for s in SHAPES if 0 not in s], ids=str)
@pytest.mark.parametrize("function", [
    lambda x: x.mean(), lambda x: x.mean(-1), lambda x: x.mean(0, True), lambda x: x.max(),
    lambda x: x.max(-1).values, lambda x: x.max(0, True)[0]],
    ids=["mean", "mean -1", "mean keepdim", "max", "max -1", "max keepdim"])
def test_gradient_of_a_reduction_of_something_agrees_with_differences(function, shape):
    for array in layouts(*shape):
        gradcheck(function, array)


BROADCASTS = [((), ()), ((3,), ()), ((), (2, 3)), ((3, 1), (4,)), ((1, 1), (2, 3)), ((0, 3), (3,)),
              ((0, 1), (1, 4)), ((2, 3, 4), (3, 1)), ((1,), (1,)), ((2, 1, 4), (3, 1))]


@pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
@pytest.mark.parametrize("function", [mp.add, mp.sub, mp.mul, mp.div])
def test_gradient_of_broadcast_operands_agrees_with_differences(function, shapes):
    for a, b in zip(layouts(*shapes[0]), layouts(*shapes[1])):
        b = np.where(np.abs(b) < 0.5, b + 2, b)
        gradcheck(function, a, b)
        gradcheck(lambda x: function(x, Tensor(b)), a)
        gradcheck(lambda y: function(Tensor(a), y), b)


@pytest.mark.parametrize("shapes", [
    ((3,), (3,)), ((3, 4), (4, 2)), ((3, 4), (4,)), ((4,), (4, 2)), ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)), ((2, 1, 3, 4), (5, 4, 2)), ((2, 3, 4), (4,)), ((4,), (2, 4, 3)),
    ((0, 4), (4, 2)), ((3, 0), (0, 2)), ((1, 1), (1, 1)), ((3, 4), (4, 0))], ids=str)
def test_gradient_of_matmul_agrees_with_differences(shapes):
    for a, b in zip(layouts(*shapes[0]), layouts(*shapes[1])):
        gradcheck(mp.matmul, a, b)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4), (1, 4)], ids=str)
def test_gradient_of_linear_agrees_with_differences(shape):
    for a, w in zip(layouts(*shape), [*layouts(5, 4)] * 2):
        gradcheck(mp.linear, a, w, normal(5))
        gradcheck(mp.linear, a, w)


INDICES = [
    0, -1, slice(1, None), slice(None, None, 2), slice(2, 2), None, ..., (0, 1), (..., 0),
    (slice(None), None, 1), (1, ..., slice(1, 3)), (0, 1, 2), (slice(1, 3), slice(None), -1),
    [0, 2], [0, 0, 0], np.array([[1, 1], [2, -1]]), ([0, 1], [1, 1]), (slice(None), [0, 0]),
    (0, slice(None), [0, 1, 1]), ([0, 1], slice(None), [1, 1]), (..., [1, 1]), (None, [1, 1]),
    (slice(None), 0, [1, 0]), ([1, 1], 0), ([2, 0, 2], slice(0, 2), 1), [],
    np.array([True, False, True]), (slice(1, None), np.array([True, False])),
    np.arange(24).reshape(3, 2, 4) % 5 == 0, np.zeros(3, bool),
    (np.array([[True, False], [False, True], [True, True]]), slice(1, 3)),
    (np.array([True, False, True]), [0, 0]), (np.int64(1), np.array(1)),
]


@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_gradient_of_indexing_agrees_with_differences(index):
    for array in layouts(3, 2, 4):
        gradcheck(lambda x: x[index], array)


@pytest.mark.parametrize("sizes, dim", [(2, 0), (3, 1), ([1, 3], 1), (10, 0), ([0, 3, 0], 0),
                                        ([2, 2], -1)])
def test_gradient_of_split_agrees_with_differences(sizes, dim):
    def function(x):
        pieces = x.split(sizes, dim)
        return sum(p.sum() * p.sum() * (i + 1) for i, p in enumerate(pieces))
    for array in layouts(3, 4):
        gradcheck(function, array)


def test_gradient_of_cat_agrees_with_differences():
    for dim in (0, 1, -1):
        for a in layouts(3, 3):
            gradcheck(lambda x, y, z: mp.cat([x, y, x, z], dim), a, normal(3, 3), normal(3, 3))
    gradcheck(lambda x, y: mp.cat([x, y]), normal(0, 3), normal(2, 3))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(5,), (1,), (4, 5), (1, 1), (0, 3), (2, 5, 3), (2, 5, 3, 2),
                                   (2, 3, 0), (3, 4, 1)], ids=str)
def test_gradient_of_cross_entropy_agrees_with_differences(shape, reduction):
    classes = shape[0] if len(shape) == 1 else shape[1]
    target = rng.integers(0, classes, shape[:1] * (len(shape) > 1) + shape[2:])
    if reduction == "mean" and not target.size:
        return  # NaN, see below
    some = np.where(rng.random(target.shape) < 0.4, -100, target)
    for array in layouts(*shape):
        gradcheck(lambda x: F.cross_entropy(x, Tensor(np.asarray(target)), reduction=reduction),
                  array)
        if (some >= 0).any():
            gradcheck(lambda x: F.cross_entropy(x, Tensor(np.asarray(some)), reduction=reduction),
                      array)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradient_of_mse_loss_agrees_with_differences(reduction):
    for a, b in zip(layouts(3, 4), layouts(3, 4)):
        gradcheck(lambda x, y: F.mse_loss(x, y, reduction), a, b)


# ------------------------------------------------------------------- what is ours to promise

@pytest.mark.peer
@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_an_index_selects_what_it_selects_in_pytorch(index):
    torch = pytest.importorskip("torch")
    x = normal(3, 2, 4)
    for convert in (lambda i, make: i, lambda i, make: make(i) if isinstance(i, np.ndarray) else i):
        def converted(make):
            return (tuple(convert(i, make) for i in index) if isinstance(index, tuple)
                    else convert(index, make))
        mine = Tensor(x)[converted(Tensor)]
        yours = torch.from_numpy(x)[converted(torch.from_numpy)]
        np.testing.assert_array_equal(mine.numpy(), yours.numpy())


@pytest.mark.parametrize("function", [
    lambda x: x[0], lambda x: x[1, 2], lambda x: x[1:, ::2], lambda x: x[..., None], lambda x: x.T,
    lambda x: x.transpose(0, 1), lambda x: x.permute(1, 0), lambda x: x.reshape(-1),
    lambda x: x.view(2, 6), lambda x: x.flatten(), lambda x: x.split(2)[0], lambda x: x.detach()])
def test_a_view_shares_memory_and_version(function):
    x = Tensor(normal(3, 4))
    y = function(x)
    assert y.storage is x.storage and np.shares_memory(y.array, x.array)
    assert x.storage.views >= 1  # split makes two
    y.fill_(5)
    assert (x.array == 5).any() and x.storage.version == 1


@pytest.mark.parametrize("function", [
    lambda x: x[[0]], lambda x: x[x > 0], lambda x: x.T.reshape(-1), lambda x: x.T.contiguous(),
    lambda x: mp.cat([x]), lambda x: x.float(), lambda x: x[0, [1]]])
def test_a_copy_shares_neither(function):
    x = Tensor(normal(3, 4))
    y = function(x)
    assert y.storage is not x.storage and not np.shares_memory(y.array, x.array)


def test_nothing_is_copied_where_there_is_nothing_to_do():
    x = Tensor(normal(3, 4))
    assert x.contiguous() is x and x.to(mp.float64) is x and x.double() is x
    assert x.flatten(0, 0) is x


def test_an_index_tensor_that_changes_before_backward_is_found():
    x, i = Tensor(normal(3), requires_grad=True), Tensor(np.array([0, 1]))
    y = x[i].sum()
    i.fill_(2)
    with pytest.raises(RuntimeError, match="gather.*changed in place"):
        y.backward()


def test_comparison_keeps_the_hash_of_the_object():
    x, y = Tensor(normal(2)), Tensor(normal(2))
    assert {x: 1, y: 2}[x] == 1 and len({x, y, x}) == 2
    assert (x == None) is False and (x != None) is True  # noqa: E711
    assert not (x == x).requires_grad and (x == x).dtype is mp.bool_


def test_sum_and_count_of_cross_entropy_make_its_mean():
    x, t = Tensor(normal(5, 3), requires_grad=True), Tensor(np.array([0, -100, 2, 1, -100]))
    total, count = cross_entropy_sum_count(x, t)
    assert count == 3 and isinstance(count, int)
    assert math.isclose(total.item() / count, F.cross_entropy(x, t).item(), rel_tol=1e-15)
    total.backward()
    gradient = x.grad.array / 3
    x.grad = None
    F.cross_entropy(x, t).backward()
    np.testing.assert_allclose(x.grad.array, gradient, 1e-14)


def test_cross_entropy_twice_through_one_graph_adds_twice_the_gradient():
    x, t = Tensor(normal(5, 3), requires_grad=True), Tensor(np.array([0, 1, 2, 1, 0]))
    loss = F.cross_entropy(x, t)
    loss.backward(retain_graph=True)
    once = x.grad.array.copy()
    loss.backward()
    np.testing.assert_array_equal(x.grad.array, 2 * once)


def test_a_sum_of_half_precision_numbers_is_taken_in_single_precision():
    x = Tensor(np.full((4096, 2), 0.1, np.float16))
    assert abs(x.sum(0).tolist()[0] - 4096 * 0.1) < 0.5


def test_dropped_operands_are_not_kept_by_a_graph_that_does_not_read_them():
    import gc
    import weakref
    x = Tensor(normal(4), requires_grad=True)
    for function in (lambda y: x + y, lambda y: (y - x).sum(), lambda y: y.reshape(2, 2) + 0,
                     lambda y: y.softmax(0)[0], lambda y: mp.cat([y, x]), lambda y: y.mean(),
                     lambda y: mp.mul(np.ones(4), y), lambda y: y * 3, lambda y: y / 3):
        middle = x * 2
        kept = weakref.ref(middle.array)
        out = function(middle)
        del middle
        gc.collect()
        assert kept() is None and out.requires_grad


def test_erf_is_exact_to_rounding_and_keeps_nan_and_infinity():
    import math

    from minipar.ops.erf import erf
    x = np.linspace(-8, 8, 20001)
    assert abs(erf(x) - [math.erf(v) for v in x]).max() < 1e-15
    assert erf(np.array([np.inf, -np.inf])).tolist() == [1.0, -1.0]
    assert np.isnan(erf(np.array([np.nan]))).all() and erf(np.array(0.0)).shape == ()


@pytest.mark.parametrize("shape", [(), (1,), (0, 2), (4, 5)])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_has_the_gradient_of_both_its_forms(shape, approximate):
    from minipar.ops import gelu
    x = np.asarray(np.random.default_rng(0).standard_normal(shape))
    gradcheck(lambda t: gelu(t, approximate), x)


@pytest.mark.peer
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_equals_pytorchs_in_both_forms(approximate):
    torch = pytest.importorskip("torch")
    from minipar.ops import gelu
    x = np.linspace(-9, 9, 1001)
    expected = torch.nn.functional.gelu(torch.from_numpy(x), approximate=approximate)
    np.testing.assert_allclose(gelu(mp.tensor(x), approximate).array, expected, atol=1e-15)


@pytest.mark.parametrize("a, b", [((0,), (0,)), ((0,), (0, 3)), ((2, 0), (0,)), ((3,), (2, 3, 4)),
                                  ((5, 2, 3), (3,)), ((1, 3), (3, 1)), ((4,), (4,))])
def test_matmul_has_its_gradient_for_vectors_and_empty_operands(a, b):
    rng = np.random.default_rng(0)
    gradcheck(mp.matmul, np.asarray(rng.standard_normal(a)), np.asarray(rng.standard_normal(b)))


def test_a_tensor_times_an_array_is_a_tensor_on_either_side():
    x, y = mp.tensor([[1.0, 2.0]]), np.array([[3.0], [4.0]], np.float32)
    assert (x @ y).tolist() == [[11.0]] and (y @ x).tolist() == [[3.0, 6.0], [4.0, 8.0]]


def test_linear_refuses_a_bias_of_another_type():
    x, w, b = mp.tensor([[1.0]]), mp.tensor([[1.0]]), mp.tensor([1.0], dtype="float64")
    with pytest.raises(TypeError, match="bias float64 and weight float32"):
        mp.linear(x, w, b)


@pytest.mark.parametrize("x, w", [((3, 0), (2, 0)), ((0, 3), (2, 3)), ((2, 0, 3), (4, 3)),
                                  ((3,), (2, 3)), ((3, 2), (0, 2))])
def test_linear_has_its_gradient_for_no_rows_no_features_and_no_outputs(x, w):
    rng = np.random.default_rng(0)
    gradcheck(mp.linear, *(np.asarray(rng.standard_normal(s)) for s in (x, w, w[:1])))
