"""What the main job trains with: one interface for every way to share the work among ranks.

A trainer owns the module that this rank holds, its optimizer, and everything that passes between
ranks in a step. The main job gives it batches, and asks it for losses, predictions and state.
`Replicated` is data parallelism alone; `pipelined.py` has the model cut.
"""

import math
from contextlib import contextmanager, nullcontext

import numpy as np

from ..amp import GradScaler
from ..context import batch_position, no_grad
from ..device import CPU, as_array
from ..tensor import Tensor
from .ddp import DistributedDataParallel
from .gather import gather_whole, scatter_pieces
from .residuals import PREFIX, load_residuals, residuals


class Diverged(RuntimeError):
    """The loss is not finite; the message says where it began.

    alone: whether that is known on this rank only; else it is raised on all ranks.
    """

    def __init__(self, message, alone=False):
        super().__init__(message)
        self.alone = alone


def cut(k, parts):
    """k samples in `parts` micro-batches of nearly equal size."""
    return [(i + 1) * k // parts - i * k // parts for i in range(parts)]


def _is_bad(tensor):
    return tensor is not None and not np.isfinite(tensor.array).all()


class Trainer:
    """Base class. Sub-classes set what is named here, and define `gradients` and `predict`.

    comm:      all ranks of the job. mesh: how they share the work.
    module:    what this rank holds; its parameters have the names that they have in the whole.
    optimizer: over the module's parameters.
    scaler:    a GradScaler, disabled if gradients need none.
    slowness:  a Slowness that steps are taken in, where a rank may be made slow; else None.
    everywhere: whether every rank has all parameters.
    """

    comm = mesh = module = optimizer = scaler = slowness = None
    device = CPU  # where it computes
    everywhere = False
    staleness = None  # updates made between reading parameters and applying their gradient
    overlap = None  # share of the last step's reductions that ran beside computation, if known

    def gradients(self, inputs, targets, shard, step, stop):
        """Forward and backward of this rank's shard of a global batch, gradients reduced.

        inputs, targets: arrays. Returns (sum of losses, count of targets, ranks with `stop`) over
        all ranks, an array.
        """
        raise TypeError(f"{type(self).__name__} defines no gradients()")

    def predict(self, inputs):
        """The whole model's output for an array of inputs; None on ranks that do not have it.

        Records no graph. Called by all ranks, in eval mode.
        """
        raise TypeError(f"{type(self).__name__} defines no predict()")

    def hooked(self):
        """[(HookState, GradBucket)] of the communication hooks whose state goes into checkpoints.
        """
        return []

    def pace(self):
        """A part of a step's computing is done: a rank that is made slow sleeps for it."""
        if self.slowness:
            self.slowness.pace()

    def facts(self):
        """{name: value} of what else is known of the last step, for the metrics. Collective."""
        return {}

    def step(self, batch, shard, step, stop=False, max_norm=None):
        """One optimizer step; returns (mean loss, whether any rank came here with `stop`).

        Raises Diverged, on all ranks, if the loss is not finite.
        """
        inputs, targets = (t.array for t in batch)
        self.optimizer.zero_grad()
        total, count, stops = self.gradients(inputs, targets, shard, step, stop)
        if not math.isfinite(total):
            raise Diverged(f"loss is {total} at step {step + 1}; {self.first_bad()}")
        self.scaler.step(self.optimizer, scale=1 / max(count, 1), max_norm=max_norm)
        self.scaler.update()
        return total / max(count, 1), stops > 0

    def first_bad(self):
        """Which parameter is not finite; else which gradient. Collective."""
        for what in ("parameter", "gradient of"):
            found = next((f"first bad: {what} {name}" for name, p in self.module.named_parameters()
                          if _is_bad(p if what == "parameter" else p.grad)), None)
            for rank in range(self.comm.size):
                if words := self.comm.broadcast_object(found, rank):
                    return words
        return "all parameters and gradients are finite"

    def memory(self):
        """Bytes that this rank holds: {"parameters", "gradients", "optimizer", "transient"}.

        transient: the most that lay in other memory for a while, to be whole in a forward or
        backward. Activations, buffers and what messages need do not count.
        """
        flats = {id(p.storage.owner): p.storage.owner for p in self.module.parameters()
                 if p.storage.owner is not None}.values()
        loose = [p for p in self.module.parameters() if p.storage.owner is None]
        return {"parameters": sum(f.data.nbytes for f in flats) + sum(p.nbytes for p in loose),
                "gradients": sum(f.reduced.nbytes for f in flats),
                "optimizer": self.optimizer.nbytes() if self.optimizer else 0, "transient": 0}

    @contextmanager
    def evaluating(self):
        """Inside, the module is the one to evaluate, in eval mode. Collective."""
        self.module.eval()
        try:
            yield
        finally:
            self.module.train()

    def settle(self):
        """Before an evaluation: send what other ranks still wait for. Collective."""

    def finish(self):
        """After the last step: complete what is in flight. Collective."""

    # The whole model, for checkpoints, hashes and samples

    def _gives(self):
        """Whether this rank is the replica that gives what all replicas hold."""
        return self.mesh.coordinates(self.comm.rank)["dp"] == 0

    def parameters(self):
        """{name: array} of the whole model on rank 0, {} elsewhere. Collective."""
        return gather_whole(self.comm, {
            name: (p.array, p.placement) for name, p in self.module.named_parameters()
        } if self._gives() else {})

    def state(self):
        """(state dict, the optimizer's state by name) of the whole on rank 0. Collective.

        With the latter goes what compression owes (`residuals.py`).
        """
        tensors, places = dict(self.module.named_state()), self._places()
        model = {k: (t.array, getattr(t, "placement", None)) for k, t in tensors.items()}
        state = self.optimizer.named_state(self.module)
        optimizer = {k: (as_array(v), places[k.rpartition(".")[0]] if np.ndim(v) else None)
                     for k, v in state.items()}
        if not self._gives():
            model, optimizer = {}, {}
        return (gather_whole(self.comm, model),
                {**gather_whole(self.comm, optimizer), **residuals(self)})

    def load(self, model, optimizer):
        """Take over what `state` returned on rank 0, of any layout. Collective.

        Either may be empty: then it stays as it is.
        """
        tensors, places, optimizer = dict(self.module.named_state()), self._places(), {**optimizer}
        mine = scatter_pieces(self.comm, model, {
            k: getattr(t, "placement", None) for k, t in tensors.items()})
        if mine:
            self.module.load_state_dict(mine)
        wanted = {f"{name}.{key}": place for name, place in places.items()
                  for key in self.optimizer.state_names}
        wanted.update((f"{name}.step", None) for name in places)
        owed = {k: optimizer.pop(k) for k in list(optimizer) if k.startswith(PREFIX)}
        mine = scatter_pieces(self.comm, optimizer, wanted)
        if mine:
            self.optimizer.load_named_state(self.module, mine)
        load_residuals(self, owed)

    def _places(self):
        return {name: p.placement for name, p in self.module.named_parameters()}


class Replicated(Trainer):
    """Every rank holds the whole model and takes a slice of each global batch.

    loss: (outputs, targets) -> (sum, count). make_optimizer: from the wrapped module.
    precision: a context manager for forward passes and losses, made by calling it.
    hook: (state, hook) for DistributedDataParallel.register_comm_hook, or None.
    """

    def __init__(self, module, make_optimizer, loss, comm, mesh, *, microbatches=1,
                 algorithm="auto", precision=nullcontext, scaler=None, hook=None):
        self.comm, self.mesh, self._loss, self._microbatches = comm, mesh, loss, microbatches
        self._precision, self.scaler = precision, scaler or GradScaler(enabled=False)
        self.everywhere = True
        self.model = DistributedDataParallel(module, process_group=comm, gradient="sum",
                                             algorithm=algorithm)
        if hook:
            self.model.register_comm_hook(*hook)
        self.module, self.optimizer = module, make_optimizer(self.model)
        self.device = next((p.device for p in module.parameters()), CPU)

    def gradients(self, inputs, targets, shard, step, stop):
        totals, at = np.array([0.0, 0.0, stop]), 0
        sizes, reduction = cut(len(inputs), self._microbatches), None
        for i, size in enumerate(sizes):
            last, part = i == len(sizes) - 1, slice(at, at + size)
            with (batch_position(step, shard.start + at),
                  nullcontext() if last else self.model.no_sync()):
                with self._precision():
                    loss, count = self._loss(self.model(Tensor(inputs[part])),
                                             Tensor(targets[part]))
                totals[:2] += loss.item(), count
                if last:  # every rank starts this first, then the buckets: the agreed order
                    reduction = self.comm.all_reduce(totals, async_op=True)
                self.scaler.scale(loss).backward()
            at += size
        reduction.wait()
        return totals

    def hooked(self):
        return self.model.hooked()

    @property
    def overlap(self):
        return self.model.overlap

    def predict(self, inputs):
        with no_grad(), self._precision():
            return self.model(Tensor(inputs))

    def parameters(self):
        """{name: array}, on every rank: each has them all."""
        return {name: p.array for name, p in self.module.named_parameters()}
