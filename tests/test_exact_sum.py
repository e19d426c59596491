"""The exact sum over ranks: against math.fsum and fractions, in any order, on any ranks."""

import math
from fractions import Fraction

import numpy as np
import pytest

from minipar.comm import run_threads, world
from minipar.comm.select import names
from minipar.parallel.exact_sum import CHUNK, ExactSum, nearest

FLOATS = [np.float32, np.float64]
RANGES = {"alike": (-3, 4), "far apart": (-60, 60), "all there are": None, "subnormal": ()}


def terms_of(dtype, between, count, n, seed=0):
    """(count, n) terms with exponents in a range, zeros among them, many that cancel."""
    info, rng = np.finfo(dtype), np.random.default_rng(seed)
    least = info.minexp - info.nmant
    low, high = between or (least, info.minexp + 3 if between == () else info.maxexp - 6)
    terms = np.ldexp(rng.uniform(-1, 1, (count, n)), rng.integers(low, high, (count, n)))
    terms = terms.astype(dtype)
    half = count // 2
    terms[half:2 * half] = np.where(rng.random((half, n)) < 0.5, -terms[:half],
                                    terms[half:2 * half])
    terms[rng.random(terms.shape) < 0.15] = 0
    return terms


def summed(terms, ranks, algorithm="ring", room=None, cuts=None):
    """The exact sum of the rows on threads: ranks have equal runs of them, or those of `cuts`."""
    count, n = terms.shape
    cuts = cuts or [r * count // ranks for r in range(ranks + 1)]

    def job():
        total = ExactSum(world(), n, terms.dtype, room or max(count, 1), algorithm)
        for _ in range(2):  # the second time memory is there
            for row in terms[cuts[world().rank]:cuts[world().rank + 1]]:
                total.add(row)
            out = np.full(n, 7, terms.dtype)
            total.reduce(out)
        return out
    results = run_threads(job, ranks)
    for other in results[1:]:
        assert other.tobytes() == results[0].tobytes()
    return results[0]


def assert_nearest(found, terms):
    """Each sum is the float nearest to the true one: no neighbour is nearer, nor as near if the
    last bit is odd."""
    up = np.nextafter(found, found.dtype.type(np.inf))
    down = np.nextafter(found, found.dtype.type(-np.inf))
    odd = found.view(f"u{found.itemsize}") % 2
    for i in range(len(found)):
        true = sum(map(Fraction, terms[:, i].tolist()))
        off = abs(Fraction(found[i].item()) - true)
        for neighbour in (up[i].item(), down[i].item()):
            if math.isfinite(neighbour):
                other = abs(Fraction(neighbour) - true)
                assert off < other or off == other and not odd[i], (i, found[i], terms[:, i])


@pytest.mark.parametrize("between", RANGES.values(), ids=RANGES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_sum_is_the_true_sum_rounded_to_the_nearest_float(dtype, between):
    for count in (1, 2, 16, 37):
        terms = terms_of(dtype, between, count, 200, count)
        assert_nearest(summed(terms, 1), terms)


@pytest.mark.parametrize("between", RANGES.values(), ids=RANGES)
def test_in_float64_it_is_what_fsum_gives(between):
    terms = terms_of(np.float64, between, 16, 1000)
    np.testing.assert_array_equal(summed(terms, 3), [math.fsum(column) for column in terms.T])


@pytest.mark.parametrize("between", RANGES.values(), ids=RANGES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_no_order_and_no_share_among_ranks_changes_a_bit(dtype, between):
    terms, rng = terms_of(dtype, between, 16, 120), np.random.default_rng(1)
    expected = summed(terms, 1)
    for ranks in (2, 3, 4, 7):
        assert summed(terms[rng.permutation(16)], ranks).tobytes() == expected.tobytes()
    lopsided = summed(terms, 4, cuts=[0, 0, 15, 15, 16])  # two ranks have nothing
    assert lopsided.tobytes() == expected.tobytes()
    assert summed(terms, 2, room=60_000).tobytes() == expected.tobytes()  # in shorter words


@pytest.mark.parametrize("algorithm", [
    name for name in names("all_reduce") if name not in ("mpi", "nccl")])
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_all_reduce_gives_the_same_bits(dtype, algorithm):
    terms = terms_of(dtype, RANGES["far apart"], 16, 301)
    expected = summed(terms, 1)
    assert summed(terms, 4, algorithm).tobytes() == expected.tobytes()


def test_what_ordinary_sums_lose_is_there():
    big = [2.0**100, 1, -2.0**100, 2.0**-100]
    assert sum(big) == 2.0**-100  # one of the two that are left
    terms = np.array([[b, b, 1, 2.0**-149, -b] for b in big], np.float32)
    terms[:, 2] = [2.0**24, 1, 2.0**-40, 0]  # above the middle of two floats by the least
    terms[:, 3] = [2.0**127, 2.0**-149, -2.0**127, 2.0**-149]
    terms[3, 1] = -1
    assert summed(terms, 2).tolist() == [1.0, 0.0, 2.0**24 + 2, 2.0**-148, -1.0]


def test_many_equal_terms_fill_the_words_and_do_not_overflow_them():
    for count in (1, 2, 3, 4, 7, 8, 31, 32):
        largest = np.nextafter(np.float32(2), np.float32(1))
        for value in (largest, -largest, np.float32(1)):
            found = summed(np.full((count, 3), value), 1, room=count)
            assert found.tolist() == [np.float32(count * float(value))] * 3


def test_a_sum_beyond_the_largest_float_is_infinite():
    for dtype in FLOATS:
        most = np.finfo(dtype).max
        terms = np.array([[most, -most, most], [most, -most, most], [0, 0, -most]], dtype)
        assert summed(terms, 2).tolist() == [np.inf, -np.inf, most]


def test_a_term_that_is_not_finite_makes_its_element_nan_and_no_other():
    for dtype in FLOATS:
        terms = terms_of(dtype, (-70, 70), 8, 9)
        expected = summed(terms, 1)
        expected[[1, 4, 7]] = np.nan
        terms[3, 1], terms[0, 4], terms[7, 7] = np.inf, np.nan, -np.inf
        for ranks in (1, 3):
            np.testing.assert_array_equal(summed(terms, ranks), expected)


def test_sums_of_nothing_are_positive_zeros():
    assert summed(np.zeros((0, 4), np.float32), 2).tobytes() == bytes(16)
    assert summed(np.full((3, 4), -0.0, np.float32), 2).tobytes() == bytes(16)
    assert summed(np.full((3, 1), 0.1), 2).tolist() == [math.fsum([0.1] * 3)]
    assert summed(np.zeros((3, 0)), 2).shape == (0,)


@pytest.mark.parametrize("dtype", FLOATS)
def test_arrays_longer_than_a_chunk_are_summed_to_their_end(dtype):
    n = 2 * CHUNK + 5
    terms = (np.arange(3 * n).reshape(3, n) % 1009 - 500).astype(dtype)
    terms[0, ::7] = 2.0**90
    terms[1, ::7] = -2.0**90
    expected = terms[:, :].sum(0)  # whole numbers that are small: exact, but where they cancel
    expected[::7] = terms[2, ::7]
    for algorithm in ("ring", "shared"):
        np.testing.assert_array_equal(summed(terms, 2, algorithm), expected)


def test_words_of_any_size_and_sign_are_one_number():
    rng = np.random.default_rng(0)
    for bits in (3, 20, 42, 58, 61):
        words = rng.integers(-2**62, 2**62, (5, 300)) >> rng.integers(0, 63, (5, 300))
        words[0] >>= 2
        words[:, :100] >>= 60  # of few digits, some of them 0
        for dtype in FLOATS:
            head, shift = nearest(words, bits, dtype)
            for i in range(words.shape[1]):
                true = sum(Fraction(int(w), 2**(bits * j)) for j, w in enumerate(words[:, i]))
                found = Fraction(head[i]) / Fraction(2) ** int(shift[i])
                unit = 2 * abs(true) / 2**np.finfo(dtype).nmant
                assert abs(found - true) <= unit / 4, (bits, words[:, i])


@pytest.mark.parametrize("dtype", ["float16", "int64", "complex64"])
def test_other_types_are_refused(dtype):
    with pytest.raises(TypeError, match=f"float32 and float64, not of {dtype}"):
        ExactSum(world(), 3, dtype, 1)


def test_more_terms_than_there_is_room_for_are_refused():
    with pytest.raises(OverflowError, match="6 terms in a sum with room for 5"):
        summed(np.ones((6, 2)), 2, room=5)
