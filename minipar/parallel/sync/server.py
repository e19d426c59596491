"""The parameter server: ranks that keep the parameters and update them with what workers push.

Li et al. 2014, "Scaling distributed machine learning with the parameter server". The last K ranks
of a job are servers, each with a share of the parameters and their optimizer state; they hold no
samples. Three rules say when a server updates and when it answers (worker.py waits for that):

    ps        when all have pushed, sum the gradients in the workers' order, update once, answer
              all: what synchronous SGD computes.
    ps:async  each push is an update, answered at once (Dean et al. 2012, Downpour SGD).
    ssp:S     each push is an update, answered when no worker is more than S pushes behind this
              one (Ho et al. 2013, "stale synchronous parallel"). ssp:0 is in step: with plain SGD
              it computes what synchronous SGD does.

In the latter two the gradient of a push is its part of the global batch's mean, so that one push
of every worker amounts to one step of SGD; optimizers that do not care about the gradient's scale
(Adam) take a whole step a push, and every push decays the weights. The rate is divided by the
staleness (Zhang et al. 2016, "Staleness-aware async-SGD", counted here in global steps, and at
least 1). In a server's step there are as many pushes as there are workers, whoever they come from.
"""

import math

import numpy as np

from ...amp import GradScaler
from ..gather import gather_whole, scatter_pieces
from ..trainer import Diverged, Trainer
from .line import COUNT, LOSS, NUMBER, STOP_AT, WEIGHT, WISH, Line, Share, first_to_arrive, shares


class Server(Trainer):
    """One server. method: a Method (ps, ps:async, ssp:S). Others as for Replicated.

    Counted, for whoever checks: `pushes` of each worker, `updates` made; `ahead`, the most pushes
    that a worker was ahead of the slowest when it was answered; `stalest`, the most updates that
    were made between a worker's read and its push.
    """

    def __init__(self, module, make_optimizer, comm, mesh, method):
        self.comm, self.mesh, self.module, self.method = comm, mesh, module, method
        self.scaler = GradScaler(enabled=False)
        self.workers, self.number = comm.size - method.servers, comm.rank - mesh.size
        if module._path is None:
            module.assign_names()
        self.share = Share(shares(module, method.servers)[self.number])
        self.optimizer = make_optimizer(self.share)
        self._group = comm.split(1)
        self.optimizer.sum_over_ranks = self._sum
        self.lines = [Line(comm, worker, self.share) for worker in range(self.workers)]
        self.bound = method.argument if method.name == "ssp" else math.inf
        self.pushes, self.updates = [0] * self.workers, 0
        self._read, self._owed = [0] * self.workers, {}  # updates at the last read; answers due
        self._left = {}  # who has said that there are no more pushes
        self.ahead = self.stalest = 0
        self._stop_at, self._steps = math.inf, 0
        self.refresh()

    def _sum(self, squares):
        total = np.array([squares])
        self._group.all_reduce(total)
        return float(total[0])

    def step(self, batch, shard, step, stop=False, max_norm=None):
        """Serve one push for every worker, whoever they come from; returns as Trainer.step."""
        totals = np.zeros(2)
        if stop and self.number == 0:
            self._stop_after()
        for line in self.lines:
            line.listen()
        for _ in range(self.workers):
            line = self._receive()
            totals += line.push[[LOSS, COUNT]]
            if self.method.name == "ps" and self.method.argument is None:
                if len(self._owed) == self.workers:
                    self._update_once(max_norm, step)
            else:
                self._update(line)
                self._answer_whom_it_may()
        self._steps += 1
        return totals[0] / max(totals[1], 1), self._steps >= self._stop_at

    def _receive(self):
        """The line of the next push, which is counted."""
        line = None
        while line is None:
            line = first_to_arrive(self.comm, [
                line for line in self.lines if line.worker not in self._owed | self._left])
            if not line.push[NUMBER]:  # it has taken all its steps already
                self._left[line.worker], line = line, None
        w, push = line.worker, line.push
        self.lines.append(self.lines.pop(self.lines.index(line)))  # the others first, next time
        if push[NUMBER] != self.pushes[w] + 1:
            raise RuntimeError(f"push {push[NUMBER]:.0f} of worker {w} came after its push "
                               f"{self.pushes[w]}: one was lost, or came twice")
        self.pushes[w] += 1
        self._stop_at = min(self._stop_at, push[STOP_AT])
        if push[WISH] and self.number == 0:
            self._stop_after()
        self._owed[w] = line
        return line

    def _stop_after(self):
        """All stop after the same number of pushes, by when everyone has heard of it: the next
        answers say so to the workers, and their pushes after that to the other servers.
        """
        self._stop_at = min(self._stop_at, max(self.pushes) + 2)

    def _update_once(self, max_norm, step):
        """The synchronous rule: one update with the sum of all pushes."""
        lines = [self._owed[w] for w in range(self.workers)]
        loss, count = sum(line.push[[LOSS, COUNT]] for line in lines)
        self.share.take([line.gradients for line in lines])
        if math.isfinite(loss):
            self.optimizer.step(scale=1 / max(count, 1), max_norm=max_norm)
        self.updates += 1
        for line in lines:
            self._answer(line, 0, loss / max(count, 1), self.optimizer.grad_norm)
        if not math.isfinite(loss):
            raise Diverged(f"loss is {loss} at step {step + 1}")

    def _update(self, line):
        """The asynchronous rule: an update with one push."""
        staleness = self.updates - self._read[line.worker]
        self.stalest = max(self.stalest, staleness)
        slower = max(1.0, staleness / self.workers)
        self.share.take([line.gradients])
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] /= slower
        self.optimizer.step(scale=line.push[WEIGHT] / max(line.push[COUNT], 1))
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = rate
        self.updates += 1
        line.staleness = staleness

    def _answer_whom_it_may(self):
        slowest = min(self.pushes)
        for w, line in sorted(self._owed.items()):
            if self.pushes[w] - slowest <= self.bound:
                self.ahead = max(self.ahead, self.pushes[w] - slowest)
                self._answer(line, line.staleness, math.nan)

    def _answer(self, line, staleness, loss, norm=None):
        self.pace()
        del self._owed[line.worker]
        line.heard()
        line.listen()
        self._read[line.worker] = self.updates
        line.send(self.share, (self._stop_at, staleness, loss, math.nan if norm is None else norm))

    def refresh(self):
        """Give all workers the parameters as they are now. Called with theirs."""
        for line in self.lines:
            line.send(self.share)
            self._read[line.worker] = self.updates
        for line in self.lines:
            line.sent()

    def finish(self):
        """Hear from every worker that it is done."""
        for line in self.lines:
            line.sent()
            line.listen()
        while len(self._left) < self.workers:
            line = first_to_arrive(self.comm, [
                line for line in self.lines if line.worker not in self._left])
            if line.push[NUMBER]:
                raise RuntimeError(f"worker {line.worker} pushes after the last step")
            self._left[line.worker] = line
        for line in self._left.values():
            line.heard()
        self._left = {}

    # With the workers: evaluation and checkpoints

    def memory(self):
        flats = self.share.flats
        kept = sum(flat.data.nbytes for flat in flats)
        return {"parameters": kept, "gradients": sum(flat.reduced.nbytes for flat in flats),
                "optimizer": self.optimizer.nbytes(), "transient": 0}

    def predict(self, inputs):
        return None

    def evaluating(self):
        self.refresh()
        return super().evaluating()

    def parameters(self):
        self.refresh()
        return {}

    def state(self):
        self.refresh()
        state = self.optimizer.named_state(self.share)
        return gather_whole(self.comm, {}), gather_whole(
            self.comm, {k: (np.asarray(v), None) for k, v in state.items()})

    def load(self, model, optimizer):
        mine = scatter_pieces(self.comm, model, dict.fromkeys(self.share.named))
        for name, value in mine.items():
            self.share.named[name].array[...] = value
        self.share.changed()
        mine = scatter_pieces(self.comm, optimizer, {
            f"{name}.{key}": None for name in self.share.named
            for key in (*self.optimizer.state_names, "step")})
        if mine:
            self.optimizer.load_named_state(self.share, mine)
        self.refresh()
