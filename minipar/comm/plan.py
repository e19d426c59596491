"""Plans: a program compiled for one rank's buffer and transport.

A plan owns its messages and scratch, and allocates nothing when it is started again. `start`,
then `test` until it is true, or `wait`. What makes it go on in between is the rank's engine
(`engine.py`): every wait on a rank advances every plan that the rank has in flight, so a plan makes
progress while its rank waits for another, or computes and calls `engine.progress()` from a hook.
"""

import numpy as np

from ..context import current
from .engine import InFlight
from .program import ONE_SIDED
from .local import merge, place_of
from .reduction import reducer

MESSAGES = ("send", "recv", "recv_reduce")


class Plan(InFlight):
    """A collective on registered buffers.

    trace:     the program for this rank (`Program.trace`).
    arrays:    {buffer: array} for the kind's buffers, contiguous, 1-D, of one dtype; what the
               program writes is written there by every run.
    tag, span: messages of channel c travel under tag + c % span.
    name:      what a person calls it, in records and errors.
    places:    {buffer: (window, offset)} for a program with one-sided operations: where each of
               the trace's buffers that peers touch lies in the memory that the ranks share. Arrays
               that lie elsewhere are copied there at the start, and back at the end.
    fence:     the Fence of such a program.
    kept:      the buffers that nobody writes: they are not copied back.
    """

    def __init__(self, trace, arrays, transport, engine, op="sum", tag=0, span=1, name="plan",
                 places=None, fence=None, kept=()):
        first = next(iter(arrays.values()))
        dtype = first.dtype
        self._transport, self._engine, self._op = transport, engine, reducer(op, dtype, first)
        self._tag, self._span = tag, span
        self.nbytes = max(a.nbytes for a in arrays.values())
        self._places, self._fence, self._fencing = places or {}, fence, False
        self._kept = kept
        self._arrays = {name: self._place(name, length, arrays, dtype)
                        for name, length in trace.buffers.items()}
        for op in (op for ops in trace.rounds for op in ops if op.codec is not None):
            op.codec.check(dtype)
        landing = max((sum(len(o.chunk) for o in ops if o.kind == "recv_reduce")
                       for ops in trace.rounds), default=0)
        self._landing = np.empty(landing, dtype, like=first)
        wire = max(map(self._encoded, trace.rounds), default=0)
        self._wire = np.empty(wire, np.uint8, like=first)
        self._rounds, self._trace = [], trace
        self._compile()
        self._stage(arrays)
        self._sends = sum(op.nbytes(dtype.itemsize) for ops in trace.rounds for op in ops
                          if op.kind in ("send", *ONE_SIDED) and op.peer != transport.rank)
        self._next = self._last = len(self._rounds)  # number of the round to start next
        self._pending = ()  # messages of the round in flight
        self._after, self._peers = (), ()
        self.done, self.name = True, name
        self.reused = False  # whether its communicator keeps it for the next call

    def _place(self, name, length, arrays, dtype):
        """The array that the operations on a buffer work in."""
        if name in self._places:
            window, offset = self._places[name]
            return window.view(window.rank, offset, length, dtype)
        if name in arrays:
            return arrays[name]
        return np.empty(length, dtype, like=next(iter(arrays.values())))

    def bind(self, arrays):
        """Take other arrays of the same lengths: for a plan that works in shared memory."""
        moved = {name: array for name, array in arrays.items() if name not in self._places
                 and place_of(array) != place_of(self._arrays[name])}
        if moved:
            self._arrays |= moved
            self.free()
            self._compile()
        self._stage(arrays)

    def _stage(self, arrays):
        """Remember which arrays lie elsewhere: (array, its place in shared memory)."""
        pairs = [(name, array, self._arrays[name]) for name, array in arrays.items()
                 if name in self._places and place_of(array) != place_of(self._arrays[name])]
        self._staged = [(array, place) for _, array, place in pairs]
        self._back = [(array, place) for name, array, place in pairs if name not in self._kept]

    def _compile(self):
        """Bind the operations of every round to their memory."""
        rounds = self._trace.rounds
        self._rounds, self._ops = merge([self._bind(ops) for ops in rounds], rounds)

    def _encoded(self, ops):
        """The bytes that what a round encodes or decodes takes in all."""
        return sum(_lines(op.nbytes(self._landing.itemsize)) for op in ops if op.codec is not None)

    def _view(self, chunk):
        return self._arrays[chunk.buffer][chunk.start:chunk.stop]

    def _there(self, op):
        """The range of a peer's memory that a one-sided operation touches."""
        window, offset = self._places[op.remote.buffer]
        size = self._landing.itemsize
        return window.view(op.peer, offset + op.remote.start * size, len(op.chunk),
                           self._landing.dtype)

    def _bind(self, ops):
        """(messages, local work before, local work after, peers, whether it is a fence).

        Local work is a list of (function, out, one, other): out = function(one, other), or a copy
        of `one` if function is None.
        """
        transport, used, wired = self._transport, 0, 0
        if ops and ops[0].kind == "fence":
            others = {transport.in_world(r) for r in range(transport.size) if r != transport.rank}
            return [], [], [], others, True
        receives, sends, before, after = [], [], [], []
        for op in ops:
            view, tag = self._view(op.chunk), self._tag + op.channel % self._span
            codec, there = op.codec, view  # there: the memory that travels
            if op.kind == "recv_reduce":
                there = landing = self._landing[used:used + len(op.chunk)]
                used += len(op.chunk)
            if codec is not None:
                nbytes = op.nbytes(view.itemsize)
                there, wired = self._wire[wired:wired + nbytes], wired + _lines(nbytes)
            if op.kind == "send":
                before += [(codec.encode_into, there, view, None)] if codec else []
                sends.append(transport.send_init(there, op.peer, tag))
            elif op.kind == "recv":
                after += [(codec.decode_into, view, there, None)] if codec else []
                receives.append(transport.recv_init(there, op.peer, tag))
            elif op.kind == "recv_reduce":
                after += [(codec.decode_into, landing, there, None)] if codec else []
                after.append((self._op, view, view, landing))
                receives.append(transport.recv_init(there, op.peer, tag))
            elif op.kind == "put":
                before.append((None, self._there(op), view, None))
            elif codec is not None:
                before += [(codec.encode_into, there, self._view(op.source), None),
                           (codec.decode_into, view, there, None)]
            else:
                source = self._there(op) if op.source is None else self._view(op.source)
                reduces = op.kind in ("get_reduce", "reduce")
                before.append((self._op, view, view, source) if reduces else
                              (None, view, source, None))
        # Receives first: a message then finds its place when it comes.
        peers = {transport.in_world(op.peer) for op in ops if op.peer >= 0}
        return receives + sends, before, after, peers, False

    def start(self):
        """Start a run; the buffer belongs to the plan until it is done."""
        if not self.done:
            raise RuntimeError("a plan is started while it is in flight")
        recorder = current().recorder
        self._flight = recorder and recorder.flight(self._transport, self.name, self.nbytes)
        self._engine.bytes_sent += self._sends
        self._engine.start(self)

    # What the engine calls

    def begin(self):
        """Start the first round; whether the run is complete."""
        self._next = 0
        for array, place in self._staged:
            place[...] = array
        return self._advance()

    def step(self):
        """Go on as far as the messages in flight allow; whether the run is complete."""
        if self._fencing:
            if not self._fence.passed():
                return False
            self._fencing = False
        return self._transport.test(self._pending) and self._advance()

    def _advance(self):
        """Finish the round in flight and start the following, as long as they complete."""
        flight = self._flight
        while True:
            if flight is not None:
                flight.landed()
            for function, out, one, other in self._after:
                function(one, other, out=out)
            if self._next == self._last:
                self._pending = self._after = ()
                for array, place in self._back:
                    array[...] = place
                if flight is not None:
                    flight.done()
                return True
            self._pending, before, self._after, self._peers, fence = self._rounds[self._next]
            self._next += 1
            for function, out, one, other in before:
                if function is None:
                    out[...] = one
                else:
                    function(one, other, out=out)
            if fence:
                self._fence.arrive()
                self._transport.notify()
                self._fencing = not self._fence.passed()
                if self._fencing:
                    return False
            elif self._pending:
                if flight is not None:
                    flight.departs(self._traffic(self._next - 1))
                self._transport.start(self._pending)
                if not self._transport.test(self._pending):
                    return False

    def _traffic(self, number):
        """(whether it is a send, peer, bytes, tag) of each message of a round."""
        return [(op.kind == "send", op.peer, op.nbytes(self._landing.itemsize),
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


def _lines(nbytes):
    """Bytes of whole cache lines, so that what follows is aligned."""
    return -(-nbytes // 64) * 64
