"""The state of optimizers: PyTorch's form, exchanged with PyTorch, and the form by name."""

import copy
import re

import numpy as np
import pytest

from minipar import nn, optim
from minipar.models import GPT, GPTConfig
from minipar.nn.flat import flatten
from minipar.tensor import Tensor

X = np.random.default_rng(0).standard_normal((6, 4))
KINDS = {
    "sgd": ("SGD", dict(lr=0.1)),
    "momentum": ("SGD", dict(lr=0.1, momentum=0.9, weight_decay=0.1)),
    "adam": ("Adam", dict(lr=0.01, weight_decay=0.1)),
    "amsgrad": ("Adam", dict(lr=0.01, amsgrad=True, betas=(0.5, 0.6))),
    "adamw": ("AdamW", dict(lr=0.01)),
}


def model():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.LayerNorm(3)).double()


def groups(m):
    """Two groups, of which the first is not the first in the model."""
    return [{"params": list(m[2].parameters()), "lr": 0.02},
            {"params": [*m[0].parameters(), *m[3].parameters()]}]


def torch_model(torch):
    T = torch.nn
    torch.manual_seed(0)
    return T.Sequential(T.Linear(4, 5), T.Tanh(), T.Linear(5, 3), T.LayerNorm(3)).double()


def train(m, optimizer, x, steps, skip=()):
    for step in range(steps):
        optimizer.zero_grad()
        (m(x) ** 2).sum().backward()
        for name, p in m.named_parameters():
            if name in skip:
                p.grad = None
        optimizer.step()


def ours(kind, grouped=False, m=None):
    m = m or model()
    name, options = KINDS[kind]
    return m, getattr(optim, name)(groups(m) if grouped else m.parameters(), **options)


def copy_weights(torch, source, target):
    if isinstance(target, nn.Module):
        target.load_state_dict({k: v.numpy() for k, v in source.state_dict().items()})
    else:
        target.load_state_dict({k: torch.tensor(v.array) for k, v in source.state_dict().items()})


def to_torch(torch, state):
    """A state dict of ours with torch tensors."""
    return {"state": {i: {k: torch.tensor(v.array) for k, v in entry.items()}
                      for i, entry in state["state"].items()},
            "param_groups": copy.deepcopy(state["param_groups"])}


def assert_close(m, theirs, relative=1e-11):
    for (name, p), q in zip(m.named_parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.array, q.detach().numpy(), rtol=relative, atol=1e-14,
                                   err_msg=name)


@pytest.mark.peer
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_training_that_began_in_pytorch_goes_on_here(kind, grouped):
    torch = pytest.importorskip("torch")
    theirs = torch_model(torch)
    name, options = KINDS[kind]
    their = getattr(torch.optim, name)(groups(theirs) if grouped else theirs.parameters(),
                                       **options)
    train(theirs, their, torch.tensor(X), 3, skip=("2.bias",))
    m, optimizer = ours(kind, grouped)
    copy_weights(torch, theirs, m)
    optimizer.load_state_dict(their.state_dict())
    train(theirs, their, torch.tensor(X), 3)
    train(m, optimizer, Tensor(X), 3)
    assert_close(m, theirs)


@pytest.mark.peer
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_training_that_began_here_goes_on_in_pytorch(kind, grouped):
    torch = pytest.importorskip("torch")
    m, optimizer = ours(kind, grouped)
    train(m, optimizer, Tensor(X), 3, skip=("2.bias",))
    theirs = torch_model(torch)
    name, options = KINDS[kind]
    copy_weights(torch, m, theirs)
    their = getattr(torch.optim, name)(groups(theirs) if grouped else theirs.parameters(), lr=9.0,
                                       **{k: v for k, v in options.items() if k != "lr"})
    their.load_state_dict(to_torch(torch, optimizer.state_dict()))
    train(theirs, their, torch.tensor(X), 3)
    train(m, optimizer, Tensor(X), 3)
    assert_close(m, theirs)


@pytest.mark.peer
@pytest.mark.parametrize("kind", KINDS)
def test_the_state_dict_has_pytorchs_keys_values_and_types(kind):
    torch = pytest.importorskip("torch")
    theirs = torch_model(torch)
    m, optimizer = ours(kind, grouped=True)
    copy_weights(torch, theirs, m)
    name, options = KINDS[kind]
    their = getattr(torch.optim, name)(groups(theirs), **options)
    for opt, net, x in ((optimizer, m, Tensor(X)), (their, theirs, torch.tensor(X))):
        assert opt.state_dict()["state"] == {}
        train(net, opt, x, 2, skip=("2.bias",))
    mine, expected = optimizer.state_dict(), their.state_dict()
    assert sorted(mine["state"]) == sorted(expected["state"])
    for i, entry in expected["state"].items():
        assert set(mine["state"][i]) == set(entry)
        for key, value in entry.items():
            got = mine["state"][i][key].array
            assert got.dtype == value.numpy().dtype
            np.testing.assert_allclose(got, value.numpy(), rtol=1e-11, atol=1e-13)
    for group, other in zip(mine["param_groups"], expected["param_groups"], strict=True):
        assert {k: other[k] for k in group} == group


@pytest.mark.peer
def test_names_of_parameters_travel_with_the_state():
    torch = pytest.importorskip("torch")
    m, theirs = model(), torch_model(torch)
    optimizer = optim.Adam(m.named_parameters())
    their = torch.optim.Adam(theirs.named_parameters())
    train(theirs, their, torch.tensor(X), 1)
    optimizer.load_state_dict(their.state_dict())
    their.load_state_dict(to_torch(torch, optimizer.state_dict()))
    assert their.param_groups[0]["param_names"] == [n for n, _ in m.named_parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_state_goes_on_to_the_same_bits_and_is_a_copy(kind):
    m, optimizer = ours(kind, grouped=True)
    train(m, optimizer, Tensor(X), 3, skip=("0.weight",))
    twin, second = ours(kind, grouped=True)
    twin.load_state_dict(m.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    second.load_state_dict(state)
    for entry in state["state"].values():
        for tensor in entry.values():
            tensor.array[...] = np.nan
    for net, opt in ((m, optimizer), (twin, second)):
        train(net, opt, Tensor(X), 2)
    for a, b in zip(m.parameters(), twin.parameters()):
        np.testing.assert_array_equal(a.array, b.array)


def test_loading_takes_over_the_options_of_the_groups():
    _, one = ours("adamw", grouped=True)
    _, two = ours("adamw", grouped=True)
    one.param_groups[1].update(lr=0.5, betas=(0.1, 0.2), initial_lr=0.7)
    two.load_state_dict(one.state_dict())
    assert two.param_groups[1]["lr"] == 0.5 and two.param_groups[1]["betas"] == (0.1, 0.2)
    assert two.param_groups[1]["initial_lr"] == 0.7 and two.param_groups[0]["lr"] == 0.02
    assert two.param_groups[0]["params"][0] is not one.param_groups[0]["params"][0]


def test_adamw_stays_adamw_with_the_state_of_an_adam():
    m, adam = ours("adam")
    train(m, adam, Tensor(X), 1)
    _, adamw = ours("adamw")
    adamw.load_state_dict(adam.state_dict())
    assert adamw.param_groups[0]["decoupled_weight_decay"] is True


@pytest.mark.parametrize("spoil, message", [
    (lambda s: s["param_groups"].pop(), r"\[2\] parameters, the optimizer's have \[2, 4\]"),
    (lambda s: s["param_groups"][0]["params"].pop(), r"\[1, 4\]"),
    (lambda s: s["state"][1].pop("exp_avg"), "missing 1.exp_avg"),
    (lambda s: s["state"][1].pop("step"), "missing 1.step"),
    (lambda s: s["state"][2].update(exp_avg=np.ones((4, 5))),
     r"2.exp_avg is \(4, 5\) where the parameter has \(5, 4\)"),
    (lambda s: s["param_groups"][0].update(amsgrad=True), "amsgrad"),
    (lambda s: s["param_groups"][0].update(lr=-1), "lr = -1"),
    (lambda s: s["param_groups"][0].update(rectify=True), "options that AdamW has not: rectify"),
])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(spoil, message):
    m, optimizer = ours("adamw", grouped=True)
    train(m, optimizer, Tensor(X), 2)
    before = copy.deepcopy(optimizer.state_dict())
    state = copy.deepcopy(before)
    for entry in state["state"].values():
        entry["exp_avg"] = entry["exp_avg"] * 2
    spoil(state)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for i, entry in before["state"].items():
        for key, value in entry.items():
            np.testing.assert_array_equal(after["state"][i][key].array, value.array)


# By name


def named(kind, flat_first=False, reverse=False):
    """A model with an optimizer, whose flat layout differs."""
    m = model()
    parameters = list(m.parameters())
    if flat_first:
        flatten(parameters[2:4])
    name, options = KINDS[kind]
    return m, getattr(optim, name)(parameters[::-1] if reverse else parameters, **options)


@pytest.mark.parametrize("layout", [dict(), dict(flat_first=True), dict(reverse=True)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_state_by_name_goes_into_any_layout_to_the_same_bits(kind, layout):
    m, optimizer = named(kind)
    train(m, optimizer, Tensor(X), 3, skip=("0.weight",))
    state = optimizer.named_state(m)
    assert not any(key.startswith("0.weight") for key in state)
    assert state["2.bias.step"] == 3 and type(state["2.bias.step"]) is int
    for key in optimizer.state_names:
        assert state[f"2.weight.{key}"].shape == (3, 5)
    state = {k: v if isinstance(v, int) else v.copy() for k, v in state.items()}
    twin, second = named(kind, **layout)
    train(twin, second, Tensor(X), 1)  # a state of its own, which goes
    twin.load_state_dict(m.state_dict())
    second.load_named_state(twin, state)
    again = second.named_state(twin)
    assert list(again) == list(state)
    for key, value in state.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)
        if not isinstance(value, int):
            value[...] = np.nan  # what was loaded is a copy
    for net, opt in ((m, optimizer), (twin, second)):
        train(net, opt, Tensor(X), 2)
    for a, b in zip(m.parameters(), twin.parameters()):
        np.testing.assert_array_equal(a.array, b.array)


def test_a_tied_parameter_has_one_state_under_its_first_name():
    m = GPT(GPTConfig(7, 4, 1, 1, 4))
    optimizer = optim.AdamW(m.parameters())
    m(Tensor(np.zeros((1, 4), np.int64))).sum().backward()
    optimizer.step()
    state = optimizer.named_state(m)
    assert "transformer.wte.weight.exp_avg" in state
    assert not any(key.startswith("lm_head") for key in state)
    optimizer.load_named_state(m, state)


def test_arrays_of_the_state_by_name_are_the_optimizers_own():
    m, optimizer = named("momentum")
    train(m, optimizer, Tensor(X), 1)
    state = optimizer.named_state(m)
    state["0.bias.momentum_buffer"][...] = 7
    assert (optimizer.named_state(m)["0.bias.momentum_buffer"] == 7).all()


def test_everything_that_does_not_fit_is_named_and_nothing_is_changed():
    m, optimizer = named("adam")
    train(m, optimizer, Tensor(X), 2)
    state = {k: v if isinstance(v, int) else v * 2 for k, v in optimizer.named_state(m).items()}
    del state["0.bias.exp_avg"], state["2.weight.step"]
    state["2.bias.exp_avg_sq"] = np.ones(4)
    state["9.weight.exp_avg"] = np.ones(4)
    before = {k: np.copy(v) for k, v in optimizer.named_state(m).items()}
    with pytest.raises(ValueError) as error:
        optimizer.load_named_state(m, state)
    for part in ("missing 0.bias.exp_avg;", "missing 2.weight.step",
                 "2.bias.exp_avg_sq is (4,) where the parameter has (3,)",
                 "unexpected 9.weight.exp_avg"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    for key, value in optimizer.named_state(m).items():
        np.testing.assert_array_equal(value, before[key])


def test_entries_of_others_are_passed_over_if_asked():
    m, optimizer = named("adam")
    train(m, optimizer, Tensor(X), 2)
    state = {**optimizer.named_state(m), "other.step": 3}
    with pytest.raises(ValueError, match="unexpected other.step"):
        optimizer.load_named_state(m, state)
    optimizer.load_named_state(m, state, strict=False)


def test_a_model_without_the_optimizers_parameters_is_refused():
    m, optimizer = named("adam")
    message = re.escape("the model has 2 of the optimizer's 6 parameters")
    with pytest.raises(ValueError, match=message):
        optimizer.named_state(m[0])
    with pytest.raises(ValueError, match=message):
        optimizer.load_named_state(m[0], {})


def test_no_entries_take_an_optimizer_back_to_its_start():
    m, optimizer = named("adam")
    weights = {k: v.array.copy() for k, v in m.state_dict().items()}
    train(m, optimizer, Tensor(X), 3)
    first = {k: v.array.copy() for k, v in m.state_dict().items()}
    m.load_state_dict(weights)
    optimizer.load_named_state(m, {})
    assert optimizer.named_state(m) == {}
    train(m, optimizer, Tensor(X), 3)
    for key, value in m.state_dict().items():
        np.testing.assert_array_equal(value.array, first[key])
