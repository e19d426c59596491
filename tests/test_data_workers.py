"""Loader threads, and what single samples draw. Oracles: no worker, one rank, and PyTorch."""

import threading
import traceback

import numpy as np
import pytest
from data_files import Noisy

import minipar
from minipar import data
from minipar.context import current
from minipar.data import (DataLoader, GlobalBatchSampler, Subset, at_sample,
                          sample_draws)


class NoisyBatches(Noisy):
    """The same, made a batch at a time."""

    def get_batch(self, indices):
        samples = []
        for i in indices:
            at_sample(i)
            samples.append(self[int(i)])
        return data.default_collate(samples)


def epochs(loader, count=2):
    return [[[field.tolist() for field in batch] for batch in loader] for _ in range(count)]


def threads():
    return {t for t in threading.enumerate() if t.name.startswith("minipar-data")}


# ------------------------------------------------------------------ worker threads


@pytest.mark.parametrize("options", [
    dict(batch_size=4), dict(batch_size=4, drop_last=True), dict(batch_size=5, shuffle=True),
    dict(batch_size=100), dict(sampler=[3, 3, 1], batch_size=2), dict(batch_sampler=[[1], [], [2]]),
])
@pytest.mark.parametrize("kind", [Noisy, NoisyBatches])
def test_batches_are_the_same_with_any_number_of_workers(kind, options):
    found = []
    for workers, factor in (0, None), (1, None), (3, 1), (4, 7):
        minipar.manual_seed(5)
        if options.get("batch_sampler") and kind is NoisyBatches:
            options = dict(batch_sampler=[[1], [2]])
        found.append(epochs(DataLoader(kind(), num_workers=workers, prefetch_factor=factor,
                                       **options)))
    assert found[0] == found[1] == found[2] == found[3]
    assert found[0][0] != found[0][1]  # the second epoch draws other numbers
    assert not threads()


def test_samples_made_one_by_one_and_in_batches_draw_the_same_numbers():
    single, batched = [epochs(DataLoader(kind(), 4, num_workers=2)) for kind in (Noisy,
                                                                                NoisyBatches)]
    assert single == batched


def test_a_worker_has_the_settings_of_the_rank_and_a_generator_of_the_sample():
    class Settings(Noisy):
        def __getitem__(self, i):
            return (minipar.get_default_dtype().name, current().seed, current().grad_enabled,
                    threading.current_thread() is threading.main_thread())
    minipar.manual_seed(77)
    minipar.set_default_dtype("float64")
    try:
        with minipar.no_grad():
            for workers in 0, 2:
                dtypes, seeds, grad, main = next(iter(DataLoader(Settings(), 3,
                                                                 num_workers=workers)))
                assert dtypes == ["float64"] * 3 and seeds.tolist() == [77] * 3
                assert grad.tolist() == [False] * 3 and main.tolist() == [workers == 0] * 3
    finally:
        minipar.set_default_dtype("float32")
    before = current().generator.bit_generator.state["state"]["counter"].tolist()
    epochs(DataLoader(Noisy()))
    after = current().generator.bit_generator.state["state"]["counter"].tolist()
    assert before == after  # samples do not draw from the rank's own


def test_workers_make_batches_at_the_same_time():
    meet = threading.Barrier(3)

    class Waiting(Noisy):
        def __getitem__(self, i):
            meet.wait(timeout=30)  # passes if three samples are in the making together
            return i
    assert [b.tolist() for b in DataLoader(Waiting(6), num_workers=3)] == [[i] for i in range(6)]


def test_no_more_batches_are_ahead_than_workers_times_prefetch_factor():
    begun = []

    class Counting(Noisy):
        def __getitem__(self, i):
            begun.append(i)
            return i
    taken = 0
    for _ in DataLoader(Counting(60), num_workers=2, prefetch_factor=3):
        taken += 1
        assert len(begun) <= taken + 6
    assert taken == 60 == len(begun)


def test_an_exception_in_a_worker_is_raised_in_its_turn_with_its_own_traceback():
    class Bad(Noisy):
        def __getitem__(self, i):
            if i == 5:
                raise KeyError("sample five")
            return i
    for workers in 0, 3:
        taken = []
        with pytest.raises(KeyError, match="sample five") as caught:
            for batch in DataLoader(Bad(), 2, num_workers=workers):
                taken += batch.tolist()
        assert taken == [0, 1, 2, 3]  # the batches before it are not lost
        frames = traceback.extract_tb(caught.value.__traceback__)
        assert frames[-1].line == 'raise KeyError("sample five")'
        del caught
    assert not threads()


def test_no_thread_is_left_when_an_iteration_is_left_early():
    loader = DataLoader(Noisy(1000), num_workers=3)
    for _ in loader:
        assert 1 <= len(threads()) <= 3
        break
    assert not threads()
    iterator = iter(loader)
    assert not threads()  # none before the first batch is asked for
    next(iterator)
    assert threads()
    del iterator
    assert not threads()
    with pytest.raises(ZeroDivisionError):
        for _ in loader:
            1 / 0
    assert not threads()
    iterator = iter(loader)
    next(iterator)
    iterator.close()
    assert not threads() and list(iterator) == []


def test_two_iterations_at_once_do_not_disturb_each_other():
    minipar.manual_seed(0)
    loader = DataLoader(Noisy(), 4, num_workers=2)
    first, second = zip(*[([f.tolist() for f in a], [f.tolist() for f in b])
                          for a, b in zip(loader, loader, strict=True)])
    again = epochs(DataLoader(Noisy(), 4))
    assert [list(first), list(second)] == again


@pytest.mark.parametrize("options, message", [
    (dict(num_workers=-1), "num_workers should be .* not -1"),
    (dict(num_workers=1.5), "num_workers should be .* not 1.5"),
    (dict(prefetch_factor=2), "0 workers"),
    (dict(num_workers=1, prefetch_factor=-1), "prefetch_factor=-1"),
    (dict(num_workers=1, prefetch_factor=0), "prefetch_factor=0")])
def test_worker_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DataLoader(range(10), **options)


@pytest.mark.peer
def test_worker_options_have_the_defaults_of_pytorch_and_it_refuses_the_same():
    torch = pytest.importorskip("torch")
    for options in {}, dict(num_workers=2), dict(num_workers=2, prefetch_factor=5):
        ours, theirs = (kind(range(10), **options) for kind in (DataLoader,
                                                                torch.utils.data.DataLoader))
        assert (ours.num_workers, ours.prefetch_factor) == (theirs.num_workers,
                                                            theirs.prefetch_factor)
    for options in dict(num_workers=-1), dict(prefetch_factor=2), dict(num_workers=1,
                                                                       prefetch_factor=-1):
        with pytest.raises(ValueError):
            torch.utils.data.DataLoader(range(10), **options)


# ------------------------------------------------------------------ draws of samples


def drawn(loader):
    """{sample: its number} of an epoch."""
    return {i: x for batch in loader for i, x in zip(*[field.tolist() for field in batch])}


def test_what_a_sample_draws_does_not_depend_on_the_number_of_ranks():
    whole = None
    for ranks in 1, 2, 5:
        found = {}
        for rank in range(ranks):
            sampler = GlobalBatchSampler(23, 7, rank=rank, num_replicas=ranks)
            sampler.set_epoch(4)
            found |= drawn(DataLoader(Noisy(), batch_sampler=sampler, num_workers=rank))
        whole = whole or found
        assert len(found) == 23 and found == whole
    assert len(set(whole.values())) == 23
    parts = [Subset(Noisy(), range(k, 23, 3)) for k in range(3)]  # each rank has its own part
    first, serial = DataLoader(Noisy(), 4), {}
    for part in parts:
        serial |= drawn(DataLoader(part, 4))
    assert serial == drawn(first)
    nested = Subset(Subset(Noisy(), range(22, -1, -1)), [0, 5])
    assert drawn(DataLoader(nested)) == {i: serial[i] for i in (22, 17)}


def test_draws_are_a_function_of_seed_epoch_and_sample():
    sampler = GlobalBatchSampler(23, 7)
    loader, found = DataLoader(Noisy(), batch_sampler=sampler), {}
    for seed, epoch in (0, 0), (0, 1), (1, 0), (0, 0), (1, 0):
        minipar.manual_seed(seed)
        sampler.set_epoch(epoch)
        values = drawn(loader)
        assert found.setdefault((seed, epoch), values) == values
    assert len({tuple(sorted(v.values())) for v in found.values()}) == 3
    minipar.manual_seed(0)
    with sample_draws(1):
        at_sample(np.int64(8))
        assert Noisy()[8][1] == found[0, 1][8]
        at_sample(9)
        assert Noisy()[9][1] == found[0, 1][9]
    at_sample(8)  # outside it says nothing: the rank's own generator goes on
    minipar.manual_seed(0)
    expected = current().generator.random()
    minipar.manual_seed(0)
    assert Noisy()[8][1] == expected


def test_a_batch_that_says_no_sample_draws_differently_from_other_batches():
    class Mixed(Noisy):
        def get_batch(self, indices):
            return [minipar.tensor([current().generator.random()])]
    first, again = epochs(DataLoader(Mixed(), 4)), epochs(DataLoader(Mixed(), 4, num_workers=2))
    assert first == again and len({str(b) for epoch in first for b in epoch}) == 12
