"""Hooks on tensors and modules, beside PyTorch's."""

import numpy as np
import pytest

import minipar as mp
from minipar import nn
from minipar.nn import functional as F
from minipar.tensor import Tensor
from minipar.tensor import backward as run_backward


def leaf(values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


# Tensors


def test_a_hook_of_a_result_sees_its_whole_gradient_and_replaces_it():
    x, seen = leaf([1.0, 2.0]), []
    y = x * 3
    y.register_hook(lambda g: seen.append(g.tolist()))
    y.register_hook(lambda g: g * 10)
    y.register_hook(lambda g: seen.append(g.tolist()))
    (y * 2 + y).sum().backward()
    assert seen == [[3, 3], [30, 30]] and x.grad.tolist() == [90, 90]


def test_a_hook_of_a_leaf_sees_the_sum_over_its_uses_in_one_backward():
    x, seen = leaf([1.0, 2.0]), []
    x.register_hook(lambda g: (seen.append(g.tolist()), g * 2)[1])
    for _ in range(2):
        (x * 3 + x).sum().backward()
    assert seen == [[4, 4], [4, 4]] and x.grad.tolist() == [16, 16]


def test_a_leafs_hook_runs_before_what_waits_for_the_whole_gradient():
    x, seen = leaf([1.0]), []
    x.register_post_accumulate_grad_hook(lambda t: seen.append(t.grad.tolist()))
    x.register_hook(lambda g: -g)
    x.register_hook(lambda g: seen.append(g.tolist()))
    (x * x).sum().backward()
    assert seen == [[-2], [-2]]


def test_a_leafs_hook_sees_a_weight_gradient_that_was_postponed():
    w, seen = leaf(np.ones((2, 3))), []
    w.register_hook(lambda g: (seen.append(g.tolist()), g * 2)[1])
    x = Tensor(np.arange(6.0).reshape(2, 3))
    loss = (F.linear(x, w) + F.linear(x, w)).sum()
    postponed = []
    run_backward([loss], postponed=postponed)
    assert len(postponed) == 2 and not seen and w.grad is None
    for run in postponed:
        run()
    assert seen == [[[6, 10, 14]] * 2] and w.grad.tolist() == [[12, 20, 28]] * 2


def test_a_gradient_left_by_a_failed_backward_is_not_counted_in_the_next():
    x, y = leaf([1.0]), leaf([1.0])
    x.register_hook(lambda g: None)

    def fail(g):
        raise ArithmeticError("from a hook")
    a = x * 1
    z = y * 2
    handle = z.register_hook(fail)
    first = a * z + x * 5  # backward comes to the 5, then to z, and not to a
    with pytest.raises(ArithmeticError):
        first.sum().backward()
    handle.remove()
    (x * 7).sum().backward()
    assert x.grad.tolist() == [7]


def test_a_removed_hook_does_not_run_and_removing_twice_is_nothing():
    x, seen = leaf([1.0]), []
    y = x * 2
    handles = [t.register_hook(lambda g: seen.append(1)) for t in (x, y)]
    with y.register_hook(lambda g: seen.append(2)):
        pass
    for handle in handles * 2:
        handle.remove()
    y.sum().backward()
    assert seen == [] and x.grad.tolist() == [2]


def test_the_gradient_of_a_result_is_retained_as_hooks_leave_it():
    x = leaf([1.0, 2.0])
    y, z = x * 3, x * 4
    y.retain_grad()
    y.retain_grad()
    y.register_hook(lambda g: g * 10)
    (y + z).sum().backward(retain_graph=True)
    (y + z).sum().backward()
    assert y.grad.tolist() == [20, 20] and z.grad is None and x.grad.tolist() == [68, 68]
    x.retain_grad()  # a leaf always does


@pytest.mark.parametrize("shape", [(), (1,), (0, 3)])
def test_hooks_pass_gradients_of_any_shape(shape):
    x = leaf(np.ones(shape))
    y = x * 2
    y.register_hook(lambda g: g * 3)
    x.register_hook(lambda g: g * 5)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.array, np.full(shape, 30.0))


def test_a_hook_keeps_the_dtype_and_must_keep_the_shape():
    x = leaf([1.0, 2.0], np.float32)
    handle = x.register_hook(lambda g: mp.tensor([1.0, 2.0], dtype="float64"))
    (x * 2).sum().backward()
    assert x.grad.dtype is mp.float32 and x.grad.tolist() == [1, 2]
    handle.remove()
    x.register_hook(lambda g: g.sum())
    with pytest.raises(RuntimeError, match=r"shape \(\) in place of one of \(2,\)"):
        (x * 2).sum().backward()


def test_what_has_no_gradient_takes_no_hook():
    for call in (lambda: Tensor(np.ones(2)).register_hook(print),
                 lambda: Tensor(np.ones(2)).retain_grad()):
        with pytest.raises(RuntimeError, match="does not require grad"):
            call()
    y = leaf([1.0]) * 2
    y.backward()
    with pytest.raises(RuntimeError, match="freed"):
        y.register_hook(print)


# Modules


def test_forward_hooks_see_and_replace_arguments_and_output():
    layer, seen = nn.Flatten(), []
    x = Tensor(np.arange(6.0).reshape(1, 2, 3))
    layer.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    layer.register_forward_pre_hook(lambda m, args: args[0] + 1)  # one value is the tuple of it
    layer.register_forward_pre_hook(lambda m, args: seen.append(m))
    layer.register_forward_hook(lambda m, args, out: seen.append((args[0].shape, out.shape)))
    layer.register_forward_hook(lambda m, args, out: -out)
    assert layer(x).tolist() == [[-1, -3, -5, -7, -9, -11]]
    assert seen == [layer, ((1, 2, 3), (1, 6))]


def test_hooks_run_in_order_of_registration_but_for_those_put_in_front():
    layer, seen = nn.ReLU(), []
    for name, options in [("a", {}), ("b", {}), ("c", dict(prepend=True))]:
        layer.register_forward_pre_hook(lambda m, x, name=name: seen.append(name), **options)
        layer.register_forward_hook(lambda m, x, y, name=name: seen.append(name), **options)
    layer(Tensor(np.ones(1)))
    assert seen == ["c", "a", "b"] * 2


class Scaled(nn.Module):
    def forward(self, x, factor=1.0):
        return x * factor


def test_hooks_with_kwargs_see_and_replace_them():
    layer, seen = Scaled(), []
    handle = layer.register_forward_pre_hook(
        lambda m, args, kwargs: (args, {"factor": kwargs["factor"] * 10}), with_kwargs=True)
    layer.register_forward_hook(
        lambda m, args, kwargs, out: seen.append((len(args), kwargs, out.tolist())),
        with_kwargs=True)
    layer(Tensor(np.ones(1)), factor=2.0)
    assert seen == [(1, {"factor": 20}, [20])]
    handle.remove()
    layer.register_forward_pre_hook(lambda m, args, kwargs: args, with_kwargs=True)
    with pytest.raises(RuntimeError, match="None or .args, kwargs."):
        layer(Tensor(np.ones(1)))


def test_removed_hooks_do_not_run():
    layer, seen = nn.ReLU(), []
    handles = [layer.register_forward_pre_hook(lambda *a: seen.append(1)),
               layer.register_forward_hook(lambda *a: seen.append(2)),
               layer.register_full_backward_hook(lambda *a: seen.append(3))]
    for handle in handles:
        handle.remove()
    layer(leaf([1.0])).sum().backward()
    assert seen == []


class Two(nn.Module):
    """Two inputs and a number in, two outputs."""

    def forward(self, x, number, y):
        return x * y * number, y + x


@pytest.mark.parametrize("uses", [(1, 1), (1, 0), (0, 1)], ids=str)
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.peer
def test_full_backward_hooks_are_pytorchs(uses, needs):
    torch = pytest.importorskip("torch")

    class Theirs(torch.nn.Module):
        forward = Two.forward
    results = []
    for module, make in ((Two(), lambda a, r: Tensor(a, requires_grad=r)),
                         (Theirs(), lambda a, r: torch.tensor(a, requires_grad=r))):
        seen = []

        def record(m, grad_input, grad_output, seen=seen):
            seen.append([None if g is None else g.tolist()
                         for g in (*grad_input, *grad_output)])
        module.register_full_backward_hook(record)
        module.register_full_backward_hook(
            lambda m, grad_input, grad_output: tuple(g if g is None else g * 2
                                                     for g in grad_input))
        module.register_full_backward_hook(record)
        x, y = make(np.array([2.0, 3.0]), needs[0]), make(np.array([5.0, 7.0]), needs[1])
        for _ in range(2):
            a, b = module(x * 1, 3, y * 1)
            (a * uses[0] + b.sum() * uses[1] if all(uses) else a if uses[0] else b
             ).sum().backward()
        results.append((seen, [None if t.grad is None else t.grad.tolist() for t in (x, y)]))
    ours, theirs = results
    assert len(ours[0]) == 4
    assert ours == theirs


def test_a_full_backward_hook_works_again_on_a_retained_graph():
    module, seen = Two(), []
    module.register_full_backward_hook(
        lambda m, grad_input, grad_output: (seen.append(grad_output[0].tolist()),
                                            tuple(g if g is None else -g for g in grad_input))[1])
    x, y = leaf([2.0]), leaf([5.0])
    loss = module(x, 3, y)[0].sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert seen == [[1], [1]] and x.grad.tolist() == [-30] and y.grad.tolist() == [-12]


def test_a_full_backward_hook_of_a_first_layer_has_no_input_gradient():
    layer, seen = nn.Linear(2, 1), []
    handle = layer.register_full_backward_hook(lambda m, i, o: seen.append((i, o[0].tolist())))
    layer(Tensor(np.ones((3, 2), np.float32))).sum().backward()
    assert seen == [((None,), [[1], [1], [1]])] and layer.weight.grad is not None
    with mp.no_grad():
        layer(Tensor(np.ones((3, 2), np.float32)))
    assert len(seen) == 1
    handle.remove()
    layer.register_full_backward_hook(lambda m, i, o: (o[0],))
    with pytest.raises(RuntimeError, match="no input requires"):
        layer(Tensor(np.ones((3, 2), np.float32))).sum().backward()


@pytest.mark.parametrize("used", [0, 1])
def test_an_unused_argument_has_zeros_as_its_gradient_and_its_maker_none(used):
    class Choose(nn.Module):
        def forward(self, *args):
            return args[used] * 2
    module, seen = Choose(), []
    module.register_full_backward_hook(
        lambda m, grad_input, _: (seen.append([g.tolist() for g in grad_input]),
                                  tuple(g * 5 for g in grad_input))[1])
    leaves = [leaf([1.0]), leaf([1.0])]
    module(*leaves).sum().backward()
    assert seen == [[[2.0 * (i == used)] for i in range(2)]]
    assert leaves[used].grad.tolist() == [10] and leaves[1 - used].grad is None


def test_a_full_backward_hook_must_return_as_many_gradients_as_there_are_inputs():
    layer = nn.ReLU()
    layer.register_full_backward_hook(lambda m, i, o: (i[0], i[0]))
    with pytest.raises(RuntimeError, match="2 gradients for 1 inputs"):
        layer(leaf([1.0])).sum().backward()


def test_a_hooked_model_has_the_gradients_of_the_plain_one():
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    results = []
    for hooked in (False, True):
        mp.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).materialize()
        if hooked:
            for module in model.modules():
                module.register_forward_pre_hook(lambda m, args: None)
                module.register_forward_hook(lambda m, args, out: None)
                module.register_full_backward_hook(lambda m, i, o: None)
        model(Tensor(x)).sum().backward()
        results.append([p.grad.array for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_hooks_run_while_a_trace_is_recorded_too():
    from minipar import trace
    layer, seen = nn.ReLU(), []
    layer.register_forward_hook(lambda m, args, out: seen.append(out.tolist()))
    with trace.record():
        layer(Tensor(np.array([-1.0, 2.0])))
    assert seen == [[0, 2]]
