"""A rank that is made slow on purpose, to study what stragglers cost and what helps.

It sleeps where its computing is seen: at the end of every forward, of every backward before the
last reductions start, of every action of a pipeline, before a server's answer, and at the end of
the step. Waiting for others is not computing: two slow ranks are not slowed by each other. Results
are those of an unhindered run, where they do not depend on who comes first.
"""

import time

from ..context import current
from ..tensor import record

_SLICE = 1e-3  # seconds; messages in flight want attention in between


class Slowness:
    """What makes the calling rank slow in each step, as a context manager around it.

    engine: the communicator's, which knows how long the rank has waited.
    factor: the rank takes so many times as long to compute. delay: seconds, at the step's begin.
    clock, sleep: of `time`, or others that a test can foretell.
    """

    def __init__(self, engine, factor=1.0, delay=0.0, clock=time.perf_counter, sleep=time.sleep):
        self.factor, self.delay = factor, delay
        self._engine, self._clock, self._sleep_for = engine, clock, sleep
        self._in_step, self._since = False, 0.0

    def __enter__(self):
        self._in_step = True
        self._sleep(self.delay)
        self._since = self._computed()

    def __exit__(self, *error):
        self.pace()
        self._in_step = False

    def pace(self):
        """Sleep (factor - 1) x as long as the rank has computed since it last did so. Outside a
        step, in evaluations, do nothing."""
        if self.factor > 1 and self._in_step:
            self._sleep((self.factor - 1) * (self._computed() - self._since))
            self._since = self._computed()

    def around(self, loss):
        """The same loss function, which paces the forward before it and the backward after it."""
        if self.factor == 1:
            return loss

        def slow(outputs, targets):
            total, count = loss(outputs, targets)
            self.pace()

            def backward(gradient):  # the first of all: what is appended here runs before the
                current().after_backward.append(self.pace)  # reductions that wait for the end
                return (gradient,)
            return record(total.array, (total,), backward, view_of=total), count
        return slow

    def _computed(self):
        """The time, but for what was spent waiting; seconds."""
        return self._clock() - self._engine.waited

    def _sleep(self, seconds):
        end = self._clock() + seconds
        while (left := end - self._clock()) > 0:
            self._sleep_for(min(_SLICE, left))
            self._engine.progress()
