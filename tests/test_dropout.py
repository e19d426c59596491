"""Dropout: the generator behind its masks, and that a mask depends on the sample alone."""

import numpy as np
import pytest

import minipar as mp
from minipar import random
from minipar.nn import functional as F
from minipar.tensor import Tensor, backward

pytestmark = pytest.mark.filterwarnings("error")


def test_bits_are_philox4x64_10_of_random123s_known_answers():
    """Vectors of Random123's kat_vectors file (Salmon et al. 2011). NumPy counts up before each
    block, so index 8 c of a stream is the block of counter c + 1; the words are little-endian.
    """
    def block(counter, *key):
        counter = sum(word << 64 * i for i, word in enumerate(counter))
        key = sum(word << 64 * i for i, word in enumerate(key))
        words = random.bits(key, 8 * ((counter - 1) % 2**256), 8)
        return words.astype("<u4").view("<u8").tolist()

    assert block((0, 0, 0, 0), 0, 0) == [
        0x16554d9eca36314c, 0xdb20fe9d672d0fdc, 0xd7e772cee186176b, 0x7e68b68aec7ba23b]
    full = 2**64 - 1
    assert block((full, full, full, full), full, full) == [
        0x87b092c3013fe90b, 0x438c3c67be8d0224, 0x9cc7d7c69cd777b6, 0xa09caebf594f0ba0]
    assert block((0x243f6a8885a308d3, 0x13198a2e03707344, 0xa4093822299f31d0, 0x082efa98ec4e6c89),
                 0x452821e638d01377, 0xbe5466cf34e90c6c) == [
        0xa528f45403e61d95, 0x38c72dbd566e9788, 0xa5a1610e72fd18b5, 0x57bd43b5e52b7fe6]


def masks(shape, p=0.4, step=3, start=0, name="block.0", calls=1, seed=5):
    """What `calls` calls of dropout keep, at a place in the global batch."""
    context = mp.context.Context(seed)
    with mp.context.use(context), mp.batch_position(step, start):
        kept = [F.dropout(Tensor(np.ones(shape)), p, name=name).array for _ in range(calls)]
    assert all(set(a.reshape(-1)) <= {0, 1 / (1 - p)} for a in kept)
    return [a != 0 for a in kept]


@pytest.mark.parametrize("sample", [(), (5,), (8,), (3, 7), (2, 4, 3)])
def test_dropout_masks_do_not_depend_on_how_a_batch_of_7_is_split(sample):
    whole = np.stack(masks((7, *sample), start=2, calls=3))
    for size in range(1, 8):
        parts = [np.stack(masks((min(size, 7 - i), *sample), start=2 + i, calls=3))
                 for i in range(0, 7, size)]
        assert (np.concatenate(parts, axis=1) == whole).all(), size


def test_dropout_draws_anew_at_each_call_step_name_and_seed_and_repeats_at_the_same():
    first, second = masks((9, 50), calls=2)
    others = [second, *(masks((9, 50), **change)[0] for change in (
        {"step": 4}, {"name": "block.1"}, {"seed": 6}, {"start": 1}))]
    for other in others:
        assert 0.3 < (other == first).mean() < 0.7
    assert all((a == b).all() for a, b in zip(masks((9, 50), calls=2), (first, second)))
    assert (masks((9, 50), start=1)[0][:-1] == first[1:]).all()


def test_dropout_outside_a_batch_position_draws_new_masks_every_time():
    mp.manual_seed(1)
    a, b = (F.dropout(Tensor(np.ones(100))).array for _ in range(2))
    assert (a != b).any()


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_dropout_keeps_a_share_of_1_minus_p_of_all_elements_and_of_each_column(p):
    kept = masks((4000, 24), p)[0]
    for part in (kept, *kept.T):
        sigma = np.sqrt(part.size * p * (1 - p))
        assert abs(part.sum() - part.size * (1 - p)) < 5 * sigma


def test_dropout_scales_what_it_keeps_and_passes_the_same_gradients():
    for shape in [(), (1,), (7,), (0,), (3, 0), (3, 5), (2, 3, 4)]:
        x = Tensor(np.ones(shape), requires_grad=True)
        out = F.dropout(x, 0.25)
        backward([out], [np.ones(shape)])
        np.testing.assert_array_equal(out.array, x.grad.array)
        assert set(out.array.reshape(-1)) <= {0, 1 / 0.75}
    assert not F.dropout(Tensor(np.ones(50)), 1.0).array.any()
    assert F.dropout(x, 0.0) is x and F.dropout(x, 0.5, training=False) is x
    assert F.dropout(Tensor(np.ones(9, np.float32)), 0.3).dtype is mp.float32


def test_dropout_refuses_other_probabilities_and_types():
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            F.dropout(Tensor(np.ones(3)), p)
    with pytest.raises(TypeError, match="int64"):
        F.dropout(Tensor(np.ones(3, np.int64)))
