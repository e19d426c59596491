"""What passes between a worker and a server, and waiting for whichever worker comes first.

A push is a header, then a server's share of the gradients; its answer is a header, then the
share's parameters. A header alone, with number 0, says that the worker is done.

    push:   [number, sum of losses, count, weight, wants to stop, stop at]
    answer: [stop at, staleness, mean loss, norm of the gradient before clipping]

number counts a worker's pushes from 1. weight is what part of the global batch the worker had.
"stop at" is the number of pushes after which all stop (inf: nobody has asked). staleness is the
number of updates that were made since the worker read the parameters that it pushes a gradient of.
"""

import time

import numpy as np

from ...comm.engine import Watch
from ...nn.flat import flatten

PUSH, ANSWER = 6, 4  # numbers in a header
NUMBER, LOSS, COUNT, WEIGHT, WISH, STOP_AT = range(PUSH)


class Share:
    """The parameters that one server keeps, {name: parameter}; like a module for an optimizer."""

    def __init__(self, named):
        self.named = named
        self.flats = flatten(named.values())

    def parameters(self):
        return iter(self.named.values())

    def named_parameters(self):
        return iter(self.named.items())

    def mark(self):
        """Before a push: which parameters have gradients; those of the others are 0."""
        for flat in self.flats:
            for i, p in enumerate(flat.parameters):
                flat.used[i] = not p.sink.fresh
                if p.sink.fresh:
                    p.sink.out_buffer()[...] = 0

    def take(self, pushes):
        """Have the sum of gradients: `pushes` are lists of arrays, one array for each flat."""
        for i, flat in enumerate(self.flats):
            flat.reduced[...] = pushes[0][i]
            for push in pushes[1:]:
                flat.reduced += push[i]
            for k, p in enumerate(flat.parameters):
                p.sink.fresh = not flat.used[k]

    def changed(self):
        for p in self.named.values():
            p.storage.version += 1


def shares(module, servers):
    """The Share of each server, alike on all ranks: whole parameters, the largest first, to
    whoever has least. Raises ValueError if a server would have none.
    """
    parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if servers > len(parameters):
        raise ValueError(f"servers {servers} > {len(parameters)} parameters to share out")
    loads, owner = [0] * servers, {}
    for name, p in sorted(parameters, key=lambda pair: -pair[1].numel()):
        owner[name] = loads.index(min(loads))
        loads[owner[name]] += max(1, p.numel())
    return [{name: p for name, p in parameters if owner[name] == k} for k in range(servers)]


class Line:
    """A server's end of the line to one worker: receives a push whole, then answers it."""

    def __init__(self, comm, worker, share):
        self.comm, self.worker = comm, worker
        self.push, self.answer = np.zeros(PUSH), np.zeros(ANSWER)
        self.gradients = [np.empty_like(flat.reduced) for flat in share.flats]
        self.values = [np.empty_like(flat.data) for flat in share.flats]
        self._works, self._sent, self._whole = [], [], False
        self.staleness = 0  # of the last push

    def listen(self):
        """Be ready for the next push."""
        if not self._works:
            self._works = [self.comm.irecv(self.push, self.worker, 0)]
            self._whole = False

    def arrived(self):
        """Whether a push has come whole, or the word that there will be none."""
        if not all(work.test() for work in self._works):
            return False
        if not self._whole and self.push[NUMBER]:
            self._works = [self.comm.irecv(array, self.worker, 1 + i)
                           for i, array in enumerate(self.gradients)]
            self._whole = True
            return all(work.test() for work in self._works)
        return True

    def heard(self):
        """What has arrived was taken: another may come."""
        self._works = []

    def send(self, share, answer=None):
        """Send the parameters, after the answer to a push if it is one."""
        for work in self._sent:
            work.wait()
        if answer is not None:
            self.answer[:] = answer
        for value, flat in zip(self.values, share.flats):
            value[...] = flat.data
        arrays = [*(() if answer is None else (self.answer,)), *self.values]
        first = 1 if answer is None else 0
        self._sent = [self.comm.isend(array, self.worker, first + i)
                      for i, array in enumerate(arrays)]

    def sent(self):
        for work in self._sent:
            work.wait()
        self._sent = []

    def waits_for(self):
        return self._whole, (self.comm.transport.in_world(self.worker),)


def first_to_arrive(comm, lines):
    """The first of `lines` on which something has arrived. Waits for it, as any wait does: it
    advances all that is in flight, and raises RankFailed if a rank that it waits for has left.
    """
    begin, turn = time.perf_counter(), 0
    watch = Watch(comm.transport, begin)
    while True:
        for line in lines:
            if line.arrived():
                comm.engine.waited += time.perf_counter() - begin
                return line
        comm.engine.progress()
        now = time.perf_counter()
        watch.look(lines, now)
        comm.transport.relax(turn, now - begin)
        turn += 1
