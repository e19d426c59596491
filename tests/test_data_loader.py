"""Samplers and loaders. Oracles: set arithmetic, one rank against many, and PyTorch."""

from types import SimpleNamespace

import numpy as np
import pytest

import minipar
from minipar import data
from minipar.data import (BatchSampler, DataLoader, Dataset, DistributedSampler,
                          GlobalBatchSampler, RandomSampler, SequentialSampler, TensorDataset)

# ------------------------------------------------------------------ samplers


def test_sequential_random_and_batch_samplers_cover_every_sample_once():
    assert list(SequentialSampler(range(5))) == [0, 1, 2, 3, 4]
    sampler = RandomSampler(range(100), generator=np.random.default_rng(1))
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(100)) and first != second
    assert first == list(RandomSampler(range(100), generator=np.random.default_rng(1)))
    assert sorted(list(RandomSampler(range(4), num_samples=10))[:8]) == [0, 0, 1, 1, 2, 2, 3, 3]
    drawn = list(RandomSampler(range(4), replacement=True, num_samples=50))
    assert len(drawn) == 50 and set(drawn) == {0, 1, 2, 3}
    assert list(BatchSampler(range(5), 2, False)) == [[0, 1], [2, 3], [4]]
    assert list(BatchSampler(range(5), 2, True)) == [[0, 1], [2, 3]]


def test_manual_seed_decides_the_order_of_a_loader_that_shuffles():
    def order():
        minipar.manual_seed(3)
        return [int(i) for (x,) in DataLoader(TensorDataset(np.arange(30)), 7, shuffle=True)
                for i in x.array]
    assert order() == order() != list(range(30))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("length, batch", [(40, 8), (41, 7), (100, 64), (5, 9), (23, 7)])
def test_the_shards_of_all_ranks_make_the_batches_of_one_rank(length, batch, drop_last, shuffle):
    if drop_last and length < batch:
        return
    options = dict(shuffle=shuffle, seed=5, drop_last=drop_last)
    whole = list(GlobalBatchSampler(length, batch, **options).shards(3))
    seen = np.concatenate([s.indices for s in whole])
    kept = length - length % batch if drop_last else length
    assert len(set(seen.tolist())) == len(seen) == kept
    assert [s.size for s in whole] == [min(batch, kept - i) for i in range(0, kept, batch)]
    for n in range(1, 8):
        ranks = [GlobalBatchSampler(length, batch, rank=r, num_replicas=n, **options)
                 for r in range(n)]
        steps = list(zip(*[r.shards(3) for r in ranks], strict=True))
        assert len(steps) == len(whole) == len(ranks[0])
        for step, (shards, expected) in enumerate(zip(steps, whole)):
            assert np.concatenate([s.indices for s in shards]).tolist() == expected.indices.tolist()
            position = 0
            for shard in shards:
                assert (shard.step, shard.start, shard.size) == (step, position, expected.size)
                position += len(shard.indices)
            sizes = [len(s.indices) for s in shards]
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.parametrize("batch, parts", [(8, 16), (7, 7), (33, 8), (16, 9), (100, 16)])
def test_virtual_shards_are_cut_alike_whatever_the_number_of_ranks(batch, parts, n):
    samplers = [GlobalBatchSampler(75, batch, rank=r, num_replicas=n, seed=3, virtual_shards=parts)
                for r in range(n)]
    whole = GlobalBatchSampler(75, batch, seed=3).shards(1)
    for expected, *shards in zip(whole, *(s.shards(1) for s in samplers), strict=True):
        ends = [v * expected.size // parts for v in range(parts + 1)]
        assert np.concatenate([s.indices for s in shards]).tolist() == expected.indices.tolist()
        for r, shard in enumerate(shards):
            assert shard.start == ends[r * parts // n]
            assert shard.start + len(shard.indices) == ends[(r + 1) * parts // n]


def test_a_global_batch_sampler_iterates_over_the_epoch_that_was_set_and_can_resume():
    sampler = GlobalBatchSampler(50, 8, rank=1, num_replicas=3, seed=2)
    epochs = []
    for epoch in 0, 1:
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert epochs[-1] == [s.indices.tolist() for s in sampler.shards(epoch)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != list(GlobalBatchSampler(50, 8, rank=1, num_replicas=3, seed=3))
    resumed = list(sampler.shards(1, first_step=4))
    assert [s.step for s in resumed] == [4, 5, 6]
    assert [s.indices.tolist() for s in resumed] == epochs[1][4:]


def test_the_order_of_an_epoch_is_a_pure_function_of_seed_and_epoch():
    np.random.seed(0)
    first = data.permutation(1000, 7, 2)
    minipar.manual_seed(99)
    assert np.array_equal(first, data.permutation(1000, 7, 2))
    assert sorted(first) == list(range(1000))
    others = [data.permutation(1000, s, e) for s, e in ((7, 3), (8, 2), (2, 7), (72, 0))]
    # Two random permutations of 1,000 agree in about one place.
    assert all((first == other).sum() < 10 for other in others)


@pytest.mark.parametrize("make, message", [
    (lambda: GlobalBatchSampler(100, 2, num_replicas=4), "global batch 2 < 4 ranks"),
    (lambda: GlobalBatchSampler(0, 2), "length=0"),
    (lambda: GlobalBatchSampler(10, 0), "batch_size=0"),
    (lambda: GlobalBatchSampler(10, 2.0), "batch_size=2.0"),
    (lambda: GlobalBatchSampler(9, 9, num_replicas=3, virtual_shards=2), "3 ranks > 2 virtual"),
    (lambda: GlobalBatchSampler(9, 9, virtual_shards=0), "virtual_shards=0"),
    (lambda: GlobalBatchSampler(3, 5, drop_last=True), "no step: 3 samples < global batch 5"),
    (lambda: GlobalBatchSampler(10, 5, rank=2, num_replicas=2), r"Invalid rank 2.*\[0, 1\]"),
    (lambda: DistributedSampler(range(9), 2, -1), r"Invalid rank -1.*\[0, 1\]"),
    (lambda: DistributedSampler(range(9), 0, 0), "num_replicas=0"),
    (lambda: RandomSampler([]), "num_samples=0"),
    (lambda: BatchSampler(range(3), True, False), "batch_size=True"),
    (lambda: BatchSampler(range(3), 2, None), "drop_last should be a boolean"),
])
def test_samplers_refuse_what_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_distributed_sampler_takes_its_place_from_the_world(monkeypatch):
    world = SimpleNamespace(size=3, rank=1)
    monkeypatch.setattr("minipar.comm.world", lambda: world, raising=False)
    assert list(DistributedSampler(range(7), shuffle=False)) == [1, 4, 0]


# ------------------------------------------------------------------ loader


class Squares(Dataset):
    """A data set of the user's: Python numbers, an array and a string; counts its calls."""

    def __len__(self):
        return 10

    def __getitem__(self, i):
        if not 0 <= i < 10:
            raise IndexError(i)
        return {"i": i, "half": i / 2, "row": np.full(3, i, np.float32), "name": str(i)}, (i, i * i)


def test_the_default_collate_stacks_fields_of_any_nesting():
    fields, pair = next(iter(DataLoader(Squares(), 4)))
    assert fields["i"].tolist() == [0, 1, 2, 3] and fields["i"].dtype is minipar.int64
    assert fields["half"].tolist() == [0, .5, 1, 1.5] and fields["half"].dtype is minipar.float64
    assert fields["row"].shape == (4, 3) and fields["row"].dtype is minipar.float32
    assert fields["name"] == ["0", "1", "2", "3"]
    assert isinstance(pair, list) and pair[1].tolist() == [0, 1, 4, 9]


def test_get_batch_gives_what_collating_samples_gives():
    rng = np.random.default_rng(0)
    dataset = TensorDataset(rng.normal(size=(10, 2, 3)), np.arange(10))
    fast = DataLoader(dataset, 4)
    slow = DataLoader(dataset, 4, collate_fn=data.default_collate)
    for a, b in zip(fast, slow, strict=True):
        assert [t.tolist() for t in a] == [t.tolist() for t in b]
        assert [t.dtype for t in a] == [t.dtype for t in b]
    a[0].array[:] = 0  # a batch is a copy: the data must not change with it
    assert (dataset.tensors[0].array[8:] != 0).all()


def test_an_empty_batch_has_the_fields_and_shapes_of_others():
    x, y = DataLoader(data.load("digits").train, batch_sampler=[[]])._get_batch([])
    assert (x.shape, y.shape, y.dtype) == ((0, 1, 8, 8), (0,), minipar.int64)
    fields, pair = next(iter(DataLoader(Squares(), batch_sampler=[[]])))
    assert fields["row"].shape == (0, 3) and [t.shape for t in pair] == [(0,), (0,)]


def test_a_loader_with_a_global_batch_sampler_gives_every_rank_as_many_batches():
    dataset = TensorDataset(np.arange(9))
    batches = [list(DataLoader(dataset, batch_sampler=GlobalBatchSampler(
        9, 4, rank=r, num_replicas=4))) for r in range(4)]
    assert [len(b) for b in batches] == [3] * 4
    assert [b[2][0].shape for b in batches] == [(0,), (0,), (0,), (1,)]


def test_getitems_of_a_data_set_returns_samples_that_are_collated():
    class Many(Squares):
        def __getitems__(self, indices):
            return [-i for i in indices]
    assert next(iter(DataLoader(Many(), 3))).tolist() == [0, -1, -2]


def test_samples_that_do_not_fit_together_are_refused_with_their_shapes():
    with pytest.raises(ValueError, match=r"differ in shape: \[\(2,\), \(3,\)\]"):
        data.default_collate([np.zeros(2), np.zeros(3)])
    with pytest.raises(ValueError, match=r"number of fields: \[1, 2\]"):
        data.default_collate([(1, 2), (1,)])
    with pytest.raises(TypeError, match="not NoneType"):
        data.default_collate([None])
    for bad in (np.zeros(3), np.zeros(4)), (), (np.float32(1),):
        with pytest.raises(ValueError, match="tensors of one length, not shapes"):
            TensorDataset(*bad)


@pytest.mark.parametrize("options", [
    dict(sampler=[0], shuffle=True), dict(batch_size=0), dict(batch_size=-2), dict(batch_size=2.5),
    dict(batch_sampler=[[0]], batch_size=2), dict(batch_sampler=[[0]], shuffle=True),
    dict(batch_sampler=[[0]], sampler=[0]), dict(batch_sampler=[[0]], drop_last=True)])
@pytest.mark.peer
def test_a_loader_refuses_the_contradictions_that_pytorch_refuses_in_its_words(options):
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError) as theirs:
        torch.utils.data.DataLoader(range(10), **options)
    with pytest.raises(ValueError) as ours:
        DataLoader(range(10), **options)
    assert " ".join(str(ours.value).split()) == " ".join(str(theirs.value).split())


@pytest.mark.parametrize("options", [
    {}, dict(batch_size=3), dict(batch_size=3, drop_last=True), dict(batch_size=20),
    dict(sampler=[4, 4, 1], batch_size=2), dict(batch_sampler=[[1], [9, 0, 3]])])
@pytest.mark.peer
def test_a_loader_makes_the_batches_that_pytorch_makes(options):
    torch = pytest.importorskip("torch")

    def plain(batch):
        if isinstance(batch, dict):
            return {k: plain(v) for k, v in batch.items()}
        if isinstance(batch, (list, tuple)):
            return [plain(v) for v in batch]
        return batch if isinstance(batch, str) else (str(batch.dtype).split(".")[1], batch.tolist())

    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    for ours, theirs in [
            (Squares(), Squares()),
            (TensorDataset(x, np.arange(10)),
             torch.utils.data.TensorDataset(torch.tensor(x), torch.arange(10)))]:
        ours = DataLoader(ours, **options)
        theirs = torch.utils.data.DataLoader(theirs, **options)
        assert len(ours) == len(theirs)
        assert [plain(b) for b in ours] == [plain(b) for b in theirs]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("length, world", [(12, 4), (13, 4), (15, 4), (3, 5), (1, 7), (20, 1)])
@pytest.mark.peer
def test_a_distributed_sampler_deals_out_samples_as_pytorch_does(length, world, drop_last):
    torch = pytest.importorskip("torch")
    theirs_class = torch.utils.data.distributed.DistributedSampler
    dealt = {}
    for shuffle in False, True:
        for kind in DistributedSampler, theirs_class:
            ranks = [kind(range(length), world, r, shuffle=shuffle, seed=3, drop_last=drop_last)
                     for r in range(world)]
            for sampler in ranks:
                sampler.set_epoch(2)
            dealt[shuffle, kind] = [list(s) for s in ranks]
            assert [len(s) for s in ranks] == [len(s) for s in dealt[shuffle, kind]]
    assert dealt[False, DistributedSampler] == dealt[False, theirs_class]
    ours, theirs = dealt[True, DistributedSampler], dealt[True, theirs_class]
    assert [len(s) for s in ours] == [len(s) for s in theirs]
    # How often samples occur: the same numbers, as which sample pads depends on the permutation.
    counts = [sorted(np.bincount(sum(d, []), minlength=length)) for d in (ours, theirs)]
    assert np.array_equal(*counts)
    # With the ranks read in turn, the order is one permutation, repeated to fill up.
    order = [s[i] for i in range(len(ours[0])) for s in ours]
    assert order == (order[:length] * world)[:len(order)]
