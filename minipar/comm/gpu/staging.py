"""Collectives on arrays of a GPU: by pinned memory of the host, or straight from the device.

Beside `plan.py`, which knows arrays and no GPU. Where the MPI library takes addresses of a GPU,
plans run on the arrays themselves and reduce there; all there is to add is that the GPU has to be
done before the library reads (`Synchronised`). Else (`StagedPlan`) the array is cut into segments:
while one travels, the next comes down to the host and the one before goes back up. Reductions are
then the host's: its arrays are where the messages are, and to reduce on the GPU each round would
cross the bus twice more. Cutting changes which rank adds what first, so results may differ in
their last bits from those of other segments; on all ranks they are the same.
"""

import ctypes

import numpy as np

from ...device import import_cupy, pinned
from ..engine import InFlight

SEGMENT = 4 * 2**20  # bytes; shorter copies do not use the bus well
MOST = 8  # segments of a plan: each is a plan of its own
CUT = ("all_reduce", "reduce", "broadcast")  # kinds in which each element goes its own way


class Synchronised:
    """A transport that takes a GPU's memory, and before it does waits for what writes there."""

    def __init__(self, transport):
        self._transport = transport

    def __getattr__(self, name):
        return getattr(self._transport, name)

    def start(self, messages):
        _wait_for_the_gpu()
        self._transport.start(messages)

    def collective(self, *arguments):
        begin, end = self._transport.collective(*arguments)

        def synchronised():
            _wait_for_the_gpu()
            return begin()
        return synchronised, end


def _wait_for_the_gpu():
    import_cupy().cuda.get_current_stream().synchronize()


class _Segment:
    """Stretches of arrays on the GPU, the memory of the host that they go through, and the plan
    that works there.
    """

    def __init__(self, arrays, compile_):
        self.pairs = [(a, pinned(a.size, a.dtype)) for a in arrays.values()]
        self.plan = compile_(dict(zip(arrays, (h for _, h in self.pairs))))
        self.arrived = import_cupy().cuda.Event(disable_timing=True)

    def down(self, stream):
        for array, host in self.pairs:
            array.data.copy_to_host_async(_address(host), array.nbytes, stream)
        self.arrived.record(stream)

    def up(self, stream):
        for array, host in self.pairs:
            array.data.copy_from_host_async(_address(host), array.nbytes, stream)


def _address(host):
    return ctypes.c_void_p(host.ctypes.data)


class StagedPlan(InFlight):
    """A collective on arrays of a GPU, with the interface of `Plan`.

    segments: made by `stage`. in_order: whether a segment's plan must be started at once, because
    ranks start what they start in one order (the MPI library's own collectives).
    The run is done when the last copy to the GPU has been queued: whatever the stream that called
    `start` is given afterwards comes after it.
    """

    reused = False

    def __init__(self, segments, engine, in_order):
        cupy = import_cupy()
        self._segments, self._engine, self._in_order = segments, engine, in_order
        self._stream, self._event = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Event(
            disable_timing=True)
        self._device, self._caller = cupy.cuda.Device(), None
        self.nbytes = sum(a.nbytes for s in segments for a, _ in s.pairs)
        self.name = f"{segments[0].plan.name} staged"
        self.done, self._started, self._back = True, 0, 0

    def start(self):
        """Start a run; the arrays belong to the plan until it is done."""
        if not self.done:
            raise RuntimeError("a plan is started while it is in flight")
        self._started = self._back = 0
        self._caller = import_cupy().cuda.get_current_stream()
        self._event.record(self._caller)
        self._stream.wait_event(self._event)  # what computes the arrays comes first
        for segment in self._segments:
            segment.down(self._stream)
        if self._in_order:
            self._stream.synchronize()
            for segment in self._segments:
                segment.plan.start()
            self._started = len(self._segments)
        self._engine.start(self)

    def begin(self):
        """Begin what has come down already; whether the run is complete."""
        return self.step()

    def step(self):
        """Make what progress is possible; whether the run is complete. Never blocks."""
        with self._device:  # the engine may have a thread of its own
            return self._step()

    def _step(self):
        segments = self._segments
        while self._started < len(segments) and segments[self._started].arrived.done:
            segments[self._started].plan.start()
            self._started += 1
        while self._back < self._started and segments[self._back].plan.test():
            segments[self._back].up(self._stream)
            self._back += 1
        if self._back < len(segments):
            return False
        self._event.record(self._stream)
        self._caller.wait_event(self._event)
        return True

    def waits_for(self):
        """(a mark that changes with progress, the peers of the messages in flight)."""
        flying = [s.plan.waits_for() for s in self._segments[self._back:self._started]]
        return ((self._started, self._back, *(mark for mark, _ in flying)),
                tuple({peer for _, peers in flying for peer in peers}))

    def free(self):
        """Release what it holds. The plan must not be in flight, and cannot be started again."""
        self._stream.synchronize()  # copies out of the memory that goes
        for segment in self._segments:
            if not segment.plan.reused:
                segment.plan.free()
        self._segments = []


def stage(kind, arrays, engine, compile_, kept, in_order):
    """A StagedPlan for flat arrays of a GPU.

    compile_(arrays, number): the plan of a segment's host arrays. kept: whether it may be cut in
    several; a collective that runs once has the tags of one plan only.
    """
    nbytes = max(a.nbytes for a in arrays.values())
    count = 1
    if kept and kind in CUT and not in_order:
        count = int(np.clip(nbytes // SEGMENT, 1, MOST))
    segments = []
    for i in range(count):
        part = {name: a[i * a.size // count:(i + 1) * a.size // count]
                for name, a in arrays.items()}
        segments.append(_Segment(part, lambda hosts, i=i: compile_(hosts, i)))
    return StagedPlan(segments, engine, in_order)
