"""Ranks with unequal numbers of batches: who runs out shadows what the others do together.

PyTorch's `with model.join():`. Inside, each rank says what it is about to do before every
collective of its DistributedDataParallel; one that has left the loop goes along with zeros until
all have. Costs an all-gather of one number before each reduction.
"""

from contextlib import contextmanager

import numpy as np

JOINED, FORWARD, BACKWARD = range(3)  # what a rank says: out of batches; buffers; gradients


class Join:
    """One `with` of one DistributedDataParallel, on one rank.

    buckets: of its gradients. buffers: arrays with the module's. shares: whether ranks share them.
    initial: whether a mean is over all ranks, or over those that still have batches.
    throw:   raise RuntimeError, on all ranks, as soon as one has none.
    """

    def __init__(self, buckets, buffers, shares, initial, throw):
        self._comm, self._buckets, self._buffers = buckets.comm, buckets, buffers
        self._shares, self._initial, self._throw = shares, initial, throw
        self._last = 0  # the highest rank among those that were the last to train

    def tell(self, event):
        """Say what comes next; returns what those do that still have batches, JOINED if none has.

        Raises RuntimeError, on all ranks, if they do not do the same.
        """
        told = self._comm.all_gather(np.array([event])).reshape(-1).tolist()
        active = [rank for rank, each in enumerate(told) if each != JOINED]
        if not active:
            return JOINED
        first, self._last = active[0], active[-1]
        if self._throw and len(active) < len(told):
            raise RuntimeError(f"join: rank {told.index(JOINED)} of {len(told)} has no more "
                               f"inputs, rank {first} has: all end here")
        for rank in active:
            if told[rank] != told[first]:
                raise RuntimeError(f"join: ranks {first} and {rank} are at different points: all "
                                   f"that have inputs run the same forwards and backwards")
        self._buckets.divide_by = len(told) if self._initial else len(active)
        return told[first]

    def sharing(self):
        """Before a forward: the buffers of a rank that still trains become everybody's. Returns
        what is left to do for it, nothing."""
        self.tell(FORWARD)
        self._take_buffers()
        return ()

    def _take_buffers(self):
        for array in self._buffers if self._shares else ():
            self._comm.broadcast(array, self._last)

    def leave(self):
        """This rank has no more batches: go along until all are here, then have the model of one
        that was the last to train."""
        while event := self.tell(JOINED):
            if event == FORWARD:
                self._take_buffers()
                continue
            self._buckets.restart()
            for flat in self._buckets.flats:
                for sink in flat.sinks:
                    sink.reset()  # nothing of this rank's counts
            self._buckets.start()
            self._buckets.finish()
        flats = self._buckets.flats
        for array in (*(flat.data for flat in flats), *self._buffers):
            self._comm.broadcast(array, self._last)
        for parameter in (p for flat in flats for p in flat.parameters):
            parameter.storage.version += 1


@contextmanager
def join(model, divide_by_initial_world_size, enable, throw_on_early_termination):
    """DistributedDataParallel.join.

    divide_by_initial_world_size: a mean is over all ranks, so that each sample weighs the same;
        else over those that still have batches. A sum (gradient="sum") is not divided.
    throw_on_early_termination: raise RuntimeError on all ranks as soon as one has no batch.
    """
    if not enable:
        yield
        return
    buckets = model._buckets
    model._stale, model._join = True, Join(
        buckets, model._packed, bool(model._buffer_plans), divide_by_initial_world_size,
        throw_on_early_termination)
    try:
        yield
        model._join.leave()
    finally:
        model._stale, model._join, buckets.divide_by = True, None, model.comm.size
