"""A rank's recorder: what the rank did, and when, by its own clock.

It stands in the rank's execution context (`context.recorder`, None while nothing is recorded).
The layers below know it only from there, and only by these methods: `span`, `call` and `each_node`
for computation and waits, `flight` for messages. An event is one tuple appended to a list when it
ends, so an exception closes what it leaves, and nothing half-recorded is ever seen.
"""

import math
import time

from ..context import current
from . import clocks


class Recorder:
    """Records the calling rank inside `with recorder:`; may be entered again, to add to it.

    clock: returns nanoseconds as an int, and never goes back.

    Lists of tuples, in the order in which things ended; times in ns of `clock`; ranks are
    numbered as in the world:
    spans:    (category, name, begin, end, peers). Categories: forward (a call of a module),
              backward, op (a node of it), optimizer, wait (for `peers`), user.
    messages: (sends, peer, bytes, tag, number, group, round, flight, begin, end): started at
              `begin`, seen complete at `end`. `number` counts the messages of one (group, source,
              destination, tag) from 0: both ends of a message find the same one.
    runs:     (flight, name, bytes of the buffer, begin, end): a collective from start to done.
    samples:  what `align` measured: (own time, rank 0's time, uncertainty).
    """

    def __init__(self, clock=time.perf_counter_ns):
        self.now = clock
        self.spans, self.messages, self.runs, self.samples = [], [], [], []
        self._numbers, self._flights = {}, 0
        self._entered, self._recorded = [], 0  # [(context, its recorder before, time)], ns

    def __enter__(self):
        context = current()
        self._entered.append((context, context.recorder, self.now()))
        context.recorder = self
        return self

    def __exit__(self, *exc):
        context, previous, begin = self._entered.pop()
        context.recorder = previous
        if not self._entered:
            self._recorded += self.now() - begin

    def align(self, comm):
        """Measure how this rank's clock stands to rank 0's. Called by all ranks of `comm`.

        At the start and at the end of a recording, so that clocks of different speed agree too.
        Raises RuntimeError if it would start in the middle of a collective: the messages of one
        that is recorded in part could not be numbered alike on both sides.
        """
        if not self.samples and not comm.engine.idle:
            raise RuntimeError("recording starts while an operation is in flight: wait for it")
        with unrecorded():
            self.samples.append(clocks.measure(comm, self.now))

    # What the layers below call

    def span(self, category, name, peers=()):
        """A context manager that records its block."""
        return _Span(self, category, name, peers)

    def call(self, module):
        """A context manager that records a call of a module."""
        name = f"{type(module).__name__} {module.qualified_name()}".rstrip()
        return _Span(self, "forward", name, ())

    def each_node(self, step):
        """`step(node, ...)` of backward, recording each node under its operation's name."""
        now, spans = self.now, self.spans

        def recorded(node, *rest):
            name, begin = node.name, now()
            try:
                step(node, *rest)
            finally:
                spans.append(("op", name, begin, now(), ()))
        return recorded

    def flight(self, transport, name=None, nbytes=0):
        """Follow the messages of one run of a plan, or of a single send or receive (no name)."""
        self._flights += 1
        return _Flight(self, transport, self._flights, name, nbytes)

    def number(self, key):
        """How many messages of this (group, peer, tag, direction) came before; counts one."""
        count = self._numbers.get(key, 0)
        self._numbers[key] = count + 1
        return count

    # What it was in total

    def summary(self):
        """Where the time went, and how much was sent: a dict of seconds, messages and bytes.

        forward_s, backward_s, optimizer_s: outermost calls, without the waits inside them.
        wait_s: all waits. other_s: the rest of total_s, the time that was recorded.
        sends, bytes_sent, receives, bytes_received: of completed messages.
        """
        seconds = dict.fromkeys(("forward", "backward", "optimizer", "wait"), 0)
        outer, until = None, -math.inf
        for category, _, begin, end, _ in sorted(self.spans, key=lambda s: (s[2], -s[3])):
            if category == "wait":
                seconds["wait"] += end - begin
                if begin < until:
                    seconds[outer] -= end - begin
            elif category in seconds and begin >= until:
                seconds[category] += end - begin
                outer, until = category, end
        total = self._recorded + (self.now() - self._entered[0][2] if self._entered else 0)
        seconds["other"], seconds["total"] = total - sum(seconds.values()), total
        out = {f"{name}_s": ns / 1e9 for name, ns in seconds.items()}
        for sends, count, size in ((True, "sends", "bytes_sent"),
                                   (False, "receives", "bytes_received")):
            sizes = [m[2] for m in self.messages if m[0] is sends]
            out[count], out[size] = len(sizes), sum(sizes)
        return out


class _Span:
    __slots__ = ("recorder", "category", "name", "peers", "begin")

    def __init__(self, recorder, category, name, peers):
        self.recorder, self.category, self.name, self.peers = recorder, category, name, peers

    def __enter__(self):
        self.begin = self.recorder.now()

    def __exit__(self, *exc):
        recorder = self.recorder
        recorder.spans.append((self.category, self.name, self.begin, recorder.now(),
                               tuple(self.peers)))


class _Flight:
    """The messages that a plan has in flight: one round after another."""

    __slots__ = ("recorder", "transport", "id", "name", "nbytes", "begin", "round", "group",
                 "posted", "since")

    def __init__(self, recorder, transport, flight, name, nbytes):
        self.recorder, self.transport, self.id = recorder, transport, flight
        self.name, self.nbytes, self.begin = name, nbytes, recorder.now()
        self.group = "/".join(f"{number}.{color}" for number, color in transport.label)
        self.round, self.posted = -1, ()

    def departs(self, traffic):
        """A round of messages is about to start: [(whether it is a send, peer, bytes, tag)]."""
        recorder, group, self.posted = self.recorder, self.group, []
        self.round += 1
        for sends, peer, nbytes, tag in traffic:
            peer = self.transport.in_world(peer)
            number = recorder.number((group, peer, tag, sends))
            self.posted.append((sends, peer, nbytes, tag, number, group, self.round, self.id))
        self.since = recorder.now()

    def landed(self):
        """The round in flight, if there is one, was seen complete."""
        if self.posted:
            times = self.since, self.recorder.now()
            self.recorder.messages += [message + times for message in self.posted]
            self.posted = ()

    def done(self):
        """The plan's run is complete."""
        self.recorder.runs.append((self.id, self.name, self.nbytes, self.begin,
                                   self.recorder.now()))


class unrecorded:
    """What the block does is not recorded."""

    def __enter__(self):
        self.context = current()
        self.recorder, self.context.recorder = self.context.recorder, None

    def __exit__(self, *exc):
        self.context.recorder = self.recorder
