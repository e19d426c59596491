"""What a rank has started and may wait for: a collective, or one message."""

from ..context import current
from ..futures import Future
from .engine import InFlight


class Work:
    """A started operation: `test()`, `wait()`. Returned for async_op=True and by isend, irecv."""

    __slots__ = ("_plan", "_finish", "done", "result")

    def __init__(self, plan, finish):
        self._plan, self._finish, self.done, self.result = plan, finish, False, None

    def test(self):
        """Whether the operation is complete; makes progress, never blocks."""
        if not self.done and self._plan.test():
            self.done = True
            self._finish()
        return self.done

    def wait(self):
        """Block until the operation is complete."""
        self._plan.wait()
        self.test()

    def get_future(self):
        """The Future of [the collective's result], a list as in PyTorch."""
        return Future.after(self, lambda: [self.result])


class Single(InFlight):
    """One message with the interface of a plan.

    traffic: (whether it is a send, peer, bytes, tag).
    """

    def __init__(self, array, traffic, transport, engine):
        self._sends, self._peer, _, tag = traffic
        make = transport.send_init if self._sends else transport.recv_init
        self._messages, self._transport, self._engine = (
            [make(array, self._peer, tag)], transport, engine)
        recorder = current().recorder
        self._flight, self._traffic = recorder and recorder.flight(transport), traffic
        engine.bytes_sent += array.nbytes if self._sends else 0
        engine.start(self)

    def begin(self):
        if self._flight is not None:
            self._flight.departs([self._traffic])
        self._transport.start(self._messages)
        return self.step()

    def step(self):
        if not self._transport.test(self._messages):
            return False
        if self._flight is not None:
            self._flight.landed()
        return True

    @property
    def name(self):
        return f"{'send to' if self._sends else 'receive from'} rank {self._peer}"

    def waits_for(self):
        return 0, (self._transport.in_world(self._peer),)

    def free(self):
        self._transport.free(self._messages)
