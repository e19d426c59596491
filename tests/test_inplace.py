"""In-place changes: which of them backward() refuses, and what `+=` means. Oracle: PyTorch."""

import numpy as np
import pytest

import minipar as mp

pytestmark = pytest.mark.filterwarnings("error")


def leaf(*values):
    return mp.tensor(values, dtype=mp.float64, requires_grad=True)


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
