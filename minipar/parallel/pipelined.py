"""The trainer for a model that is cut: by layers over the pipeline's ranks, and replicated."""

from contextlib import nullcontext

import numpy as np

from ..amp import GradScaler
from .partition import Part, balanced, parameter_counts
from .pipeline import Pipeline
from .trainer import Trainer, cut


class Pipelined(Trainer):
    """A model in stages.

    model:     whole, without memory: parameters that live elsewhere are never made here.
    schedule:  a Schedule for mesh.pp ranks.
    counts:    how many blocks each stage has; balanced by parameters if None.
    loss, make_optimizer, precision, scaler: as for Replicated.
    recompute, algorithm: as for Pipeline.
    """

    def __init__(self, model, make_optimizer, loss, comm, mesh, schedule, *, counts=None,
                 recompute=False, algorithm="auto", precision=nullcontext, scaler=None):
        self.comm, self.mesh, self.schedule = comm, mesh, schedule
        place = mesh.coordinates(comm.rank)
        self.scaler = scaler or GradScaler(enabled=False)
        self.device = next(model.parameters()).device
        counts = counts or balanced(parameter_counts(model), schedule.stages)
        self.module = Part(model, counts, schedule.rank_of, place["pp"]).materialize()
        self._stages = mesh.split(comm, "pp", "tp")  # together they hold every parameter
        self.pipeline = Pipeline(self.module, schedule, mesh.split(comm, "pp"),
                                 mesh.split(comm, "dp"), loss, recompute=recompute,
                                 algorithm=algorithm, precision=precision,
                                 scale=self.scaler.scale, device=self.device)
        self.optimizer = make_optimizer(self.module)
        self.optimizer.sum_over_ranks = self._sum
        self._tells = place["tp"] == 0 and self.pipeline.has_last_stage

    def _sum(self, squares):
        total = np.array([squares])
        self._stages.all_reduce(total)
        return float(total[0])

    def gradients(self, inputs, targets, shard, step, stop):
        sizes = cut(len(inputs), self.schedule.microbatches)
        loss, count = self.pipeline.step(inputs, targets, sizes, step, shard.start)
        totals = np.array([loss, count, stop]) * [self._tells, self._tells, 1]
        self.comm.all_reduce(totals)
        return totals

    def predict(self, inputs):
        out = self.pipeline.predict(inputs)
        return out if self._tells else None
