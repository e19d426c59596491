"""Conversion of tensors and modules between types, and the tree's look-ups by path."""

import numpy as np
import pytest

import minipar as mp
from gradcheck import gradcheck
from minipar import nn, optim
from minipar.context import Context, use
from minipar.tensor import Tensor


@pytest.fixture(autouse=True)
def context():
    """Each test has a fresh context: seed 0, float32."""
    with use(Context()) as fresh:
        yield fresh


def small():
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


# Tensors


def test_to_converts_and_returns_the_same_tensor_where_nothing_is_to_do():
    x = mp.tensor([1.5, -2.5])
    assert x.to(mp.float32) is x and x.to("cpu") is x and x.to(x) is x and x.float() is x
    assert x.to("cpu", copy=True) is not x
    other = mp.tensor([1], dtype="int64")
    for y, dtype in [(x.to(mp.float64), mp.float64), (x.to("float64"), mp.float64),
                     (x.to("cpu", mp.float16), mp.float16), (x.to(other), mp.int64),
                     (x.to(dtype=np.float64, device="cpu"), mp.float64), (x.half(), mp.float16),
                     (x.double(), mp.float64), (x.int(), mp.int32), (x.long(), mp.int64),
                     (x.bool(), mp.bool_)]:
        assert y.dtype is dtype
        assert y.tolist() == ([True, True] if dtype is mp.bool_ else
                              [1.5, -2.5] if dtype.is_floating_point else [1, -2])


@pytest.mark.parametrize("shape", [(), (1,), (0, 2), (2, 3)])
def test_gradients_come_back_in_the_type_they_left(shape):
    x = Tensor(np.full(shape, 2.0, np.float32), requires_grad=True)
    y = (x.double() * 3).to(mp.float16)
    y.sum().backward()
    assert y.dtype is mp.float16 and x.grad.dtype is mp.float32
    np.testing.assert_array_equal(x.grad.array, np.full(shape, 3.0))
    assert not x.long().requires_grad


def test_the_gradient_of_a_conversion_is_that_of_the_identity():
    x = np.random.default_rng(0).standard_normal((2, 3))[:, ::2]
    gradcheck(lambda x: x.to("cpu", mp.float64, copy=True) * x, x)


def test_values_out_of_range_convert_without_a_warning():
    assert np.isinf(mp.tensor([1e30]).half().array).all()


@pytest.mark.parametrize("args, error, message", [
    (("tpu",), ValueError, "no device 'tpu': there are 'cpu', 'cuda' and 'cuda:INDEX'"),
    (("flaot32",), ValueError, "no device 'flaot32'"),
    ((mp.float32, mp.float64), TypeError, "two of dtype"),
    ((complex,), TypeError, "no data type"),
])
def test_what_cannot_be_is_refused_in_one_line(args, error, message):
    for target in (mp.tensor([1.0]), small()):
        with pytest.raises(error, match=message) as caught:
            target.to(*args)
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="no argument 'layout'"):
        small().to(layout=1)


# Modules


def test_a_module_that_is_not_materialised_stays_so_and_has_the_values_of_its_new_type():
    model = small().to(mp.float64)
    assert not any(p.is_materialized for p in model.parameters())
    assert all(p.dtype is mp.float64 for p in model.parameters())
    low = small().materialize()
    for a, b in zip(model.parameters(), low.parameters(), strict=True):
        assert a.array.dtype == np.float64
        np.testing.assert_array_equal(a.array.astype(np.float32), b.array)


@pytest.mark.parametrize("name, dtype", [("half", np.float16), ("float", np.float32),
                                         ("double", np.float64)])
def test_a_materialised_module_keeps_its_values_and_trains_in_the_new_type(name, dtype):
    model = small().materialize()
    before = [p.array.copy() for p in model.parameters()]
    assert getattr(model, name)() is model
    model(Tensor(np.ones((2, 3), dtype))).sum().backward()
    for p, old in zip(model.parameters(), before, strict=True):
        assert p.dtype.storage == p.array.dtype == p.grad.array.dtype == dtype
        np.testing.assert_array_equal(p.array, old.astype(dtype))
    optim.SGD(model.parameters(), 0.1).step()
    assert all(p.array.dtype == dtype for p in model.parameters())


def test_a_gradient_is_converted_with_its_parameter_and_hooks_stay():
    model, seen = nn.Linear(2, 1), []
    model.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.dtype))
    model(Tensor(np.ones((1, 2), np.float32))).sum().backward()
    model.double()
    assert model.weight.grad.dtype is mp.float64 and model.weight.grad.tolist() == [[1, 1]]
    model(Tensor(np.ones((1, 2)))).sum().backward()
    assert model.weight.grad.tolist() == [[2, 2]] and seen == [mp.float32, mp.float64]


def test_buffers_of_floating_types_are_converted_and_others_left():
    model = nn.Module()
    x = Tensor(np.ones(2, np.float32))
    model.register_buffer("mean", x)
    model.register_buffer("count", Tensor(np.ones((), np.int64)))
    model.child = nn.Module()
    model.child.register_buffer("same", x)
    model.register_buffer("none", None)
    model.double()
    assert model.mean.dtype is mp.float64 and model.count.dtype is mp.int64
    assert model.child.same is model.mean and x.dtype is mp.float32
    assert model.state_dict()["mean"].dtype is mp.float64


def test_a_tied_parameter_is_converted_once_and_stays_tied():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).materialize()
    model[1].weight = model[0].weight
    model.double()
    assert model[1].weight is model[0].weight and model[0].weight.dtype is mp.float64


def test_a_graph_from_before_the_conversion_refuses_to_go_back():
    model = nn.Linear(2, 2)
    loss = model(Tensor(np.ones((1, 2), np.float32), requires_grad=True)).sum()
    model.double()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_flat_parameters_are_refused_before_anything_changes():
    model = small()
    optim.SGD(model[2].parameters(), 0.1)
    with pytest.raises(RuntimeError, match="2.weight lies in flat memory.* to float64"):
        model.to(mp.float64)
    assert all(p.dtype is mp.float32 for p in model.parameters())
    assert model.to(mp.float32) is model and model.to("cpu") is model


def test_a_module_is_of_a_floating_type():
    with pytest.raises(TypeError, match="floating type, not minipar.int64"):
        small().to(mp.int64)


# Look-ups


def test_modules_and_parameters_are_found_by_their_paths():
    model = nn.Sequential(small(), nn.ReLU())
    assert model.get_submodule("") is model and model.get_submodule("0.2") is model[0][2]
    assert model.get_parameter("0.2.weight") is model[0][2].weight
    model.add_module("nothing", None)
    for path in ("0.7", "x", "nothing", "0.2.weight"):
        with pytest.raises(AttributeError, match=f"no module '{path}'"):
            model.get_submodule(path)
    for path in ("0.2.x", "weight"):
        with pytest.raises(AttributeError, match=f"no parameter '{path}'"):
            model.get_parameter(path)


@pytest.mark.parametrize("name", ["", "a.b", "forward", "training"])
def test_a_module_cannot_be_named_like_what_is_there(name):
    with pytest.raises(KeyError, match="cannot have a module named"):
        nn.Module().add_module(name, nn.ReLU())


def test_register_module_is_add_module_and_takes_modules_alone():
    model = nn.Module()
    model.register_module("a", nn.ReLU())
    model.register_module("a", nn.Tanh())
    assert [type(m) for m in model.children()] == [nn.Tanh]
    with pytest.raises(TypeError, match="a is a Module here, not int"):
        model.register_module("a", 3)


def test_a_module_that_is_taken_out_is_named_anew_where_it_goes():
    old, new, layer = nn.Module(), nn.Module(), nn.Linear(2, 2)
    old.first = layer
    assert layer.weight.qualified_name() == "first.weight"
    old.first = nn.Linear(2, 2)
    new.second = layer
    assert layer.weight.qualified_name() == "second.weight"
    del new.second
    old.third = layer
    assert layer.weight.qualified_name() == "third.weight"
