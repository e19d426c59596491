"""Parts of data sets, and several in a row. Oracles: set arithmetic and PyTorch."""

import warnings

import numpy as np
import pytest
from data_files import Noisy

import minipar
from minipar import data
from minipar.data import ConcatDataset, DataLoader, Subset, TensorDataset, random_split


def test_a_subset_offers_what_its_data_set_offers():
    x = np.arange(20.0).reshape(10, 2)
    part = Subset(TensorDataset(x), [7, 2, 2])
    assert len(part) == 3 and part[0][0].tolist() == [14, 15] and part[-1][0].tolist() == [4, 5]
    assert part.get_batch(np.array([1, 0]))[0].tolist() == [[4, 5], [14, 15]]
    assert part.get_batch([])[0].shape == (0, 2)
    assert not hasattr(Subset(Noisy(), [1]), "get_batch")
    assert [b[0].tolist() for b in DataLoader(Subset(part, [2, 0]), 2)] == [[[4, 5], [14, 15]]]
    with pytest.raises(IndexError):
        part[3]

    class Many(Noisy):
        def __getitems__(self, indices):
            return [-i for i in indices]
    assert next(iter(DataLoader(Subset(Many(), [4, 6, 8]), 3))).tolist() == [-4, -6, -8]


def test_data_sets_in_a_row_are_indexed_through():
    whole = ConcatDataset([Noisy(3), Noisy(0), Noisy(2)])
    assert len(whole) == 5 and whole.cumulative_sizes == [3, 3, 5]
    assert [whole[i][0] for i in range(5)] == [0, 1, 2, 0, 1]
    assert [whole[i][0] for i in range(-5, 0)] == [0, 1, 2, 0, 1]
    for bad in 5, -6:
        with pytest.raises(IndexError, match="of 5"):
            whole[bad]
    with pytest.raises(ValueError, match="should not be an empty iterable"):
        ConcatDataset([])
    values = [value.item() for _, value in DataLoader(whole)]
    assert len(set(values)) == 5  # sample 0 of both parts is not drawn alike


LENGTHS = [(10, [3, 7]), (10, [0.5, 0.5]), (11, [0.5, 0.5]), (10, [0.34, 0.33, 0.33]),
           (7, [1.0]), (4, [4, 0]), (10, [0.1] * 10), (1, [0.5, 0.5]), (10, [1]),
           (10, [3, 8]), (10, [0.5, 0.4]), (10, [0.6, 0.6]), (10, [-1, 11]), (10, [1.5, -0.5])]


@pytest.mark.peer
@pytest.mark.parametrize("total, lengths", LENGTHS)
def test_a_random_split_has_the_lengths_that_pytorch_gives_or_refuses(total, lengths):
    torch = pytest.importorskip("torch")

    def sizes(split):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch warns of empty parts
                return [len(part) for part in split(range(total), lengths)]
        except ValueError:
            return "refused"
    theirs = sizes(torch.utils.data.random_split)
    assert sizes(random_split) == (theirs if lengths != [-1, 11] else "refused")


def test_a_random_split_deals_out_every_sample_once_in_random_order():
    parts = random_split(range(100), [0.3, 0.7], generator=np.random.default_rng(1))
    dealt = [[part[i] for i in range(len(part))] for part in parts]
    assert sorted(dealt[0] + dealt[1]) == list(range(100)) and dealt[0] != sorted(dealt[0])
    again = random_split(range(100), [30, 70], generator=np.random.default_rng(1))
    assert [part.indices for part in parts] == [part.indices for part in again]
    minipar.manual_seed(3)
    first = random_split(range(100), [30, 70])[0].indices
    minipar.manual_seed(3)
    assert random_split(range(100), [30, 70])[0].indices == first
    with pytest.raises(ValueError, match=r"lengths \[3, 8\] of sum 11 for a data set of 10"):
        random_split(range(10), [3, 8])


@pytest.mark.peer
def test_parts_and_rows_of_data_sets_index_as_in_pytorch():
    torch = pytest.importorskip("torch")
    theirs = torch.utils.data
    a, b = list("abcde"), list("vwxyz")
    for index in -10, -6, -5, -1, 0, 4, 5, 9:
        assert ConcatDataset([a, b])[index] == theirs.ConcatDataset([a, b])[index]
        if -3 <= index < 3:
            assert Subset(a, [4, 0, 2])[index] == theirs.Subset(a, [4, 0, 2])[index]


def test_base_classes_say_what_is_missing():
    with pytest.raises(TypeError, match="Dataset has no __getitem__"):
        data.Dataset()[0]
    with pytest.raises(TypeError, match="Sampler has no __iter__"):
        iter(data.Sampler())
