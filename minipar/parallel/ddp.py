"""Data parallelism: each rank computes gradients of its share of the batch, and all sum them.

Gradients lie in one flat array, cut into buckets. Backward produces them from the last layer to
the first, so the last bucket is complete first: its all-reduce starts at once and goes on while
backward computes the buckets before it. Li et al. 2020, "PyTorch Distributed: experiences on
accelerating data parallel training".
"""

from contextlib import contextmanager

from ..comm import world
from ..context import current
from ..nn import Module
from .buckets import Buckets
from .buffers import pack
from .join import BACKWARD, join


class DistributedDataParallel(Module):
    """Wraps a module so that backward() leaves the same gradients on every rank.

    process_group: a Communicator; the world if None.
    bucket_cap_mb: size of a bucket in MiB.
    gradient:      "mean" over the ranks, as in PyTorch; or "sum", for losses that are sums and
                   are divided by a reduced count in the optimizer's scale, which is exact for
                   shards of any size. Gradients of several backwards are then accumulated under
                   no_sync(), for a second reduction would sum the first one's result again.
    algorithm:     the all-reduce algorithm: "auto", a name, or a program.
    progress:      how reductions go on while backward computes: by "hooks", which the gradients
                   call, or by a "thread" (see comm/engine.py); as the communicator does, if None.
    broadcast_buffers: whether rank 0's buffers (batch-norm statistics) become everybody's before
                   a forward that follows one in training, as in PyTorch; not inside no_sync().
    Buckets start from the last parameters to the first; after the first backward, in the order in
    which they were complete on rank 0.
    All replicas start from rank 0's parameters and buffers, and stay bitwise equal. A parameter
    that no rank used in a step has no gradient; one that some used has the sum of theirs.
    """

    names_children = False

    def __init__(self, module, *, process_group=None, bucket_cap_mb=25, gradient="mean",
                 algorithm="auto", progress=None, broadcast_buffers=True):
        super().__init__()
        if gradient not in ("mean", "sum"):
            raise ValueError(f"gradient is 'mean' or 'sum', not {gradient!r}")
        self.module = module.materialize()
        self.comm = world() if process_group is None else process_group
        if progress is not None:
            self.comm.progress = progress
        self._sync = True
        parameters = [p for p in module.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("no parameter of the module requires a gradient")
        self._buckets = Buckets(module.parameters(), self.comm, bucket_cap_mb * 2**20, algorithm,
                                gradient == "mean", reorder=True)
        for p in parameters:
            p.register_post_accumulate_grad_hook(self._ready)
        for flat in self._buckets.flats:
            self.comm.broadcast(flat.data)
        for p in module.parameters():
            if not p.requires_grad:
                self.comm.broadcast(p.array)
        self._packed, self._stale, self._join = pack(module.buffers()), True, None
        self._buffer_plans = [self.comm.plan("broadcast", array) for array in self._packed]
        self._share_buffers()
        if not broadcast_buffers:
            self._buffer_plans = []

    def register_comm_hook(self, state, hook):
        """Have `hook(state, bucket) -> Future` reduce each bucket of gradients, as in PyTorch.

        What it returns (hooks/bucket.py) is what backward leaves: the mean over the ranks is
        its to divide, unless gradient="sum" asks for the sum. Called by all ranks, before training.
        `parallel/hooks/` has hooks. Raises TypeError for what cannot be called, RuntimeError if
        there is a hook already.
        """
        if not callable(hook):
            raise TypeError(f"a communication hook is a function (state, bucket) -> Future, not "
                            f"{hook!r}")
        if self._buckets.hooked:
            raise RuntimeError("register_comm_hook: there is a communication hook already")
        self._buckets.use_hook(state, hook)

    def forward(self, *args, **kwargs):
        if self._buckets.in_flight and not current().backward_depth:
            self._buckets.restart()
        if self._sync and self._stale:
            self._share_buffers()
        self._stale = self._stale or self.training  # a forward in training changes them
        return self.module(*args, **kwargs)

    def _share_buffers(self):
        """Give every rank the buffers of rank 0."""
        for plan in self._join.sharing() if self._join else self._buffer_plans:
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

    def join(self, divide_by_initial_world_size=True, enable=True,
             throw_on_early_termination=False):
        """A `with` in which ranks may have unequal numbers of batches, as in PyTorch (join.py)."""
        return join(self, divide_by_initial_world_size, enable, throw_on_early_termination)

    def _ready(self, parameter):
        """A parameter's gradient is complete: maybe its bucket is, and can go."""
        if not self._sync:
            return
        after = current().after_backward
        if self._finish not in after:  # the first of this backward
            if self._join:
                self._join.tell(BACKWARD)
            self._buckets.restart()
            after.append(self._finish)
        self._buckets.ready(parameter)
        self.comm.engine.progress()

    def _finish(self):
        """At the end of backward: what has not started goes now; wait for all."""
        self._buckets.start()
        self._buckets.finish()

    def hooked(self):
        """[(state, GradBucket)] of the communication hook, if its state can be saved."""
        return self._buckets.hooked_buckets()

    @property
    def overlap(self):
        """How much of the communication of the last backward lay inside it (Buckets.overlap)."""
        return self._buckets.overlap

    def state_dict(self):
        """The module's, under names that begin with `module.` as in PyTorch; on rank 0 the truth
        about buffers, which other ranks get with their next forward.
        """
        return {f"module.{k}": v for k, v in self.module.state_dict().items()}
