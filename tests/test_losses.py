"""Losses: weights, class probabilities, smoothed labels, logits. Oracles: closed forms,
differences in float64, PyTorch.

A case is one line: a function of (functional, tensors) that runs with both libraries.
"""

import math

import numpy as np
import pytest
from refusals import assert_pytorch_refuses, assert_refused
from gradcheck import gradcheck

import minipar as mp
import minipar.nn.functional as F
from minipar.tensor import Tensor

pytestmark = pytest.mark.filterwarnings("error")
rng = np.random.default_rng(3)
REDUCTIONS = ("mean", "sum", "none")


def normal(*shape):
    return np.asarray(rng.standard_normal(shape))


def shares(*shape):
    """Probabilities along the dim of the classes."""
    p = np.exp(normal(*shape))
    return p / p.sum(min(len(shape) - 1, 1), keepdims=True)


class C:
    """An argument that takes no gradient: an array that is converted if it is floating."""

    def __init__(self, values):
        self.values = np.asarray(values)


bce = "binary_cross_entropy_with_logits"
A, P, D = normal(3, 4), shares(3, 4), normal(2, 4, 3)
W = np.array([0.5, 2, 0, 3])
T, SOME, NOT = C([1, 0, 3]), C([1, -100, 3]), C([-100] * 3)
TD = C([[0, 3, 1], [-100, 2, 2]])
FAR = A * 1e3
INF = np.array([[np.inf, 0, 1, 2], [-np.inf, 0, 1, -np.inf], [np.nan, 0, 0, 1]])
Y = np.array([[0, 1, 0.3, 0.9], [1, 1, 0, 0], [0.5, 0.25, 0, 1]])
E = np.empty

# name: (function of (functional, **reduction, *tensors), arguments: arrays take gradients)
SAME = {
    "ce weight": (lambda f, x, t, w, **r: f.cross_entropy(x, t, w, **r), A, T, C(W)),
    "ce weight ignored": (lambda f, x, t, w, **r: f.cross_entropy(x, t, w, **r), A, SOME, C(W)),
    "ce weight all ignored": (lambda f, x, t, w, **r: f.cross_entropy(x, t, w, **r), A, NOT, C(W)),
    "ce weight 0": (lambda f, x, t, w, **r: f.cross_entropy(x, t, w, **r), A, C([2, 2, 2]), C(W)),
    "ce weight ignore 1": (lambda f, x, t, w, **r: f.cross_entropy(x, t, w, ignore_index=1, **r),
                           A, T, C(W)),
    "ce weight d": (lambda f, x, t, w, **r: f.cross_entropy(x, t, weight=w, **r), D, TD, C(W)),
    "ce weight (C,)": (lambda f, x, t, w, **r: f.cross_entropy(x, t, w, **r), A[0], C(3), C(W)),
    "ce weight empty": (lambda f, x, t, w, **r: f.cross_entropy(x, t, w, **r), E((0, 4)),
                        C(np.empty(0, int)), C(W)),
    "ce weight far": (lambda f, x, t, w, **r: f.cross_entropy(x, t, w, **r), FAR / 10, T, C(W)),
    "ce weight inf": (lambda f, x, t, w, **r: f.cross_entropy(x, t, w, **r), INF, T, C(W)),
    "ce smooth": (lambda f, x, t, **r: f.cross_entropy(x, t, label_smoothing=0.1, **r), A, T),
    "ce smooth 1": (lambda f, x, t, **r: f.cross_entropy(x, t, label_smoothing=1.0, **r), A, T),
    "ce smooth ignored": (lambda f, x, t, **r: f.cross_entropy(x, t, label_smoothing=0.1, **r), A,
                          SOME),
    "ce smooth all ignored": (lambda f, x, t, **r: f.cross_entropy(x, t, label_smoothing=0.1, **r),
                              A, NOT),
    "ce smooth ignore 0": (lambda f, x, t, **r: f.cross_entropy(
        x, t, label_smoothing=0.1, ignore_index=0, **r), A, T),
    "ce smooth d": (lambda f, x, t, **r: f.cross_entropy(x, t, label_smoothing=0.3, **r), D, TD),
    "ce smooth weight": (lambda f, x, t, w, **r: f.cross_entropy(
        x, t, w, label_smoothing=0.3, **r), A, SOME, C(W)),
    "ce smooth weight d": (lambda f, x, t, w, **r: f.cross_entropy(
        x, t, w, label_smoothing=0.3, **r), D, TD, C(W)),
    "ce smooth (C,)": (lambda f, x, t, **r: f.cross_entropy(x, t, label_smoothing=0.1, **r), A[0],
                       C(2)),
    "ce smooth empty": (lambda f, x, t, **r: f.cross_entropy(x, t, label_smoothing=0.1, **r),
                        E((0, 4)), C(np.empty(0, int))),
    "ce smooth inf": (lambda f, x, t, **r: f.cross_entropy(x, t, label_smoothing=0.1, **r), INF, T),
    "ce p": (lambda f, x, p, **r: f.cross_entropy(x, p, **r), A, P),
    "ce p weight": (lambda f, x, p, w, **r: f.cross_entropy(x, p, w, **r), A, P, C(W)),
    "ce p smooth": (lambda f, x, p, **r: f.cross_entropy(x, p, label_smoothing=0.2, **r), A, P),
    "ce p smooth weight": (lambda f, x, p, w, **r: f.cross_entropy(
        x, p, w, label_smoothing=0.2, **r), A, P, C(W)),
    "ce p d": (lambda f, x, p, w, **r: f.cross_entropy(x, p, w, **r), D, shares(2, 4, 3), C(W)),
    "ce p (C,)": (lambda f, x, p, **r: f.cross_entropy(x, p, **r), A[0], P[0]),
    "ce p (C,) weight": (lambda f, x, p, w, **r: f.cross_entropy(x, p, w, **r), A[0], P[0], C(W)),
    "ce p not normal": (lambda f, x, p, **r: f.cross_entropy(x, p, **r), A, A + 1),
    "ce p empty": (lambda f, x, p, **r: f.cross_entropy(x, p, **r), E((0, 4)), E((0, 4))),
    "ce p (2, 4, 0)": (lambda f, x, p, **r: f.cross_entropy(x, p, **r), E((2, 4, 0)), E((2, 4, 0))),
    "ce p no classes": (lambda f, x, p, **r: f.cross_entropy(x, p, **r), E((2, 0)), E((2, 0))),
    "ce p inf": (lambda f, x, p, **r: f.cross_entropy(x, p, **r), INF, P),
    "ce p 0 times inf": (lambda f, x, p, **r: f.cross_entropy(x, p, **r),
                         np.array([[-np.inf, 1.0, 2]]), np.array([[0.0, 0.5, 0.5]])),
    "nll": (lambda f, x, t, **r: f.nll_loss(x, t, **r), A, T),
    "nll ignored": (lambda f, x, t, **r: f.nll_loss(x, t, **r), A, SOME),
    "nll all ignored": (lambda f, x, t, **r: f.nll_loss(x, t, **r), A, NOT),
    "nll ignore 3": (lambda f, x, t, **r: f.nll_loss(x, t, ignore_index=3, **r), A, T),
    "nll weight": (lambda f, x, t, w, **r: f.nll_loss(x, t, w, **r), A, SOME, C(W)),
    "nll weight 0": (lambda f, x, t, w, **r: f.nll_loss(x, t, w, **r), A, C([2, 2, 2]), C(W)),
    "nll d": (lambda f, x, t, **r: f.nll_loss(x, t, **r), D, TD),
    "nll (N, C, 2, 1)": (lambda f, x, t, w, **r: f.nll_loss(x, t, w, **r), normal(3, 4, 2, 1),
                         C(np.arange(6).reshape(3, 2, 1) % 4), C(W)),
    "nll (C,)": (lambda f, x, t, w, **r: f.nll_loss(x, t, w, **r), A[0], C(3), C(W)),
    "nll empty": (lambda f, x, t, **r: f.nll_loss(x, t, **r), E((0, 4)), C(np.empty(0, int))),
    "nll (2, 4, 0)": (lambda f, x, t, **r: f.nll_loss(x, t, **r), E((2, 4, 0)),
                      C(np.empty((2, 0), int))),
    "nll inf": (lambda f, x, t, **r: f.nll_loss(x, t, **r), INF, C([0, 3, 1])),
    "nll inf ignored": (lambda f, x, t, **r: f.nll_loss(x, t, **r), INF, C([-100, -100, 2])),
    "nll uint8": (lambda f, x, t, **r: f.nll_loss(x, t, **r), A, C(T.values.astype(np.uint8))),
    "l1": (lambda f, x, y, **r: f.l1_loss(x, y, **r), A, P), "l1 0": (
        lambda f, x, y, **r: f.l1_loss(x, y, **r), A, A.copy()),
    "l1 inf": (lambda f, x, y, **r: f.l1_loss(x, y, **r), INF, A),
    "l1 inf inf": (lambda f, x, y, **r: f.l1_loss(x, y, **r), INF, INF.copy()),
    "l1 0-d": (lambda f, x, y, **r: f.l1_loss(x, y, **r), np.array(1.0), np.array(-2.0)),
    "l1 empty": (lambda f, x, y, **r: f.l1_loss(x, y, **r), E((0, 3)), E((0, 3))),
    "l1 integers": (lambda f, x, y, **r: f.l1_loss(x, y, **r), A, C(np.arange(12).reshape(3, 4))),
    "bce": (lambda f, x, y, **r: getattr(f, bce)(x, y, **r), A, Y),
    "bce far": (lambda f, x, y, **r: getattr(f, bce)(x, y, **r), FAR, Y),
    "bce weight": (lambda f, x, y, w, **r: getattr(f, bce)(x, y, w, **r), A, Y, C(W)),
    "bce weight column": (lambda f, x, y, w, **r: getattr(f, bce)(x, y, w, **r), A, Y,
                          C(W[:3, None])),
    "bce weight 0-d": (lambda f, x, y, w, **r: getattr(f, bce)(x, y, w, **r), A, Y, C(2.5)),
    "bce pos_weight": (lambda f, x, y, w, **r: getattr(f, bce)(x, y, pos_weight=w, **r), A, Y,
                       C(W)),
    "bce both": (lambda f, x, y, w, v, **r: getattr(f, bce)(x, y, w, pos_weight=v, **r), A, Y,
                 C(W[:3, None]), C(W)),
    "bce at 0": (lambda f, x, y, **r: getattr(f, bce)(x, y, **r), np.zeros((3, 4)), Y),
    "bce inf": (lambda f, x, y, **r: getattr(f, bce)(x, y, **r), INF, Y),
    "bce inf pos_weight": (lambda f, x, y, w, **r: getattr(f, bce)(x, y, pos_weight=w, **r), INF, Y,
                           C(W)),
    "bce 0-d": (lambda f, x, y, **r: getattr(f, bce)(x, y, **r), np.array(1.0), np.array(0.25)),
    "bce 0-d both": (lambda f, x, y, w, v, **r: getattr(f, bce)(x, y, w, pos_weight=v, **r),
                     np.array(1.0), np.array(0.25), C(2.0), C(3.0)),
    "bce empty": (lambda f, x, y, **r: getattr(f, bce)(x, y, **r), E((0, 3)), E((0, 3))),
    "bce integers as weight": (lambda f, x, y, w, **r: getattr(f, bce)(x, y, w, pos_weight=w, **r),
                               A, Y, C([1, 2, 3, 4])),
}


def cast(a, dtype):
    values = a.values if isinstance(a, C) else a
    return np.array(values, dtype if values.dtype.kind == "f" else values.dtype)


def call(functional, make, function, arguments, reduction, dtype):
    """(loss, gradients of its sum weighted with 1, 2, ...) as NumPy arrays."""
    inputs = [make(cast(a, dtype)) for a in arguments]
    for t, a in zip(inputs, arguments):
        t.requires_grad_(not isinstance(a, C))
    out = function(functional, *inputs, reduction=reduction)
    weights = np.asarray(np.arange(1.0, out.numel() + 1).reshape(tuple(out.shape)) % 3 + 1)
    out.backward(make(weights.astype(str(out.dtype).split(".")[1])))
    return [out.detach().numpy(),
            *(t.grad.detach().numpy() for t in inputs if t.requires_grad)]


@pytest.mark.peer
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", SAME)
def test_losses_gradients_and_types_are_those_of_pytorch(name, reduction, dtype):
    torch = pytest.importorskip("torch")
    function, *arguments = SAME[name]
    ours = call(F, Tensor, function, arguments, reduction, dtype)
    theirs = call(torch.nn.functional, torch.from_numpy, function, arguments, reduction, dtype)
    tolerance = {np.float16: 1e-2, np.float32: 3e-6, np.float64: 1e-13}[dtype]
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine.dtype == yours.dtype and mine.shape == yours.shape
        np.testing.assert_allclose(mine, yours, tolerance, tolerance)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", [n for n in SAME if not n.endswith(("inf", "far", "l1 0"))
                                  and "inf" not in n])
def test_the_gradient_of_a_loss_agrees_with_differences(name, reduction):
    function, *arguments = SAME[name]
    fixed = [Tensor(a.values) if isinstance(a, C) else None for a in arguments]
    free = [a for a in arguments if not isinstance(a, C)]

    def loss(*tensors):
        given = iter(tensors)
        return function(F, *(next(given) if t is None else t for t in fixed), reduction=reduction)
    with mp.no_grad():
        if np.isnan(loss(*map(Tensor, free)).array).any():
            return  # a mean of nothing
    gradcheck(loss, *free, tolerance=1e-6)
    gradcheck(loss, *(np.asfortranarray(a) if a.ndim else a for a in free), tolerance=1e-6)


def test_cross_entropy_of_one_hot_probabilities_is_that_of_the_indices():
    one_hot = np.eye(4)[T.values]
    for options in ({}, {"label_smoothing": 0.2}, {"reduction": "none"}):
        x, y = Tensor(A, requires_grad=True), Tensor(A, requires_grad=True)
        a = F.cross_entropy(x, Tensor(one_hot), **options)
        b = F.cross_entropy(y, Tensor(T.values), **options)
        np.testing.assert_allclose(a.array, b.array, 1e-14)
        a.sum().backward()
        b.sum().backward()
        np.testing.assert_allclose(x.grad.array, y.grad.array, atol=1e-15)


def test_weights_of_one_change_nothing_and_weights_that_are_whole_numbers_repeat_a_sample():
    plain = F.cross_entropy(Tensor(A), Tensor(T.values)).item()
    ones = F.cross_entropy(Tensor(A), Tensor(T.values), Tensor(np.ones(4))).item()
    assert math.isclose(plain, ones, rel_tol=1e-14)
    counts = np.array([2, 1, 5, 3])
    weighted = F.cross_entropy(Tensor(A), Tensor(T.values), Tensor(counts * 1.0)).item()
    rows = np.repeat(np.arange(3), counts[T.values])
    repeated = F.cross_entropy(Tensor(A[rows]), Tensor(T.values[rows])).item()
    assert math.isclose(weighted, repeated, rel_tol=1e-14)


def test_logits_of_any_size_have_a_finite_binary_cross_entropy():
    x = Tensor(np.array([-1e30, -800.0, 0, 800, 1e30]), requires_grad=True)
    loss = F.binary_cross_entropy_with_logits(x, Tensor(np.array([0.0, 1, 1, 0, 1])),
                                              reduction="none")
    np.testing.assert_allclose(loss.array, [0, 800, math.log(2), 800, 0], 1e-15)
    loss.sum().backward()
    assert x.grad.tolist() == [0, -1, -0.5, 1, 0]


def test_a_target_or_weight_that_changes_before_backward_is_found():
    for change, loss in (
            (P.copy(), lambda x, t: F.cross_entropy(x, t)),
            (Y.copy(), lambda x, t: F.binary_cross_entropy_with_logits(x, t)),
            (W.copy(), lambda x, t: F.binary_cross_entropy_with_logits(x, Tensor(Y), t)),
            (W.copy(), lambda x, t: F.cross_entropy(x, Tensor(P), t))):
        changed = Tensor(change)
        out = loss(Tensor(A, requires_grad=True), changed)
        changed.add_(1)
        with pytest.raises(RuntimeError, match="changed in place"):
            out.backward()


def V(t, *values):
    return t.tensor(values, dtype=t.float64)


REFUSED = {  # name: (function of (library, functional, x of (3, 4)), what our message must say)
    "smooth 1.5": (lambda t, f, x: f.cross_entropy(x, t.tensor([0, 1, 2]), label_smoothing=1.5),
                   "label_smoothing 1.5 is not from 0 to 1"),
    "p and ignore_index": (lambda t, f, x: f.cross_entropy(x, x, ignore_index=1),
                           "ignore_index 1 is for class indices"),
    "p shape": (lambda t, f, x: f.cross_entropy(x, x[:2]), "not minipar.float64"),
    "p 0-d": (lambda t, f, x: f.cross_entropy(x[0, 0], x[0, 0]), "0-d"),
    "p of integers": (lambda t, f, x: f.cross_entropy(x, x.long()),
                      r"\(3, 4\) and target \(3, 4\)"),
    "p to integers": (lambda t, f, x: f.cross_entropy(x.long(), x), "floating type"),
    "weight shape": (lambda t, f, x: f.cross_entropy(x, t.tensor([0, 1, 2]), V(t, 1, 1, 1)),
                     r"weight \(3,\) for 4 classes: expected \(4,\)"),
    "weight shape p": (lambda t, f, x: f.cross_entropy(x, x, V(t, 1, 1, 1)), r"weight \(3,\)"),
    "weight 2-d": (lambda t, f, x: f.cross_entropy(x, x, x[:1]), r"weight \(1, 4\)"),
    "weight type": (lambda t, f, x: f.cross_entropy(x, t.tensor([0, 1, 2]), x[0].float()),
                    "weight minipar.float32 and input minipar.float64"),
    "weight gradient": (lambda t, f, x: f.cross_entropy(
        x, t.tensor([0, 1, 2]), V(t, 1, 1, 1, 1).requires_grad_()), "weight is a constant"),
    "weight target": (lambda t, f, x: f.cross_entropy(x, t.tensor([0, 4, 2]), x[0]),
                      "target 4 is not one of 4 classes"),
    "weight reduction": (lambda t, f, x: f.cross_entropy(x, t.tensor([0, 1, 2]), x[0],
                                                         reduction="x"), "'x' is none of"),
    "p reduction": (lambda t, f, x: f.cross_entropy(x, x, reduction="x"), "'x' is none of"),
    "nll target": (lambda t, f, x: f.nll_loss(x, t.tensor([0, -1, 2])),
                   "^nll_loss: target -1 is not one of 4 classes$"),
    "nll float target": (lambda t, f, x: f.nll_loss(x, x), "nll_loss: targets are class indices"),
    "nll shape": (lambda t, f, x: f.nll_loss(x, t.tensor([0, 1])), r"\(3, 4\) and target \(2,\)"),
    "nll integers": (lambda t, f, x: f.nll_loss(x.long(), t.tensor([0, 1, 2])), "floating type"),
    "nll 0-d": (lambda t, f, x: f.nll_loss(x[0, 0], t.tensor(0)), r"\(\)"),
    "nll weight": (lambda t, f, x: f.nll_loss(x, t.tensor([0, 1, 2]), V(t, 1)), r"weight \(1,\)"),
    "nll reduction": (lambda t, f, x: f.nll_loss(x, t.tensor([0, 1, 2]), reduction="x"), "'x'"),
    "l1 shape": (lambda t, f, x: f.l1_loss(x, x[:2]), r"l1_loss: input \(3, 4\) and target \(2, 4"),
    "l1 integers": (lambda t, f, x: f.l1_loss(x.long(), x.long()), "floating type"),
    "l1 reduction": (lambda t, f, x: f.l1_loss(x, x, reduction="x"), "'x'"),
    "bce shape": (lambda t, f, x: f.binary_cross_entropy_with_logits(x, x[:1]),
                  r"input \(3, 4\) and target \(1, 4\)"),
    "bce integers": (lambda t, f, x: f.binary_cross_entropy_with_logits(x.long(), x),
                     "minipar.int64 and minipar.float64"),
    "bce integer target": (lambda t, f, x: f.binary_cross_entropy_with_logits(x, x.long()),
                           "minipar.float64 and minipar.int64"),
    "bce weight": (lambda t, f, x: f.binary_cross_entropy_with_logits(x, x, x[0, :3]),
                   r"weight \(3,\) cannot be broadcast to \(3, 4\)"),
    "bce weight larger": (lambda t, f, x: f.binary_cross_entropy_with_logits(x[0], x[0], x),
                          r"weight \(3, 4\) cannot be broadcast to \(4,\)"),
    "bce pos_weight": (lambda t, f, x: f.binary_cross_entropy_with_logits(x, x, pos_weight=x[:, 0]),
                       r"pos_weight \(3,\) cannot"),
    "bce gradient": (lambda t, f, x: f.binary_cross_entropy_with_logits(
        x, x, V(t, 1).requires_grad_()), "weight is a constant"),
    "bce pos gradient": (lambda t, f, x: f.binary_cross_entropy_with_logits(
        x, x, pos_weight=V(t, 1).requires_grad_()), "pos_weight is a constant"),
    "bce reduction": (lambda t, f, x: f.binary_cross_entropy_with_logits(x, x, reduction="x"),
                      "'x'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_input_is_refused_in_words(name):
    function, message = REFUSED[name]
    assert_refused(lambda: function(mp, F, Tensor(A)), message)


@pytest.mark.peer
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_by_pytorch_too(name):
    assert_pytorch_refuses(REFUSED[name][0], A)
