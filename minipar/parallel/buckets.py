"""Gradients in flat memory, cut into buckets, and their reduction over a group of ranks.

Below `ddp.py`, which starts a bucket as soon as backward has filled it, and beside the pipeline,
which starts all of a stage's when its last backward is done. Which parameters had a gradient at
all travels with the last bucket of each flat array, so that every rank knows.
"""

import time

import numpy as np

from ..device import assign, host, on_gpu
from ..nn.flat import flatten
from .hooks.bucket import GradBucket, Hooked
from .hooks.state import HookState


class _Bucket:
    """A stretch of the flat gradient with its plan, and how many parameters it waits for.

    place: (the flat parameters, the first one's number, the number after the last one's).
    """

    __slots__ = ("plan", "parameters", "missing", "front", "place")

    def __init__(self, plan, parameters, front, place):
        self.plan, self.parameters, self.front = plan, parameters, front
        self.missing, self.place = len(parameters), place


class Buckets:
    """The gradients of `parameters`, which become flat here, cut into buckets; the ranks of `comm`
    sum them.

    parameters: of a module; those that require no gradient are left out.
    capacity:   bytes of a bucket.
    mean:       whether sums are divided by the number of ranks.
    reorder:    whether, after the first reduction, buckets start in the order in which they were
                complete on rank 0, for modules that are not run in the order of their parameters.
    overlap:    how much of the time in which some bucket of the last reduction was in flight (from
                its start to when it was seen complete) the rank did other things, in [0, 1]:
                1 - waited / in flight. None before the first, and on one rank.
    Raises ValueError if an optimizer holds some of them together with others.
    """

    def __init__(self, parameters, comm, capacity, algorithm="auto", mean=False,
                 reorder=False):
        self.comm, self._mean, self._started, self.overlap = comm, mean, 0, None
        self.divide_by = comm.size  # by what a mean divides the sum
        self.hooked = False  # whether a communication hook reduces
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
        # The buckets complete so far in the first backward; None when their order is settled.
        self._complete = [] if reorder and comm.size > 1 and len(self._buckets) > 2 else None

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
                bucket = _Bucket(plan, [p for p in members if p.requires_grad], i == 0,
                                 (flat, i, i + len(members)))
                self._buckets.append(bucket)
                self._of.update((id(p), bucket) for p in bucket.parameters)
                members, stop = [], flat.starts[i]

    def use_hook(self, state, hook):
        """From now on `hook(state, bucket)` reduces each bucket, as `hooks/bucket.py` says. The
        used flags are reduced beside it as they are. Collective, before any backward."""
        comm, divisor = self.comm.split(0, self.comm.rank), self.comm.size if self._mean else 1
        for k, bucket in enumerate(self._buckets):
            flat, first, after = bucket.place
            flags = flat.reduced[:flat.head]
            flags = self.comm.plan("all_reduce", flags) if bucket.front else None
            self.comm.free(bucket.plan)
            given = GradBucket(comm, divisor, k, lambda mine=bucket: mine is self._buckets[-1],
                               flat, first, after)
            bucket.plan = Hooked(state, hook, given, flags)
        self._mean, self.hooked = False, True  # dividing is the hook's

    def hooked_buckets(self):
        """[(HookState, GradBucket)] in the order of the buckets' numbers: what can be saved."""
        plans = [bucket.plan for bucket in self._buckets if self.hooked]
        return sorted(((plan.state, plan.bucket) for plan in plans if isinstance(
            plan.state, HookState)), key=lambda pair: pair[1].index())

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
        if self._complete is not None:
            self._complete = []

    def ready(self, parameter):
        """A parameter's gradient is complete: start its bucket if it is, too.

        Buckets start in their order, which every rank keeps. The front one of each flat array
        waits for the end: the used flags travel with it.
        """
        mine = self._of[id(parameter)]
        mine.missing -= 1
        if self._complete is not None and not mine.missing:
            self._complete.append(mine)
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
            if self._mean and self.divide_by > 1:
                np.divide(flat.grad, self.divide_by, out=flat.grad)
        self._started = 0
        if self._complete is not None:
            self._settle_order()

    def _settle_order(self):
        """Order the buckets as they were complete on rank 0, the front ones last. Collective."""
        ranked = {id(bucket): i for i, bucket in enumerate(self._complete)}
        order = sorted(range(len(self)), key=lambda i: (
            self._buckets[i].front, ranked.get(id(self._buckets[i]), len(self)), i))
        order = np.array(order)
        self.comm.broadcast(order)
        self._buckets, self._complete = [self._buckets[i] for i in order], None


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
