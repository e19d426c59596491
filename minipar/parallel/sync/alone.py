"""Replicas that take optimizer steps of their own, and come together in some other way.

The base of local.py, diloco.py and gossip.py. Between ranks only parameters pass. A rank's
gradient is scaled so that the plain mean over the ranks is the mean over the global batch, for
shards of any size. A step line's loss is that of rank 0's shard: no losses pass. A norm to clip to
is that of the rank's own gradient. Of a checkpoint, `model` is the average over the ranks, and the
optimizer's file has each rank's own parameters and state, under names that end in @rank.
"""

import hashlib
import math
from contextlib import contextmanager, nullcontext

import numpy as np

from ...amp import GradScaler
from ...context import batch_position, no_grad
from ...nn.flat import flatten
from ...tensor import Tensor
from ..gather import gather_whole, scatter_pieces
from ..trainer import Diverged, Trainer, cut


class Replica(Trainer):
    """What every rank has that trains on a shard by itself: the whole model, and backward().

    group: of the ranks that do so; all begin with the parameters of its rank 0. Others as for
    Replicated, which is the method that they all approximate.
    """

    def __init__(self, module, make_optimizer, loss, comm, mesh, *, microbatches=1,
                 algorithm="auto", precision=nullcontext, group=None):
        self.comm, self.mesh, self._loss, self._microbatches = comm, mesh, loss, microbatches
        self._algorithm, self._precision = algorithm, precision
        self.scaler = GradScaler(enabled=False)
        self.module = module.materialize()
        self.flats = flatten(p for p in module.parameters() if p.requires_grad)
        self.optimizer = make_optimizer(module)
        for tensor in (*module.parameters(), *module.buffers()):
            (group or comm).broadcast(tensor.array)

    def backward(self, inputs, targets, shard, step):
        """Forward and backward of this rank's shard; (sum of losses, count of targets) of it."""
        self.optimizer.zero_grad()
        total, targets_seen, at = 0.0, 0, 0
        for size in cut(len(inputs), self._microbatches):
            part = slice(at, at + size)
            with batch_position(step, shard.start + at):
                with self._precision():
                    loss, count = self._loss(self.module(Tensor(inputs[part])),
                                             Tensor(targets[part]))
                total, targets_seen = total + loss.item(), targets_seen + count
                loss.backward()
            at += size
        return total, targets_seen

    def check(self, total, step):
        """Raise Diverged, on this rank alone, if the sum of its losses is not finite."""
        if not math.isfinite(total):
            raise Diverged(f"loss is {total} at step {step + 1} on rank {self.comm.rank}",
                           alone=True)

    def predict(self, inputs):
        with no_grad(), self._precision():
            return self.module(Tensor(inputs))

    def parameters(self):
        """{name: array}, on every rank: each has them all."""
        return {name: p.array for name, p in self.module.named_parameters()}

    def changed(self):
        """Tell whoever kept something of the parameters that they have new values."""
        for flat in self.flats:
            for p in flat.parameters:
                p.storage.version += 1

    def mean(self, arrays):
        """Replace arrays by their means over the ranks. Collective."""
        for array in arrays:
            self.comm.all_reduce(array, "mean", algorithm=self._algorithm)


class Alone(Replica):
    """Base class. Sub-classes define `combine`, and keep `equal` true to its name."""

    equal = True  # whether all ranks now have the same parameters and buffers

    def combine(self, step, stop):
        """After this rank's optimizer step: bring the ranks together, or not.

        Returns whether all ranks stop now, which they must agree about.
        """
        raise TypeError(f"{type(self).__name__} defines no combine()")

    def step(self, batch, shard, step, stop=False, max_norm=None):
        inputs, targets = (t.array for t in batch)
        total, count = self.backward(inputs, targets, shard, step)
        self.check(total, step)
        share = self.mesh.dp * len(inputs) / shard.size
        self.optimizer.step(scale=share / max(count, 1), max_norm=max_norm)
        stop = self.combine(step, stop)
        return total / max(count, 1), stop

    def arrays(self):
        """What the ranks average: parameters, and buffers that are real numbers."""
        return [flat.data for flat in self.flats] + [
            b.array for b in self.module.buffers() if b.array.dtype.kind == "f"]

    @contextmanager
    def averaged(self):
        """Inside, every rank has the average over the ranks. Collective."""
        arrays = [] if self.equal else self.arrays()
        own = [a.copy() for a in arrays]
        self.mean(arrays)
        self.changed()
        try:
            yield
        finally:
            for array, value in zip(arrays, own):
                array[...] = value
            self.changed()

    @contextmanager
    def evaluating(self):
        with self.averaged(), super().evaluating():
            yield

    def parameters(self):
        """{name: array} of the average, on every rank. Collective."""
        with self.averaged():
            return {name: p.array.copy() for name, p in self.module.named_parameters()}

    # Checkpoints: everything that a rank has, by name and rank

    def _own(self):
        """{name: array}: this rank's parameters and buffers."""
        return {f"{name}.value": t.array for name, t in self.module.named_state()}

    def shared(self):
        """{name: array} of what is the same on every rank and belongs into a checkpoint."""
        return {}

    def state(self):
        with self.averaged():
            model = gather_whole(self.comm, {
                name: (t.array.copy(), None) for name, t in self.module.named_state()
            } if self.comm.rank == 0 else {})
        mine = {**self._own(), **self.optimizer.named_state(self.module)}
        given = {f"{k}@{self.comm.rank}": (np.asarray(v), None) for k, v in mine.items()}
        if self.comm.rank == 0:
            given.update((k, (v, None)) for k, v in self.shared().items())
        return model, gather_whole(self.comm, given)

    def load(self, model, optimizer):
        """Take over what `state` returned on rank 0, of as many ranks. Collective."""
        super().load(model, {})
        end, shared = f"@{self.comm.rank}", self.shared()
        own, names = self._own(), [name for name, _ in self.module.named_parameters()]
        wanted = [*own, *(f"{name}.{key}" for name in names
                          for key in (*self.optimizer.state_names, "step"))]
        mine = scatter_pieces(self.comm, optimizer, {
            **dict.fromkeys(key + end for key in wanted), **dict.fromkeys(shared)})
        if not mine:
            return
        for name, array in shared.items():
            array[...] = mine.pop(name)
        mine = {key.removesuffix(end): value for key, value in mine.items()}
        for name, array in own.items():
            array[...] = mine.pop(name)
        self.optimizer.load_named_state(self.module, mine)
        self.equal = self._are_equal()
        self.changed()

    def _are_equal(self):
        digest = hashlib.sha256(b"".join(a.tobytes() for a in self.arrays())).hexdigest()
        same = np.array([float(digest == self.comm.broadcast_object(digest))])
        self.comm.all_reduce(same, "min")
        return bool(same[0])
