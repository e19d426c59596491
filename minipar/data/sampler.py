"""Samplers: which samples, in which order, on which rank. Indices only; no data is touched.

`SequentialSampler`, `RandomSampler`, `BatchSampler` and `DistributedSampler` are PyTorch's.
`GlobalBatchSampler` is the one of the main job. DistributedSampler deals samples out to the ranks
first and lets each form batches, so what an optimizer step sees depends on the number of ranks
(and padding counts some samples twice). GlobalBatchSampler forms the global batch first and then
cuts it, so that n ranks take the same steps as one:

    step s of epoch e trains on  permutation(length, seed, e)[s*B : (s+1)*B],   of k <= B samples
    rank r of n takes            [r*k//n : (r+1)*k//n]  of these k, or by unequal `shares`
    of V virtual shards          [v*k//V : (v+1)*k//V]  for each v of [r*V//n : (r+1)*V//n]
"""

import itertools
from dataclasses import dataclass

import numpy as np

from ..context import current
from ..random import generator as counter_based
from .shares import apportion


def permutation(length, seed, epoch):
    """The order of samples in an epoch: int64 (length,), a pure function of the arguments."""
    return counter_based(seed, "epoch", epoch).permutation(length)


def positive(name, value):
    """Raise ValueError unless `value` is an integer above zero."""
    integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not integer or value <= 0:
        raise ValueError(f"{name} should be a positive integer value, but got {name}={value}")
    return int(value)


def _check_rank(rank, num_replicas):
    positive("num_replicas", num_replicas)
    if not 0 <= rank < num_replicas:
        raise ValueError(f"Invalid rank {rank}, rank should be in the interval "
                         f"[0, {num_replicas - 1}]")


def boundaries(k, parts):
    """Where `parts` contiguous slices of k samples begin, and the last one ends: parts + 1 ints."""
    return [i * k // parts for i in range(parts + 1)]


class Sampler:
    """Base of samplers: iterating yields indices (or, as a batch sampler, lists of them)."""

    def __iter__(self):
        raise TypeError(f"{type(self).__name__} has no __iter__")


class SequentialSampler(Sampler):
    """0, 1, ... len(data_source) - 1."""

    def __init__(self, data_source):
        self.data_source = data_source

    def __iter__(self):
        return iter(range(len(self.data_source)))

    def __len__(self):
        return len(self.data_source)


class RandomSampler(Sampler):
    """Samples in random order, a new one at each iteration.

    replacement: draw each sample independently of the others.
    num_samples: how many to draw; the length of the data if None.
    generator:   `numpy.random.Generator`; the rank's own, which `manual_seed` seeds, if None.
    """

    def __init__(self, data_source, replacement=False, num_samples=None, generator=None):
        if not isinstance(replacement, bool):
            raise TypeError(f"replacement should be a boolean value, but got {replacement!r}")
        if generator is not None and not isinstance(generator, np.random.Generator):
            raise TypeError(f"generator should be a numpy.random.Generator, not {generator!r}")
        self.data_source, self.replacement = data_source, replacement
        self._num_samples, self.generator = num_samples, generator
        positive("num_samples", self.num_samples)

    @property
    def num_samples(self):
        return len(self.data_source) if self._num_samples is None else self._num_samples

    def __iter__(self):
        rng = current().generator if self.generator is None else self.generator
        n, missing = len(self.data_source), self.num_samples
        if self.replacement:
            yield from rng.integers(n, size=missing).tolist()
            return
        while missing > 0:  # more samples than there are: one permutation after the other
            drawn = rng.permutation(n)[:missing].tolist()
            missing -= len(drawn)
            yield from drawn

    def __len__(self):
        return self.num_samples


class BatchSampler(Sampler):
    """Lists of `batch_size` indices from another sampler (any iterable).

    drop_last: leave out a last batch that would be shorter.
    """

    def __init__(self, sampler, batch_size, drop_last):
        self.batch_size = positive("batch_size", batch_size)
        if not isinstance(drop_last, bool):
            raise ValueError(f"drop_last should be a boolean value, but got {drop_last=}")
        self.sampler, self.drop_last = sampler, drop_last

    def __iter__(self):
        indices = iter(self.sampler)
        while batch := list(itertools.islice(indices, self.batch_size)):
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch

    def __len__(self):
        rounding = 0 if self.drop_last else self.batch_size - 1
        return (len(self.sampler) + rounding) // self.batch_size


class DistributedSampler(Sampler):
    """This rank's share of a data set: every num_replicas-th sample, starting at its rank.

    All ranks get equally many: the first samples are repeated at the end to fill up, or the last
    ones left out (`drop_last`). num_replicas and rank are the world's if None. Call `set_epoch`
    before each epoch, or every epoch has the same order.
    Raises ValueError if the rank is not in [0, num_replicas).
    """

    def __init__(self, dataset, num_replicas=None, rank=None, shuffle=True, seed=0,
                 drop_last=False):
        if num_replicas is None or rank is None:
            from ..comm import world  # here, so that data sets need no MPI
            num_replicas = world().size if num_replicas is None else num_replicas
            rank = world().rank if rank is None else rank
        _check_rank(rank, num_replicas)
        self.dataset, self.num_replicas, self.rank = dataset, num_replicas, rank
        self.shuffle, self.seed, self.drop_last, self.epoch = shuffle, seed, drop_last, 0
        length = len(dataset)
        self.num_samples = length // num_replicas if drop_last else -(-length // num_replicas)
        self.total_size = self.num_samples * num_replicas

    def __iter__(self):
        length = len(self.dataset)
        order = permutation(length, self.seed, self.epoch) if self.shuffle else np.arange(length)
        order = np.resize(order, self.total_size)  # cuts, or repeats from the start
        return iter(order[self.rank::self.num_replicas].tolist())

    def __len__(self):
        return self.num_samples

    def set_epoch(self, epoch):
        """Choose the order of the next iteration."""
        self.epoch = epoch


@dataclass(frozen=True, eq=False)
class Shard:
    """One rank's part of the global batch of one step.

    step:    number of the step in its epoch, from 0.
    start:   position of the first of `indices` in the global batch.
    size:    number of samples in the global batch, of all ranks together.
    indices: int64 (count,): the samples of this rank; count may be 0.
    shares:  number of samples of every rank, a tuple, if they were cut by shares; else None.
    """

    step: int
    start: int
    size: int
    indices: np.ndarray
    shares: tuple | None = None


class GlobalBatchSampler(Sampler):
    """Global batches that do not depend on the number of ranks, cut into contiguous slices.

    length:     number of samples in the data set.
    batch_size: samples in a global batch, of all ranks together; the last one may have fewer, and
                then a rank's slice may be empty: it is still yielded, so that all ranks take
                equally many steps. drop_last leaves a shorter last batch out.
    rank:       whose slices; None is for a rank that has none: all its slices are empty.
    shuffle:    order the samples by `permutation(length, seed, epoch)`; else as they are.
    virtual_shards: cut each batch into so many slices, whatever the number of ranks, of which each
                rank takes a run; None: into one for each rank.
    shares:     how many samples of a global batch each rank has, in sum batch_size; a shorter last
                batch is cut in proportion. None: nearly equal ones. Settable, by all ranks at one
                step: the next batch that is drawn is cut so.

    As a DataLoader's batch_sampler it yields the lists of this rank's indices in the epoch that
    `set_epoch` chose; `shards(epoch)` yields the same with their place in the global batch.
    Raises ValueError if a global batch has fewer samples, or virtual shards, than there are ranks,
    if no step is left, if the rank is not in [0, num_replicas), or for shares that are not those
    of a global batch, or cut virtual shards.
    """

    def __init__(self, length, batch_size, *, rank=0, num_replicas=1, shuffle=True, seed=0,
                 drop_last=False, virtual_shards=None, shares=None):
        self.length = positive("length", length)
        self.batch_size = positive("batch_size", batch_size)
        _check_rank(0 if rank is None else rank, num_replicas)
        if batch_size < num_replicas:
            raise ValueError(f"global batch {batch_size} < {num_replicas} ranks")
        parts = num_replicas if virtual_shards is None else virtual_shards
        self.virtual_shards = positive("virtual_shards", parts)
        if self.virtual_shards < num_replicas:
            raise ValueError(f"{num_replicas} ranks > {virtual_shards} virtual shards of a batch")
        if drop_last and length < batch_size:
            raise ValueError(f"drop_last leaves no step: {length} samples < "
                             f"global batch {batch_size}")
        self.rank, self.num_replicas, self.seed = rank, num_replicas, seed
        self.shuffle, self.drop_last, self.epoch = shuffle, drop_last, 0
        self.shares = shares

    @property
    def shares(self):
        return self._shares

    @shares.setter
    def shares(self, shares):
        if shares is not None:
            if self.virtual_shards != self.num_replicas:
                raise ValueError(f"shares would cut {self.virtual_shards} virtual shards")
            shares = tuple(int(share) for share in shares)
            if len(shares) != self.num_replicas:
                raise ValueError(f"{len(shares)} shares for {self.num_replicas} ranks")
            if min(shares) < 0 or sum(shares) != self.batch_size:
                raise ValueError(f"shares {' + '.join(map(str, shares))} = {sum(shares)} are not "
                                 f"those of a global batch of {self.batch_size}")
        self._shares = shares

    def shards(self, epoch, first_step=0):
        """Yield a `Shard` for each step of `epoch`, from `first_step` on (to resume inside)."""
        order = (permutation(self.length, self.seed, epoch) if self.shuffle
                 else np.arange(self.length))
        for step in range(first_step, len(self)):
            batch = order[step * self.batch_size:(step + 1) * self.batch_size]
            size = len(batch)
            start, stop, shares = self._cut(size)
            yield Shard(step, start, size, batch[start:stop], shares)

    def _cut(self, size):
        """(start, stop) of this rank in a batch of `size` samples, and all shares or None."""
        shares = self._shares and apportion(size, self._shares)
        if self.rank is None:
            return 0, 0, shares
        if shares is None:
            cuts = boundaries(size, self.virtual_shards)
            first, after = boundaries(self.virtual_shards, self.num_replicas)[self.rank:][:2]
            return cuts[first], cuts[after], None
        start = sum(shares[:self.rank])
        return start, start + shares[self.rank], shares

    def __iter__(self):
        return (shard.indices.tolist() for shard in self.shards(self.epoch))

    def __len__(self):
        """Steps in an epoch."""
        rounding = 0 if self.drop_last else self.batch_size - 1
        return (self.length + rounding) // self.batch_size

    def set_epoch(self, epoch):
        """Choose the epoch of the next iteration."""
        self.epoch = epoch
