"""The progress engine of one rank: it advances every piece of work that the rank has in flight.

Work is a plan, a library's collective or a single message. This is what the engine asks of it:

    begin(), step()   start a run; make what progress is possible, without blocking. Both return
                      whether the run is complete.
    waits_for()       (a mark that changes with progress, the ranks of the world it waits for).
    name              in records.

and what it says of it: `done`, whether nothing is in flight, which anybody may read at any time;
`began` and `ended`, when the last run started and was seen complete (time.perf_counter).

There are two ways of progress. By "hooks", whoever waits or calls `progress()` advances all that
is in flight, on the rank's own thread. By a "thread" of its own, which alone touches the transport
then, it goes on while the rank computes: NumPy, BLAS and compiled kernels let go of Python's lock.
"""

import contextvars
import os
import threading
import time
from collections import deque

from ..context import current
from .transport.base import RankFailed

PROGRESS = ("hooks", "thread")


def chosen_progress():
    """What MINIPAR_PROGRESS says; "hooks" if it says nothing. Raises RuntimeError."""
    chosen = os.environ.get("MINIPAR_PROGRESS") or PROGRESS[0]
    if chosen not in PROGRESS:
        raise RuntimeError(f"MINIPAR_PROGRESS: no {chosen!r}: there are {', '.join(PROGRESS)}")
    return chosen


class InFlight:
    """Work as whoever has started it sees it: `_engine` is the engine that advances it."""

    def test(self):
        """Make what progress is possible; whether the run is complete. Never blocks."""
        return self._engine.test(self)

    def wait(self):
        """Block until the run is complete, advancing every plan in flight on this rank."""
        self._engine.wait(self)


class Engine:
    """Advances all that is in flight on one rank. `progress_by`: one of PROGRESS."""

    def __init__(self, transport, progress_by="hooks"):
        self._transport, self._active = transport, []
        self.waited = 0.0  # seconds spent in wait(), for whoever reports communication time
        self.bytes_sent = 0  # by all operations started; see Communicator.bytes_sent
        self._thread, self.progress_by = None, "hooks"
        self.use(progress_by)

    def use(self, progress_by):
        """Make progress by "hooks" or by a "thread" from now on. Raises ValueError if there is no
        such way or the transport does not allow it, RuntimeError while anything is in flight."""
        if progress_by not in PROGRESS:
            raise ValueError(f"no progress by {progress_by!r}: there are {', '.join(PROGRESS)}")
        if progress_by == self.progress_by:
            return
        if not self.idle:
            raise RuntimeError("the way of progress changes while an operation is in flight")
        if progress_by == "thread" and (reason := self._transport.refuses_threads()):
            raise ValueError(f"progress by a thread: {reason}")
        self.close()
        if progress_by == "thread":
            self._thread, self.progress_by = _Thread(self._transport, self._finish), "thread"

    @property
    def idle(self):
        """Whether nothing is in flight."""
        return not self._active

    def start(self, work):
        """Start a run of `work`, which is in flight until it is done."""
        work.done, work.began = False, time.perf_counter()
        self._active.append(work)
        if self._thread is not None:
            self._thread.start(work)
        elif work.begin():
            self._finish(work)

    def _finish(self, work, failed=False):
        work.ended = time.perf_counter()
        self._active.remove(work)
        work.done = not failed  # at last: it may be started again at once

    def test(self, work):
        """Whether `work` is done; makes progress with it. Never blocks."""
        if not work.done:
            if self._thread is not None:
                self._thread.raise_error(work)
            elif work.step():
                self._finish(work)
        return work.done

    def progress(self):
        """One step for all that is in flight, by hooks. Cheap when there is nothing."""
        if self._thread is None:
            for work in tuple(self._active):
                if work.step():
                    self._finish(work)

    def wait(self, work):
        """Wait until `work` is done. Raises RankFailed if a peer is gone for good, and what its
        progress has raised."""
        if self.test(work):
            return
        recorder = current().recorder
        if recorder is None:
            self._wait(work)
        else:
            with recorder.span("wait", work.name, work.waits_for()[1]):
                self._wait(work)

    def _wait(self, work):
        begin = time.perf_counter()
        turn, watch = 0, Watch(self._transport, begin)
        try:
            if self._thread is not None:
                self._thread.wait(work)
            while not self.test(work):
                self.progress()
                if self.test(work):
                    return
                now = time.perf_counter()
                watch.look((work,), now)
                self._transport.relax(turn, now - begin)
                turn += 1
        finally:
            self.waited += time.perf_counter() - begin

    def close(self):
        """End the thread, if there is one; what is in flight goes on by hooks."""
        if self._thread is not None:
            self._thread.close()
            self._thread, self.progress_by = None, "hooks"


class Watch:
    """Finds out, now and then, whether what a rank waits for is a peer that has left.

    A rank that left in good order has sent what it owed: only if nothing moved between two looks
    at the same departed peer is it the one that is missing.
    """

    EVERY = 0.2  # seconds

    def __init__(self, transport, now):
        self._transport, self._due, self._suspects = transport, now + self.EVERY, {}

    def look(self, works, now):
        """Raise RankFailed if one of `works` waits for a peer that is gone for good."""
        if now < self._due:
            return
        self._due, before, self._suspects = now + self.EVERY, self._suspects, {}
        gone = self._transport.departed()
        for work in works:
            mark, peers = work.waits_for()
            missing = sorted(gone & set(peers))
            if missing and before.get(work) == (mark, missing):
                raise RankFailed(f"rank {self._transport.rank} waits for rank {missing[0]}, "
                                 f"which has left the job")
            if missing:
                self._suspects[work] = mark, missing


class _Thread:
    """The thread that advances a rank's work, started with the first one.

    It alone makes the transport start, test and look, so no lock is held while bytes move.
    finish: (work, failed) is called there when a run has ended.
    """

    def __init__(self, transport, finish):
        self._transport, self._finish = transport, finish
        self._arriving = deque()  # (work, the context that it was started in)
        self._wake, self._ended = threading.Event(), threading.Condition()
        self._errors = {}  # {work: what it has raised}
        self._closing, self._awaited, self._thread = False, False, None

    # On the rank's own thread

    def start(self, work):
        self._errors.pop(work, None)
        self._arriving.append((work, contextvars.copy_context()))  # np.errstate is in there
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True,
                                            name=f"progress of rank {self._transport.rank}")
            self._thread.start()
        self._wake.set()

    def wait(self, work):
        """Wait until `work` is done. Raises what it has raised."""
        self._awaited = True
        self._wake.set()
        with self._ended:
            self._ended.wait_for(lambda: work.done or work in self._errors)
        self._awaited = False
        self.raise_error(work)

    def raise_error(self, work):
        """Raise what `work` has raised on the thread, if it has."""
        if work in self._errors:
            raise self._errors[work]

    def close(self):
        """End the thread once all that was started has begun."""
        if self._thread is not None:
            self._closing = True
            self._wake.set()
            self._thread.join()

    # On the thread

    def _run(self):
        running, marks = {}, []  # {work: its context}; how far each has come
        turn, moved, watch = 0, 0.0, Watch(self._transport, time.perf_counter())
        while True:
            self._wake.clear()
            while self._arriving:
                work, context = self._arriving.popleft()
                if not self._does(work, context, work.begin):
                    running[work] = context
            if self._closing and not self._arriving:
                return
            for work, context in tuple(running.items()):
                if self._does(work, context, work.step):
                    del running[work]
            before, marks = marks, [work.waits_for()[0] for work in running]
            now = time.perf_counter()
            turn, moved = (turn + 1, moved) if marks == before else (0, now)
            try:
                watch.look(running, now)
            except BaseException as error:
                self._fail(running, error)
                running = {}
            self._pause(running, turn, now - moved)

    def _does(self, work, context, function):
        """Begin or advance; returns whether the run has ended, well or not."""
        try:
            if not context.run(function):
                return False
        except BaseException as error:
            self._fail([work], error)
            return True
        self._finish(work)
        with self._ended:
            self._ended.notify_all()
        return True

    def _fail(self, works, error):
        """Keep an error for those who wait for these works."""
        for work in works:
            self._errors[work] = error
            self._finish(work, failed=True)
        with self._ended:
            self._ended.notify_all()

    def _pause(self, running, turn, still):
        """Let others have the core, and Python's lock, which sched_yield would keep."""
        if not running:
            self._wake.wait()
        elif turn < 5 or self._awaited and still < 1e-3:
            time.sleep(0)
        else:
            self._wake.wait(5e-5 if still < 0.1 else 5e-4)
