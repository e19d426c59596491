"""Plans: a program compiled for one rank's buffer and transport; and the engine that runs them.

A plan owns its messages and scratch, and allocates nothing when it is started again. `start`,
then `test` until it is true, or `wait`. Every wait on a rank advances every plan that the rank
has in flight, so a plan makes progress while its rank waits for another, or computes and calls
`engine.progress()` from a hook.
"""

import time

import numpy as np

from ..context import current
from .transport.base import RankFailed

MESSAGES = ("send", "recv", "recv_reduce")
OPS = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}


class Plan:
    """A collective on registered buffers.

    trace:     the program for this rank (`Program.trace`).
    arrays:    {buffer: array} for the kind's buffers, contiguous, 1-D, of one dtype; what the
               program writes is written there by every run.
    tag, span: messages of channel c travel under tag + c % span.
    name:      what a person calls it, in records and errors.
    places:    {buffer: (window, offset)} for a program with one-sided operations: where each of
               the trace's buffers lies in the memory that the ranks share. Arrays that lie
               elsewhere are copied there at the start, and back at the end.
    fence:     the Fence of such a program.
    """

    def __init__(self, trace, arrays, transport, engine, op="sum", tag=0, span=1, name="plan",
                 places=None, fence=None):
        self._transport, self._engine, self._op = transport, engine, OPS[op]
        self._tag, self._span = tag, span
        dtype = next(iter(arrays.values())).dtype
        self.nbytes = max(a.nbytes for a in arrays.values())
        self._places, self._fence, self._fencing = places, fence, False
        self._arrays = {name: self._place(name, length, arrays, dtype)
                        for name, length in trace.buffers.items()}
        self._staged = []  # (array of the user, its place in shared memory)
        self.bind(arrays)
        landing = max((sum(len(o.chunk) for o in ops if o.kind == "recv_reduce")
                       for ops in trace.rounds), default=0)
        self._landing = np.empty(landing, dtype, like=next(iter(arrays.values())))
        self._ops, self._rounds = trace.rounds, [self._bind(ops) for ops in trace.rounds]
        self._next = self._last = len(self._rounds)  # number of the round to start next
        self._pending = ()  # messages of the round in flight
        self._after, self._peers = (), ()
        self.done, self.name = True, name
        self.reused = False  # whether its communicator keeps it for the next call

    def _place(self, name, length, arrays, dtype):
        """The array that the operations on a buffer work in."""
        if self._places is not None:
            window, offset = self._places[name]
            return window.view(window.rank, offset, length, dtype)
        if name in arrays:
            return arrays[name]
        return np.empty(length, dtype, like=next(iter(arrays.values())))

    def bind(self, arrays):
        """Take other arrays of the same lengths: for a plan that works in shared memory."""
        self._staged = [(array, self._arrays[name]) for name, array in arrays.items()
                        if array is not self._arrays[name]
                        and not np.may_share_memory(array, self._arrays[name])]

    def _view(self, chunk):
        return self._arrays[chunk.buffer][chunk.start:chunk.stop]

    def _there(self, op):
        """The range of a peer's memory that a one-sided operation touches."""
        window, offset = self._places[op.remote.buffer]
        size = self._landing.itemsize
        return window.view(op.peer, offset + op.remote.start * size, len(op.chunk),
                           self._landing.dtype)

    def _bind(self, ops):
        """(messages, local work before, local work after, peers, whether it is a fence)."""
        transport, used = self._transport, 0
        receives, sends, before, after = [], [], [], []
        for op in ops:
            view, tag = self._view(op.chunk), self._tag + op.channel % self._span
            if op.kind == "send":
                sends.append(transport.send_init(view, op.peer, tag))
            elif op.kind == "recv":
                receives.append(transport.recv_init(view, op.peer, tag))
            elif op.kind == "recv_reduce":
                landing = self._landing[used:used + len(op.chunk)]
                used += len(op.chunk)
                receives.append(transport.recv_init(landing, op.peer, tag))
                after.append((self._op, view, landing))
            elif op.kind == "put":
                before.append((None, self._there(op), view))
            elif op.kind in ("get", "get_reduce"):
                before.append((self._op if op.kind == "get_reduce" else None, view,
                               self._there(op)))
            elif op.kind != "fence":
                function = self._op if op.kind == "reduce" else None
                before.append((function, view, self._view(op.source)))
        # Receives first: a message then finds its place when it comes.
        peers = {transport.in_world(op.peer) for op in ops if op.peer >= 0}
        if ops and ops[0].kind == "fence":
            peers = {transport.in_world(r) for r in range(transport.size) if r != transport.rank}
        return receives + sends, before, after, peers, bool(ops) and ops[0].kind == "fence"

    def start(self):
        """Start a run; the buffer belongs to the plan until it is done."""
        if not self.done:
            raise RuntimeError("a plan is started while it is in flight")
        self.done, self._next, recorder = False, 0, current().recorder
        self._flight = recorder and recorder.flight(self._transport, self.name, self.nbytes)
        for array, place in self._staged:
            place[...] = array
        self._engine.add(self)
        self._advance()

    def test(self):
        """Make what progress is possible; whether the run is complete. Never blocks."""
        if not self.done:
            if self._fencing:
                if not self._fence.passed():
                    return False
                self._fencing = False
            if self._transport.test(self._pending):
                self._advance()
        return self.done

    def wait(self):
        """Block until the run is complete, advancing every plan in flight on this rank."""
        self._engine.wait(self)

    def _advance(self):
        """Finish the round in flight and start the following, as long as they complete."""
        flight = self._flight
        while True:
            if flight is not None:
                flight.landed()
            for function, view, landing in self._after:
                function(view, landing, out=view)
            if self._next == self._last:
                self._pending = self._after = ()
                for array, place in self._staged:
                    array[...] = place
                self.done = True
                self._engine.remove(self)
                if flight is not None:
                    flight.done()
                return
            self._pending, before, self._after, self._peers, fence = self._rounds[self._next]
            self._next += 1
            for function, view, source in before:
                if function is None:
                    view[...] = source
                else:
                    function(view, source, out=view)
            if fence:
                self._fence.arrive()
                self._transport.notify()
                self._fencing = not self._fence.passed()
                if self._fencing:
                    return
            elif self._pending:
                if flight is not None:
                    flight.departs(self._traffic(self._next - 1))
                self._transport.start(self._pending)
                if not self._transport.test(self._pending):
                    return

    def _traffic(self, number):
        """(whether it is a send, peer, bytes, tag) of each message of a round."""
        return [(op.kind == "send", op.peer, len(op.chunk) * self._landing.itemsize,
                 self._tag + op.channel % self._span)
                for op in self._ops[number] if op.kind in MESSAGES]

    def waits_for(self):
        """(a mark that changes with progress, the peers of the messages in flight)."""
        return self._next, self._peers

    def free(self):
        """Release the messages. The plan must not be in flight, and cannot be started again."""
        for messages, *_ in self._rounds:
            self._transport.free(messages)
        self._rounds = []


class Engine:
    """Advances every plan in flight on one rank."""

    def __init__(self, transport):
        self._transport, self._active = transport, []
        self.waited = 0.0  # seconds spent in wait(), for whoever reports communication time

    @property
    def idle(self):
        """Whether nothing is in flight."""
        return not self._active

    def add(self, plan):
        self._active.append(plan)

    def remove(self, plan):
        self._active.remove(plan)

    def progress(self):
        """One step for every plan in flight. Cheap when there is none."""
        for plan in tuple(self._active):
            plan.test()

    def wait(self, work):
        """Wait until `work.test()` is true. Raises RankFailed if a peer is gone for good."""
        if work.test():
            return
        recorder = current().recorder
        if recorder is None:
            self._wait(work)
        else:
            with recorder.span("wait", work.name, work.waits_for()[1]):
                self._wait(work)

    def _wait(self, work):
        begin = time.perf_counter()
        turn, checked, suspect = 0, 0.2, None
        try:
            while not work.test():
                self.progress()
                if work.test():
                    return
                waited = time.perf_counter() - begin
                if waited > checked:
                    checked, suspect = waited + 0.2, self._suspect(work, suspect)
                self._transport.relax(turn, waited)
                turn += 1
        finally:
            self.waited += time.perf_counter() - begin

    def _suspect(self, work, suspect):
        """Raise RankFailed when what `work` waits for is a peer that has left.

        A rank that left in good order has sent what it owed: only if nothing moved between two
        looks at the same departed peer is it the one that is missing.
        """
        mark, peers = work.waits_for()
        missing = sorted(self._transport.departed() & set(peers))
        if not missing:
            return None
        if suspect == (mark, missing):
            raise RankFailed(f"rank {self._transport.rank} waits for rank {missing[0]}, "
                             f"which has left the job")
        return mark, missing
