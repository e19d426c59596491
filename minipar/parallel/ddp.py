"""Data parallelism: each rank computes gradients of its share of the batch, and all sum them.

Gradients lie in one flat array, cut into buckets. Backward produces them from the last layer to
the first, so the last bucket is complete first: its all-reduce starts at once and goes on while
backward computes the buckets before it. Li et al. 2020, "PyTorch Distributed: experiences on
accelerating data parallel training".
"""

from contextlib import contextmanager

import numpy as np

from ..comm import world
from ..context import current
from ..nn import Module
from ..nn.flat import flatten


class _Bucket:
    """A stretch of the flat gradient with its plan, and how many parameters it waits for."""

    __slots__ = ("plan", "parameters", "missing", "front")

    def __init__(self, plan, parameters, front):
        self.plan, self.parameters, self.front = plan, parameters, front
        self.missing = len(parameters)


class DistributedDataParallel(Module):
    """Wraps a module so that backward() leaves the same gradients on every rank.

    process_group: a Communicator; the world if None.
    bucket_cap_mb: size of a bucket in MiB.
    gradient:      "mean" over the ranks, as in PyTorch; or "sum", for losses that are sums and
                   are divided by a reduced count in the optimizer's scale, which is exact for
                   shards of any size. Gradients of several backwards are then accumulated under
                   no_sync(), for a second reduction would sum the first one's result again.
    algorithm:     the all-reduce algorithm: "auto", a name, or a program.
    broadcast_buffers: whether rank 0's buffers (batch-norm statistics) become everybody's before
                   a forward that follows one in training, as in PyTorch; not inside no_sync().
    All replicas start from rank 0's parameters and buffers, and stay bitwise equal. A parameter
    that no rank used in a step has no gradient; one that some used has the sum of theirs.
    """

    names_children = False

    def __init__(self, module, *, process_group=None, bucket_cap_mb=25, gradient="mean",
                 algorithm="auto", broadcast_buffers=True):
        super().__init__()
        if gradient not in ("mean", "sum"):
            raise ValueError(f"gradient is 'mean' or 'sum', not {gradient!r}")
        self.module = module.materialize()
        self.comm = world() if process_group is None else process_group
        self._mean, self._sync = gradient == "mean", True
        parameters = [p for p in module.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("no parameter of the module requires a gradient")
        self._flats = flatten(parameters)
        mine = {id(p) for p in module.parameters()}
        if not all(id(p) in mine for flat in self._flats for p in flat.parameters):
            raise ValueError("an optimizer holds this module's parameters together with others: "
                             "wrap the module before making the optimizer")
        self._buckets, self._of, self._started = [], {}, 0
        for flat in self._flats:
            if self.comm.size > 1 and algorithm in ("auto", "shared"):
                # Where ranks share memory, they reduce straight from each other's gradients.
                flat.move_gradients(self.comm.empty(flat.reduced.shape, flat.reduced.dtype))
            self._cut(flat, max(1, int(bucket_cap_mb * 2**20)), algorithm)
        for p in parameters:
            p.register_post_accumulate_grad_hook(self._ready)
        for flat in self._flats:
            self.comm.broadcast(flat.data)
        for p in module.parameters():
            if not p.requires_grad:
                self.comm.broadcast(p.array)
        plans = [self.comm.plan("broadcast", array) for array in _pack(module.buffers())]
        self._buffer_plans, self._stale = plans, True
        self._share_buffers()
        if not broadcast_buffers:
            self._buffer_plans = []

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

    def forward(self, *args, **kwargs):
        if self._started and not current().backward_depth:
            self._restart()
        if self._sync and self._stale:
            self._share_buffers()
        self._stale = self._stale or self.training  # a forward in training changes them
        return self.module(*args, **kwargs)

    def _share_buffers(self):
        """Give every rank the buffers of rank 0."""
        for plan in self._buffer_plans:
            plan.start()
            plan.wait()
        self._stale = False

    @contextmanager
    def no_sync(self):
        """Inside, backward() accumulates on the rank alone; the next one outside reduces all."""
        before, self._sync = self._sync, False
        try:
            yield
        finally:
            self._sync = before

    def _ready(self, parameter):
        """A parameter's gradient is complete: maybe its bucket is, and can go."""
        if not self._sync:
            return
        after = current().after_backward
        if self._finish not in after:  # the first of this backward
            self._restart()
            after.append(self._finish)
        self._of[id(parameter)].missing -= 1
        self._start_complete()
        self.comm.engine.progress()

    def _restart(self):
        """No bucket is complete; those in flight are left from a backward that raised."""
        for bucket in self._buckets[:self._started]:
            bucket.plan.wait()
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)
        self._started = 0

    def _start_complete(self):
        """Start complete buckets in their order, which every rank keeps.

        The front one of each flat array waits for the end: the used flags travel with it.
        """
        while self._started < len(self._buckets):
            bucket = self._buckets[self._started]
            if bucket.missing or bucket.front:
                return
            bucket.plan.start()
            self._started += 1

    def _finish(self):
        """At the end of backward: parameters without a gradient count as 0; wait for all."""
        for flat in self._flats:
            for i, p in enumerate(flat.parameters):
                flat.used[i] = not p.sink.fresh
                if p.sink.fresh:
                    p.sink.out_buffer()[...] = 0
        for bucket in self._buckets[self._started:]:
            bucket.plan.start()
        for bucket in self._buckets:
            bucket.plan.wait()
        for flat in self._flats:
            for i, p in enumerate(flat.parameters):
                p.sink.fresh = not flat.used[i]
            if self._mean and self.comm.size > 1:
                np.divide(flat.grad, self.comm.size, out=flat.grad)
        self._started = 0

    def state_dict(self):
        """The module's, under names that begin with `module.` as in PyTorch; on rank 0 the truth
        about buffers, which other ranks get with their next forward.
        """
        return {f"module.{k}": v for k, v in self.module.state_dict().items()}


def _pack(tensors):
    """Move tensors into one array for each of their dtypes; returns these arrays."""
    groups = {}
    for t in tensors:
        groups.setdefault(t.array.dtype, []).append(t)
    packed = []
    for dtype, members in groups.items():
        array, at = np.empty(sum(t.numel() for t in members), dtype), 0
        for t in members:
            view = array[at:at + t.numel()].reshape(t.shape)
            view[...] = t.array
            t.array, at = view, at + t.numel()
        packed.append(array)
    return packed
