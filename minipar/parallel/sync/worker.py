"""A rank that trains with a parameter server: it pushes gradients and waits for parameters.

Its optimizer is on the servers (server.py). In evaluations and checkpoints the model is what the
servers have; batch-norm statistics are rank 0's. A checkpoint is whole: of the synchronous server
a resumed run goes on bit for bit; the others depend on who comes first anyway. A step line's loss
is that of rank 0's shard, but for the synchronous server, where it is the global batch's.
"""

import math
from contextlib import contextmanager

import numpy as np

from ..gather import gather_whole, scatter_pieces
from ..trainer import Diverged
from .alone import Replica
from .line import ANSWER, PUSH, Share, shares


class _Elsewhere:
    """In the place of an optimizer: the servers have it."""

    grad_norm, param_groups = None, ()

    def __init__(self, module):
        self._sinks = [p.sink for p in module.parameters()]

    def nbytes(self):
        return 0

    def zero_grad(self):
        for sink in self._sinks:
            sink.reset()


class Worker(Replica):
    """method: a Method with servers. Others as for Replicated. `pushes` are counted."""

    def __init__(self, module, loss, comm, mesh, method, **options):
        module.materialize()
        self.shares = [Share(named) for named in shares(module, method.servers)]
        self._servers = range(mesh.size, comm.size)
        self._workers = comm.split(0)
        super().__init__(module, _Elsewhere, loss, comm, mesh, group=self._workers, **options)
        self._synchronous = method.name == "ps" and method.argument is None
        self._answers = np.zeros((len(self._servers), ANSWER))
        self.pushes, self.staleness, self._stop_at = 0, None, math.inf
        self.refresh()

    def step(self, batch, shard, step, stop=False, max_norm=None):
        inputs, targets = (t.array for t in batch)
        total, count = self.backward(inputs, targets, shard, step)
        if not self._synchronous:
            self.check(total, step)
        self.pushes += 1
        part = len(inputs) / shard.size
        push = np.array([self.pushes, total, count, part, stop, self._stop_at])
        works = []
        for server, share, answer in zip(self._servers, self.shares, self._answers):
            share.mark()
            arrays = [push, *(flat.reduced for flat in share.flats)]
            works += [self.comm.isend(array, server, tag) for tag, array in enumerate(arrays)]
            arrays = [answer, *(flat.data for flat in share.flats)]
            works += [self.comm.irecv(array, server, tag) for tag, array in enumerate(arrays)]
        for work in works:
            work.wait()
        self.changed()
        stop_at, staleness, loss, norm = self._answers.T
        self.optimizer.grad_norm = None if math.isnan(norm[0]) else float(norm[0])
        self._stop_at = min(self._stop_at, stop_at.min())
        if not self._synchronous:
            self.staleness, loss = int(staleness.max()), [total / max(count, 1)]
        elif not math.isfinite(loss[0]):
            raise Diverged(f"loss is {loss[0]} at step {step + 1}")
        return float(loss[0]), self.pushes >= self._stop_at

    def refresh(self):
        """Take the parameters as the servers have them now. Called with theirs."""
        for work in [self.comm.irecv(flat.data, server, 1 + i)
                     for server, share in zip(self._servers, self.shares)
                     for i, flat in enumerate(share.flats)]:
            work.wait()
        self.changed()

    def finish(self):
        """Tell the servers that there are no more pushes."""
        for work in [self.comm.isend(np.zeros(PUSH), server, 0) for server in self._servers]:
            work.wait()

    # With the servers: evaluation and checkpoints

    @contextmanager
    def evaluating(self):
        self.refresh()
        for b in self.module.buffers():
            self._workers.broadcast(b.array)
        with super().evaluating():
            yield

    def parameters(self):
        self.refresh()
        return super().parameters()

    def state(self):
        self.refresh()
        model = {name: (t.array, None) for name, t in self.module.named_state()}
        return (gather_whole(self.comm, model if self.comm.rank == 0 else {}),
                gather_whole(self.comm, {}))

    def load(self, model, optimizer):
        mine = scatter_pieces(self.comm, model, dict.fromkeys(
            name for name, _ in self.module.named_state()))
        if mine:
            self.module.load_state_dict(mine)
        scatter_pieces(self.comm, optimizer, {})
        self.refresh()
