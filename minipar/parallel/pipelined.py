"""The trainer for a model that is cut: by layers over the pipeline's ranks, and replicated."""

from contextlib import nullcontext

import numpy as np

from ..amp import GradScaler
from .buckets import Buckets
from .buffers import Buffers
from .partition import Part, balanced, parameter_counts
from .pipeline import Pipeline
from .trainer import Trainer, cut
from .virtual import VirtualCompute


class Pipelined(Trainer):
    """A model in stages.

    model:     whole, without memory: parameters that live elsewhere are never made here.
    schedule:  a Schedule for mesh.pp ranks.
    counts:    how many blocks each stage has; balanced by parameters if None.
    loss, make_optimizer, precision, scaler: as for Replicated. recompute, algorithm: as for
    Pipeline. Buffers (batch-norm statistics) are those of replica 0, as in
    DistributedDataParallel.
    hook:      makes (state, hook), one for each set of buckets of gradients, as
               DistributedDataParallel.register_comm_hook takes them; None for an all-reduce.
    virtual:   Times in seconds: sleep as long instead of computing; `facts` then tells the bubble.
    """

    def __init__(self, model, make_optimizer, loss, comm, mesh, schedule, *, counts=None,
                 recompute=False, algorithm="auto", precision=nullcontext, scaler=None,
                 virtual=None, hook=None):
        self.comm, self.mesh, self.schedule = comm, mesh, schedule
        place = mesh.coordinates(comm.rank)
        self.scaler = scaler or GradScaler(enabled=False)
        self.device = next(model.parameters()).device
        self.counts = counts or balanced(parameter_counts(model), schedule.stages)
        self.module = Part(model, self.counts, schedule.rank_of, place["pp"]).materialize()
        self._stages = mesh.split(comm, "pp", "tp")  # together they hold every parameter
        self._replicas, self._hook = mesh.split(comm, "dp"), hook
        self.pipeline = Pipeline(self.module, schedule, mesh.split(comm, "pp"), self._replicas,
                                 loss, recompute=recompute, algorithm=algorithm,
                                 precision=precision, scale=self.scaler.scale, device=self.device,
                                 reducer=self._reducer, pace=lambda: self.pace())
        self._buffers = Buffers(self.module, self._replicas)
        self._virtual = virtual and VirtualCompute(self.pipeline, virtual)
        self.optimizer = make_optimizer(self.module)
        self.optimizer.sum_over_ranks = self._sum
        self._tells = place["tp"] == 0 and self.pipeline.has_last_stage

    def _reducer(self, parameters, replicas, capacity, algorithm):
        buckets = Buckets(parameters, replicas, capacity, algorithm)
        if self._hook:
            buckets.use_hook(*self._hook())
        return buckets

    def hooked(self):
        return [pair for _, buckets in self.pipeline.reducers for pair in buckets.hooked_buckets()]

    def _sum(self, squares):
        total = np.array([squares], float)
        self._stages.all_reduce(total)
        return float(total[0])

    def gradients(self, inputs, targets, shard, step, stop):
        self._buffers.share()
        self._buffers.changed()
        sizes = cut(len(inputs), self.schedule.microbatches)
        if self._virtual:
            self._virtual.begin()
        loss, count = self.pipeline.step(inputs, targets, sizes, step, shard.start)
        totals = np.array([loss, count, stop]) * [self._tells, self._tells, 1]
        self.comm.all_reduce(totals)
        return totals

    def facts(self):
        if not self._virtual:
            return {}
        cost = np.array([self._virtual.cost()])
        self.comm.all_reduce(cost, "max")
        return {"bubble_rate": self._virtual.bubble_rate(float(cost[0]))}

    def predict(self, inputs):
        self._buffers.share()
        out = self.pipeline.predict(inputs)
        return out if self._tells else None
