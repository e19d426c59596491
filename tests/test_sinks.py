"""Where gradients go: hooks, placed sinks, deferred and postponed gradients."""

import tracemalloc

import numpy as np
import pytest

import minipar as mp
from minipar.sinks import Deferred
from minipar.tensor import Tensor, backward, record

pytestmark = pytest.mark.filterwarnings("error")


def leaf(*values):
    return mp.tensor(values, dtype=mp.float64, requires_grad=True)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


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
    handle = x.register_post_accumulate_grad_hook(lambda t: seen.append(1))
    x.register_post_accumulate_grad_hook(lambda t: seen.append(2))
    (x * 2).backward()
    handle.remove()
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
