"""Models through pickle and copy, and state dicts of models that are not materialised."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minipar as mp
from minipar import nn, optim
from minipar.context import Context, use
from minipar.models import CNN, GPT, MLP, GPTConfig
from minipar.tensor import Tensor


@pytest.fixture(autouse=True)
def context():
    """Each test has a fresh context: seed 0, float32."""
    with use(Context()) as fresh:
        yield fresh


MODELS = {"mlp": lambda: MLP([3, 4, 2]), "cnn": lambda: CNN((1, 4, 4), 3, (2, 2)),
          "gpt": lambda: GPT(GPTConfig(7, 4, 2, 2, 4, dropout=0.5))}


def arrays(module):
    return {name: t.array for name, t in module.state_dict().items()}


def assert_same(module, other):
    ours, theirs = arrays(module), arrays(other)
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


@pytest.mark.parametrize("state", ["lazy", "materialised", "flattened"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_travels_through_pickle(kind, state):
    model = MODELS[kind]()
    if state == "materialised":
        model.materialize()
    elif state == "flattened":
        optim.SGD(model.parameters(), 0.1)
    data = pickle.dumps(model)
    with use(Context(seed=77)):  # another seed there changes nothing
        twin = pickle.loads(data)
        assert type(twin) is type(model) and repr(twin) == repr(model)
        lazy = [p.is_materialized for p in twin.parameters()]
        assert lazy == [state != "lazy"] * len(lazy)
        names = [p.qualified_name() for p in twin.parameters()]
        assert names == [n for n, _ in twin.named_parameters()]
        modules = [(name, m.qualified_name()) for name, m in twin.named_modules()]
        assert all(a == b for a, b in modules)
        assert_same(twin, model)
    assert all(not np.shares_memory(a.array, b.array)
               for a, b in zip(twin.parameters(), model.parameters()))
    assert all(p.storage.owner is None for p in twin.parameters())


def test_a_pickled_model_is_unpickled_with_its_values_in_another_process():
    model = MODELS["gpt"]()
    code = ("import pickle, sys, hashlib\n"
            "model = pickle.load(sys.stdin.buffer)\n"
            "print(hashlib.sha256(b''.join(p.array.tobytes() for p in model.parameters()))"
            ".hexdigest())")
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(model),
                          capture_output=True, cwd=Path(__file__).parent.parent, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    import hashlib
    digest = hashlib.sha256(b"".join(p.array.tobytes() for p in model.parameters()))
    assert done.stdout.decode().strip() == digest.hexdigest()


def test_a_part_that_is_not_materialised_is_pickled_with_the_values_it_has_in_the_whole():
    model = MODELS["mlp"]()
    part = pickle.loads(pickle.dumps(model[3]))
    assert not part.weight.is_materialized
    np.testing.assert_array_equal(part.weight.array, model[3].weight.array)


def test_ties_modes_buffers_and_frozen_parameters_survive():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    model.weight = nn.Parameter(Tensor(np.ones(2)), requires_grad=False)
    model.register_buffer("mask", Tensor(np.arange(3)))
    model.register_buffer("scratch", Tensor(np.arange(4)), persistent=False)
    model.eval()
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert twin[1].weight is twin[0].weight and not twin.weight.requires_grad
        assert twin.weight is twin._parameters["weight"] and twin.mask is twin._buffers["mask"]
        assert twin.mask.tolist() == [0, 1, 2] and not np.shares_memory(twin.mask.array,
                                                                         model.mask.array)
        assert list(twin.state_dict()) == list(model.state_dict()) and not twin[0].training
        assert_same(twin, model)


def test_neither_pickle_nor_a_copy_takes_a_gradient_along():
    model = nn.Linear(2, 1)
    model(Tensor(np.ones((1, 2), np.float32))).sum().backward()
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert twin.weight.grad is None and twin.weight.requires_grad
        twin(Tensor(np.ones((1, 2), np.float32))).sum().backward()
        assert twin.weight.grad.tolist() == [[1, 1]]


def negate(module, args, output):
    return -output


def test_hooks_of_a_module_travel_with_it():
    model = nn.Sequential(nn.ReLU())
    handle = model[0].register_forward_hook(negate)
    x = Tensor(np.ones(2))
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert twin(x).tolist() == [-1, -1]
        handle.remove()
        assert twin(x).tolist() == [-1, -1] and model(x).tolist() == [1, 1]


def test_an_unpickled_parameter_joins_flat_memory_of_its_own():
    model = nn.Linear(2, 1)
    optim.SGD(model.parameters(), 0.1)
    twin = pickle.loads(pickle.dumps(model))
    before = model.weight.array.copy()
    optimizer = optim.SGD(twin.parameters(), 0.1)
    twin(Tensor(np.ones((1, 2), np.float32))).sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(model.weight.array, before)
    np.testing.assert_allclose(twin.weight.array, before - 0.1, rtol=1e-6)


def test_tensors_are_pickled_without_what_they_are_views_of_and_results_are_not():
    x = Tensor(np.arange(100.0))
    y = Tensor(x.array[3:5], requires_grad=True)
    for twin in (pickle.loads(pickle.dumps(y)), copy.deepcopy(y)):
        assert twin.tolist() == [3, 4] and twin.requires_grad and twin.is_leaf
        assert not np.shares_memory(twin.array, x.array)
    assert len(pickle.dumps(y)) < 500
    for act in (pickle.dumps, copy.deepcopy):
        with pytest.raises(RuntimeError, match="only a leaf"):
            act(y * 2)


def test_an_optimizer_is_not_pickled_by_accident():
    optimizer = optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    for act in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="state_dict"):
            act(optimizer)


# State dicts


def test_loading_into_what_is_not_materialised_draws_nothing():
    model, source = nn.Linear(3, 2), nn.Linear(3, 2)

    def refuse(generator, shape):
        raise AssertionError("drawn")
    model.weight.initializer = model.bias.initializer = refuse
    missing, unexpected = model.load_state_dict(source.state_dict())
    assert (missing, unexpected) == ([], [])
    assert_same(model, source)


def test_what_a_state_dict_leaves_out_is_still_drawn_from_its_recipe():
    model = nn.Linear(3, 2)
    result = model.load_state_dict({"bias": np.ones(2), "x": np.ones(1)}, strict=False)
    assert result.missing_keys == ["weight"] and result.unexpected_keys == ["x"]
    assert not model.weight.is_materialized and model.bias.tolist() == [1, 1]
    fresh = nn.Linear(3, 2)
    np.testing.assert_array_equal(model.weight.array, fresh.weight.array)


def test_a_refused_state_dict_leaves_what_is_not_materialised_as_it_is():
    model = nn.Linear(3, 2)
    with pytest.raises(RuntimeError, match="weight is"):
        model.load_state_dict({"weight": np.ones((2, 2)), "bias": np.ones(2)})
    assert not model.weight.is_materialized and not model.bias.is_materialized


def test_loading_converts_to_the_type_of_the_parameter():
    model = nn.Linear(2, 1).double()
    model.load_state_dict({"weight": np.ones((1, 2), np.float32), "bias": mp.tensor([2.0])})
    assert model.weight.dtype is mp.float64 and model.bias.tolist() == [2]
