"""The engine: what backward() does with a graph, its leaves and its memory.

Behaviour that PyTorch defines is compared with PyTorch where it is installed (marked `peer`).
"""

import gc
import threading
import weakref

import numpy as np
import pytest
from gradcheck import gradcheck

import minipar as mp
from minipar.context import current
from minipar.ops.loss import cross_entropy
from minipar.tensor import Tensor, backward, record

pytestmark = pytest.mark.filterwarnings("error")


def leaf(*values):
    return mp.tensor(values, dtype=mp.float64, requires_grad=True)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# --------------------------------------------------------------------------------- leaves

def test_gradients_of_several_backwards_add_up():
    x = leaf(1.0, 2.0)
    assert x.grad is None
    (x * 3).sum().backward()
    (x * x).sum().backward()
    assert x.grad.tolist() == [5, 7]


def test_after_a_reset_the_first_gradient_assigns_and_the_buffer_stays():
    x = leaf(1.0, 2.0)
    (x * 3).sum().backward()
    buffer = x.sink.buffer
    x.grad = None
    assert x.grad is None
    buffer.fill(np.nan)  # whatever is left there must not be added to
    (x * 2).sum().backward()
    assert x.sink.buffer is buffer and x.grad.tolist() == [2, 2]


def test_a_gradient_that_is_set_is_added_to():
    x = leaf(1.0, 2.0)
    x.grad = mp.tensor([10.0, 20.0])
    (x * 3).sum().backward()
    assert x.grad.tolist() == [13, 23]


def test_a_leaf_that_is_not_used_has_no_gradient():
    x, unused, constant = leaf(1.0), leaf(2.0), mp.tensor([3.0])
    y = (x * constant + unused.detach()).sum()
    y.backward()
    assert unused.grad is None and constant.grad is None and x.grad.tolist() == [3]


def test_the_gradient_shares_no_memory_with_what_the_caller_gave():
    x, given = leaf(1.0, 2.0), np.array([5.0, 6.0])
    y = x.reshape(2)
    y.backward(given)
    y = x + 0
    y.backward(given)
    assert given.tolist() == [5, 6] and not np.shares_memory(x.grad.array, given)
    assert x.grad.tolist() == [10, 12]


def test_a_given_gradient_takes_the_type_of_its_tensor():
    seen = []
    x = Tensor(np.ones(2, np.float32), requires_grad=True)
    y = record(x.array * 2, (x,), lambda g: (seen.append(g.dtype), g * 2)[1:])
    y.backward(np.ones(2))
    assert seen == [np.float32] and x.grad.dtype is mp.float32


def test_only_floating_tensors_outside_a_graph_choose_requires_grad():
    with pytest.raises(RuntimeError, match="only floating types"):
        mp.tensor([1, 2], requires_grad=True)
    y = leaf(1.0) * 2
    with pytest.raises(RuntimeError, match="only a leaf"):
        y.requires_grad_(False)
    assert y.requires_grad and not y.is_leaf and not y.detach().requires_grad


@pytest.mark.parametrize("start, gradient, message", [
    (lambda: mp.tensor([1.0]), None, "does not require grad"),
    (lambda: leaf(1.0, 2.0) * 2, None, r"needs one element, not shape \(2,\)"),
    (lambda: leaf(1.0, 2.0) * 2, [1.0], r"shape \(1,\) for a tensor of \(2,\)")])
def test_a_backward_that_cannot_start_says_why(start, gradient, message):
    with pytest.raises(RuntimeError, match=message):
        start().backward(gradient)


# ------------------------------------------------------------------- gradients that are shared

SHARED = {
    "x + x": lambda x: x + x,
    "x + f(x)": lambda x: x + x.exp(),
    "f(x) + x": lambda x: x.exp() + x,
    "y + y + y": lambda x: (lambda y: y + y + y)(x * 2),
    "x - x f(x)": lambda x: x - x * x.tanh(),
    "two views": lambda x: x.reshape(3, 2).sum(0).sum() * x.T.reshape(2, 3) + x,
    "residuals": lambda x: (lambda y: y + y.tanh())((lambda y: y + y.exp())(x + 1)),
    "sum and use": lambda x: (lambda y: y.sum() * y + y)(x * 1),
    "slices and use": lambda x: (lambda y: y[:1] * y[1:] + y + y.sum(0))(x * 1),
    "mean twice": lambda x: (lambda y: y.mean() + y.mean(0) + y)(x * 1),
    "0-d, thrice": lambda x: (lambda y: y * 2 + y * 3 + y[None] * y[None] + y)(x.sum() * 1),
    "0-d, a sum last": lambda x: (lambda y: y.sum() + y * 2 + y * 3)(x.sum() * 1),
    "0-d, slices last": lambda x: (lambda y: y[None] + y[...] + y * 2 + y * 3)(x.sum() * 1),
    "concatenated": lambda x: (lambda y: y.reshape(-1)[1:4] + y[0])(x * 2),
    "diamond of diamonds": lambda x: (lambda y: (y + y) * (y + y) + y)((x + x) * (x + x)),
}


@pytest.mark.parametrize("name", SHARED)
def test_shared_gradients_are_not_corrupted(name):
    gradcheck(SHARED[name], normal(2, 3))


@pytest.mark.peer
@pytest.mark.parametrize("seed", range(30))
def test_gradients_of_random_graphs_are_those_of_pytorch(seed):
    torch = pytest.importorskip("torch")

    def build(make):
        rng = np.random.default_rng(seed)
        leaves = [make(rng.standard_normal((2, 4))) for _ in range(3)]
        made = list(leaves)
        for _ in range(25):
            a, b = (made[i] for i in rng.integers(0, len(made), 2))
            made.append([
                lambda: a + b, lambda: a * b, lambda: a - a * 0.5, lambda: a.tanh(),
                lambda: a.softmax(-1), lambda: a[:1] + b, lambda: a[[1, 1]] * b,
                lambda: a + b.sum(), lambda: a + b.mean(1, True), lambda: a.T.reshape(2, 4),
                lambda: a.split([1, 3], 1)[1].sum() * b + a.split(2, 1)[0].sum(),
                lambda: (a @ b.T) @ a, lambda: a.max(1)[0].reshape(2, 1) + b,
                lambda: a + a, lambda: (a[:, 1:3] * b[:, :2]).reshape(-1) .reshape(2, 2) @ b,
            ][rng.integers(15)]())
            made[-1] = made[-1].tanh()
        (made[-1] + made[-2] * made[-3]).sum().backward()
        return [None if t.grad is None else np.asarray(t.grad.tolist()) for t in leaves]
    ours = build(lambda a: Tensor(a, requires_grad=True))
    theirs = build(lambda a: torch.tensor(a, requires_grad=True))
    for mine, yours in zip(ours, theirs):
        assert (mine is None) == (yours is None)
        if mine is not None:
            np.testing.assert_allclose(mine, yours, 1e-10, 1e-12)


def test_a_tied_leaf_gets_the_gradients_of_both_its_uses():
    x, w = normal(2, 3), Tensor(normal(3, 3, seed=1), requires_grad=True)
    y = mp.linear(mp.linear(Tensor(x), w), w)
    y.sum().backward()
    ones = np.ones((2, 3))
    expected = ones.T @ (x @ w.array.T) + (ones @ w.array).T @ x
    np.testing.assert_allclose(w.grad.array, expected, 1e-12)


def test_several_starts_and_one_that_is_a_leaf():
    x, fired = leaf(3.0), []
    x.register_post_accumulate_grad_hook(lambda t: fired.append(t.grad.tolist()))
    y = x * 2
    backward([x, y, y], [None, None, np.array([10.0])])
    assert x.grad.tolist() == [23] and fired == [[23]]


# --------------------------------------------------------------------- graphs, freed and kept

def test_a_graph_is_freed_by_backward_unless_it_is_retained():
    x = leaf(1.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [4]
    with pytest.raises(RuntimeError, match="second time.*retain_graph=True"):
        y.backward()
    assert x.grad.tolist() == [4]


def test_a_start_beside_a_freed_graph_keeps_no_gradient():
    x = leaf(1.0)
    middle = x * 2
    freed, kept = (middle * 1).sum(), (x * 5).sum()
    freed.backward()
    x.grad = None
    with pytest.raises(RuntimeError, match="second time"):
        backward([kept, freed])
    with pytest.raises(RuntimeError, match="needs one element"):
        backward([kept, x * np.ones(2)])
    kept.backward()
    assert x.grad.tolist() == [5]


def test_an_error_inside_a_backward_leaves_no_gradient_behind():
    x, failing = leaf(1.0, 2.0), [True]

    def rule(g):
        if failing:
            raise ArithmeticError("on purpose")
        return (g * 10,)
    y = x * 2
    z = (record(y.array * 10, (y,), rule) + y + y.exp()).sum()
    with pytest.raises(ArithmeticError):
        z.backward(retain_graph=True)
    assert x.grad is None and current().backward_depth == 0
    failing.clear()
    z.backward()
    np.testing.assert_allclose(x.grad.array, 2 * (11 + np.exp(2 * x.array)))


def test_callbacks_after_backward_run_once_and_not_after_an_error():
    x, calls = leaf(1.0), []

    def rule(g):
        current().after_backward.append(lambda: calls.append(x.grad.tolist()))
        return (g,)
    y = record(x.array * 1, (x,), rule)
    y.backward(retain_graph=True)
    y.backward(retain_graph=True)
    assert calls == [[1], [2]]
    z = record(y.array, (record(x.array, (y,), lambda g: 1 / 0),), rule)
    with pytest.raises(ZeroDivisionError):
        z.backward()
    (x * 1).backward()
    assert calls == [[1], [2]]


def test_a_backward_inside_a_backward_belongs_to_another_graph():
    """What recomputation does: run the forward again inside the rule, and backward through it."""
    w, x = leaf(3.0), leaf(2.0)

    def recomputed(t):
        def rule(g):
            inner = Tensor(t.array, requires_grad=True)
            with mp.enable_grad():
                out = (inner * w).tanh()
            out.backward(g)
            return (inner.grad.array,)
        with mp.no_grad():
            out = (t * w).tanh()
        return record(out.array, (t,), rule)
    (recomputed(recomputed(x * 1)) + x).sum().backward()
    nested = w.grad.array.copy(), x.grad.array.copy()
    w.grad = x.grad = None
    ((((x * 1) * w).tanh() * w).tanh() + x).sum().backward()
    np.testing.assert_allclose(nested, (w.grad.array, x.grad.array), 1e-14)


def test_a_chain_of_10000_operations_runs_backward_and_can_be_dropped():
    x = leaf(1.0)

    def chain():
        y = x
        for _ in range(5000):
            y = (y + 0.001) * 1.0
        return y
    chain().backward()
    assert x.grad.tolist() == [1]
    y = chain()
    last = weakref.ref(y)
    del y  # never run backward
    assert last() is None


def test_activations_are_freed_while_backward_goes():
    arrays, alive = [], []

    def probe(t):
        def rule(g):
            alive.append(sum(a() is not None for a in arrays))
            return (g,)
        return record(t.array + 0, (t,), rule)
    y = leaf(*[0.5] * 1000)
    for _ in range(6):
        y = probe(y).exp()  # keeps its output
        arrays.append(weakref.ref(y.array))
    y = y.sum()
    y.backward()
    # When the probe below the i-th exp runs, the exps above it and their arrays are gone.
    assert alive == [5, 4, 3, 2, 1, 0]


def test_a_graph_keeps_no_tensor_alive_in_a_cycle():
    gc.disable()
    try:
        x = leaf(1.0, 2.0)
        y = cross_entropy((x * 2).exp().reshape(1, 2), Tensor(np.array([1])))
        gone = [weakref.ref(y), weakref.ref(x)]
        del x, y
        assert [r() for r in gone] == [None, None]
    finally:
        gc.enable()


# -------------------------------------------------------------------------------- grad mode

def test_no_grad_and_enable_grad_nest_and_decorate():
    x = leaf(1.0)

    @mp.no_grad()
    def without(t):
        """Its documentation."""
        inside = t * 2
        with mp.enable_grad():
            again = t * 2
        return inside.requires_grad, again.requires_grad, (t * 2).requires_grad

    @mp.enable_grad()
    def with_grad(t):
        return (t * 2).requires_grad
    assert without(x) == (False, True, False) and without.__doc__ == "Its documentation."
    assert (x * 2).requires_grad
    with mp.no_grad():
        assert with_grad(x) and not (x * 2).requires_grad
    with pytest.raises(KeyError), mp.no_grad():
        raise KeyError
    assert (x * 2).requires_grad


def test_grad_mode_belongs_to_a_thread():
    x, seen = leaf(1.0), []
    with mp.no_grad():
        thread = threading.Thread(target=lambda: seen.append((x * 2).requires_grad))
        thread.start()
        thread.join()
    assert seen == [True]


def test_no_grad_decorates_with_and_without_parentheses():
    x = mp.tensor(1.0, requires_grad=True)

    @mp.no_grad
    def bare():
        return x * 2

    @mp.no_grad()
    def called():
        return x * 2
    assert not bare().requires_grad and not called().requires_grad and (x * 2).requires_grad
