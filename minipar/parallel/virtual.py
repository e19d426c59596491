"""Virtual compute: a pipeline that passes its real messages, and sleeps where it would compute.

With more ranks than cores, real arithmetic says nothing of a schedule: the ranks take each other's
time. Sleeping takes none of it. A stage becomes one operation of the graph, so nothing else of the
runtime changes: its forward sleeps and its output has the shape that the real stage's has, its
backward sleeps and leaves a weight gradient that sleeps as well, at once or postponed.
"""

import time

import numpy as np

from ..context import no_grad
from ..sinks import Deferred
from ..tensor import Tensor, record

# Seconds. Large messages in flight want attention in between; a sleep is about as much too long.
_SLICE, _LATE = 1e-3, 1e-4


class VirtualCompute:
    """What the stages of one rank's Pipeline take, and when they began and ended.

    pipeline: a Pipeline, whose stages and loss are replaced. times: Times in seconds; numbers are
    for a whole rank. Raises ValueError for times that are not those of the stages.
    """

    def __init__(self, pipeline, times):
        self.schedule, self._engine = pipeline.schedule, pipeline.comm.engine
        takes = times.per_stage(self.schedule.rank_of)
        self.work = sum(takes[a.stage][a.kind] for row in self.schedule.actions for a in row)
        self.spans = []  # (begin, end) of every sleep since `begin`
        stages = pipeline.part.stages
        for index, stage in stages.items():
            stages[index] = _Stage(stage, takes[index], self)
        pipeline.loss = _Loss(pipeline.loss)

    def begin(self):
        """A step begins."""
        self.spans = []

    def cost(self):
        """Seconds from the first begin to the last end of the step, on this rank."""
        return self.spans[-1][1] - self.spans[0][0] if self.spans else 0.0

    def bubble_rate(self, cost):
        """(cost - work) / cost, given the longest `cost` of all ranks (Qi et al. 2024)."""
        return 1 - self.work / self.schedule.ranks / cost if cost else 0.0

    def sleep(self, seconds):
        """Sleep, and attend to the messages in flight."""
        begin = now = time.perf_counter()
        while now < begin + seconds:
            time.sleep(max(0, min(_SLICE, begin + seconds - now - _LATE)))
            self._engine.progress()
            now = time.perf_counter()
        self.spans.append((begin, now))


class _Stage:
    """What a Stage is to the runtime. `takes`: seconds of F, I (the input) and W."""

    def __init__(self, stage, takes, compute):
        self.index, self.blocks = stage.index, stage.blocks
        self.parameters, self.buffers = stage.parameters, stage.buffers
        self._stage, self._takes, self._compute = stage, takes, compute
        self._forms = {}  # {(shape, dtype) of the input: that of the output}
        self._weight = Tensor(np.zeros(1), requires_grad=True)  # whose gradient takes W

    def __call__(self, x):
        given = x.shape, x.array.dtype
        if given not in self._forms:
            with no_grad():
                y = self._stage(x).array
            self._forms[given] = y.shape, y.dtype
        self._compute.sleep(self._takes["F"])

        def backward(gradient):
            self._compute.sleep(self._takes["I"])
            return (np.zeros(*given), self._slow(), *map(_zero, self.parameters))
        return record(np.zeros(*self._forms[given]), (x, self._weight, *self.parameters), backward)

    def _slow(self):
        def write(out):
            self._compute.sleep(self._takes["W"])
        return Deferred(self._weight.array, write=write, add=write, postponable=True)


def _zero(parameter):
    """A weight gradient that is there, for the replicas to sum, and costs nothing."""
    return Deferred(parameter.array, write=lambda out: out.fill(0), add=lambda out: None,
                    postponable=True)


class _Loss:
    """The count of the real loss, and 0 for its sum."""

    def __init__(self, loss):
        self._loss, self._counts = loss, {}

    def __call__(self, output, targets):
        key = output.shape, targets.shape
        if key not in self._counts:
            with no_grad():
                self._counts[key] = self._loss(output, targets)[1]
        return (record(np.zeros((), output.array.dtype), (output,),
                       lambda gradient: (np.zeros_like(output.array),)), self._counts[key])
