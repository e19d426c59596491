"""Gradients in flat memory, cut into buckets, and their reduction over a group of ranks.

Below `ddp.py`, which starts a bucket as soon as backward has filled it, and beside the pipeline,
which starts all of a stage's when its last backward is done. Which parameters had a gradient at
all travels with the last bucket of each flat array, so that every rank knows.
"""

import time

import numpy as np

from ..device import assign, host, on_gpu
from ..nn.flat import flatten


class _Bucket:
    """A stretch of the flat gradient with its plan, and how many parameters it waits for."""

    __slots__ = ("plan", "parameters", "missing", "front")

    def __init__(self, plan, parameters, front):
        self.plan, self.parameters, self.front = plan, parameters, front
        self.missing = len(parameters)


class Buckets:
    """The gradients of `parameters`, which become flat here, cut into buckets; the ranks of `comm`
    sum them.

    parameters: of a module; those that require no gradient are left out.
    capacity:   bytes of a bucket.
    mean:       whether sums are divided by the number of ranks.
    overlap:    how much of the time in which some bucket of the last reduction was in flight (from
                its start to when it was seen complete) the rank did other things, in [0, 1]:
                1 - waited / in flight. None before the first, and on one rank.
    Raises ValueError if an optimizer holds some of them together with others.
    """

    def __init__(self, parameters, comm, capacity, algorithm="auto", mean=False):
        self.comm, self._mean, self._started, self.overlap = comm, mean, 0, None
        parameters = list(parameters)
        mine = {id(p) for p in parameters}
        self.flats = flatten(p for p in parameters if p.requires_grad)
        if not all(id(p) in mine for flat in self.flats for p in flat.parameters):
            raise ValueError("an optimizer holds this module's parameters together with others: "
                             "wrap the module before making the optimizer")
        self._buckets, self._of = [], {}
        for flat in self.flats:
            if comm.size > 1 and algorithm in ("auto", "shared") and not on_gpu(flat.data):
                # Where ranks share memory, they reduce straight from each other's gradients.
                flat.move_gradients(comm.empty(flat.reduced.shape, flat.reduced.dtype))
            self._cut(flat, max(1, int(capacity)), algorithm)

    def _cut(self, flat, capacity, algorithm):
        """Cut a flat gradient into buckets, from its end to its front."""
        size, stop = flat.grad.itemsize, len(flat.grad)
        members = []
        for i in reversed(range(len(flat.parameters))):
            members.append(flat.parameters[i])
            if (stop - flat.starts[i]) * size >= capacity or i == 0:
                # The last bucket to be complete takes the used flags along, which lie in front.
                low = 0 if i == 0 else flat.head + flat.starts[i]
                piece = flat.reduced[low:flat.head + stop]
                plan = self.comm.plan("all_reduce", piece, "sum", algorithm)
                bucket = _Bucket(plan, [p for p in members if p.requires_grad], i == 0)
                self._buckets.append(bucket)
                self._of.update((id(p), bucket) for p in bucket.parameters)
                members, stop = [], flat.starts[i]

    def __iter__(self):
        return iter(self._buckets)

    def __len__(self):
        return len(self._buckets)

    @property
    def in_flight(self):
        """Whether a reduction was started that `finish` has not yet waited for."""
        return self._started > 0

    def restart(self):
        """No bucket is complete; those in flight are left from a backward that raised."""
        for bucket in self._buckets[:self._started]:
            bucket.plan.wait()
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)
        self._started = 0

    def ready(self, parameter):
        """A parameter's gradient is complete: start its bucket if it is, too.

        Buckets start in their order, which every rank keeps. The front one of each flat array
        waits for the end: the used flags travel with it.
        """
        self._of[id(parameter)].missing -= 1
        while self._started < len(self._buckets):
            bucket = self._buckets[self._started]
            if bucket.missing or bucket.front:
                return
            bucket.plan.start()
            self._started += 1

    def start(self):
        """Start what has not started yet; parameters without a gradient count as 0."""
        for flat in self.flats:
            used = [not p.sink.fresh for p in flat.parameters]
            assign(flat.used, np.array(used, flat.used.dtype))
            for p in flat.parameters:
                if p.sink.fresh:
                    p.sink.out_buffer()[...] = 0
        for bucket in self._buckets[self._started:]:
            bucket.plan.start()
        self._started = len(self._buckets)

    def finish(self):
        """Wait for all; then every rank has the same gradients, and none where no rank had one."""
        waits = time.perf_counter()
        for bucket in self._buckets:
            bucket.plan.wait()
        if self.comm.size > 1 and self._buckets:
            self.overlap = share_before(waits, [bucket.plan for bucket in self._buckets])
        for flat in self.flats:
            for p, used in zip(flat.parameters, host(flat.used).tolist()):
                p.sink.fresh = not used
            if self._mean and self.comm.size > 1:
                np.divide(flat.grad, self.comm.size, out=flat.grad)
        self._started = 0


def share_before(moment, plans):
    """How much of the time in which one of `plans`, in order of their start, was in flight lies
    before `moment`."""
    before = whole = 0.0
    until = plans[0].began
    for plan in plans:
        begin, until = max(plan.began, until), max(plan.ended, until)
        whole += until - begin
        before += max(min(until, moment) - begin, 0.0)
    return before / whole if whole else 0.0
