"""Gossip: after its own step each rank averages with its neighbours in a graph, and nobody else.

D-PSGD (Lian et al. 2017, "Can decentralized algorithms outperform centralized algorithms?"), in
the order step, then mix: x_i = sum_j W_ij (x_j - lr g_j(x_j)). So on the complete graph every rank
gets what synchronous SGD computes. Messages: one of the parameters to each neighbour, a step.
"""

import numpy as np

from .alone import Alone
from .graphs import mixing_matrix


class Gossip(Alone):
    """graph: a name or edges, see graphs.py. Others as for Replicated.

    A wish to stop spreads one edge a step: it names a step by which all have heard of it.
    """

    def __init__(self, *args, graph, **options):
        super().__init__(*args, **options)
        rank, size = self.comm.rank, self.comm.size
        self.weights = mixing_matrix(graph, size)[rank]
        self.neighbours = [r for r in range(size) if r != rank and self.weights[r] > 0]
        self._received = {r: [np.empty_like(flat.data) for flat in self.flats]
                          for r in self.neighbours}
        self._stop_at, self._heard = np.full(1, np.inf), np.empty((size, 1))
        self.equal = True

    def combine(self, step, stop):
        if stop:
            self._stop_at[0] = min(self._stop_at[0], step + self.comm.size)
        works = []
        for tag, array in enumerate((self._stop_at, *(flat.data for flat in self.flats))):
            works += [self.comm.isend(array, r, tag) for r in self.neighbours]
            works += [self.comm.irecv(self._heard[r] if tag == 0 else self._received[r][tag - 1],
                                      r, tag) for r in self.neighbours]
        for work in works:
            work.wait()
        for i, flat in enumerate(self.flats):
            self._mix(flat.data, {r: arrays[i] for r, arrays in self._received.items()})
        self.changed()
        self.equal = self.comm.size == 1
        self._stop_at[0] = min([self._stop_at[0], *self._heard[self.neighbours, 0]])
        return step >= self._stop_at[0]

    def _mix(self, own, received):
        """own = sum over ranks, in their order: where weights are equal, so are the bits."""
        total = np.zeros_like(own)
        for rank in sorted([self.comm.rank, *received]):
            total += own.dtype.type(self.weights[rank]) * received.get(rank, own)
        own[...] = total
