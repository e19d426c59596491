"""A one-step-delayed all-reduce: the gradient of step t is applied at the end of step t + 1.

So its reduction has a whole forward and backward to go on beside. The parameters that a gradient
is taken at are one update old on every rank, and all ranks stay bitwise equal; what it costs is
that staleness of 1. (Pipe-SGD: Li et al. 2018, with a pipeline of width 2.) The gradient of the
last step is never applied. A step line's loss is that of rank 0's shard.
"""

import math

import numpy as np

from ..gather import gather_whole, scatter_pieces
from ..trainer import Diverged
from .alone import Replica


class Delayed(Replica):
    """Arguments as for Replicated."""

    staleness = 1

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        # (sum of losses, count, ranks with `stop`), then gradients with their used flags
        self._flying = [np.zeros(3), *(np.zeros_like(flat.reduced) for flat in self.flats)]
        self._spare = [np.empty_like(array) for array in self._flying]
        self._plans = [self.comm.plan("all_reduce", array, "sum", self._algorithm)
                       for array in self._flying]
        self._pending = np.zeros(1)  # whether a gradient waits to be applied
        for flat in self.flats:
            for p in flat.parameters:
                p.register_post_accumulate_grad_hook(lambda p: self.comm.engine.progress())

    def _land(self):
        for plan in self._plans:
            plan.wait()

    def step(self, batch, shard, step, stop=False, max_norm=None):
        inputs, targets = (t.array for t in batch)
        total, count = self.backward(inputs, targets, shard, step)
        self._land()
        before = self._exchange(np.array([total, count, stop]))
        for plan in self._plans:
            plan.start()
        if self._pending[0]:
            if not math.isfinite(before[0]):
                raise Diverged(f"loss is {before[0]} at step {step}; {self.first_bad()}")
            self.optimizer.step(scale=1 / max(before[1], 1), max_norm=max_norm)
        self._pending[0] = 1
        return total / max(count, 1), before[2] > 0

    def _exchange(self, totals):
        """Put this step's gradients where they fly, and those that have landed in their place.

        Returns the totals that have landed.
        """
        for flat in self.flats:
            for i, p in enumerate(flat.parameters):
                flat.used[i] = not p.sink.fresh
                if p.sink.fresh:
                    p.sink.out_buffer()[...] = 0
        for new, flying, spare in zip((totals, *(flat.reduced for flat in self.flats)),
                                      self._flying, self._spare):
            spare[...] = new
            new[...] = flying
            flying[...] = spare
        for flat in self.flats:
            for i, p in enumerate(flat.parameters):
                p.sink.fresh = not flat.used[i]
        return totals

    def finish(self):
        self._land()

    # Checkpoints have the gradient in flight, too

    def _late(self):
        return {"delayed.pending": self._pending,
                **{f"delayed.{i}": array for i, array in enumerate(self._flying)}}

    def state(self):
        self._land()
        model, optimizer = super().state()
        late = {name: (array.copy(), None) for name, array in self._late().items()}
        return model, {**optimizer, **gather_whole(self.comm, late if self._gives() else {})}

    def load(self, model, optimizer):
        super().load(model, optimizer)
        late = self._late()
        for name, value in scatter_pieces(self.comm, optimizer, dict.fromkeys(late)).items():
            late[name][...] = value
        self._flying[0][2] = 0  # a wish to stop was granted: the checkpoint is what came of it

