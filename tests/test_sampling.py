"""Random tensors: determinism, ranges, and distributions against their closed forms.

Seeds are fixed, so each test passes always or never. The bounds are where one in a million of
right generators would fall outside.
"""

import itertools
import math

import numpy as np
import pytest

import minipar as mp
from minipar import context
from minipar.data import DataLoader

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def seed():
    with context.use(context.Context(seed=11)):
        yield


def chi_square(counts, expected):
    """That `counts` are draws with the frequencies `expected`: Wilson & Hilferty's (1931) normal
    approximation of the chi-square distribution, at 4.75 standard deviations to either side.
    """
    counts, expected = np.asarray(counts, float).ravel(), np.asarray(expected, float).ravel()
    assert (counts[expected == 0] == 0).all()
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    statistic = ((counts - expected) ** 2 / expected).sum() / freedom
    z = (statistic ** (1 / 3) - 1 + 2 / (9 * freedom)) / math.sqrt(2 / (9 * freedom))
    assert abs(z) < 4.75, (counts, expected)


DRAWS = {
    "rand": lambda **k: mp.rand(3, 4, **k), "randn": lambda **k: mp.randn(3, 4, **k),
    "randint": lambda **k: mp.randint(100, (3, 4), **k),
    "randperm": lambda **k: mp.randperm(9, **k),
    "bernoulli": lambda **k: mp.bernoulli(mp.full((9,), 0.5), **k),
    "multinomial": lambda **k: mp.multinomial(mp.ones(2, 9), 5, **k),
    "replacement": lambda **k: mp.ones(9).multinomial(5, True, **k),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_is_a_function_of_the_seed_and_of_the_draws_before_it(name):
    draw = DRAWS[name]
    mp.manual_seed(5)
    first, second = draw().tolist(), draw().tolist()
    mp.manual_seed(5)
    assert draw().tolist() == first != second == draw().tolist()
    mp.manual_seed(6)
    assert draw().tolist() != first


@pytest.mark.parametrize("name", DRAWS)
def test_a_generator_draws_what_the_rank_draws_after_the_same_seed_and_leaves_it_alone(name):
    draw, generator = DRAWS[name], mp.Generator()
    mp.manual_seed(5)
    expected = [draw().tolist() for _ in range(3)]
    mp.manual_seed(5)
    assert generator.manual_seed(5) is generator and generator.initial_seed() == 5
    assert [draw(generator=generator).tolist() for _ in range(3)] == expected
    assert draw().tolist() == expected[0]
    a, b = np.random.default_rng(3), np.random.default_rng(3)
    assert draw(generator=a).tolist() == draw(generator=b).tolist()


def test_the_likes_draw_what_the_sizes_draw():
    x = mp.zeros(2, 3, dtype="float64")
    for like, sized in ((mp.rand_like, mp.rand), (mp.randn_like, mp.randn)):
        mp.manual_seed(1)
        expected = sized(2, 3, dtype="float64")
        mp.manual_seed(1)
        assert like(x).tolist() == expected.tolist()
        assert like(x, dtype="float32", requires_grad=True).requires_grad


def test_a_generator_serves_where_a_numpy_generator_does():
    a, b = mp.Generator().manual_seed(1), mp.Generator().manual_seed(1)
    loaders = [DataLoader(list(range(20)), batch_size=20, shuffle=True, generator=g)
               for g in (a, b)]
    first, second = [next(iter(loader)) for loader in loaders]
    assert np.array_equal(first.array, second.array)
    assert sorted(first.tolist()) == list(range(20)) != first.tolist()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rand_is_uniform_and_never_1(dtype):
    x = mp.rand(100_000, dtype=dtype)
    assert x.dtype is mp.dtypes.dtype(dtype)
    values = x.array.astype(float)
    assert values.min() >= 0 and values.max() < 1
    chi_square(np.histogram(values, 64, (0, 1))[0], [100_000 / 64] * 64)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_randn_is_normal(dtype):
    x = mp.randn(100_000, dtype=dtype)
    assert x.dtype is mp.dtypes.dtype(dtype)
    edges = np.linspace(-3, 3, 25) + 1e-4  # between the numbers of float16
    below = [0, *[0.5 * math.erfc(-e / math.sqrt(2)) for e in edges], 1]
    counts = np.histogram(x.array.astype(float), [-np.inf, *edges, np.inf])[0]
    chi_square(counts, np.diff(below) * 100_000)


@pytest.mark.parametrize("make", [
    lambda **k: mp.randint(7, (50_000,), **k), lambda **k: mp.randint(0, 7, (50_000,), **k),
    lambda **k: mp.randint(high=7, size=(50_000,), **k),
    lambda **k: mp.randint(low=0, high=7, size=(50_000,), **k)])
def test_randint_draws_each_integer_as_often(make):
    x = make()
    assert x.dtype is mp.int64
    chi_square(np.bincount(x.array, minlength=7), [50_000 / 7] * 7)
    for dtype in ("uint8", "int32", "float32"):
        assert make(dtype=dtype).dtype is mp.dtypes.dtype(dtype)
    assert set(mp.randint(-2, 1, (100,)).tolist()) == {-2, -1, 0}
    assert mp.randint(5, ()).shape == () and mp.randint(5, (2, 0)).shape == (2, 0)


def test_randperm_gives_each_order_as_often():
    orders = list(itertools.permutations(range(4)))
    counts = dict.fromkeys(orders, 0)
    for _ in range(4800):
        counts[tuple(mp.randperm(4).tolist())] += 1
    chi_square(list(counts.values()), [200] * 24)
    assert mp.randperm(0).shape == (0,) and mp.randperm(3, dtype="int32").dtype is mp.int32


def test_bernoulli_gives_1_as_often_as_it_is_told():
    p = mp.tensor([0.0, 0.1, 0.5, 0.99, 1.0])
    drawn = mp.bernoulli(mp.tensor(np.tile(p.array, (20_000, 1))))
    assert drawn.dtype is mp.float32 and set(np.unique(drawn.array)) == {0, 1}
    ones = drawn.array.sum(0)
    for count, chance in zip(ones, p.tolist()):
        chi_square([count, 20_000 - count], [20_000 * chance, 20_000 * (1 - chance)]) \
            if 0 < chance < 1 else None
    assert ones[0] == 0 and ones[-1] == 20_000


@pytest.mark.parametrize("replacement", [True, False])
def test_the_first_index_of_multinomial_comes_with_the_probability_of_its_weight(replacement):
    weights = np.array([0.0, 1, 2, 0, 5, 0.5, 0])
    drawn = mp.multinomial(mp.tensor(np.tile(weights, (30_000, 1))), 2, replacement)
    assert drawn.dtype is mp.int64 and drawn.shape == (30_000, 2)
    chi_square(np.bincount(drawn.array[:, 0], minlength=7), weights / weights.sum() * 30_000)


def test_the_second_index_of_multinomial_comes_with_or_without_the_first():
    weights = np.array([1.0, 2, 5, 0.5])
    p = weights / weights.sum()
    rows = mp.tensor(np.tile(weights, (30_000, 1)))
    together = np.outer(p, p)
    without = np.array([[0 if i == j else p[i] * p[j] / (1 - p[i]) for j in range(4)]
                        for i in range(4)])
    for replacement, expected in ((True, together), (False, without)):
        a, b = rows.multinomial(2, replacement).array.T
        chi_square(np.bincount(4 * a + b, minlength=16), expected * 30_000)


def test_multinomial_without_replacement_draws_nothing_twice_and_no_zero():
    weights = mp.tensor([[0.0, 1, 0, 3, 1e-30], [1, 1, 1, 0, 0]])
    for _ in range(100):
        first, second = mp.multinomial(weights, 3).tolist()
        assert sorted(first) == [1, 3, 4] and sorted(second) == [0, 1, 2]
    assert mp.multinomial(weights[0], 2).shape == (2,)
    assert mp.multinomial(mp.ones(0, 3), 2, True).shape == (0, 2)


def test_draws_are_leaves_that_require_grad_if_asked():
    for make in (mp.rand, mp.randn):
        x = make(3, requires_grad=True)
        (x * 2).sum().backward()
        assert x.grad.tolist() == [2, 2, 2] and x.is_leaf and not make(3).requires_grad
    assert mp.rand(()).shape == () and mp.randn((2, 3)).shape == (2, 3) == mp.randn(2, 3).shape


def test_ranks_draw_from_generators_of_their_own():
    a, b = context.Context(seed=1), context.Context(seed=1)
    with context.use(a):
        first = mp.rand(3).tolist()
    with context.use(b):
        assert mp.rand(3).tolist() == first
        assert mp.rand(3).tolist() != first
