"""Functions of one element, choices, reductions, order: gradients and promises.

The oracle of gradients is differences in float64; values and refusals are compared with PyTorch
in `test_ops_more_peer.py` and `test_ops_more_refused.py`.
"""

import gc
import math
import weakref

import numpy as np
import pytest
from gradcheck import gradcheck
from test_ops_basic import BROADCASTS, SHAPES, layouts, normal

import minipar as mp
import minipar.nn.functional as F
from minipar.tensor import Tensor

pytestmark = pytest.mark.filterwarnings("error")

UNARY = {
    "abs": mp.abs, "square": mp.square, "sin": mp.sin, "cos": mp.cos, "erf": mp.erf,
    "sigmoid": mp.sigmoid, "silu": F.silu, "leaky_relu": F.leaky_relu,
    "leaky_relu -2": lambda x: F.leaky_relu(x, -2),
    "rsqrt": lambda x: mp.rsqrt(x * x + 1), "reciprocal": lambda x: mp.reciprocal(x * x + 1),
    "pow x": lambda x: 1.7 ** x, "x ** x": lambda x: (x * x + 0.5) ** x,
    "clamp": lambda x: x.clamp(-0.5, 0.7), "clamp min": lambda x: x.clamp(min=0.1),
    "where": lambda x: mp.where(x > 0.2, x * x, -x), "where number": lambda x: x.where(x > 0, 3),
    "remainder": lambda x: x % 0.7 + 0.3 % (x * x + 1), "floor": lambda x: x * x.floor(),
    "cumsum": lambda x: x.cumsum(0), "cumsum -1": lambda x: mp.cumsum(x, -1),
    "prod": lambda x: x.prod(), "prod -1": lambda x: x.prod(-1, True),
    "norm 1": lambda x: x.norm(1), "sort": lambda x: x.sort(0, True).values,
}
NOT_OF_NOTHING = {
    "var": lambda x: x.var(correction=0), "var -1": lambda x: x.var(-1, correction=0.5),
    "var keepdim": lambda x: x.var(0, False, True),
    "std": lambda x: (x * mp.tensor([1.0, 2.0], dtype="float64").reshape(2, *[1] * x.ndim)).std(0),
    "amax": lambda x: x.amax(), "amin -1": lambda x: x.amin(-1),
    "amax 0": lambda x: x.amax(0, True),
    "min": lambda x: x.min(), "min -1": lambda x: x.min(-1).values,
    "norm": lambda x: x.norm(), "norm -1": lambda x: x.norm(dim=-1),
    "norm inf": lambda x: x.norm(math.inf, 0, True),
    "logsumexp": lambda x: x.logsumexp(0), "logsumexp -1": lambda x: x.logsumexp(-1, True),
    "logsumexp all": lambda x: x.logsumexp(tuple(range(x.ndim)) if x.ndim else 0),
    "topk": lambda x: x.topk(1, 0)[0], "topk all": lambda x: x.topk(x.size(-1) if x.ndim else 1)[0],
    "topk smallest": lambda x: x.topk(1, largest=False).values,
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_gradient_of_one_operand_agrees_with_differences(name, shape):
    for array in layouts(*shape):
        gradcheck(UNARY[name], array)


@pytest.mark.parametrize("shape", [s for s in SHAPES if 0 not in s], ids=str)
@pytest.mark.parametrize("name", NOT_OF_NOTHING)
def test_gradient_of_a_reduction_of_something_agrees_with_differences(name, shape):
    for array in layouts(*shape):
        gradcheck(NOT_OF_NOTHING[name], array)


@pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
@pytest.mark.parametrize("function", [
    mp.maximum, mp.minimum, mp.remainder, lambda x, y: mp.pow(x * x + 0.5, y),
    lambda x, y: mp.where(x > y, x, y * y), lambda x, y: x.clamp(y - 0.5, y + 0.5),
    lambda x, y: x.clamp(max=y)],
    ids=["maximum", "minimum", "remainder", "pow", "where", "clamp", "clamp max"])
def test_gradient_of_broadcast_operands_agrees_with_differences(function, shapes):
    for a, b in zip(layouts(*shapes[0]), layouts(*shapes[1])):
        b = np.where(np.abs(b) < 0.5, b + 2, b)
        gradcheck(function, a, b)
        gradcheck(lambda x: function(x, Tensor(b)), a)
        gradcheck(lambda y: function(Tensor(a), y), b)


@pytest.mark.parametrize("dims", [(0, 1), (0, 2), (-1,), (1, 0, 2)], ids=str)
@pytest.mark.parametrize("function", [mp.var, mp.std, mp.amax, mp.amin, mp.logsumexp,
                                      lambda x, d, k=False: mp.norm(x, 2, d, keepdim=k)],
                         ids=["var", "std", "amax", "amin", "logsumexp", "norm"])
def test_gradient_of_a_reduction_over_several_dims_agrees_with_differences(function, dims):
    for array in layouts(2, 3, 4):
        gradcheck(lambda x: function(x, dims), array)
        gradcheck(lambda x: function(x, dims, keepdim=True) if function in (mp.amax, mp.amin)
                  else function(x, dims), array)


# ------------------------------------------------------------------- what is ours to promise

def test_sigmoid_and_silu_neither_overflow_nor_lose_their_digits():
    x = np.linspace(-700, 700, 4001)
    # log(sigmoid(x)) = -log(1 + exp(-x)), in the form that is exact for either sign
    log = np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))
    np.testing.assert_allclose(mp.sigmoid(Tensor(x)).array, np.exp(log), 1e-12)
    np.testing.assert_allclose(F.silu(Tensor(x)).array, x * np.exp(log), 1e-12)
    half = Tensor(np.array([-60000, -14, 14, 60000], np.float16))
    assert mp.sigmoid(half).tolist()[::3] == [0, 1]
    assert mp.sigmoid(half).tolist()[1] == pytest.approx(math.exp(-14), rel=0.05)


def test_silu_is_the_same_whatever_block_an_element_falls_in():
    x = normal(200_003).astype(np.float32)
    whole, parts = Tensor(x, requires_grad=True), Tensor(x[65530:65545], requires_grad=True)
    F.silu(whole).sum().backward()
    F.silu(parts).sum().backward()
    np.testing.assert_allclose(whole.grad.array[65530:65545], parts.grad.array, 1e-6)
    np.testing.assert_allclose(F.silu(whole).array, x / (1 + np.exp(-x.astype(float))), 1e-5)


def test_the_variance_of_far_numbers_keeps_its_digits():
    x = normal(1000) + 1e8
    assert mp.var(Tensor(x)).item() == pytest.approx(np.var(x - 1e8, ddof=1), rel=1e-6)


def test_equal_elements_share_the_gradient_of_an_extreme():
    x = Tensor(np.array([[3.0, 1, 3], [0, 3, 3]]), requires_grad=True)
    for function, expected in (
            (lambda x: x.max(), [[0.25, 0, 0.25], [0, 0.25, 0.25]]),
            (lambda x: x.amax(1), [[0.5, 0, 0.5], [0, 0.5, 0.5]]),
            (lambda x: x.max(1).values, [[1, 0, 0], [0, 1, 0]]),
            (lambda x: mp.maximum(x, Tensor(np.full((2, 3), 3.0))), [[0.5, 0, 0.5], [0, 0.5, 0.5]]),
            (lambda x: x.clamp(max=3), [[1, 1, 1], [1, 1, 1]])):
        x.grad = None
        function(x).sum().backward()
        assert x.grad.tolist() == expected


def test_step_functions_give_zeros_and_not_nothing():
    x = Tensor(normal(3), requires_grad=True)
    for step in (mp.floor, mp.ceil, mp.round, mp.sign):
        x.grad = None
        step(x).sum().backward()
        assert x.grad.tolist() == [0, 0, 0]


def test_the_first_of_equal_elements_comes_first_from_topk_and_sort():
    x = Tensor(np.array([2.0, 1, 2, 1, 2]))
    assert x.topk(3).indices.tolist() == [0, 2, 4] == x.topk(3, sorted=False).indices.tolist()
    assert x.topk(5).indices.tolist() == [0, 2, 4, 1, 3]
    assert x.topk(3, largest=False).indices.tolist()[:2] == [1, 3]
    assert x.sort().indices.tolist() == [1, 3, 0, 2, 4] == x.argsort().tolist()
    assert x.sort(descending=True).indices.tolist() == [0, 2, 4, 1, 3]


@pytest.mark.parametrize("largest", [True, False])
def test_topk_is_the_head_of_what_sort_gives(largest):
    for x in (normal(7, 50), normal(50, 7).T, np.floor(normal(4, 9) * 2)):
        for k in (1, 3, x.shape[1] - 1, x.shape[1]):
            top, order = Tensor(x).topk(k, 1, largest), Tensor(x).sort(1, largest)
            assert top.values.tolist() == order.values[:, :k].tolist()
            assert (np.take_along_axis(x, top.indices.array, 1) == top.values.array).all()
            assert all(len(set(row)) == k for row in top.indices.tolist())


def test_comparisons_as_functions_refuse_what_operators_leave_to_python():
    x = Tensor(normal(2))
    assert (x == None) is False  # noqa: E711
    for function in (mp.eq, mp.lt, Tensor.ge):
        with pytest.raises(TypeError, match="a tensor or a number was expected, not NoneType"):
            function(x, None)


KEEP_NOTHING_OF_X = {
    "sigmoid": mp.sigmoid, "silu": F.silu, "leaky_relu": F.leaky_relu, "floor": mp.floor,
    "sign": mp.sign, "reciprocal": mp.reciprocal, "rsqrt": mp.rsqrt,
    "remainder": lambda x: x % 2, "cumsum": lambda x: x.cumsum(0),
    "topk": lambda x: x.topk(2).values, "sort": lambda x: x.sort()[0],
    "where": lambda x: mp.where(Tensor(np.array([True, False, True, False])), x, 0.0)}


@pytest.mark.parametrize("name", KEEP_NOTHING_OF_X)
def test_an_input_that_backward_does_not_read_is_not_kept(name):
    middle = Tensor(normal(4), requires_grad=True) * 2
    kept = weakref.ref(middle.array)
    out = KEEP_NOTHING_OF_X[name](middle)
    del middle
    gc.collect()
    assert kept() is None and out.requires_grad
    out.sum().backward()


@pytest.mark.parametrize("name, output", [
    ("maximum", lambda x: x.maximum(x.detach() + 1)), ("clamp", lambda x: x.clamp(0)),
    ("max", lambda x: x.max()), ("min", lambda x: x.min(0)[0]), ("amax", lambda x: x.amax()),
    ("topk", lambda x: x.topk(1)[0]), ("sort", lambda x: x.sort()[0]), ("where",
        lambda x: mp.where(x > 0, x, 0.0)), ("var", lambda x: x.var()), ("pow", mp.square)])
def test_a_node_is_called_as_its_operation(name, output):
    assert repr(output(Tensor(normal(3), requires_grad=True)).grad_fn) == f"<{name}>"


# What PyTorch refuses or allows after an in-place change: extends test_inplace's table.
CHANGED = {
    "sigmoid's output": (lambda p, x, c: x.sigmoid(), lambda x, c, y: y),
    "x of sigmoid": (lambda p, x, c: x.sigmoid(), lambda x, c, y: x),
    "rsqrt's output": (lambda p, x, c: x.rsqrt(), lambda x, c, y: y),
    "reciprocal's output": (lambda p, x, c: x.reciprocal(), lambda x, c, y: y),
    "x of abs": (lambda p, x, c: x.abs(), lambda x, c, y: x),
    "x of sin": (lambda p, x, c: x.sin(), lambda x, c, y: x),
    "x of erf": (lambda p, x, c: x.erf(), lambda x, c, y: x),
    "x of floor": (lambda p, x, c: x.floor(), lambda x, c, y: x),
    "x of x ** c": (lambda p, x, c: x ** c, lambda x, c, y: x),
    "c of x ** c": (lambda p, x, c: x ** c, lambda x, c, y: c),
    "c of c ** x": (lambda p, x, c: c ** x, lambda x, c, y: c),
    "output of c ** x": (lambda p, x, c: c ** x, lambda x, c, y: y),
    "output of 2 ** x": (lambda p, x, c: 2 ** x, lambda x, c, y: y),
    "x of maximum": (lambda p, x, c: p.maximum(x, c), lambda x, c, y: x),
    "c of maximum": (lambda p, x, c: p.maximum(x, c), lambda x, c, y: c),
    "output of maximum": (lambda p, x, c: p.maximum(x, c), lambda x, c, y: y),
    "x of clamp": (lambda p, x, c: x.clamp(1, 2), lambda x, c, y: x),
    "c of clamp": (lambda p, x, c: x.clamp(c), lambda x, c, y: c),
    "output of clamp": (lambda p, x, c: x.clamp(1, 2), lambda x, c, y: y),
    "c of where": (lambda p, x, c: p.where(c > 5, x, c), lambda x, c, y: c),
    "x of var": (lambda p, x, c: x.var(), lambda x, c, y: x),
    "x of std": (lambda p, x, c: x.std(0), lambda x, c, y: x),
    "x of amax": (lambda p, x, c: x.amax(0), lambda x, c, y: x),
    "amax's output": (lambda p, x, c: x.amax(0), lambda x, c, y: y),
    "x of min": (lambda p, x, c: x.min(), lambda x, c, y: x),
    "x of logsumexp": (lambda p, x, c: x.logsumexp(0), lambda x, c, y: x),
    "x of norm": (lambda p, x, c: x.norm(), lambda x, c, y: x),
    "x of cumsum": (lambda p, x, c: x.cumsum(0), lambda x, c, y: x),
    "x of prod": (lambda p, x, c: x.prod(), lambda x, c, y: x),
    "x of topk": (lambda p, x, c: x.topk(2)[0], lambda x, c, y: x),
    "c of x % c": (lambda p, x, c: x % c, lambda x, c, y: c),
}


@pytest.mark.peer
@pytest.mark.parametrize("name", CHANGED)
def test_backward_refuses_what_was_changed_in_place_as_pytorch_does(name):
    torch = pytest.importorskip("torch")
    import test_inplace
    test_inplace.IN_PLACE[name] = CHANGED[name]
    try:
        assert test_inplace.survives(mp, mp.tensor, name) == test_inplace.survives(
            torch, torch.tensor, name)
    finally:
        del test_inplace.IN_PLACE[name]


def test_a_condition_that_changes_before_backward_is_found():
    x, chosen = Tensor(normal(3), requires_grad=True), Tensor(np.array([True, False, True]))
    y = mp.where(chosen, x, 0.0)
    chosen.fill_(False)
    with pytest.raises(RuntimeError, match="where needs was changed in place"):
        y.sum().backward()
