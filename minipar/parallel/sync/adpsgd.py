"""Asynchronous gossip: after a step, a rank averages with one neighbour, and nobody waits for all.

AD-PSGD (Lian et al. 2018, "Asynchronous decentralized parallel stochastic gradient descent").
The graph is bipartite, so that no two ranks can wait for each other: rank 0's side is active, the
other is passive. After each step an active rank sends its parameters to a neighbour that it draws,
and both go on from the mean of the two. A passive rank looks, after each step, who has asked, and
waits for nobody; an active one waits at most for the step that its neighbour is in.
"""

import numpy as np

from ...random import generator
from .alone import Alone
from .graphs import edges, mixing_matrix
from .line import first_to_arrive


def sides(graph, n):
    """For each rank whether it is active. Raises ValueError if the graph is not bipartite (or not
    connected): then some ranks would have to be on both sides."""
    mixing_matrix(graph, n)
    pairs, active = edges(graph, n), {0: True}
    while len(active) < n:
        active.update({b: not active[a] for i, j in pairs for a, b in ((i, j), (j, i))
                       if a in active and b not in active})
    if odd := [f"{i}-{j}" for i, j in sorted(pairs) if active[i] == active[j]]:
        raise ValueError(f"the graph {graph} of {n} ranks is not bipartite: it has an odd ring "
                         f"with {odd[0]}")
    return [active[rank] for rank in range(n)]


class _Asking:
    """A passive rank's end of the line to an active neighbour."""

    def __init__(self, comm, rank, flats):
        self._comm, self._rank = comm, rank
        self.header = np.zeros(1)  # 1: parameters follow, 0: a meeting
        self.theirs = [np.empty_like(flat.data) for flat in flats]
        self._mine = [np.empty_like(flat.data) for flat in flats]
        self._listens, self._answers = None, []
        self.met = False  # whether the neighbour has come to the meeting

    def arrived(self):
        """Whether a header has come, which is then taken. Listens from the first call on."""
        if self._listens is None:
            self._listens = self._comm.irecv(self.header, self._rank, 0)
        if not self._listens.test():
            return False
        self._listens = None
        return True

    def exchange(self, flats):
        """Receive their parameters and send ours; both take the mean."""
        for i, theirs in enumerate(self.theirs):
            self._comm.recv(theirs, self._rank, 1 + i)
        self.complete()
        for i, (flat, mine, theirs) in enumerate(zip(flats, self._mine, self.theirs)):
            mine[...] = flat.data
            self._answers.append(self._comm.isend(mine, self._rank, 1 + i))
            flat.data += theirs
            flat.data *= 0.5

    def waits_for(self):
        return self.met, (self._comm.transport.in_world(self._rank),)

    def complete(self):
        for work in self._answers:
            work.wait()
        self._answers = []


class AsyncGossip(Alone):
    """graph: a name or edges, see graphs.py. Others as for Replicated. `exchanges` are counted.

    All ranks meet, and then have made as many steps, when the model is asked for; between two
    meetings they agree on nothing, so a wish to stop is not heard.
    """

    def __init__(self, *args, graph, **options):
        super().__init__(*args, **options)
        rank, size = self.comm.rank, self.comm.size
        self.active = sides(graph, size)[rank]
        neighbours = sorted({i + j - rank for i, j in edges(graph, size) if rank in (i, j)})
        self._neighbours, self.exchanges = neighbours, 0
        self._received = [np.empty_like(flat.data) for flat in self.flats]
        self._lines = [] if self.active else [
            _Asking(self.comm, r, self.flats) for r in neighbours]

    def combine(self, step, stop):
        if self.active and self._neighbours:
            draw = generator(0, "neighbour", self.comm.rank * 2**32 + step)
            self._ask(self._neighbours[draw.integers(len(self._neighbours))])
        for line in self._lines:
            if not line.met and line.arrived():
                self._answer(line)
        self.changed()
        self.equal = self.comm.size == 1
        return False

    def _ask(self, neighbour):
        arrays = [np.ones(1), *(flat.data for flat in self.flats)]
        works = [self.comm.isend(array, neighbour, tag) for tag, array in enumerate(arrays)]
        works += [self.comm.irecv(array, neighbour, 1 + i)
                  for i, array in enumerate(self._received)]
        for work in works:
            work.wait()
        for flat, received in zip(self.flats, self._received):
            flat.data += received
            flat.data *= 0.5
        self.exchanges += 1

    def _answer(self, line):
        if not line.header[0]:
            line.met = True
        else:
            line.exchange(self.flats)
            self.exchanges += 1

    def finish(self):
        """Meet: passive ranks answer until every active neighbour has come here, too."""
        if self.active:
            for neighbour in self._neighbours:
                self.comm.send(np.zeros(1), neighbour, 0)
        while waiting := [line for line in self._lines if not line.met]:
            self._answer(first_to_arrive(self.comm, waiting))
        for line in self._lines:
            line.complete()
            line.met = False
        self.changed()

    def settle(self):
        self.finish()  # what passive ranks answer belongs to the steps, not to the evaluation

    def averaged(self):
        self.finish()
        return super().averaged()
