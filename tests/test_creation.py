"""Tensors from nothing, and as_tensor. Oracle: NumPy by hand, and PyTorch (marked `peer`)."""

import numpy as np
import pytest

import minipar as mp

pytestmark = pytest.mark.filterwarnings("error")

MADE = {  # the same text runs with both libraries
    "zeros": lambda t: t.zeros(2, 3), "zeros tuple": lambda t: t.zeros((2, 3)),
    "zeros ()": lambda t: t.zeros(()), "zeros of nothing": lambda t: t.zeros(2, 0),
    "zeros list": lambda t: t.zeros([2]), "zeros no sizes": lambda t: t.zeros([]),
    "ones": lambda t: t.ones(3, dtype=t.int32), "ones 1": lambda t: t.ones(1, 1, dtype=t.float64),
    "ones grad": lambda t: t.ones(2, requires_grad=True),
    "full": lambda t: t.full((2,), 1.5), "full int": lambda t: t.full((2, 1), 3),
    "full bool": lambda t: t.full((), True),
    "full dtype": lambda t: t.full([1], 2, dtype=t.float16),
    "arange": lambda t: t.arange(5), "arange 2": lambda t: t.arange(2, 7),
    "arange step": lambda t: t.arange(0, 10, 3), "arange down": lambda t: t.arange(5, 0, -2),
    "arange float": lambda t: t.arange(0, 1, 0.1), "arange 1.0": lambda t: t.arange(3.0),
    "arange float down": lambda t: t.arange(1, -1.01, -0.25), "arange 0": lambda t: t.arange(0),
    "arange dtype": lambda t: t.arange(4, dtype=t.float64), "arange 2, 2": lambda t: t.arange(2, 2),
    "arange grad": lambda t: t.arange(2.0, requires_grad=True),
    "arange keywords": lambda t: t.arange(start=1, end=2, step=0.5, dtype=t.float32),
    "linspace": lambda t: t.linspace(0, 1, 5), "linspace 1": lambda t: t.linspace(2, 9, 1),
    "linspace 0": lambda t: t.linspace(0, 1, 0), "linspace down": lambda t: t.linspace(1, -1, 7),
    "linspace dtype": lambda t: t.linspace(-3, 10, steps=50, dtype=t.float64),
    "eye": lambda t: t.eye(3), "eye m": lambda t: t.eye(2, 4), "eye tall": lambda t: t.eye(3, 1),
    "eye dtype": lambda t: t.eye(2, dtype=t.int64), "eye 0": lambda t: t.eye(0),
    "zeros_like": lambda t: t.zeros_like(t.ones(2, 3)),
    "zeros_like int": lambda t: t.zeros_like(t.arange(3)),
    "ones_like dtype": lambda t: t.ones_like(t.arange(3), dtype=t.float64, requires_grad=True),
    "full_like": lambda t: t.full_like(t.ones(2), 7),
    "full_like int": lambda t: t.full_like(t.arange(2), 7),
    "full_like 2.5": lambda t: t.full_like(t.ones(2, dtype=t.float16), 2.5),
    "as_tensor": lambda t: t.as_tensor([1.0, 2.0]), "as_tensor int": lambda t: t.as_tensor(3),
    "as_tensor array": lambda t: t.as_tensor(np.arange(3.0)),
    "as_tensor dtype": lambda t: t.as_tensor(np.arange(3), dtype=t.float32),
    "as_tensor tensor": lambda t: t.as_tensor(t.ones(2), dtype=t.int64),
}


@pytest.mark.peer
@pytest.mark.parametrize("name", MADE)
def test_a_new_tensor_is_that_of_pytorch(name):
    torch = pytest.importorskip("torch")
    mine, yours = MADE[name](mp), MADE[name](torch)
    assert f"torch.{mine.dtype.name}" == str(yours.dtype) and mine.shape == tuple(yours.shape)
    assert mine.requires_grad == yours.requires_grad and mine.is_leaf
    np.testing.assert_allclose(mine.detach().numpy(), yours.detach().numpy(), 1e-6, 1e-7)


@pytest.mark.parametrize("make", [
    lambda: mp.zeros(2), lambda: mp.ones(2), lambda: mp.empty(2), lambda: mp.full((2,), 0.5),
    lambda: mp.arange(2.0), lambda: mp.linspace(0, 1, 3), lambda: mp.eye(2), lambda: mp.rand(2),
    lambda: mp.randn(2), lambda: mp.as_tensor([1.0])])
def test_the_default_dtype_is_that_of_the_context(make):
    mp.set_default_dtype("float64")
    try:
        assert make().dtype is mp.float64
    finally:
        mp.set_default_dtype("float32")
    assert make().dtype is mp.float32


def test_empty_tensors_have_the_shape_and_type_that_were_asked_for():
    a, b = mp.empty(2, 3, dtype="int32"), mp.empty_like(mp.ones(4, 0), requires_grad=True)
    assert a.shape == (2, 3) and a.dtype is mp.int32 and not a.requires_grad
    assert b.shape == (4, 0) and b.dtype is mp.float32 and b.requires_grad


def test_like_is_neither_recorded_nor_a_view():
    x = mp.ones(2, 3, requires_grad=True)
    for like in (mp.zeros_like, mp.ones_like, mp.empty_like, mp.rand_like, mp.randn_like,
                 lambda x: mp.full_like(x, 2)):
        y = like(x * 2)
        assert y.shape == (2, 3) and not y.requires_grad and y.grad_fn is None
        assert not np.shares_memory(y.array, x.array)


def test_a_range_of_many_steps_does_not_drift():
    assert mp.arange(0, 1, 1e-6, dtype="float64").tolist()[-1] == 999999 * 1e-6
    assert mp.linspace(0, 1, 1001, dtype="float64").tolist()[-1] == 1.0
    assert mp.arange(2**53, 2**53 + 3).tolist() == [2**53, 2**53 + 1, 2**53 + 2]


def test_as_tensor_copies_only_what_it_must():
    array, x = np.arange(3.0), mp.ones(2, requires_grad=True)
    assert np.shares_memory(mp.as_tensor(array).array, array)
    assert mp.as_tensor(x) is x and mp.as_tensor(x, "float32") is x
    assert not np.shares_memory(mp.as_tensor(array, "float32").array, array)
    mp.as_tensor(x * 2, "float64").sum().backward()  # a conversion is recorded
    assert x.grad.tolist() == [2, 2]
