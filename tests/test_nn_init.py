"""Initializers: their distributions, and gains and fans beside PyTorch's."""

import math
import pickle

import numpy as np
import pytest

import minipar as mp
from minipar import nn
from minipar.nn import init
from minipar.context import Context, use
from minipar.tensor import Tensor


@pytest.fixture(autouse=True)
def context():
    """Each test has a fresh context: seed 0, float32."""
    with use(Context()) as fresh:
        yield fresh


FILLS = {
    "uniform": lambda t: init.uniform_(t, -1, 2), "normal": lambda t: init.normal_(t, 1, 2),
    "trunc_normal": init.trunc_normal_, "constant": lambda t: init.constant_(t, 3),
    "ones": init.ones_, "zeros": init.zeros_, "eye": init.eye_, "orthogonal": init.orthogonal_,
    "xavier_uniform": init.xavier_uniform_, "xavier_normal": init.xavier_normal_,
    "kaiming_uniform": init.kaiming_uniform_, "kaiming_normal": init.kaiming_normal_,
}


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
def test_an_initializer_leaves_a_recipe_that_pickles_and_gives_the_same_values_at_once(fill):
    early, late = nn.Linear(30, 40), nn.Linear(30, 40).materialize()
    assert fill(early.weight) is early.weight and not early.weight.is_materialized
    assert fill(late.weight) is late.weight
    np.testing.assert_array_equal(early.weight.array, late.weight.array)
    recipe = pickle.loads(pickle.dumps(nn.Linear(30, 40)))
    fill(recipe.weight)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(recipe)).weight.array,
                                  late.weight.array)
    assert fill(Tensor(np.empty((3, 2)))).array.shape == (3, 2)


def filled(fill, *shape):
    return fill(Tensor(np.empty(shape))).array


SHAPES = [(300, 200), (50, 40, 3, 5), (200, 300), (40, 30, 7)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode, nonlinearity, a", [
    ("fan_in", "leaky_relu", 0), ("fan_out", "relu", 0), ("fan_in", "leaky_relu", math.sqrt(5)),
    ("fan_out", "tanh", 0), ("fan_in", "linear", 0)])
@pytest.mark.peer
def test_kaiming_has_pytorchs_bounds_and_deviation(shape, mode, nonlinearity, a):
    torch = pytest.importorskip("torch")
    fan = torch.nn.init._calculate_correct_fan(torch.empty(shape), mode)
    std = torch.nn.init.calculate_gain(nonlinearity, a) / math.sqrt(fan)
    options = dict(a=a, mode=mode, nonlinearity=nonlinearity)
    x = filled(lambda t: init.kaiming_uniform_(t, **options), *shape)
    bound = math.sqrt(3) * std
    assert 0.999 * bound < np.abs(x).max() <= bound
    assert x.std() == pytest.approx(std, rel=0.02) and abs(x.mean()) < 0.02 * std
    y = filled(lambda t: init.kaiming_normal_(t, **options), *shape)
    assert y.std() == pytest.approx(std, rel=0.02) and abs(y.mean()) < 0.02 * std
    assert np.abs(y).max() > 3 * std


@pytest.mark.parametrize("gain", [1.0, 5 / 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.peer
def test_xavier_has_pytorchs_bounds_and_deviation(shape, gain):
    torch = pytest.importorskip("torch")
    fans = torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
    assert init._fans(Tensor(np.empty(shape))) == fans
    std = gain * math.sqrt(2 / sum(fans))
    x = filled(lambda t: init.xavier_uniform_(t, gain), *shape)
    assert 0.999 * math.sqrt(3) * std < np.abs(x).max() <= math.sqrt(3) * std
    assert x.std() == pytest.approx(std, rel=0.02)
    y = filled(lambda t: init.xavier_normal_(t, gain), *shape)
    assert y.std() == pytest.approx(std, rel=0.02) and np.abs(y).max() > 3 * std


@pytest.mark.peer
def test_gains_are_pytorchs():
    torch = pytest.importorskip("torch")
    for name in ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose2d", "sigmoid", "tanh",
                 "relu", "leaky_relu", "selu"):
        assert init.calculate_gain(name) == pytest.approx(
            torch.nn.init.calculate_gain(name), rel=1e-15)
    assert init.calculate_gain("leaky_relu", 0.3) == pytest.approx(
        torch.nn.init.calculate_gain("leaky_relu", 0.3), rel=1e-15)


def truncated_moments(low, high, n=200_001):
    """Mean and standard deviation of a standard normal on [low, high], by the midpoint rule."""
    low, high = max(low, -40.0), min(high, max(low, 0) + 12.0)
    x = low + (np.arange(n) + 0.5) * ((high - low) / n)
    w = np.exp((np.clip(0, low, high) ** 2 - x * x) / 2)
    mean = (w * x).sum() / w.sum()
    return mean, math.sqrt((w * (x - mean) ** 2).sum() / w.sum())


@pytest.mark.parametrize("mean, std, a, b", [
    (0, 1, -2, 2), (0, 0.02, -2, 2), (1, 2, -1, 1.5), (0, 1, -0.1, 0.3), (0, 1, 3, 5),
    (0, 1, 6, 1e9), (5, 1, -1e9, 0), (0, 1, -3, 0.2), (0, 1, 0.5, 2.0)])
def test_a_truncated_normal_has_its_moments_and_bounds(mean, std, a, b):
    x = filled(lambda t: init.trunc_normal_(t, mean, std, a, b), 250, 200)
    assert x.min() >= a and x.max() <= b
    low, high = (a - mean) / std, (b - mean) / std
    m, s = truncated_moments(low, high) if high > 0 or low == -high else (
        (lambda m, s: (-m, s))(*truncated_moments(-high, -low)))
    z = (x - mean) / std
    assert abs(z.mean() - m) < 4.5 * s / math.sqrt(x.size)
    assert z.std() == pytest.approx(s, rel=0.03)


@pytest.mark.parametrize("shape, gain", [((5, 5), 1), ((3, 8), 2.0), ((8, 3), 1), ((4, 2, 3), 0.5),
                                         ((1, 1), 3), ((2, 2, 1, 1), 1)], ids=str)
def test_orthogonal_rows_or_columns_are_orthonormal_times_the_gain(shape, gain):
    q = filled(lambda t: init.orthogonal_(t, gain), *shape).reshape(shape[0], -1)
    small = q @ q.T if q.shape[0] <= q.shape[1] else q.T @ q
    np.testing.assert_allclose(small, gain**2 * np.eye(len(small)), atol=1e-13 * gain**2)


def test_orthogonal_matrices_are_spread_evenly():
    corner = np.array([filled(init.orthogonal_, 2, 2)[0, 0] for _ in range(2000)])
    # The cosine of a uniform angle: mean 0, mean square 1/2.
    assert abs(corner.mean()) < 0.07 and (corner ** 2).mean() == pytest.approx(0.5, abs=0.04)


def test_eye_is_the_identity_of_any_matrix():
    np.testing.assert_array_equal(filled(init.eye_, 2, 3), [[1, 0, 0], [0, 1, 0]])


def test_drawn_values_depend_on_the_name_and_not_on_the_dtype():
    low = nn.Linear(20, 10)
    mp.set_default_dtype("float64")
    high = nn.Linear(20, 10)
    for layer in (low, high):
        init.trunc_normal_(layer.weight)
    np.testing.assert_array_equal(low.weight.array, high.weight.array.astype(np.float32))


@pytest.mark.parametrize("call, message", [
    (lambda t: init.eye_(t), "matrix .* not shape .3,"),
    (lambda t: init.orthogonal_(t), "two dims are needed, not shape .3,"),
    (lambda t: init.xavier_normal_(t), "two dims, not shape .3,"),
    (lambda t: init.trunc_normal_(t, a=2, b=1), "a 2 < b 1"),
    (lambda t: init.trunc_normal_(t, std=0), "std 0 > 0"),
    (lambda t: init.kaiming_normal_(t, mode="fan"), "not 'fan'"),
    (lambda t: init.calculate_gain("swish"), "no gain for 'swish'"),
])
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Tensor(np.empty(3)))
