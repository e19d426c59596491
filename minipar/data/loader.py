"""Data sets that are indexed by an integer, and the loader that makes batches of them.

Names and semantics are PyTorch's, as far as they go here: map-style data sets, loaded by the
rank's own thread or by worker threads that run ahead of it. One thing is added, for speed: a data
set with a method `get_batch(indices)` returns a whole collated batch at once, so that a batch of
64 is one fancy index instead of 64 Python calls and a stack of their results.
"""

from collections import deque

import numpy as np

from ..context import current, use
from ..tensor import Tensor, from_numpy
from .draws import SampleContext, at_sample
from .sampler import BatchSampler, RandomSampler, SequentialSampler, positive


class Dataset:
    """Base of map-style data sets: `len(dataset)` samples, `dataset[i]` is one.

    A subclass may also offer `__getitems__(indices)`, a list of samples, as in PyTorch; or
    `get_batch(indices)`, the samples collated into a batch (see `DataLoader`).
    """

    def __getitem__(self, index):
        raise TypeError(f"{type(self).__name__} has no __getitem__")


class TensorDataset(Dataset):
    """Sample i is a tuple of the i-th rows of all tensors.

    tensors: Tensors (or arrays, which are not copied), each (N, ...).
    Raises ValueError if their lengths differ, or if there is none.
    """

    def __init__(self, *tensors):
        self.tensors = tuple([t if isinstance(t, Tensor) else from_numpy(np.asarray(t))
                              for t in tensors])
        lengths = [t.shape[0] if t.shape else None for t in self.tensors]
        if not lengths or None in lengths or len(set(lengths)) > 1:
            shapes = ", ".join(str(t.shape) for t in self.tensors) or "none"
            raise ValueError(f"a TensorDataset takes tensors of one length, not shapes {shapes}")
        self._arrays = [t.array for t in self.tensors]

    def __getitem__(self, index):
        return tuple(Tensor(np.asarray(array[index])) for array in self._arrays)

    def __len__(self):
        return len(self._arrays[0])

    def get_batch(self, indices):
        """A list of Tensors (len(indices), ...), one for each tensor of the data set."""
        indices = np.asarray(indices, dtype=np.int64)  # an empty list would become floats
        return [Tensor(array.take(indices, axis=0)) for array in self._arrays]


def default_collate(batch):
    """Stack a non-empty list of samples along a new first axis.

    Tensors, arrays and numbers become Tensors (Python floats float64, as in PyTorch), tuples and
    lists a list of collated fields, mappings a dict of them; strings stay a list.
    Raises TypeError for anything else, ValueError if samples differ in shape or number of fields.
    """
    first = batch[0]
    if isinstance(first, Tensor):
        return Tensor(_stack([sample.array for sample in batch]))
    if isinstance(first, (np.ndarray, np.generic, float, int)):
        return from_numpy(_stack([np.asarray(sample) for sample in batch]))
    if isinstance(first, (str, bytes)):
        return batch
    if isinstance(first, dict):
        return {key: default_collate([sample[key] for sample in batch]) for key in first}
    if isinstance(first, (tuple, list)):
        if len({len(sample) for sample in batch}) > 1:
            raise ValueError("samples of a batch differ in their number of fields: "
                             f"{sorted({len(sample) for sample in batch})}")
        return [default_collate(list(field)) for field in zip(*batch)]
    raise TypeError("a batch must contain tensors, arrays, numbers, strings, dicts, tuples or "
                    f"lists, not {type(first).__name__}")


def _stack(arrays):
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(f"samples of a batch differ in shape: {sorted(shapes)}")
    return np.stack(arrays)


def _emptied(batch):
    """The batch with no sample left in its tensors."""
    if isinstance(batch, Tensor):
        return Tensor(batch.array[:0])
    if isinstance(batch, dict):
        return {key: _emptied(value) for key, value in batch.items()}
    return [_emptied(field) for field in batch] if isinstance(batch, (tuple, list)) else batch


class DataLoader:
    """Iterates over a data set in batches; each iteration is one epoch.

    batch_size, shuffle, drop_last: as their names say; or a `sampler`, an iterable of indices,
        that decides on the order; or a `batch_sampler`, an iterable of lists of indices, that
        decides on everything. An empty list gives an empty batch: tensors of shape (0, ...).
    num_workers: threads that make batches ahead of the one that takes them; 0: none. Decoding and
        array operations run beside it; Python code takes turns with it.
    collate_fn: makes a batch of a list of samples; `default_collate` if None.
    generator:  for `shuffle`; the rank's own, which `manual_seed` seeds, if None.
    prefetch_factor: batches ahead for each worker; 2 if None.

    A data set with `get_batch(indices)` makes the batch itself, unless a collate_fn is given.
    Batches, and their order, are the same for any number of workers, with random transforms too:
    each sample draws from a generator of its own (see `minipar.data.draws`), for which `epoch`
    counts the iterations, unless a sampler with `set_epoch` does. An exception in a worker is
    raised when its batch is asked for. The threads end with the iteration, also when it is left
    early: with the `for` loop or, of an iterator, when it is dropped or closed.
    Raises ValueError for arguments that exclude each other.
    """

    def __init__(self, dataset, batch_size=1, shuffle=None, sampler=None, batch_sampler=None,
                 num_workers=0, collate_fn=None, *, drop_last=False, generator=None,
                 prefetch_factor=None):
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise TypeError("a DataLoader takes a data set with __getitem__ and __len__, "
                            f"not {type(dataset).__name__}")
        if not isinstance(num_workers, (int, np.integer)) or num_workers < 0:
            raise ValueError(f"num_workers should be an integer of at least 0, not {num_workers}")
        if prefetch_factor is not None and num_workers == 0:
            raise ValueError(f"prefetch_factor={prefetch_factor} batches for each of 0 workers: "
                             "num_workers should be above 0")
        ahead = 2 if prefetch_factor is None else positive("prefetch_factor", prefetch_factor)
        if sampler is not None and shuffle:
            raise ValueError("sampler option is mutually exclusive with shuffle")
        if batch_sampler is not None:
            if batch_size != 1 or shuffle or sampler is not None or drop_last:
                raise ValueError("batch_sampler option is mutually exclusive with batch_size, "
                                 "shuffle, sampler, and drop_last")
            batch_size = None
        else:
            if sampler is None:
                sampler = (RandomSampler(dataset, generator=generator) if shuffle
                           else SequentialSampler(dataset))
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.dataset, self.batch_size, self.drop_last = dataset, batch_size, drop_last
        self.sampler, self.batch_sampler, self.generator = sampler, batch_sampler, generator
        self.num_workers, self.epoch = num_workers, 0
        self.prefetch_factor = ahead if num_workers else None
        self.collate_fn = default_collate if collate_fn is None else collate_fn
        self._get_batch = getattr(dataset, "get_batch", None) if collate_fn is None else None

    def __iter__(self):
        epoch = next((sampler.epoch for sampler in (self.batch_sampler, self.sampler)
                      if hasattr(sampler, "epoch")), self.epoch)
        self.epoch += 1
        rank, fetch = current().copy(), self._get_batch or self._collate

        def make(indices):
            context = SampleContext(rank, epoch)
            context.at(indices[0] if len(indices) else None)  # for a get_batch that does not say
            with use(context):
                return fetch(indices)

        if self.num_workers == 0:
            return (make(indices) for indices in self.batch_sampler)
        return _ahead(make, self.batch_sampler, self.num_workers,
                      self.num_workers * self.prefetch_factor)

    def __len__(self):
        """Batches in an epoch."""
        return len(self.batch_sampler)

    def _collate(self, indices):
        """The batch of the samples at `indices`, without the data set's help."""
        if len(indices) == 0:  # a sample shows what the fields are; then it is cut away
            return _emptied(self.collate_fn([self._sample(0)]))
        if hasattr(self.dataset, "__getitems__"):
            return self.collate_fn(self.dataset.__getitems__(indices))
        return self.collate_fn([self._sample(i) for i in indices])

    def _sample(self, index):
        at_sample(index)
        return self.dataset[index]


def _ahead(make, jobs, workers, ahead):
    """Yield make(job) for each job in order, made by threads, up to `ahead` before their turn."""
    from concurrent.futures import ThreadPoolExecutor
    pool, made = ThreadPoolExecutor(workers, "minipar-data"), deque()
    try:
        for job in jobs:  # in the consumer's thread: samplers draw from the rank's generator
            made.append(pool.submit(make, job))
            if len(made) > ahead:
                yield made.popleft().result()
        while made:
            yield made.popleft().result()
    finally:  # also when the iterator is dropped
        pool.shutdown(cancel_futures=True)
