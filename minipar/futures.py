"""Futures: values that are there later, under the names of `torch.futures`.

Bottom of the stack: knows no ranks. What makes a value come is one's own `set_result`, or work that
is in flight (a collective). Callbacks run on the thread that waits, when it waits: a rank that
waits for its futures in one order runs their callbacks in that order, so callbacks may start
collectives, and these come in the same order on every rank.
"""

import threading


class Future:
    """A value that is there once `set_result` was called."""

    def __init__(self):
        self._value = self._error = None
        self._set = threading.Event()
        self._awaited = self._make = None

    @classmethod
    def after(cls, awaited, make):
        """The Future of what `make()` returns, called when it is waited for and `awaited` is done.

        awaited: has `test()`, whether it is done, which makes progress; and `wait()`.
        """
        future = cls()
        future._awaited, future._make = awaited, make
        return future

    def done(self):
        """Whether the value (or an error) is there; runs what is due to make it. Never blocks."""
        if not self._set.is_set() and self._awaited is not None and self._awaited.test():
            self._finish()
        return self._set.is_set()

    test = done

    def wait(self):
        """Block until the value is there, and return it. Raises what making it has raised."""
        self._settle()
        return self.value()

    def value(self):
        """The value, of a future that is done. Raises RuntimeError if it is not."""
        if not self.done():
            raise RuntimeError("a future's value is asked for before it is done: wait() for it")
        if self._error is not None:
            raise self._error
        return self._value

    def then(self, callback):
        """The Future of `callback(self)`, which is called once this one is done and that one is
        waited for. If this one ends in an error, `self.value()` raises it in the callback."""
        return Future.after(_Settled(self), lambda: callback(self))

    def set_result(self, result):
        """The value is `result`. Raises RuntimeError if there is one, or one is on its way."""
        self._check_unset()
        self._value = result
        self._set.set()

    def set_exception(self, error):
        """Instead of a value there is an error, which `wait` and `value` raise."""
        self._check_unset()
        self._error = error
        self._set.set()

    def _check_unset(self):
        if self._set.is_set() or self._awaited is not None:
            raise RuntimeError("a future's value is set once")

    def _settle(self):
        """Block until there is a value or an error."""
        if self._awaited is None:
            self._set.wait()
        elif not self._set.is_set():
            self._awaited.wait()
            self._finish()

    def _finish(self):
        try:
            self._value = self._make()
        except Exception as error:
            self._error = error
        self._awaited = self._make = None  # and what they hold
        self._set.set()


class _Settled:
    """A future as something to await, whose error is not raised here."""

    def __init__(self, future):
        self.test, self.wait = future.done, future._settle
