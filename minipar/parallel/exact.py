"""Data parallelism with the same bits on any number of ranks, and by any all-reduce.

What makes a run depend on how many ranks it has is where floating-point numbers are added: inside
a forward and backward, over the samples that a rank has; between ranks, in the order of the
algorithm. Here neither depends on it. Each global batch is cut into a fixed number of virtual
shards; a rank has a run of them, and computes each alone, as if it were all there is. Their
gradients, losses and counts are summed exactly (exact_sum.py), so it does not matter who had which.
"""

import numpy as np

from ..context import batch_position
from ..data.sampler import boundaries
from ..execution.threads import set_num_threads
from ..tensor import Tensor
from .exact_sum import ExactSum
from .sync.alone import Replica
from .trainer import Diverged


class Exact(Replica):
    """Every rank holds the whole model, and a run of each global batch's virtual shards.

    virtual_shards: their number V. Another V is another computation, with other bits.
    Others as for Replicated. Batches must be cut so that rank r of n has the virtual shards
    [r V // n, (r + 1) V // n), as GlobalBatchSampler(virtual_shards=V) does. From here on the
    calling thread's kernels take one thread; BLAS must do so, too, on one rank as on many.
    Beside what Replicated has, a rank keeps the gradients of each of its virtual shards, V / n
    times the parameters, and for each element a word of 8 bytes and exponents, 2 bytes (float32)
    or 4.
    Raises ValueError for fewer virtual shards than ranks, and for a module that keeps statistics
    of batches, which would be of a virtual shard.
    """

    everywhere = True

    def __init__(self, module, make_optimizer, loss, comm, mesh, virtual_shards=16, *,
                 algorithm="auto"):
        if comm.size > virtual_shards:
            raise ValueError(f"{comm.size} ranks > {virtual_shards} virtual shards: each rank "
                             f"computes at least one")
        for name, _ in module.named_buffers():
            if "running_mean" in name:
                raise ValueError(f"statistics of batches depend on how they are cut: a model with "
                                 f"{name} has no exact sum over virtual shards")
        set_num_threads(1)
        super().__init__(module, make_optimizer, loss, comm, mesh, algorithm=algorithm)
        self.virtual_shards = virtual_shards
        self._sums = [ExactSum(comm, len(flat.reduced), flat.reduced.dtype, virtual_shards,
                               algorithm) for flat in self.flats]
        # Each rank gives one term more: whether it came with `stop`.
        self._totals = ExactSum(comm, 3, np.float64, virtual_shards + comm.size, algorithm)

    def gradients(self, inputs, targets, shard, step, stop):
        self._totals.add((0, 0, stop))
        cuts = boundaries(shard.size, self.virtual_shards)
        first, after = boundaries(self.virtual_shards, self.comm.size)[self.comm.rank:][:2]
        if (cuts[first], cuts[after] - cuts[first]) != (shard.start, len(inputs)):
            raise ValueError(f"a shard with samples [{shard.start}, {shard.start + len(inputs)}), "
                             f"not those of virtual shards: [{cuts[first]}, {cuts[after]})")
        for start, end in zip(cuts[first:after], cuts[first + 1:after + 1]):
            if start < end:  # of a short batch some are empty
                part = slice(start - shard.start, end - shard.start)
                self._compute(inputs[part], targets[part], step, start)
        totals = np.empty(3)
        self._totals.reduce(totals)
        for flat, total in zip(self.flats, self._sums):
            total.reduce(flat.reduced)
            for sink, used in zip(flat.sinks, flat.used.tolist()):
                sink.fresh = not used
        if np.isfinite(totals[0]) and not all(np.isfinite(f.reduced).all() for f in self.flats):
            raise Diverged(f"at step {step + 1} the loss is finite, {totals[0]}, and a gradient is "
                           f"not; {self.first_bad()}")
        return totals

    def _compute(self, inputs, targets, step, start):
        """Forward and backward of one virtual shard, whose gradients become terms of the sums."""
        self.optimizer.zero_grad()
        with batch_position(step, start):
            loss, count = self._loss(self.module(Tensor(inputs)), Tensor(targets))
            loss.backward()
        self._totals.add((loss.item(), count, 0))
        for flat, total in zip(self.flats, self._sums):
            for i, sink in enumerate(flat.sinks):
                flat.used[i] = not sink.fresh
                if sink.fresh:
                    sink.out_buffer()[...] = 0
            total.add(flat.reduced)

    def memory(self):
        found = super().memory()
        found["gradients"] += sum(total.nbytes for total in (*self._sums, self._totals))
        return found
