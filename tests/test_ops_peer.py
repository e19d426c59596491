"""Values, gradients, types and refusals of the operations beside PyTorch's (marked `peer`).

A case is one line: a function of (library, functional, tensors) that runs with both. Warnings are
errors here: no operation lets NumPy's reach the user.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from refusals import assert_pytorch_refuses, assert_refused

import minipar as mp
from minipar.ops.loss import cross_entropy, mse_loss
from minipar.tensor import Tensor

# What torch.nn.functional has of these operations, without the layers that nn adds.
F = SimpleNamespace(cross_entropy=cross_entropy, mse_loss=mse_loss, softmax=mp.softmax,
                    log_softmax=mp.log_softmax, relu=mp.relu, gelu=mp.gelu, linear=mp.linear)

pytestmark = pytest.mark.filterwarnings("error")
rng = np.random.default_rng(7)


def normal(*shape):
    return np.asarray(rng.standard_normal(shape))


E = np.empty
HALF_INF = np.array([[-np.inf, 0, 1], [-np.inf] * 3, [np.inf, 0, 1], [np.nan, 0, np.inf]])
TIES = np.array([[1.0, 3, 3], [2, 2, 0]])
A, B, P = normal(3, 4), normal(4), np.abs(normal(3, 4)) + 0.5
TARGET = np.array([1, 0, 3])
SOME = np.array([1, -100, 3])


def T(array, dtype=None):
    """An argument that is a tensor but takes no gradient."""
    return ("tensor", np.asarray(array, dtype))


# name: (function of (library, functional, x, ...), arguments: floating arrays take gradients)
SAME = {
    "add": (lambda t, f, x, y: x + y, A, B), "sub": (lambda t, f, x, y: x - y, A, B),
    "mul": (lambda t, f, x, y: x * y, A, B), "div": (lambda t, f, x, y: x / y, A, P),
    "div 0": (lambda t, f, x, y: x / y, A, np.zeros((3, 4))),
    "0-d operand": (lambda t, f, x, y: x * y + y, A, np.array(2.0)),
    "radd": (lambda t, f, x: 2 + x, A), "rsub": (lambda t, f, x: 2 - x, A),
    "rdiv": (lambda t, f, x: 2 / x, P), "rmul NumPy": (lambda t, f, x: np.float64(2) * x, A),
    "add NumPy": (lambda t, f, x: x + np.float64(2), A),
    "pow 2": (lambda t, f, x: x ** 2, A), "pow 0.5": (lambda t, f, x: x ** 0.5, P),
    "pow -1": (lambda t, f, x: x ** -1, P), "pow 0 at 0": (lambda t, f, x: x ** 0, np.zeros(2)),
    "exp": (lambda t, f, x: t.exp(x), A), "exp overflow": (lambda t, f, x: t.exp(x), A * 1000),
    "log": (lambda t, f, x: t.log(x), P), "log of 0, -1": (lambda t, f, x: t.log(x), -TIES + 2),
    "sqrt": (lambda t, f, x: t.sqrt(x), P), "sqrt of 0, -1": (lambda t, f, x: t.sqrt(x), -TIES + 2),
    "tanh": (lambda t, f, x: t.tanh(x), A), "relu": (lambda t, f, x: f.relu(x), A),
    "relu 0 NaN": (lambda t, f, x: f.relu(x), np.array([0.0, np.nan, -1, np.inf])),
    "gelu": (lambda t, f, x: f.gelu(x, approximate="tanh"), A),
    "gelu large": (lambda t, f, x: f.gelu(x, approximate="tanh"), np.array([300.0, -300, 60])),
    "matmul": (lambda t, f, x, y: x @ y, A, normal(4, 2)), "dot": (lambda t, f, x, y: x @ y, B, B),
    "linear": (lambda t, f, x, w, b: f.linear(x, w, b), A, normal(2, 4), normal(2)),
    "sum": (lambda t, f, x: x.sum(), A), "sum 0": (lambda t, f, x: t.sum(x, 0), A),
    "sum dims": (lambda t, f, x: x.sum((0, -1), keepdim=True), normal(2, 3, 4)),
    "sum ()": (lambda t, f, x: x.sum(()), A), "sum []": (lambda t, f, x: x.sum([]), A),
    "sum 0-d": (lambda t, f, x: x.sum(0) + x.sum(-1) + x.sum(), np.array(3.0)),
    "sum empty": (lambda t, f, x: x.sum(), E((0, 3))),
    "sum empty 0": (lambda t, f, x: x.sum(0), E((0, 3))),
    "sum to empty": (lambda t, f, x: x.sum(1), E((0, 3))),
    "sum overflow": (lambda t, f, x: x.sum(), np.full(9, 6e4)),
    "mean": (lambda t, f, x: x.mean(), A), "mean 1": (lambda t, f, x: t.mean(x, 1, True), A),
    "mean large": (lambda t, f, x: x.mean(), np.full(4000, 100.0)),
    "mean empty": (lambda t, f, x: x.mean(), E(0)),
    "mean empty 0": (lambda t, f, x: x.mean(0), E((0, 3))),
    "max": (lambda t, f, x: x.max(), A), "max ties": (lambda t, f, x: x.max(), TIES),
    "max NaN": (lambda t, f, x: x.max(), HALF_INF),
    "max 0-d": (lambda t, f, x: x.max(), np.array(2.0)),
    "max 1": (lambda t, f, x: t.max(x, 1)[0], TIES),
    "max 0 kept": (lambda t, f, x: x.max(0, True).values, TIES),
    "max indices": (lambda t, f, x: x.max(1).indices, TIES),
    "max 1 NaN": (lambda t, f, x: x.max(1).values, HALF_INF),
    "max 0 of 0-d": (lambda t, f, x: x.max(0, True)[0], np.array(3.0)),
    "max to empty": (lambda t, f, x: x.max(1)[0], E((0, 3))),
    "argmax": (lambda t, f, x: x.argmax(), TIES),
    "argmax 1": (lambda t, f, x: t.argmax(x, 1), TIES),
    "argmax kept": (lambda t, f, x: x.argmax(0, True), HALF_INF),
    "argmax all kept": (lambda t, f, x: x.argmax(keepdim=True), TIES),
    "argmax 0-d": (lambda t, f, x: x.argmax(0), np.array(3.0)),
    "reshape": (lambda t, f, x: x.reshape(2, -1), A),
    "reshape ()": (lambda t, f, x: x.reshape(()), np.ones(1)),
    "reshape empty": (lambda t, f, x: x.reshape(-1, 3), E((0, 3))),
    "reshape tuple": (lambda t, f, x: t.reshape(x, (4, 3)), A),
    "view": (lambda t, f, x: x.view(12), A),
    "flatten": (lambda t, f, x: x.flatten(1), normal(2, 3, 4)),
    "flatten 0-d": (lambda t, f, x: x.flatten(), np.array(1.0)),
    "flatten 0, 1": (lambda t, f, x: t.flatten(x, 0, -2), normal(2, 3, 4)),
    "transpose": (lambda t, f, x: x.transpose(-1, 0), normal(2, 3, 4)),
    "T": (lambda t, f, x: x.T, A),
    "permute": (lambda t, f, x: x.permute(2, 0, -2), normal(2, 3, 4)),
    "permute tuple": (lambda t, f, x: x.permute((1, 0)), A),
    "cat": (lambda t, f, x, y: t.cat([x, y, x], 1), A, normal(3, 2)),
    "cat types": (lambda t, f, x, y: t.cat([x, y]), A, T(np.ones((1, 4)), np.int64)),
    "split": (lambda t, f, x: x.split(3, 1)[1] * 2, A),
    "split sizes": (lambda t, f, x: t.cat(x.split([1, 2]), 0), A),
    "softmax": (lambda t, f, x: t.softmax(x, -1), A),
    "softmax 0": (lambda t, f, x: f.softmax(x, 0), A),
    "softmax inf": (lambda t, f, x: x.softmax(1), HALF_INF),
    "softmax 0 inf": (lambda t, f, x: x.softmax(0), HALF_INF.T),
    "softmax far rows": (lambda t, f, x: x.softmax(1), A + np.array([[0.0], [1e4], [-1e4]])),
    "softmax 0-d": (lambda t, f, x: x.softmax(0), np.array(2.0)),
    "softmax (3, 0)": (lambda t, f, x: x.softmax(1), E((3, 0))),
    "softmax 3-d 1": (lambda t, f, x: x.softmax(1), normal(2, 3, 4)),
    "log_softmax": (lambda t, f, x: t.log_softmax(x, 1), A),
    "log_softmax 0": (lambda t, f, x: x.log_softmax(0), A),
    "log_softmax inf": (lambda t, f, x: f.log_softmax(x, dim=1), HALF_INF),
    "log_softmax 0-d": (lambda t, f, x: x.log_softmax(-1), np.array(2.0)),
    "cross_entropy": (lambda t, f, x, y: f.cross_entropy(x, y), A, T(TARGET)),
    "cross_entropy sum": (lambda t, f, x, y: f.cross_entropy(x, y, reduction="sum"), A, T(TARGET)),
    "cross_entropy none": (lambda t, f, x, y: f.cross_entropy(x, y, reduction="none"), A, T(SOME)),
    "cross_entropy ignored": (lambda t, f, x, y: f.cross_entropy(x, y), A, T(SOME)),
    "cross_entropy ignore 1": (lambda t, f, x, y: f.cross_entropy(x, y, ignore_index=1), A,
        T(TARGET)),
    "cross_entropy ignore 9": (lambda t, f, x, y: f.cross_entropy(x, y, ignore_index=9), A,
        T([9, 1, 2])),
    "cross_entropy all ignored": (lambda t, f, x, y: f.cross_entropy(x, y), A, T([-100] * 3)),
    "cross_entropy all ignored, sum": (lambda t, f, x, y: f.cross_entropy(x, y, reduction="sum"),
        A, T([-100] * 3)),
    "cross_entropy inf": (lambda t, f, x, y: f.cross_entropy(x, y, reduction="none"), HALF_INF,
        T([0, 1, 1, 2])),
    "cross_entropy inf ignored": (lambda t, f, x, y: f.cross_entropy(x, y), HALF_INF,
        T([1, -100, -100, -100])),
    "cross_entropy far": (lambda t, f, x, y: f.cross_entropy(x, y), A * 1e4, T(TARGET)),
    "cross_entropy (C,)": (lambda t, f, x, y: f.cross_entropy(x, y), B, T(2)),
    "cross_entropy (N, C, d)": (lambda t, f, x, y: f.cross_entropy(x, y), normal(2, 3, 4),
        T(rng.integers(0, 3, (2, 4)))),
    "cross_entropy empty": (lambda t, f, x, y: f.cross_entropy(x, y), E((0, 3)), T([], np.int64)),
    "cross_entropy empty sum": (lambda t, f, x, y: f.cross_entropy(x, y, reduction="sum"),
        E((0, 3)), T([], np.int64)),
    "cross_entropy uint8": (lambda t, f, x, y: f.cross_entropy(x, y), A, T(TARGET, np.uint8)),
    "mse": (lambda t, f, x, y: f.mse_loss(x, y), A, P),
    "mse sum": (lambda t, f, x, y: f.mse_loss(x, y, reduction="sum"), A, P),
    "mse none": (lambda t, f, x, y: f.mse_loss(x, y, reduction="none"), A, P),
    "mse integers": (lambda t, f, x, y: f.mse_loss(x, y), A, T(np.ones((3, 4)), np.int64)),
    "mse empty": (lambda t, f, x, y: f.mse_loss(x, y), E(0), E(0)),
    "eq": (lambda t, f, x, y: x == y, TIES, np.floor(TIES)), "lt": (lambda t, f, x: x < 2, TIES),
    "le": (lambda t, f, x: 2 <= x, TIES), "ne": (lambda t, f, x: x != 2.5, HALF_INF),
    "ge": (lambda t, f, x, y: x.ge(y), A, B), "gt": (lambda t, f, x: x > 0.1, np.array([0.1, 0.2])),
    "eq int": (lambda t, f, x, y: x == y, np.array([1.0, 2.5]), T([1, 2])),
    "mask": (lambda t, f, x: x[x > 0], A),
    "float of bools": (lambda t, f, x: (x > 0).float().mean(), A),
    "chunks": (lambda t, f, x: x[1:, ::2] * x[0, 1], A),
    "rows": (lambda t, f, x, i: x[i] * x[i], A, T([0, 0, 2])),
    "to double": (lambda t, f, x: x.double() * 2, A),
    "to float": (lambda t, f, x: x.float() * 2, A),
    "to half": (lambda t, f, x: x.half(), A), "to long": (lambda t, f, x: (x * 3).long(), A),
    "types": (lambda t, f, x, y: x * y + y, A, T(np.ones(4), np.int64)),
    "0-d of a wider type": (lambda t, f, x, y: x * y, A, T(1.5, np.float64)),
    "0-d of a higher kind": (lambda t, f, x, y: x + y, T([1, 2], np.int32), np.array(1.5)),
}


def call(library, make, function, functional, arguments, dtype):
    """(result, gradients of its sum weighted with 1, 2, ...) as NumPy arrays."""
    inputs = []
    for a in arguments:
        fixed = isinstance(a, tuple)
        array = np.array(a[1] if fixed else a.astype(dtype))
        inputs.append(make(array, not fixed))
    with np.errstate(all="ignore"):
        out = function(library, functional, *inputs)
    grads = [None] * len(inputs)
    if out.requires_grad:
        weights = np.arange(1, out.numel() + 1).reshape(tuple(out.shape)) % 7 + 1
        out.backward(make(np.asarray(weights, str(out.dtype).split(".")[1]), False))
        grads = [None if t.grad is None else t.grad.detach().numpy() for t in inputs]
    return out.detach().numpy(), grads


def assert_same(case, functional, dtype):
    """Values, gradients, shapes and types of `case`, a line of SAME, are those of PyTorch."""
    torch = pytest.importorskip("torch")
    function, *arguments = case
    ours = call(mp, lambda a, grad: Tensor(a, requires_grad=grad), function, functional, arguments,
                dtype)
    theirs = call(torch, lambda a, grad: torch.from_numpy(a).requires_grad_(grad), function,
                  torch.nn.functional, arguments, dtype)
    tolerance = {np.float16: 4e-3, np.float32: 3e-6, np.float64: 1e-14}[dtype]
    for mine, yours in zip([ours[0], *ours[1]], [theirs[0], *theirs[1]]):
        assert (mine is None) == (yours is None)
        if mine is not None:
            assert mine.dtype == yours.dtype and mine.shape == yours.shape
            np.testing.assert_allclose(mine, yours, tolerance, tolerance)


@pytest.mark.peer
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", SAME)
def test_values_gradients_and_types_are_those_of_pytorch(name, dtype):
    assert_same(SAME[name], F, dtype)


INTEGERS = {
    "sum": lambda t, x: x.sum(), "sum 0": lambda t, x: x.sum(0, keepdim=True),
    "max": lambda t, x: x.max(), "max 0": lambda t, x: x.max(0)[0], "add": lambda t, x: x + x,
    "mul float": lambda t, x: x * 1.5, "add int": lambda t, x: x + 1, "div": lambda t, x: x / x,
    "div int": lambda t, x: x / 2, "exp": lambda t, x: t.exp(x), "sqrt": lambda t, x: t.sqrt(x),
    "pow 2": lambda t, x: x ** 2, "pow 0.5": lambda t, x: x ** 0.5, "tanh": lambda t, x: t.tanh(x),
    "compare": lambda t, x: x < 2, "double": lambda t, x: x.double(), "long": lambda t, x: x.long(),
    "cat": lambda t, x: t.cat([x, x]),
    "index": lambda t, x: x[1:],
    "reshape": lambda t, x: x.view(3, 1),
    "rdiv": lambda t, x: 1 / x, "rsub": lambda t, x: 5 - x, "matmul": lambda t, x: x @ x,
}


@pytest.mark.peer
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool"])
@pytest.mark.parametrize("name", INTEGERS)
def test_integers_give_the_values_and_types_of_pytorch(name, dtype):
    torch = pytest.importorskip("torch")
    if dtype == "bool" and name in ("rsub", "matmul", "pow 2"):
        pytest.skip("refused by PyTorch, or nobody's business")
    array = np.array([3, 1, 2]).astype(dtype)
    mine = INTEGERS[name](mp, Tensor(array)).numpy()
    yours = INTEGERS[name](torch, torch.from_numpy(array)).numpy()
    assert mine.dtype == yours.dtype and mine.shape == yours.shape
    np.testing.assert_allclose(mine, yours, 1e-6)


@pytest.mark.peer
@pytest.mark.parametrize("first, second", [
    (a, b) for a in ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")
    for b in ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")])
def test_two_types_together_are_the_type_that_pytorch_makes_of_them(first, second):
    torch = pytest.importorskip("torch")
    for a_shape, b_shape in [((2,), (2,)), ((2,), ()), ((), (2,)), ((), ())]:
        a, b = np.ones(a_shape, first), np.ones(b_shape, second)
        for operation in (lambda x, y: x + y, lambda x, y: x * y, lambda x, y: x / y):
            mine = operation(Tensor(a), Tensor(b))
            yours = operation(torch.from_numpy(a), torch.from_numpy(b))
            assert f"torch.{mine.dtype.name}" == str(yours.dtype), (a_shape, b_shape)


# -------------------------------------------------------------------------------- refusals

X = normal(3, 4)
REFUSED = {  # name: (function of (library, functional, x), what our message must say)
    "broadcast": (lambda t, f, x: x + x[:2], r"add: shapes \(3, 4\) and \(2, 4\)"),
    "add None": (lambda t, f, x: x + None, None), "add str": (lambda t, f, x: x + "a", None),
    "compare broadcast": (lambda t, f, x: x == x[:2], r"eq: shapes \(3, 4\) and \(2, 4\)"),
    "compare None": (lambda t, f, x: x < None, None),
    "bool - bool": (lambda t, f, x: (x > 0) - (x > 0), None),
    "-bool": (lambda t, f, x: -(x > 0), None),
    "integer ** -1": (lambda t, f, x: x.long() ** -1, None),
    "gelu of integers": (lambda t, f, x: f.gelu(x.long(), approximate="tanh"), "gelu: a floating"),
    "matmul": (lambda t, f, x: x @ x, r"\(3, 4\) @ \(3, 4\): 4 != 3"),
    "matmul 0-d": (lambda t, f, x: x @ x[0, 0], "at least 1 dim"),
    "matmul types": (lambda t, f, x: x @ x.T.float(), "float64 @ float32"),
    "linear": (lambda t, f, x: f.linear(x, x.T), r"\(3, 4\) and weight \(4, 3\)"),
    "linear types": (lambda t, f, x: f.linear(x, x.float()), "float64 .* float32"),
    "linear bias": (lambda t, f, x: f.linear(x, x, x[0]), r"bias \(4,\)"),
    "sum dim": (lambda t, f, x: x.sum(2), "dim 2 of a tensor with 2 dims"),
    "sum dims": (lambda t, f, x: x.sum((0, -2)), r"dims \(0, -2\)"),
    "sum 0-d dims": (lambda t, f, x: x.sum().sum((0, -1)), r"dims \(0, -1\)"),
    "mean of integers": (lambda t, f, x: x.long().mean(), "mean: a floating type is needed"),
    "max of nothing": (lambda t, f, x: x[:0].max(), r"shape \(0, 4\)"),
    "max along nothing": (lambda t, f, x: x[:0].max(0), r"max: dim 0 of shape \(0, 4\)"),
    "max dim": (lambda t, f, x: x.max(2), "dim 2"),
    "max keepdim": (lambda t, f, x: x.max(keepdim=True), "needs a dim"),
    "max dims": (lambda t, f, x: x.max((0, 1)), None),
    "argmax of nothing": (lambda t, f, x: x[:0].argmax(), r"shape \(0, 4\)"),
    "argmax along nothing": (lambda t, f, x: x[:0].argmax(0), r"dim 0 of shape \(0, 4\)"),
    "reshape": (lambda t, f, x: x.reshape(5, 3),
        r"^reshape: 12 elements do not fit \(5, 3\) = 15$"),
    "reshape -1": (lambda t, f, x: x.reshape(-1, 5),
        r"12 elements do not fit \(-1, 5\): 12 is no multiple of 5"),
    "reshape -1 -1": (lambda t, f, x: x.reshape(-1, -1), "one of them"),
    "reshape -2": (lambda t, f, x: x.reshape(-2, 6), "0 or more"),
    "reshape 0 -1": (lambda t, f, x: x[:0].reshape(0, -1), "may be any size"),
    "view": (lambda t, f, x: x.T.view(12), r"view: shape \(12,\) needs a copy .* use reshape"),
    "flatten": (lambda t, f, x: x.flatten(1, 0), "start_dim 1 stands after"),
    "transpose": (lambda t, f, x: x.transpose(0, 2), "dim 2"),
    "permute few": (lambda t, f, x: x.permute(0), "permute"),
    "permute twice": (lambda t, f, x: x.permute(0, 0), "permute"),
    "index range": (lambda t, f, x: x[3], "3"),
    "index count": (lambda t, f, x: x[0, 0, 0], r"3 dims .* \(3, 4\)"),
    "index step": (lambda t, f, x: x[::-1], "step must be greater than zero"),
    "index float": (lambda t, f, x: x[1.0], "not of float"),
    "index str": (lambda t, f, x: x["a"], "not of str"),
    "index floats": (lambda t, f, x: x[x], "signed integers"),
    "index out": (lambda t, f, x: x[[0, 3]], "3"),
    "index mask": (lambda t, f, x: x[x[:2] > 0], None),
    "cat nothing": (lambda t, f, x: t.cat([]), "no tensors"),
    "cat 0-d": (lambda t, f, x: t.cat([x.sum()]), "0-d"),
    "cat shapes": (lambda t, f, x: t.cat([x, x[:2]], 1), r"\(3, 4\) and \(2, 4\)"),
    "cat ndim": (lambda t, f, x: t.cat([x, x[0]]), r"\(3, 4\) and \(4,\)"),
    "cat dim": (lambda t, f, x: t.cat([x], 2), "dim 2"),
    "split sum": (lambda t, f, x: x.split([1, 1]), r"split: 1 \+ 1 = 2 of 3"),
    "split 0": (lambda t, f, x: x.split(0), "size 0"),
    "split -1": (lambda t, f, x: x.split(-1), "size -1"),
    "split [4, -1]": (lambda t, f, x: x.split([4, -1]), "negative"),
    "split 0-d": (lambda t, f, x: x.sum().split(1), "0-d"),
    "softmax of integers": (lambda t, f, x: x.long().softmax(0), "softmax: a floating type"),
    "softmax dim": (lambda t, f, x: x.softmax(2), "dim 2"),
    "log_softmax of integers": (lambda t, f, x: x.long().log_softmax(0), "log_softmax: a floating"),
    "target": (lambda t, f, x: f.cross_entropy(x, t.tensor([0, 12, 1])),
        "^cross_entropy: target 12 is not one of 4 classes$"),
    "target -1": (lambda t, f, x: f.cross_entropy(x, t.tensor([0, -1, 1])),
        "target -1 is not one of 4"),
    "target = classes": (lambda t, f, x: f.cross_entropy(x, t.tensor([0, 4, -100])), "target 4"),
    "target type": (lambda t, f, x: f.cross_entropy(x, t.tensor([0.0, 1.0, 2.0])),
        "integers, not minipar.float32"),
    "target shape": (lambda t, f, x: f.cross_entropy(x, t.tensor([0, 1])),
        r"\(3, 4\) and target \(2,\)"),
    "target shape d": (lambda t, f, x: f.cross_entropy(x[None], t.tensor([[0, 1, 2]])),
        r"\(1, 3, 4\) and target \(1, 3\)"),
    "no classes": (lambda t, f, x: f.cross_entropy(x[:, :0], t.tensor([0, 0, 0])),
        "not one of 0 classes"),
    "cross_entropy 0-d": (lambda t, f, x: f.cross_entropy(x.sum(), t.tensor(0)), None),
    "cross_entropy of integers": (lambda t, f, x: f.cross_entropy(x.long(), t.tensor([0, 1, 2])),
        "floating type"),
    "cross_entropy reduction": (lambda t, f,
        x: f.cross_entropy(x, t.tensor([0, 1, 2]), reduction="x"), "'x' is none of"),
    "mse reduction": (lambda t, f, x: f.mse_loss(x, x, reduction="x"), "'x' is none of"),
    "mse of integers": (lambda t, f, x: f.mse_loss(x.long(), x.long()), "floating type"),
    "mse shape": (lambda t, f, x: f.mse_loss(x, x[:2]), r"\(3, 4\) and target \(2, 4\)"),
    "dtype": (lambda t, f, x: x.to("float33"), None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_input_is_refused_in_words(name):
    function, message = REFUSED[name]
    assert_refused(lambda: function(mp, F, Tensor(X)), message)


@pytest.mark.peer
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_by_pytorch_too(name):
    assert_pytorch_refuses(REFUSED[name][0], X)
