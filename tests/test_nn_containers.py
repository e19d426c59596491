"""Containers and clipping of gradients, beside PyTorch's."""

import math
from collections import OrderedDict

import numpy as np
import pytest

from minipar import nn, optim
from minipar.tensor import Tensor


def layers(*kinds):
    return [getattr(nn, kind)() for kind in kinds]


def kinds(container):
    return {key: type(m).__name__ for key, m in container.named_children()}


CASES = {
    "append": lambda m, new: m.append(new),
    "extend": lambda m, new: m.extend([new, new]),
    "insert first": lambda m, new: m.insert(0, new),
    "insert between": lambda m, new: m.insert(2, new),
    "insert last": lambda m, new: m.insert(3, new),
    "replace": lambda m, new: m.__setitem__(1, new),
    "replace last": lambda m, new: m.__setitem__(-1, new),
    "delete": lambda m, new: m.__delitem__(0),
    "delete slice": lambda m, new: m.__delitem__(slice(0, 2)),
    "pop": lambda m, new: m.append(m.pop(1)),
    "add in place": lambda m, new: m.__iadd__(m[1:]),
}


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["Sequential", "ModuleList"])
@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_changed_lists_have_pytorchs_names_and_order(kind, change):
    torch = pytest.importorskip("torch")
    found = []
    for library in (nn, torch.nn):
        members = [library.ReLU(), library.Tanh(), library.GELU()]
        container = getattr(library, kind)(*(members if kind == "Sequential" else [members]))
        change(container, library.Flatten())
        found.append((kinds(container), [type(m).__name__ for m in container], len(container)))
    assert found[0] == found[1]


@pytest.mark.peer
@pytest.mark.parametrize("part", [slice(1, None), slice(None, None, 2), slice(0, 0), slice(-1, 9)],
                         ids=str)
def test_slices_have_pytorchs_names(part):
    torch = pytest.importorskip("torch")
    for kind in ("Sequential", "ModuleList"):
        found = []
        for library in (nn, torch.nn):
            members = [library.ReLU(), library.Tanh(), library.GELU()]
            container = getattr(library, kind)(*(members if kind == "Sequential" else [members]))
            found.append((type(container[part]).__name__, kinds(container[part])))
        assert found[0] == found[1]


def test_a_slice_has_the_same_modules_and_the_whole_still_names_them():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    part = model[1:]
    assert part[1] is model[2] and part[-1].weight.qualified_name() == "2.weight"
    assert list(part.state_dict()) == ["2.weight", "2.bias"]
    x = Tensor(np.ones((1, 3), np.float32))
    np.testing.assert_array_equal(part(x).array, model[2](model[1](x)).array)


def test_modules_that_move_are_named_by_their_new_place():
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    first, second = model
    model.insert(0, nn.ReLU())
    assert [m.weight.qualified_name() for m in (first, second)] == ["1.weight", "2.weight"]
    assert model.pop(1) is first and second.weight.qualified_name() == "1.weight"
    assert first.weight.qualified_name() == "weight"
    assert list(model.state_dict()) == ["1.weight", "1.bias"]
    assert model.get_submodule("1") is second and not hasattr(model, "2")


def test_a_module_that_stands_twice_is_one_child_with_two_names_in_the_state():
    layer = nn.Linear(2, 2)
    model, seen = nn.Sequential(layer, nn.ReLU(), layer), []
    assert [k for k, _ in model.named_children()] == ["0", "1"] and repr(model).count("Linear") == 2
    model.apply(lambda m: seen.append(type(m).__name__))
    assert seen == ["Linear", "ReLU", "Sequential"]
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_sequential_takes_names_from_an_ordered_dict():
    model = nn.Sequential(OrderedDict([("a", nn.Linear(2, 3)), ("b", nn.ReLU())]))
    assert model.a is model[0] and list(model.state_dict()) == ["a.weight", "a.bias"]
    assert kinds(model[1:]) == {"b": "ReLU"}
    assert (model(Tensor(np.ones((1, 2), np.float32))).array >= 0).all()
    assert kinds(model + nn.Sequential(nn.Tanh())) == {"0": "Linear", "1": "ReLU", "2": "Tanh"}
    assert kinds(nn.ModuleList(layers("ReLU")) + layers("Tanh")) == {"0": "ReLU", "1": "Tanh"}


def test_an_index_that_is_not_there_is_refused():
    pair = "ReLU", "Tanh"
    for container in (nn.Sequential(*layers(*pair)), nn.ModuleList(layers(*pair))):
        for index in (2, -3):
            with pytest.raises(IndexError, match=f"index {index} of a .* of 2 modules"):
                container[index]
        with pytest.raises(IndexError):
            container[2] = nn.ReLU()
        with pytest.raises(TypeError, match="Module"):
            container.append(3)
        with pytest.raises(TypeError, match="Module"):
            container.insert(0, 3)
        assert len(container) == 2


def test_a_module_dict_is_a_dict_of_modules():
    model = nn.ModuleDict({"b": nn.Linear(2, 2)})
    model["a"] = nn.ReLU()
    model.update([("c", nn.Tanh()), ("b", nn.GELU())])
    assert list(model) == list(model.keys()) == ["b", "a", "c"] and len(model) == 3
    assert [type(m) for m in model.values()] == [nn.GELU, nn.ReLU, nn.Tanh]
    assert dict(model.items())["c"] is model["c"] is model.c and "a" in model and "x" not in model
    popped = model.pop("a")
    assert type(popped) is nn.ReLU and list(model.named_children()) == [("b", model["b"]),
                                                                      ("c", model["c"])]
    for act in (lambda: model["x"], lambda: model.pop("x"), lambda: model.__delitem__("keys")):
        with pytest.raises(KeyError):
            act()
    for key in ("keys", "forward", "a.b", ""):
        with pytest.raises(KeyError, match="cannot have a module named"):
            model[key] = nn.ReLU()
    model.clear()
    assert len(model) == 0 and len(nn.ModuleDict()) == 0


def test_parameters_in_a_module_dict_are_named_by_the_keys():
    model = nn.Module()
    model.heads = nn.ModuleDict([("x", nn.Linear(2, 1)), ("y", nn.Linear(2, 1, bias=False))])
    assert list(model.state_dict()) == ["heads.x.weight", "heads.x.bias", "heads.y.weight"]
    assert model.heads["y"].weight.qualified_name() == "heads.y.weight"


# Clipping


SHAPES = [(3, 4), (), (5,), (0, 2), (70, 300)]


def with_gradients(factor=1.0, missing=2, flat=False):
    """Parameters with gradients, the one at `missing` without."""
    rng = np.random.default_rng(0)
    parameters = [nn.Parameter(Tensor(np.ones(s))) for s in SHAPES]
    if flat:
        optim.SGD(parameters, 0.1)
    for i, p in enumerate(parameters):
        g = factor * rng.standard_normal(p.shape)
        if i != missing:
            p.grad = g
    return parameters


@pytest.mark.peer
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("norm_type", [2.0, 1, 3.5, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_clip_grad_norm_is_pytorchs(max_norm, norm_type, flat):
    torch = pytest.importorskip("torch")
    ours = with_gradients(flat=flat)
    theirs = [torch.nn.Parameter(torch.ones(s, dtype=torch.float64)) for s in SHAPES]
    for p, q in zip(ours, theirs):
        q.grad = None if p.grad is None else torch.tensor(p.grad.array)
    norm = nn.utils.clip_grad_norm_(iter(ours), max_norm, norm_type)
    # PyTorch's own norm of order inf has no value for an empty gradient.
    expected = torch.nn.utils.clip_grad_norm_(
        [q for q in theirs if q.numel()], max_norm, norm_type)
    assert norm.item() == pytest.approx(float(expected), rel=1e-12) and norm.shape == ()
    for p, q in zip(ours, theirs):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            np.testing.assert_allclose(p.grad.array, q.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize("flat", [False, True])
def test_clip_grad_value_clamps_every_element(flat):
    parameters = with_gradients(flat=flat)
    before = [None if p.grad is None else p.grad.array.copy() for p in parameters]
    nn.utils.clip_grad_value_(parameters, 0.3)
    for p, old in zip(parameters, before):
        assert (p.grad is None) == (old is None)
        if old is not None:
            np.testing.assert_array_equal(p.grad.array, np.clip(old, -0.3, 0.3))


def test_a_parameter_given_twice_counts_and_is_clipped_once():
    p = nn.Parameter(Tensor(np.ones(2)))
    p.grad = np.array([3.0, 4.0])
    assert nn.utils.clip_grad_norm_([p, p], 2.5).item() == 5
    np.testing.assert_allclose(p.grad.array, [1.5, 2.0], rtol=1e-6)
    assert nn.utils.clip_grad_norm_(p, 1e9).item() == pytest.approx(2.5, rel=1e-6)


def test_clipping_in_float16_does_not_overflow():
    p = nn.Parameter(Tensor(np.ones(4, np.float16)))
    p.grad = np.full(4, 300.0, np.float16)
    norm = nn.utils.clip_grad_norm_([p], 6.0)
    assert norm.item() == 600 and p.grad.tolist() == [3] * 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("norm_type", [2, math.inf])
def test_a_norm_that_is_not_finite_is_an_error_if_asked_and_else_reaches_all(bad, norm_type):
    parameters = [nn.Parameter(Tensor(np.ones(2))) for _ in range(2)]
    parameters[0].grad, parameters[1].grad = np.ones(2), np.array([1.0, bad])
    with pytest.raises(RuntimeError, match="not clipped"):
        nn.utils.clip_grad_norm_(parameters, 1.0, norm_type, error_if_nonfinite=True)
    assert parameters[0].grad.tolist() == [1, 1]
    norm = nn.utils.clip_grad_norm_(parameters, 1.0, norm_type).item()
    assert math.isnan(norm) if math.isnan(bad) else norm == bad
    reached = parameters[0].grad.array
    assert np.isnan(reached).all() if math.isnan(bad) else (reached == 0).all()


def test_nothing_to_clip_has_norm_0():
    assert nn.utils.clip_grad_norm_([], 1.0).item() == 0
    assert nn.utils.clip_grad_norm_([nn.Parameter(Tensor(np.ones(2)))], 1.0).item() == 0
    with pytest.raises(ValueError, match="norm_type = 0.0"):
        nn.utils.clip_grad_norm_([], 1.0, 0)
