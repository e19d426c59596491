"""Runs any schedule: one rank's share of a training step of a model that is cut by layers.

Knows no schedule by name. It goes through the rank's lowered list (`lower.py`): a receive is
posted, a computation waits for its own, a send starts and is left alone until the step ends. In
autograd's terms a stage's input is a detached leaf; F keeps (input, output), B is the output's
backward with the gradient that came, I the same but for the weight gradients of matrix products
and convolutions, which W computes later.
"""

from contextlib import nullcontext

import numpy as np

from ..context import batch_position, current, no_grad
from ..device import CPU
from ..tensor import Tensor, backward
from .boundary import Boundary
from .buckets import Buckets
from .lower import lower


class Pipeline:
    """A Part of a model, a Schedule, and the ranks that hold the other stages.

    part:      this rank's Part, materialised.
    schedule:  for as many ranks as `comm` has.
    comm:      the ranks of the pipeline. replicas: the ranks that hold the same stages as this
               one, over which gradients are summed.
    loss:      (output of the last stage, targets) -> (sum of the losses, a 0-d tensor; their
               count), run on the rank of the last stage.
    recompute: F keeps only a stage's input, and its B or I runs F once more.
    precision: makes the context manager of forward passes. scale: what the loss is multiplied by
               before its backward, a function.
    varying:   samples may have another shape in every micro-batch; otherwise the shape of what
               passes between two stages is agreed once.
    device:    where the part is. pace: called at the end of every action.
    reducer:   (parameters, replicas, bytes of a bucket, algorithm) -> what sums their gradients:
               `start()` when a stage's last backward is done, `finish()` at the end of the step.
    """

    def __init__(self, part, schedule, comm, replicas, loss, *, bucket_cap_mb=25,
                 algorithm="auto", recompute=False, varying=False, precision=nullcontext,
                 scale=lambda loss: loss, device=CPU, reducer=Buckets, pace=lambda: None):
        if schedule.ranks != comm.size:
            raise ValueError(f"schedule {schedule.name} is for {schedule.ranks} ranks, the "
                             f"pipeline has {comm.size}")
        self.part, self.schedule, self.comm = part, schedule, comm
        self.loss, self.recompute, self.precision, self.scale = loss, recompute, precision, scale
        self._actions, self._last = lower(schedule)[comm.rank], schedule.stages - 1
        self.pace = pace
        owners = schedule.rank_of
        # {stage: the Boundary in front of it}, for those between this rank and another one.
        self.boundaries = {
            s: Boundary(comm, owners[s] if owners[s - 1] == comm.rank else owners[s - 1], s,
                        schedule.microbatches, varying, device)
            for s in range(1, schedule.stages)
            if comm.rank in owners[s - 1:s + 1] and owners[s - 1] != owners[s]}
        self._make_reducers(lambda group: reducer(group, replicas, bucket_cap_mb * 2**20,
                                                  algorithm))

    def _make_reducers(self, reducer):
        """For each stage, and for what several stages share, which goes last.

        The order of a sum can depend on what lies beside a gradient. So what other ranks hold,
        too (tied, or alike on tensor-parallel ranks), lies with nothing that they do not hold.
        """
        stages, tied = self.part.stages.values(), self.part.tied
        uses = [id(p) for stage in stages for p in stage.parameters]
        shared = {id(p): (tuple(ranks), p) for _, p, ranks in tied if p is not None}
        for p in self.part.parameters():
            if uses.count(id(p)) > 1:
                shared.setdefault(id(p), ((), p))
        groups = {}
        for stage in stages:
            for p in stage.parameters:
                if p.requires_grad and id(p) not in shared:
                    groups.setdefault((stage.index, (), p.placement is None), []).append(p)
        for ranks, p in shared.values():
            if p.requires_grad:
                groups.setdefault((None, ranks, p.placement is None), []).append(p)
        self.reducers = [(stage, reducer(group)) for (stage, *_), group in groups.items()]
        # Every rank splits for each parameter that any of them share, in one order.
        self._tied = [(p, self.comm.split(0 if self.comm.rank in ranks else None))
                      for _, p, ranks in tied]

    @property
    def has_last_stage(self):
        """Whether this rank computes the loss."""
        return self._last in self.part.stages

    def step(self, inputs, targets, sizes, step=0, start=0):
        """Forward and backward of all micro-batches, gradients summed over the replicas.

        inputs, targets: arrays of this replica's samples, in order; read on the ranks of the
        first and of the last stage. sizes: samples of each micro-batch, of which some may be 0.
        step, start: where the samples stand in the global batch. Returns (sum of the losses,
        count); 0 and 0 on ranks without the last stage.
        """
        if len(sizes) != self.schedule.microbatches:
            raise ValueError(f"{len(sizes)} micro-batches for schedule {self.schedule.name} of "
                             f"{self.schedule.microbatches}")
        run = _Run(self, inputs, targets, sizes, step, start)
        for action in self._actions:
            run.do(action)
        run.finish()
        self._sum_tied()
        for _, reducer in self.reducers:
            reducer.finish()
        return run.total, run.count

    def reduce(self, stage):
        """Start to sum the gradients of a stage over the replicas."""
        for own, reducer in self.reducers:
            if own == stage:
                reducer.start()

    def _sum_tied(self):
        """A parameter that stands on several ranks has the sum of its gradients on each of them."""
        for parameter, group in self._tied:
            if group is not None:
                if parameter.sink.fresh:
                    parameter.sink.out_buffer()[...] = 0
                    parameter.sink.written()
                group.all_reduce(parameter.sink.buffer)
        self.reduce(None)

    def predict(self, inputs):
        """The model's output for an array of inputs on the rank of the last stage, else None.

        Called by all ranks of the pipeline, in eval mode; records no graph.
        """
        value, samples = inputs, len(inputs)
        with no_grad(), self.precision():
            for stage in range(self._last + 1):
                boundary = self.boundaries.get(stage)
                if stage in self.part.stages:
                    if boundary is not None:
                        value = boundary.receive(samples, 0)()
                    value = self.part.stages[stage](Tensor(value)).array
                elif boundary is not None:
                    boundary.send(value, 0).wait()
        return Tensor(value) if self.has_last_stage else None


class _Run:
    """What one step holds on one rank: who waits for what, and what backward will need."""

    def __init__(self, pipeline, inputs, targets, sizes, step, start):
        self._pipeline, self._stages = pipeline, pipeline.part.stages
        self._inputs, self._targets, self._sizes = inputs, targets, sizes
        self._begins = [sum(sizes[:m]) for m in range(len(sizes))]
        self._step, self._start = step, start
        self._arriving = {}  # (whether forward, stage, micro-batch): a function that waits
        self._kept, self._postponed = {}, {}  # (stage, micro-batch): (x, y); [weight gradients]
        self._forms = {}  # (stage, micro-batch): (shape, dtype) of y
        self._made, self._sending = {}, []  # arrays to be sent, or taken by the stage beside
        self.total, self.count = 0.0, 0

    def do(self, action):
        """Do one action of the lowered list."""
        recorder = current().recorder
        with nullcontext() if recorder is None else recorder.span("action", str(action)):
            getattr(self, f"_{action.kind}")(action.stage, action.microbatch)
            self._pipeline.pace()

    def finish(self):
        """Every message has left."""
        for work, _ in self._sending:
            work.wait()

    # Computations

    def _F(self, stage, m):
        x = Tensor(self._input(stage, m))
        x.requires_grad = stage > 0 and x.dtype.is_floating_point
        with no_grad() if self._pipeline.recompute else nullcontext():
            y = self._forward(stage, x, m)
        self._kept[stage, m] = x, None if self._pipeline.recompute else y
        if stage == self._pipeline._last:
            self.total += float(y.array)
            self.count += self._counted
        else:
            self._made[True, stage + 1, m] = y.array
            self._forms[stage, m] = y.array.shape, y.array.dtype
        self._pipeline.comm.engine.progress()

    def _forward(self, stage, x, m):
        """The stage's output; of the last one, its loss."""
        with (batch_position(self._step, self._start + self._begins[m]),
              self._pipeline.precision()):
            y = self._stages[stage](x)
            if stage == self._pipeline._last:
                begin = self._begins[m]
                targets = Tensor(self._targets[begin:begin + self._sizes[m]])
                y, self._counted = self._pipeline.loss(y, targets)  # of the forward just run
            return y

    def _forward_again(self, stage, x, m):
        """The output with its graph; running statistics have seen this micro-batch already."""
        before = [(b.array, b.array.copy()) for b in self._stages[stage].buffers]
        y = self._forward(stage, x, m)
        for array, value in before:
            array[...] = value
        return y

    def _B(self, stage, m, postponed=None):
        x, y = self._kept.pop((stage, m))
        if stage == self._pipeline._last:
            gradient = None
        elif (False, stage + 1, m) in self._arriving:
            gradient = self._arriving.pop((False, stage + 1, m))()
        else:
            gradient = self._made.pop((False, stage + 1, m))
        if y is None:
            y = self._forward_again(stage, x, m)
        if stage == self._pipeline._last:
            y = self._pipeline.scale(y)
        if y.requires_grad:
            backward([y], [gradient], postponed=postponed)
        if stage > 0:
            self._made[False, stage, m] = x.grad.array if x.grad is not None else (
                np.zeros_like(x.array))
        self._pipeline.comm.engine.progress()

    def _I(self, stage, m):
        self._postponed[stage, m] = []
        self._B(stage, m, self._postponed[stage, m])

    def _W(self, stage, m):
        for weight_gradient in self._postponed.pop((stage, m)):
            weight_gradient()
        self._pipeline.comm.engine.progress()

    def _input(self, stage, m):
        if stage == 0:
            return self._inputs[self._begins[m]:self._begins[m] + self._sizes[m]]
        if (True, stage, m) in self._arriving:
            return self._arriving.pop((True, stage, m))()
        return self._made.pop((True, stage, m))

    # Messages

    def _RECV_F(self, stage, m):
        self._arriving[True, stage, m] = self._pipeline.boundaries[stage].receive(
            self._sizes[m], m)

    def _SEND_F(self, stage, m):
        array = self._made.pop((True, stage + 1, m))
        self._sent(self._pipeline.boundaries[stage + 1].send(array, m), array)

    def _RECV_B(self, stage, m):
        boundary = self._pipeline.boundaries[stage + 1]
        if (stage, m) in self._forms:
            self._arriving[False, stage + 1, m] = boundary.receive_gradient(
                *self._forms[stage, m], m)
        else:  # posted before its forward: how long it will be is not known yet
            self._arriving[False, stage + 1, m] = lambda: boundary.receive_gradient(
                *self._forms[stage, m], m)()

    def _SEND_B(self, stage, m):
        array = self._made.pop((False, stage, m))
        self._sent(self._pipeline.boundaries[stage].send_gradient(array, m), array)

    def _sent(self, work, array):
        self._sending = [(w, a) for w, a in self._sending if not w.test()]
        self._sending.append((work, array))

    def _REDUCE(self, stage, m):
        self._pipeline.reduce(stage)
