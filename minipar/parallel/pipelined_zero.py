"""ZeRO's first stage for a model that is cut: replicas of a piece share out its optimizer's state.

A rank holds a part of the blocks, or a piece of every layer, P bytes of parameters; n ranks hold
the same ones. Of Adam's two states each keeps 2P / n, and updates as much of the parameters:
reduce-scatter of the gradients when a stage's last backward is done, all-gather of the parameters
after the update. Gradients stay whole: micro-batch after micro-batch adds to them until the
pipeline has run, so that stage 2 would hold as many of them at its peak. Parameters do, too: a
stage uses its own in every action, and stage 3 would gather them each time.
"""

import numpy as np

from .pipelined import Pipelined
from .shards import Ledger, Shards
from .sliced import Sliced


class _Reducer:
    """The gradients of some parameters, as the pipeline has them summed."""

    def __init__(self, parameters, comm, algorithm, ledger):
        groups = {}
        for p in parameters:
            groups.setdefault(p.dtype, []).append(p)
        self.units = [Shards(group, comm, 1, algorithm, ledger) for group in groups.values()]

    def start(self):
        for unit in self.units:
            unit.reduce()

    def finish(self):
        for unit in self.units:
            unit.take()


class PipelinedZero(Sliced, Pipelined):
    """As Pipelined, with the optimizer's state of each rank's parameters cut among its replicas.

    scaler: with `comm`, for ranks see other gradients and must skip together.
    """

    def __init__(self, model, make_optimizer, loss, comm, mesh, schedule, **options):
        def sliced_optimizer(module):
            self._keep_places(self._units)
            return make_optimizer(module)
        self._units = []
        super().__init__(model, sliced_optimizer, loss, comm, mesh, schedule, **options)

    def _reducer(self, parameters, replicas, capacity, algorithm):
        reducer = _Reducer(parameters, replicas, algorithm, Ledger())
        self._units += reducer.units
        return reducer

    def hooked(self):
        return []

    def gradients(self, inputs, targets, shard, step, stop):
        for unit in self._units:
            unit.restart()
        totals = super().gradients(inputs, targets, shard, step, stop)
        # Which parameters had a gradient on any replica: all update theirs then.
        used = np.array([u for unit in self._units for u in unit.used], float)
        self._replicas.all_reduce(used)
        used = iter(used > 0)
        for unit in self._units:
            for sink in unit.sinks:
                sink.fresh = not next(used)
        return totals

    def step(self, batch, shard, step, stop=False, max_norm=None):
        result = super().step(batch, shard, step, stop, max_norm)
        self._update_others(self._units)
        return result

    def _loaded(self):
        self._update_others(self._units)

    def parameters(self):
        """{name: array} of the whole model on rank 0, {} elsewhere. Collective."""
        return self._gather(self.module.named_parameters())

    def memory(self):
        loose = sum(p.nbytes for p in self.module.parameters() if id(p) not in self._places_of)
        return {"parameters": sum(unit.whole.nbytes for unit in self._units) + loose,
                "gradients": sum(unit.whole_grad.nbytes for unit in self._units),
                "optimizer": self.optimizer.nbytes(), "transient": 0}
