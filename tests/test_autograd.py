"""The engine: what backward() does with a graph, its leaves and its memory.

Behaviour that PyTorch defines is compared with PyTorch where it is installed (marked `peer`).
"""

import threading
import weakref

import numpy as np
import pytest

import minipar as mp
from minipar.context import current
from minipar.ops.loss import cross_entropy
from minipar.sinks import Deferred
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
    "0-d, slices last": lambda x: (lambda y: y[None] + y[...] + y * 2 + y * 3)(x.sum() * 1),
    "concatenated": lambda x: (lambda y: y.reshape(-1)[1:4] + y[0])(x * 2),
    "diamond of diamonds": lambda x: (lambda y: (y + y) * (y + y) + y)((x + x) * (x + x)),
}


@pytest.mark.parametrize("name", SHARED)
def test_shared_gradients_are_not_corrupted(name):
    from gradcheck import gradcheck
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


# ------------------------------------------------------------------------- in-place changes

IN_PLACE = {  # name: (output, what is then changed in place); c is a constant
    "exp changes": (lambda p, x, c: x.exp(), lambda x, c, y: y),
    "relu's output": (lambda p, x, c: p.relu(x), lambda x, c, y: y),
    "softmax's output": (lambda p, x, c: x.softmax(0), lambda x, c, y: y),
    "a view of exp's output": (lambda p, x, c: x.exp(), lambda x, c, y: y[:1]),
    "a detached exp": (lambda p, x, c: x.exp(), lambda x, c, y: y.detach()),
    "x of log": (lambda p, x, c: x.log(), lambda x, c, y: x),
    "x ** 2": (lambda p, x, c: x ** 2, lambda x, c, y: x),
    "x of x * x": (lambda p, x, c: x * x, lambda x, c, y: x),
    "x of x * c": (lambda p, x, c: x * c, lambda x, c, y: x),
    "c of x * c": (lambda p, x, c: x * c, lambda x, c, y: c),
    "x of x / c": (lambda p, x, c: x / c, lambda x, c, y: x),
    "c of x / c": (lambda p, x, c: x / c, lambda x, c, y: c),
    "c of c / x": (lambda p, x, c: c / x, lambda x, c, y: c),
    "x of x + c": (lambda p, x, c: x + c, lambda x, c, y: x),
    "output of x + c": (lambda p, x, c: x + c, lambda x, c, y: y),
    "x of sum": (lambda p, x, c: x.sum(), lambda x, c, y: x),
    "x of mean": (lambda p, x, c: x.mean(0), lambda x, c, y: x),
    "x of x @ c": (lambda p, x, c: x @ c, lambda x, c, y: x),
    "c of x @ c": (lambda p, x, c: x @ c, lambda x, c, y: c),
    "x of reshape": (lambda p, x, c: x.reshape(3, 1), lambda x, c, y: x),
    "x of x[1:]": (lambda p, x, c: x[1:] * 1, lambda x, c, y: x),
    "x of x[1:] * x[1:]": (lambda p, x, c: x[1:] * x[1:], lambda x, c, y: x),
    "x of cat": (lambda p, x, c: p.cat([x, c]), lambda x, c, y: x),
    "x of softmax": (lambda p, x, c: x.softmax(0), lambda x, c, y: x),
}


def survives(library, tensor, name):
    output, changed = IN_PLACE[name]
    x, c = tensor([1.0, 2.0, 3.0]).requires_grad_(), tensor([4.0, 5.0, 6.0])
    y = output(library, x, c)
    with library.no_grad():
        changed(x, c, y).mul_(2)
    try:
        y.sum().backward()
    except RuntimeError as error:
        assert "inplace" in str(error) or "in place" in str(error)
        return False
    return True


@pytest.mark.peer
@pytest.mark.parametrize("name", IN_PLACE)
def test_backward_refuses_what_was_changed_in_place_as_pytorch_does(name):
    torch = pytest.importorskip("torch")
    assert survives(mp, mp.tensor, name) == survives(torch, torch.tensor, name)


def test_the_error_of_an_in_place_change_names_the_operation_and_the_versions():
    x = leaf(1.0)
    y = x.exp()
    with mp.no_grad():
        y.add_(1)
        y[0] = 3.0
    with pytest.raises(RuntimeError, match="gradient of exp .* version 2, expected 0"):
        y.sum().backward()


@pytest.mark.parametrize("change", [
    lambda x: x.add_(1), lambda x: x.fill_(0), lambda x: x.zero_(), lambda x: x.copy_(x.detach()),
    lambda x: x.__setitem__(0, 1.0), lambda x: x.__iadd__(1)])
def test_a_leaf_that_requires_grad_is_not_changed_in_place(change):
    x = leaf(1.0, 2.0)
    with pytest.raises(RuntimeError, match="no_grad"):
        change(x)
    with mp.no_grad():
        assert change(x) is not NotImplemented and x.requires_grad and x.is_leaf


def test_an_in_place_change_that_would_need_recording_is_refused():
    x = leaf(1.0)
    y, z = x * 2, mp.tensor([1.0])
    for change in (lambda: y.add_(1), lambda: z.add_(x), lambda: z.copy_(y)):
        with pytest.raises(RuntimeError, match="cannot be recorded"):
            change()


def test_augmented_assignment_falls_back_to_the_recorded_operation():
    x = leaf(1.0, 2.0)
    y = x * 2
    before = y
    y += x
    y -= 1
    y *= y
    y /= 2
    assert before.tolist() == [2, 4]  # the fallback makes new tensors
    y.sum().backward()
    np.testing.assert_allclose(x.grad.array, 3 * (3 * x.array - 1))
    constant = mp.tensor([1.0])
    same = constant
    constant += 1
    assert same is constant and same.tolist() == [2] and same.storage.version == 1


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
    import gc
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


# ------------------------------------------------------------------------------------ hooks

def test_a_hook_fires_once_per_backward_when_the_gradient_is_complete():
    x, unused, seen = leaf(1.0), leaf(1.0), []
    x.register_post_accumulate_grad_hook(lambda t: seen.append((t is x, t.grad.tolist())))
    unused.register_post_accumulate_grad_hook(lambda t: seen.append("unused"))
    (x * 2 + x * 3 + (x + x)).sum().backward()
    (x * 10).sum().backward()
    assert seen == [(True, [7]), (True, [17])]


def test_hooks_fire_in_reverse_order_of_use_as_soon_as_they_can():
    a, b, seen = leaf(1.0), leaf(2.0), []
    for name, t in (("a", a), ("b", b)):
        t.register_post_accumulate_grad_hook(lambda t, name=name: seen.append(name))
    y = a * 2
    y = record(y.array + 0, (y,), lambda g: (seen.append("between"), g)[1:])
    (y * b).sum().backward()
    assert seen == ["b", "between", "a"]


def test_a_hook_can_be_removed_and_is_only_for_leaves():
    x, seen = leaf(1.0), []
    remove = x.register_post_accumulate_grad_hook(lambda t: seen.append(1))
    x.register_post_accumulate_grad_hook(lambda t: seen.append(2))
    (x * 2).backward()
    remove()
    (x * 2).backward()
    assert seen == [1, 2, 2]
    for t in (x * 2, mp.tensor([1.0])):
        with pytest.raises(RuntimeError, match="for a leaf"):
            t.register_post_accumulate_grad_hook(print)


@pytest.mark.peer
def test_hooks_fire_as_often_as_pytorchs():
    torch = pytest.importorskip("torch")

    def count(tensor):
        x, unused, seen = tensor([1.0, 2.0]), tensor([1.0]), []
        for i, t in enumerate((x.requires_grad_(), unused.requires_grad_())):
            t.register_post_accumulate_grad_hook(lambda t, i=i: seen.append((i, t.grad.tolist())))
        y = x * x + x
        (y.sum() + x[:1].sum()).backward(retain_graph=True)
        y.sum().backward()
        return seen
    assert count(mp.tensor) == count(torch.tensor)


# -------------------------------------------------------- sinks, deferred and postponed gradients

def test_gradients_land_in_the_buffers_that_sinks_are_placed_in():
    flat = np.full(3 + 6 + 2 + 1, np.nan)
    flat[-1] = 99  # a guard behind the last slice
    x = Tensor(normal(4, 3), requires_grad=False)
    w, b = Tensor(normal(2, 3), requires_grad=True), Tensor(normal(2), requires_grad=True)
    s = Tensor(normal(3), requires_grad=True)
    for t, (start, stop) in ((s, (0, 3)), (w, (3, 9)), (b, (9, 11))):
        t.sink.place(flat[start:stop].reshape(t.shape))

    def loss():
        h = mp.linear(x * s, w, b)
        return (h[1:, :1].sum() + h.sum() + s[0] * s[2] + w[:, 1].sum()).sum()
    loss().backward()
    once = flat.copy()
    assert np.isfinite(flat).all() and flat[-1] == 99
    loss().backward()
    np.testing.assert_allclose(flat[:-1], 2 * once[:-1], 1e-14)
    for t in (s, w, b):
        assert np.shares_memory(t.grad.array, flat)
        t.sink.reset()
    loss().backward()
    np.testing.assert_allclose(flat, once, 1e-14)
    elsewhere = np.zeros(3)
    s.sink.place(elsewhere)
    np.testing.assert_array_equal(elsewhere, once[:3])
    with pytest.raises(ValueError, match=r"\(3,\)"):
        s.sink.place(np.zeros(4))


@pytest.mark.parametrize("given", ["write", "add", "both"])
@pytest.mark.parametrize("uses", [1, 2, 3])
@pytest.mark.parametrize("into", ["leaf", "node"])
def test_a_deferred_gradient_is_added_up_whatever_it_can_do(given, uses, into):
    x = leaf(1.0, 2.0, 3.0)
    start = x * 1 if into == "node" else x

    def rule(g):
        def write(out):
            out[...] = [0, 5, 6]

        def add(out):
            out[1:] += [5, 6]
        parts = {"write": write} if given == "write" else {"add": add}
        if given == "both":
            parts = {"write": write, "add": add}
        return (Deferred(x.array, **parts),)
    total = record(np.zeros(1), (start,), rule)
    for _ in range(uses - 1):
        total = total + record(np.zeros(1), (start,), rule)
    total.backward()
    assert x.grad.tolist() == [0, 5 * uses, 6 * uses]
    (record(np.zeros(1), (x,), rule)).backward()
    assert x.grad.tolist() == [0, 5 * uses + 5, 6 * uses + 6]


def test_a_tensor_that_is_split_gets_its_gradient_without_full_arrays():
    import tracemalloc
    qkv = Tensor(np.ones((256, 3 * 256)), requires_grad=True)
    x = qkv.reshape(256, 3 * 256)
    q, k, v = x.split(256, dim=1)
    y = (q + k + v).sum()
    tracemalloc.start()
    y.backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One gradient of x, one of the leaf, and a third for that of the sum.
    assert peak < 2.5 * x.nbytes, peak / x.nbytes
    np.testing.assert_array_equal(qkv.grad.array, 1)


def two_layers():
    x = Tensor(normal(4, 3), requires_grad=True)
    w1, w2 = (Tensor(normal(3, 3, seed=i), requires_grad=True) for i in (1, 2))
    b = Tensor(normal(3, seed=3), requires_grad=True)
    tied = mp.linear(mp.linear(mp.linear(x, w1, b).tanh(), w2), w1)  # w1 is used twice
    return [x, w1, w2, b], (tied * tied).sum() + (w2 * w2).sum()


def test_postponed_weight_gradients_equal_those_of_one_backward():
    leaves, loss = two_layers()
    loss.backward()
    expected = [t.grad.array for t in leaves]
    leaves, loss = two_layers()
    x, w1, w2, b = leaves
    fired, postponed = [], []
    for i, t in enumerate(leaves):
        t.register_post_accumulate_grad_hook(lambda t, i=i: fired.append(i))
    backward([loss], postponed=postponed)
    assert len(postponed) == 3
    assert sorted(fired) == [0, 3]  # bias and input are ready, the weights are not
    assert w1.grad is None and w2.grad is not None  # of w2 * w2, which is not postponed
    postponed[0]()
    assert len(fired) == 2  # w1's other use is still to come
    postponed[1]()
    assert fired[2:] == [2]
    postponed[2]()
    assert fired[2:] == [2, 1]
    for t, gradient in zip(leaves, expected):
        np.testing.assert_allclose(t.grad.array, gradient, 1e-13)
    with pytest.raises(RuntimeError, match="already computed"):
        postponed[0]()


def test_the_weight_gradient_of_a_weight_with_a_history_is_not_postponed():
    w, postponed = Tensor(normal(3, 3), requires_grad=True), []
    y = mp.linear(Tensor(normal(2, 3)), w * 2).sum()
    backward([y], postponed=postponed)
    assert postponed == [] and w.grad is not None
