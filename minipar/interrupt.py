"""SIGTERM and Ctrl-C as a wish that the training loop grants at the end of a step."""

import signal
import threading


class Interrupt:
    """While entered, the first SIGTERM or SIGINT sets `requested`; a second SIGINT interrupts.

    Signals belong to the process: where ranks are threads, they share one Interrupt, and only
    the main thread can install it. Elsewhere entering does nothing.
    """

    def __init__(self):
        self.requested = False
        self._previous = {}

    def _note(self, number, frame):
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self):
        if _in_main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc):
        if _in_main_thread():
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            self._previous = {}


def _in_main_thread():
    return threading.current_thread() is threading.main_thread()
