"""The MPI library's own collective with the interface of a plan: algorithm "mpi".

It is started as a non-blocking one, so that the same waiting serves it, and progress is made
whenever somebody on the rank waits or tests. How it works is the library's affair: it declares
neither rounds nor an order of additions.
"""

import numpy as np

from ..context import current
from .engine import InFlight
from .transport.base import RankFailed


class Library:
    """Stands for "mpi" where a program would stand; what it is for is the transport's to say."""

    name = "mpi"

    def __repr__(self):
        return "<the MPI library's own collectives>"


LIBRARY = Library()


class LibraryPlan(InFlight):
    """A collective of the library on registered buffers. Arguments as those of `Plan`."""

    reused = False

    def __init__(self, kind, arrays, transport, engine, op="sum", root=0, counts=None):
        self._transport, self._engine, self._requests = transport, engine, []
        self._begin, self._end = transport.collective(kind, arrays, op, root, counts)
        self.nbytes = max(array.nbytes for array in arrays.values())
        self.done, self.name, self._runs = True, f"{kind} mpi", 0
        self._flight = None
        self._peers = {transport.in_world(r) for r in range(transport.size)} - {
            transport.in_world(transport.rank)}

    def start(self):
        """Start a run; the buffers belong to the plan until it is done."""
        if not self.done:
            raise RuntimeError("a plan is started while it is in flight")
        recorder = current().recorder
        self._flight = recorder and recorder.flight(self._transport, self.name, self.nbytes)
        self._engine.bytes_sent = np.nan  # nobody can tell any more
        self._engine.start(self)

    def begin(self):
        """Start the library's collective; whether it is complete."""
        self._runs += 1
        self._requests = [self._begin()]
        return self.step()

    def step(self):
        """Whether the run is complete; lets the library make progress."""
        if not self._transport.test(self._requests):
            return False
        self._requests = []
        if self._end is not None:
            self._end()
        if self._flight is not None:
            self._flight.done()
        return True

    def waits_for(self):
        """(a mark that changes with progress, the peers that it may wait for)."""
        return self._runs, self._peers

    def free(self):
        """Release the buffers. The plan cannot be started again.

        Waits for a run in flight: there is no way to call the library back, which writes there.
        """
        try:
            self.wait()
        except RankFailed:  # a peer left without it, so that it never ends
            pass
        self._begin = self._end = None
