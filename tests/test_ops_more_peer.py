"""More operations beside PyTorch's (marked `peer`): one element, choices, reductions, order.

The tables are read as those of `test_ops_peer.py`.
"""

import warnings

import numpy as np
import pytest
from test_ops_peer import T, assert_same, normal

import minipar as mp
import minipar.nn.functional as F
from minipar.tensor import Tensor

pytestmark = pytest.mark.filterwarnings("error")

nan, inf = np.nan, np.inf
A, B, P = normal(3, 4), normal(4), np.abs(normal(3, 4)) + 0.5
ODD = np.array([nan, inf, -inf, 0.0, -0.0, 1, -2, 0.5, 2.5, -1.5])
TIES = np.array([[1.0, 3, 3, 1], [2, 2, 0, 2]])
NANS = np.array([[nan, 1, 2], [0, 1, inf], [nan, -inf, 2]])
HALF_INF = np.array([[-inf, -inf], [inf, 0], [inf, inf], [nan, 0], [-inf, 0], [inf, -inf]])
E = np.empty
ONE = np.array(2.0)

ELEMENT = {
    "abs": lambda t, f, x: t.abs(x), "__abs__": lambda t, f, x: abs(x),
    "sign": lambda t, f, x: x.sign(), "floor": lambda t, f, x: t.floor(x),
    "ceil": lambda t, f, x: x.ceil(), "round": lambda t, f, x: t.round(x),
    "square": lambda t, f, x: t.square(x), "reciprocal": lambda t, f, x: x.reciprocal(),
    "rsqrt": lambda t, f, x: t.rsqrt(x), "sigmoid": lambda t, f, x: t.sigmoid(x),
    "F.sigmoid": lambda t, f, x: f.sigmoid(x), "erf": lambda t, f, x: x.erf(),
    "sin": lambda t, f, x: t.sin(x), "cos": lambda t, f, x: x.cos(),
    "relu": lambda t, f, x: x.relu(), "silu": lambda t, f, x: f.silu(x),
    "leaky_relu": lambda t, f, x: f.leaky_relu(x),
    "leaky_relu 0": lambda t, f, x: f.leaky_relu(x, 0.0),
    "leaky_relu 2": lambda t, f, x: f.leaky_relu(x, negative_slope=2.0),
    "leaky_relu -0.5": lambda t, f, x: f.leaky_relu(x, -0.5),
    "clamp": lambda t, f, x: x.clamp(-1, 1), "clip": lambda t, f, x: t.clip(x, max=0.5),
    "clamp min": lambda t, f, x: t.clamp(x, 0), "clamp crossed": lambda t, f, x: x.clamp(1, -1),
    "clamp NaN": lambda t, f, x: x.clamp(nan, 1),
    "remainder": lambda t, f, x: x % 3, "remainder -": lambda t, f, x: t.remainder(x, -0.7),
    "pow 2": lambda t, f, x: t.pow(x, 2), "2 **": lambda t, f, x: 2 ** x,
    "0 **": lambda t, f, x: 0 ** x, "-2. **": lambda t, f, x: t.pow(-2.0, x),
    "isnan": lambda t, f, x: t.isnan(x), "isinf": lambda t, f, x: x.isinf(),
    "isfinite": lambda t, f, x: t.isfinite(x), "logical_not": lambda t, f, x: x.logical_not(),
    "where number": lambda t, f, x: t.where(x > 0, x, 0.5), "eq": lambda t, f, x: t.eq(x, 1),
}
ARRAYS = {"odd": ODD, "(3, 4)": A, "0-d": ONE, "(1, 1)": normal(1, 1), "empty": E((0, 3)),
          "far": A * 50, "transposed": A.T}


@pytest.mark.peer
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", ELEMENT)
def test_functions_of_one_element_are_those_of_pytorch(name, dtype):
    for array in ARRAYS.values():
        assert_same((ELEMENT[name], array), F, dtype)


CLAMPED = (np.array([nan, 1, 2, 3, 0, 5]), np.array([0, nan, 2, 4, 1, 6]),
           np.array([1, 2, 2, 5, -1, 5]))
BASE, EXPONENT = np.array([0.0, 0, 0, -2, 2, nan, 1, 0]), np.array([0, 2, -1, 0.5, 3, 0, nan, nan])

SAME = {
    "pow": (lambda t, f, x, y: x ** y, P, B),
    "pow odd": (lambda t, f, x, y: x ** y, BASE, EXPONENT),
    "pow 0-d": (lambda t, f, x, y: x.pow(y), ONE, B),
    "pow fixed": (lambda t, f, x, y: x ** y, P, T(B)),
    "pow of fixed": (lambda t, f, x, y: t.pow(x, y), T(P), B),
    "pow types": (lambda t, f, x, y: x ** y, P, T([3, 2, 1, 0], np.int64)),
    "remainder": (lambda t, f, x, y: x % y, A * 5, B), "rmod": (lambda t, f, x, y: 3 % y, A, T(B)),
    "remainder odd": (lambda t, f, x, y: x % y, np.array([5.0, -5, 5, 1, inf, nan]),
        np.array([3.0, 3, -3, 0, 2, 1])),
    "//": (lambda t, f, x, y: x.detach() // y, np.array([5.0, -5, 5, 1, inf, 1, -1, 0]),
        T([3.0, 3, -3, 0, 2, inf, inf, 0], np.float16)),
    "rfloordiv": (lambda t, f, x: 7 // x.detach(), A),
    "maximum": (lambda t, f, x, y: t.maximum(x, y), A, B),
    "minimum": (lambda t, f, x, y: x.minimum(y), TIES, TIES[::-1]),
    "maximum odd": (lambda t, f, x, y: x.maximum(y), np.array([nan, 1, 2, 3, nan, inf]),
        np.array([0, nan, 2, 4, nan, inf])),
    "minimum odd": (lambda t, f, x, y: t.minimum(x, y), np.array([nan, 1, 2, 3, nan]),
        np.array([0, nan, 2, 4, nan])),
    "max of two": (lambda t, f, x, y: t.max(x, y), TIES, TIES[::-1]),
    "min of two": (lambda t, f, x, y: x.min(y), TIES, TIES[0]),
    "maximum types": (lambda t, f, x, y: t.maximum(x, y), A, T([0, 1, 0, -1], np.int64)),
    "clamp tensors": (lambda t, f, x, a, b: x.clamp(a, b), *CLAMPED),
    "clamp min tensor": (lambda t, f, x, a, b: x.clamp(a), *CLAMPED),
    "clamp max tensor": (lambda t, f, x, a, b: t.clamp(x, max=b), *CLAMPED),
    "clamp broadcast": (lambda t, f, x, a, b: t.clamp(x, a, b), A, B - 1, np.array([[0.5]])),
    "clamp types": (lambda t, f, x, a: x.clamp(a), T([1, 2, 3], np.int64), np.array(1.5)),
    "where": (lambda t, f, c, x, y: t.where(c, x, y), T(A > 0), A, P),
    "where broadcast": (lambda t, f, c, x, y: t.where(c, x, y), T(A > 0), B, ONE),
    "where method": (lambda t, f, x, y: x.where(x > y, y), A, B),
    "where numbers": (lambda t, f, x: t.where(x > 0, 1.0, 0), A),
    "where ints": (lambda t, f, x: t.where(x > 0, 1, 0), A),
    "where odd": (lambda t, f, c, x, y: t.where(c, x, y), T([True, False]), np.array([nan, 1]),
        np.array([1, nan])),
    "where infinite gradient": (lambda t, f, c, x: t.where(c, x, 1.0).log(), T([True, False]),
        np.array([0.0, 0.0])),
    "logical_and": (lambda t, f, x, y: t.logical_and(x, y), ODD[:4], T([1, 0, 1, 0], np.int64)),
    "logical_or": (lambda t, f, x, y: x.logical_or(y), NANS, NANS[0]),
    "masks": (lambda t, f, x: x[(x > 0) & (x < 1) | ~(x > -1) ^ (x > 0.5)], A),

    "var": (lambda t, f, x: x.var(), A), "var 0": (lambda t, f, x: t.var(x, 0), A),
    "var biased": (lambda t, f, x: x.var(unbiased=False), A),
    "var (False)": (lambda t, f, x: x.var(False), A),
    "var 1, False, True": (lambda t, f, x: x.var(1, False, True), A),
    "var correction": (lambda t, f, x: x.var((0, 2), correction=2, keepdim=True), normal(2, 3, 4)),
    "var of one": (lambda t, f, x: x.var(), np.ones(1)),
    "var of 0-d": (lambda t, f, x: x.var(correction=0), ONE),
    "var of nothing": (lambda t, f, x: x.var(), E(0)),
    "var of nothing 0": (lambda t, f, x: x.var(0), E((0, 2))),
    "var to nothing": (lambda t, f, x: x.var(1), E((0, 2))),
    "var shifted": (lambda t, f, x: x.var(), A + 8),
    "std": (lambda t, f, x: t.std(x), A), "std 1": (lambda t, f, x: x.std(1, keepdim=True), A),
    "std same": (lambda t, f, x: x.std(0), np.ones((3, 2))),
    "std of one": (lambda t, f, x: x.std(), np.ones(1)),
    "std odd": (lambda t, f, x: x.std(1), NANS),
    "std correction": (lambda t, f, x: t.std(x, dim=-1, correction=0), A),
    "amax": (lambda t, f, x: t.amax(x, 1), TIES), "amin": (lambda t, f, x: x.amin(0, True), TIES),
    "amax all": (lambda t, f, x: x.amax(), TIES), "amin ()": (lambda t, f, x: t.amin(x, ()), TIES),
    "amax dims": (lambda t, f, x: x.amax((0, 2)), np.floor(normal(2, 3, 4))),
    "amax odd": (lambda t, f, x: x.amax(0), NANS), "amin odd": (lambda t, f, x: x.amin(1), NANS),
    "amax 0-d": (lambda t, f, x: x.amax(0), ONE),
    "amax to empty": (lambda t, f, x: x.amax(1), E((0, 3))),
    "min": (lambda t, f, x: x.min(), A), "min ties": (lambda t, f, x: x.min(), TIES),
    "min odd": (lambda t, f, x: x.min(), NANS), "max odd": (lambda t, f, x: x.max(), NANS),
    "min 1": (lambda t, f, x: t.min(x, 1)[0], TIES),
    "min 0 kept": (lambda t, f, x: x.min(0, True).values, NANS),
    "min indices": (lambda t, f, x: x.min(1).indices, NANS),
    "min 0-d": (lambda t, f, x: x.min(0)[0], ONE),
    "argmin": (lambda t, f, x: x.argmin(), TIES),
    "argmin 1": (lambda t, f, x: t.argmin(x, 1), NANS),
    "argmin kept": (lambda t, f, x: x.argmin(-1, True), TIES),
    "logsumexp": (lambda t, f, x: t.logsumexp(x, 1), A),
    "logsumexp odd": (lambda t, f, x: x.logsumexp(1), HALF_INF),
    "logsumexp dims": (lambda t, f, x: x.logsumexp((0, -1), keepdim=True), normal(2, 3, 4)),
    "logsumexp far": (lambda t, f, x: x.logsumexp(0), A * 1000),
    "logsumexp empty": (lambda t, f, x: x.logsumexp(0), E((0, 3))),
    "logsumexp 0-d": (lambda t, f, x: x.logsumexp(0), ONE),
    "cumsum": (lambda t, f, x: t.cumsum(x, 0), A), "cumsum -1": (lambda t, f, x: x.cumsum(-1), A.T),
    "cumsum odd": (lambda t, f, x: x.cumsum(0), np.array([1, nan, inf])),
    "cumsum 0-d": (lambda t, f, x: x.cumsum(0), ONE),
    "cumsum empty": (lambda t, f, x: x.cumsum(0), E((0, 3))),
    "prod": (lambda t, f, x: x.prod(), A), "prod 0": (lambda t, f, x: t.prod(x, 0, True), A),
    "prod of a 0": (lambda t, f, x: x.prod(1), np.array([[0.0, 2, 3], [0, 0, 1], [nan, 0, 3]])),
    "prod empty": (lambda t, f, x: x.prod(), E((0, 3))),
    "prod empty 0": (lambda t, f, x: x.prod(0), E((0, 3))),
    "prod 0-d": (lambda t, f, x: x.prod(-1), ONE),
    "norm": (lambda t, f, x: x.norm(), A), "norm 2 1": (lambda t, f, x: t.norm(x, 2, 1), A),
    "norm dim": (lambda t, f, x: x.norm(dim=(0, 2), keepdim=True), normal(2, 3, 4)),
    "norm 1": (lambda t, f, x: x.norm(1, 0), A), "norm inf": (lambda t, f, x: x.norm(inf), A),
    "norm inf 1": (lambda t, f, x: x.norm(p=float("inf"), dim=1), -TIES),
    "norm of 0": (lambda t, f, x: x.norm(), np.zeros(3)),
    "norm 0-d": (lambda t, f, x: x.norm(), -ONE),
    "norm odd": (lambda t, f, x: x.norm(dim=1), NANS),
    "norm empty": (lambda t, f, x: x.norm(), E(0)),
    "norm of many": (lambda t, f, x: x.norm(), np.full(4000, 20.0)),
    "any": (lambda t, f, x: x.any(), TIES),
    "any 0": (lambda t, f, x: t.any(x, 0), np.array([[0, nan], [0, 0]])),
    "all": (lambda t, f, x: t.all(x), TIES), "all kept": (lambda t, f, x: x.all(1, True), TIES),
    "all dims": (lambda t, f, x: (x > -1).all(dim=(0, 1)), A),
    "any 0-d": (lambda t, f, x: x.any(), ONE),
    "any of nothing": (lambda t, f, x: x.any(), E(0)),
    "all of nothing": (lambda t, f, x: x.all(0), E((0, 2))),
    "topk": (lambda t, f, x: t.topk(x, 2)[0], A),
    "topk 0": (lambda t, f, x: x.topk(2, 0).values, A),
    "topk indices": (lambda t, f, x: x.topk(3, dim=-1).indices, A),
    "topk smallest": (lambda t, f, x: x.topk(2, 1, largest=False)[0], NANS),
    "topk odd": (lambda t, f, x: x.topk(2)[0], NANS), "topk all": (lambda t, f, x: x.topk(4)[1], A),
    "topk none": (lambda t, f, x: x.topk(0)[0], A), "topk 0-d": (lambda t, f, x: x.topk(1)[0], ONE),
    "topk ties": (lambda t, f, x: x.topk(3)[0], T(TIES)),
    "topk empty": (lambda t, f, x: x.topk(2)[0], E((0, 3))),
    "sort": (lambda t, f, x: t.sort(x)[0], A),
    "sort 0": (lambda t, f, x: x.sort(0, True).values, A),
    "sort odd": (lambda t, f, x: x.sort(descending=True)[0], NANS),
    "sort stable": (lambda t, f, x: t.sort(x, dim=1, stable=True)[1], TIES),
    "sort stable, descending": (lambda t, f, x: x.sort(dim=1, descending=True, stable=True)[1],
        TIES),
    "sort 0-d": (lambda t, f, x: x.sort()[0], ONE),
    "sort empty": (lambda t, f, x: x.sort(0)[0], E((0, 3))),
    "argsort": (lambda t, f, x: t.argsort(x, 0), A),
    "argsort descending": (lambda t, f, x: x.argsort(-1, descending=True), A),
    "argsort stable": (lambda t, f, x: x.argsort(descending=True, stable=True), TIES),
}


@pytest.mark.peer
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", SAME)
def test_values_gradients_and_types_are_those_of_pytorch(name, dtype):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*degrees of freedom")  # PyTorch's
        assert_same(SAME[name], F, dtype)


INTEGERS = {
    **{name: ELEMENT[name] for name in (
        "abs", "sign", "floor", "ceil", "round", "square", "reciprocal", "rsqrt", "sigmoid", "erf",
        "sin", "cos", "relu", "silu", "leaky_relu", "isnan", "isfinite", "logical_not", "2 **",
        "clamp min")},
    "clamp 0.5": lambda t, f, x: x.clamp(0.5), "clamp": lambda t, f, x: x.clamp(1, 2),
    "% 2": lambda t, f, x: x % 2, "%": lambda t, f, x: 5 % x, "% 2.5": lambda t, f, x: x % 2.5,
    "x % x": lambda t, f, x: x % x, "// 2": lambda t, f, x: x // 2, "//": lambda t, f, x: x // x,
    "// 2.5": lambda t, f, x: x // 2.5, "5 //": lambda t, f, x: 5 // x,
    "maximum": lambda t, f, x: t.maximum(x, x), "where": lambda t, f, x: t.where(x > 1, x, 0.5),
    "where int": lambda t, f, x: t.where(x > 1, x, 7), "x ** x": lambda t, f, x: x ** x,
    "2.5 **": lambda t, f, x: 2.5 ** x, "cumsum": lambda t, f, x: x.cumsum(0),
    "logsumexp": lambda t, f, x: x.logsumexp(0), "topk": lambda t, f, x: x.topk(2)[0],
    "sort": lambda t, f, x: x.sort()[0], "argsort": lambda t, f, x: x.argsort(),
    "& 1": lambda t, f, x: x & 1, "&": lambda t, f, x: x & x, "|": lambda t, f, x: x | True,
    "^": lambda t, f, x: 3 ^ x, "~": lambda t, f, x: ~x, "amax": lambda t, f, x: x.amax(),
    "logical_and": lambda t, f, x: t.logical_and(x, x),
    "min": lambda t, f, x: x.min(), "argmin": lambda t, f, x: x.argmin(), "argmax 0":
    lambda t, f, x: x.argmax(0), "any": lambda t, f, x: x.any(), "all 0": lambda t, f, x: x.all(0),
    "prod": lambda t, f, x: x.prod(), "var": lambda t, f, x: x.var(),
    "norm": lambda t, f, x: x.norm(),
    "zeros_like": lambda t, f, x: t.zeros_like(x), "full_like": lambda t, f, x: t.full_like(x, 1),
}


@pytest.mark.peer
@pytest.mark.parametrize("dtype", ["float16", "int64", "int32", "uint8", "bool"])
@pytest.mark.parametrize("name", INTEGERS)
def test_each_type_gives_the_values_and_types_of_pytorch_or_is_refused_by_both(name, dtype):
    torch = pytest.importorskip("torch")
    array = np.array([3, 1, 2]).astype(dtype)
    errors = (TypeError, RuntimeError, ValueError)
    try:
        yours = INTEGERS[name](torch, torch.nn.functional, torch.from_numpy(array)).numpy()
    except errors:
        with pytest.raises(errors) as info:
            INTEGERS[name](mp, F, Tensor(array))
        assert "\n" not in str(info.value)
        return
    mine = INTEGERS[name](mp, F, Tensor(array)).numpy()
    assert mine.dtype == yours.dtype and mine.shape == yours.shape
    np.testing.assert_allclose(mine, yours, 2e-3 if dtype == "float16" else 1e-6)


TYPES = ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")
TOGETHER = {
    "maximum": lambda t, x, y: t.maximum(x, y), "where": lambda t, x, y: t.where(x == x, x, y),
    "**": lambda t, x, y: x ** y, "%": lambda t, x, y: x % y, "//": lambda t, x, y: x // y,
    "clamp": lambda t, x, y: x.clamp(y)}


@pytest.mark.peer
@pytest.mark.parametrize("first", TYPES)
@pytest.mark.parametrize("second", TYPES)
def test_two_types_together_are_the_type_that_pytorch_makes_of_them(first, second):
    torch = pytest.importorskip("torch")
    for a_shape, b_shape in [((2,), (2,)), ((2,), ()), ((), (2,)), ((), ())]:
        a, b = np.ones(a_shape, first), np.ones(b_shape, second)
        for name, operation in TOGETHER.items():
            if first == second == "bool" and name in ("**", "%", "//"):
                continue  # refused by both, see above
            mine = operation(mp, Tensor(a), Tensor(b))
            yours = operation(torch, torch.from_numpy(a), torch.from_numpy(b))
            assert f"torch.{mine.dtype.name}" == str(yours.dtype), (name, a_shape, b_shape)
