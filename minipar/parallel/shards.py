"""Flat parameters of which each rank updates one slice, and keeps as little else as it is told to.

Below `zero.py`, which says when. The slices are equal and lie in the ranks' order. What has to be
whole for a while, the gradients of a backward or the parameters of a forward, is in memory of its
own then, which a Ledger counts.
"""

import numpy as np

from ..nn.flat import FlatParameters, aligned_zeros
from ..nn.placement import Stretch, StretchOfShard
from ..sinks import Sink


class Ledger:
    """Bytes that come and go: `now`, and the most there were at once, `peak`."""

    def __init__(self):
        self.now = self.peak = 0

    def add(self, nbytes):
        """Count bytes that came, or that went if negative."""
        self.now += nbytes
        self.peak = max(self.peak, self.now)


class Shards(FlatParameters):
    """The flat parameters of one unit, of one dtype; this rank updates the elements in `own`.

    data, grad: 1-D arrays of this rank's slice: what its optimizer sees.
    sinks:      of the parts of the parameters' gradients that lie in the slice.
    whole, whole_grad: all parameters and all their gradients, None while they are not here.
    used:       for each parameter, whether a backward of this rank gave it a gradient.
    stage:      what lies in slices: 1 only the optimizer's state, 2 gradients, too, between
                backwards, 3 parameters, too, when they are not gathered.
    shared:     (stage 1) `whole` is one array for all ranks, which must share memory.
    All ranks start from rank 0's values. Collective over `comm`.
    """

    def __init__(self, parameters, comm, stage, algorithm, ledger, shared=False):
        super().__init__(parameters, comm.size)
        self._comm, self._stage, self._ledger = comm, stage, ledger
        self._algorithm, self._gathering, self._reducing = algorithm, None, None
        comm.broadcast(self.data)
        self.trains = any(p.requires_grad for p in self.parameters)
        if shared:
            self._move_parameters(comm.empty_shared(self.data.shape, self.data.dtype))
        if stage == 1 and algorithm in ("auto", "shared") and comm.size > 1:
            # Where ranks share memory, they reduce straight from each other's gradients.
            self.move_gradients(comm.empty(self.reduced.shape, self.reduced.dtype))
        self.whole, self.whole_grad = self.data, self.grad
        self._length, count = len(self.whole), len(self.whole) // comm.size
        self.own = slice(comm.rank * count, (comm.rank + 1) * count)
        self.data, self.grad = self.whole[self.own], self.whole_grad[self.own]
        self.used = np.zeros(len(self.parameters), bool)
        del self.reduced
        if stage >= 2:
            self.grad = aligned_zeros(count, self.data.dtype)
            self._drop_gradients()
            for p in self.parameters:
                p.sink.provide = self._provide_gradients
        if stage == 3:
            self.data = aligned_zeros(count, self.data.dtype)
            self.data[...] = self.whole[self.own]
            self._drop_parameters()
        self.sinks = []
        for p in self.parameters:
            part = self.view(p, self.grad)
            self.sinks.append(Sink(part.shape, part.dtype, part))

    def range_of(self, parameter):
        """(start, stop) of what the slice has of a parameter, in `data` and `grad`."""
        return tuple(min(max(at - self.own.start, 0), len(self.data))
                     for at in super().range_of(parameter))

    def view(self, parameter, array):
        """What the slice has of a parameter, 1-D, in an array like `data`."""
        start, stop = self.range_of(parameter)
        return array[start:stop]

    def place(self, parameter):
        """Where what the slice has of the parameter stands in the whole: a Stretch, or, of a piece
        of a parameter that is cut, a StretchOfShard."""
        stretch = self._stretch(parameter)
        if parameter.placement is None:
            return stretch
        return StretchOfShard(stretch, parameter.placement)

    def _stretch(self, parameter):
        first = self.starts[self.index[id(parameter)]] - self.own.start
        start, stop = self.range_of(parameter)
        if start == stop:
            return Stretch(0, 0, parameter.shape)
        return Stretch(start - first, stop - first, parameter.shape)

    def _move_parameters(self, window):
        """Have all of them in the memory of all ranks."""
        if self._comm.rank == 0:
            window[...] = self.data
        self._comm.barrier()
        self.data = self.whole = window
        self._place_parameters()

    def _place_parameters(self):
        for i, p in enumerate(self.parameters):
            p.array = self.whole[self.starts[i]:self.stops[i]].reshape(p.shape)

    # Gradients

    def _provide_gradients(self):
        """Memory for the gradients of a backward, 0 where none will be written."""
        self.whole_grad = aligned_zeros(self._length, self.grad.dtype)
        self._ledger.add(self.whole_grad.nbytes)
        for i, p in enumerate(self.parameters):
            p.sink.place(self.whole_grad[self.starts[i]:self.stops[i]].reshape(p.shape))

    def _drop_gradients(self):
        self.whole_grad = None
        for p in self.parameters:
            p.sink.reset()
            p.sink.buffer = None

    def reduce(self):
        """Start to sum the gradients over the ranks. Collective; parameters without count as 0."""
        if self.whole_grad is None:
            self._provide_gradients()
        for i, p in enumerate(self.parameters):
            self.used[i] |= not p.sink.fresh
            if p.sink.fresh:
                p.sink.buffer[...] = 0
        self._reducing = self._comm.start("reduce_scatter", self.whole_grad, self._algorithm)

    def take(self):
        """Wait for the sum, and add this rank's slice of it to `grad`."""
        self._reducing.wait()
        self._reducing = None
        if self._stage >= 2:
            self.grad += self.whole_grad[self.own]
            self._ledger.add(-self.whole_grad.nbytes)
            self._drop_gradients()

    def restart(self):
        """No gradient yet in this step, here or in the slice."""
        self.free()
        self.used[...] = False
        for p in self.parameters:
            p.sink.reset()
        if self._stage >= 2:
            self.grad[...] = 0

    # Parameters

    def update_others(self):
        """Start to give every rank the slices that the others have updated. Collective."""
        self._gathering = self._comm.start("all_gather", self.whole, self._algorithm)

    def gather(self):
        """Start to make the parameters whole, unless they are, or are about to be. Collective."""
        if self.whole is None:
            self.whole = aligned_zeros(self._length, self.data.dtype)
            self._ledger.add(self.whole.nbytes)
            self.whole[self.own] = self.data
            self._gathering = self._comm.start("all_gather", self.whole, self._algorithm)

    def wait(self):
        """Wait for what `gather` or `update_others` has started: parameters have their arrays."""
        if self._gathering is not None:
            self._gathering.wait()
            self._gathering = None
            self._place_parameters()

    def free(self):
        """The parameters are not needed here for now: keep the slice alone."""
        if self._stage == 3 and self.whole is not None:
            self.wait()
            self._ledger.add(-self.whole.nbytes)
            self._drop_parameters()

    def _drop_parameters(self):
        self.whole = None
        for p in self.parameters:
            del p.array
