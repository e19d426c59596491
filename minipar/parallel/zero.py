"""ZeRO: data parallelism in which each rank keeps a slice of what replicas would all keep.

Rajbhandari et al. 2020, "ZeRO: memory optimizations toward training trillion parameter models".
Per rank, with P bytes of parameters and Adam's two states, on n ranks:

    replicated  P + P + 2P            all-reduce of gradients
    stage 1     P + P + 2P / n        reduce-scatter of gradients, all-gather of parameters
    stage 2     P + P / n + 2P / n    the same, and gradients go as soon as they are reduced
    stage 3     P / n + P / n + 2P / n    and parameters come for each block, twice a step
    shared      P / n + P + 2P / n    stage 1 with the parameters in memory that all ranks share

A unit is what comes and goes together: the parameters that the same blocks of the model use. When
backward has passed a block, the gradients of the units that no earlier block uses are complete:
they are reduced while backward goes on.
"""

from contextlib import nullcontext

import numpy as np

from ..amp import GradScaler
from ..context import batch_position, current, no_grad
from ..nn.blocks import blocks_of
from ..tensor import Tensor, record
from .buffers import Buffers
from .shards import Ledger, Shards
from .sliced import Sliced
from .trainer import cut

IN_FLIGHT = 1  # reductions, while backward computes the gradients of the next block


class Zero(Sliced):
    """Every rank takes a slice of each global batch, and updates a slice of each parameter.

    module:    defines `blocks()`; without memory yet if it is too large for one rank.
    stage:     1, 2 or 3.
    algorithm: of reduce-scatter and all-gather: "auto", "ring", "shared" or "mpi".
    loss, make_optimizer, microbatches, precision: as for Replicated; the optimizer is made from
    the module. scaler: with `comm`, for ranks see other gradients and must skip together.
    shared:    ranks of one machine have the parameters (of stage 1) in one place: each updates its
               slices there, and nothing is gathered. What all wait for between their backward
               and the update is the sum of the losses.
    mesh:      without pipelines. Where it has tp, the module's layers are cut (`shard_model`), and
               slices are of what the replicas of each piece hold.
    Stages 2 and 3 reduce after each micro-batch, stage 1 after the last.
    """

    def __init__(self, module, make_optimizer, loss, comm, mesh, stage, *, microbatches=1,
                 algorithm="auto", shared=False, precision=nullcontext, scaler=None):
        if stage not in (1, 2, 3):
            raise ValueError(f"ZeRO has stages 1, 2 and 3, not {stage}")
        if shared and (stage != 1 or not comm.shares_memory()):
            raise ValueError(f"parameters in one place for {comm.size} ranks are of stage 1, on "
                             f"one machine whose processes can map each other's memory")
        self.comm, self.mesh, self.module, self._stage = comm, mesh, module, stage
        self._shared = shared
        self._loss, self._microbatches, self._ledger = loss, microbatches, Ledger()
        self._precision, self.scaler = precision, scaler or GradScaler(enabled=False)
        self._blocks = blocks_of(module)
        self._replicas, cut_layers = mesh.split(comm, "dp"), mesh.tp > 1
        self._tells = mesh.coordinates(comm.rank)["tp"] == 0
        self.everywhere = stage < 3 and not cut_layers
        uses = {id(p): (p, []) for p in module.parameters()}
        for k, block in enumerate(self._blocks):
            for p in block.parameters(module):
                uses[id(p)][1].append(k)
        groups = {}
        for p, where in uses.values():
            if p.storage.owner is not None:
                raise ValueError("an optimizer or data parallelism holds the module's parameters "
                                 "already: ZeRO comes first")
            groups.setdefault((tuple(where), p.requires_grad, p.dtype, p.placement is None),
                              []).append(p)
        # Backward is done with the last blocks first.
        self._units = {}  # {unit: the blocks that use it}
        for where, *rest in sorted(groups, key=lambda key: -min(key[0], default=0)):
            parameters = groups[(where, *rest)]
            unit = Shards(parameters, self._replicas, stage, algorithm, self._ledger, shared)
            self._units[unit] = where
        self._trained = [u for u in self._units if u.trains]
        if not self._trained:
            raise ValueError("no parameter of the module requires a gradient")
        for p in module.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(self._progress)
        self._buffers = Buffers(module, self._replicas)
        self._keep_places(self._units)
        self.optimizer = make_optimizer(module)
        self.optimizer.sum_over_ranks = self._sum
        self._passed, self._flying, self._reduces = 0, [], False

    def _progress(self, parameter):
        self.comm.engine.progress()

    # Forward and backward

    def _forward(self, x):
        """The model's output, block after block; each has its parameters, the next one's come."""
        self._passed = len(self._blocks)
        for k, block in enumerate(self._blocks):
            if k > 0 and x.requires_grad and current().grad_enabled:
                x = record(x.array, (x,), self._gate(k), view_of=x)
            self._get(k)
            if k + 1 < len(self._blocks):
                self._ask(k + 1)
            x = block.forward(x)
            if k + 1 < len(self._blocks) or not current().grad_enabled:
                self._free(k, k + 1)  # of the last block, backward comes at once
        return x

    def _gate(self, k):
        """The backward of a node between blocks k - 1 and k: it passes when block k is done."""
        def gate(g):
            self._done(k)
            return (g,)
        return gate

    def _using(self, k):
        return [unit for unit, where in self._units.items() if k in where]

    def _ask(self, k):
        """Start to gather what block k uses."""
        if self._stage == 3 and k >= 0:
            for unit in self._using(k):
                unit.gather()

    def _get(self, k):
        """Have what block k uses."""
        self._ask(k)
        for unit in self._using(k):
            unit.wait()

    def _free(self, k, following):
        """Let go of what block k used, unless block `following` uses it, too."""
        for unit in self._using(k):
            if following not in self._units[unit]:
                unit.free()

    def _done(self, k):
        """Backward has passed block k, and those behind it.

        Through some blocks it may not come, on some ranks: what ranks do together they do for
        each block all the same, in one order.
        """
        while self._passed > k:
            self._passed -= 1
            self._free(self._passed, self._passed - 1)
            if self._reduces:
                self._reduce(self._passed)
            if self._passed:
                self._get(self._passed - 1)
                self._ask(self._passed - 2)

    def _reduce(self, k):
        """Start to reduce the gradients that are complete after block k."""
        for unit in self._trained:
            if min(self._units[unit], default=0) == k:
                unit.reduce()
                self._flying.append(unit)
        while len(self._flying) > (IN_FLIGHT if k else 0):
            self._flying.pop(0).take()

    def gradients(self, inputs, targets, shard, step, stop):
        for unit in self._units:
            unit.restart()
        totals, at, sizes = np.array([0.0, 0.0, stop]), 0, cut(len(inputs), self._microbatches)
        for i, size in enumerate(sizes):
            part = slice(at, at + size)
            with batch_position(step, shard.start + at):
                with self._precision():
                    loss, count = self._loss(self._forward(Tensor(inputs[part])),
                                             Tensor(targets[part]))
                totals[:2] += loss.item(), count
                self._reduces = self._stage > 1 or i == len(sizes) - 1
                self.scaler.scale(loss).backward()
            self._done(0)
            at += size
        self._buffers.changed()
        totals[:2] *= self._tells
        used = np.concatenate([unit.used for unit in self._trained]).astype(float)
        if self._replicas is self.comm:  # which had a gradient on any rank travels with the totals
            both = np.concatenate((totals, used))
            self.comm.all_reduce(both)
            totals, used = both[:3], both[3:]
        else:
            self.comm.all_reduce(totals)
            self._replicas.all_reduce(used)
        used = iter(used > 0)
        for unit in self._trained:
            for sink in unit.sinks:
                sink.fresh = not next(used)
        return totals

    def step(self, batch, shard, step, stop=False, max_norm=None):
        result = super().step(batch, shard, step, stop, max_norm)
        self._loaded()  # its slices have new values
        return result

    def _update_others(self, units):
        if self._shared:
            self.comm.barrier()  # each rank has written its slices
        else:
            super()._update_others(units)

    def predict(self, inputs):
        self._buffers.share()
        with no_grad(), self._precision():
            out = self._forward(Tensor(inputs))
        return out if self._tells else None

    # State

    def parameters(self):
        """{name: array}: on every rank, or in stage 3, and where layers are cut, on rank 0 alone.
        Collective."""
        if self.everywhere:
            return {name: p.array for name, p in self.module.named_parameters()}
        return self._gather(self.module.named_parameters())

    def _loaded(self):
        if self._stage < 3:
            self._update_others(self._units)

    def memory(self):
        """Bytes by what they are for, as Trainer.memory; `transient` is the peak of what was
        whole for a while: gathered parameters, and gradients until they are reduced. Of memory
        that ranks share each counts its part.
        """
        whole = {1: ("whole", "whole_grad"), 2: ("whole", "grad"), 3: ("data", "grad")}
        parameters, gradients = (sum(getattr(unit, name).nbytes for unit in self._units)
                                 for name in whole[self._stage])
        if self._shared:
            parameters //= self.comm.size
        return {"parameters": parameters, "gradients": gradients,
                "optimizer": self.optimizer.nbytes(), "transient": self._ledger.peak}
