"""Recording of what ranks do, and its pictures.

    with trace.record() as recorder:         # on every rank
        train(...)
        with trace.span("my part"):
            ...
    trace.write_chrome("trace.json", world(), recorder)

Stands at the side: it reads what happened, and no layer below knows more of it than the slot
`context.recorder`.
"""

from ..comm.world import world
from ..context import current
from .chrome import check_path, write_chrome
from .recorder import Recorder

__all__ = ["Recorder", "check_path", "record", "span", "write_chrome"]


class record:
    """Record the calling rank inside the block; gives its Recorder. Entered by all ranks.

    comm: the ranks whose clocks are compared at the start; the world if None. What is sent inside
    the block has to be received inside it.
    """

    def __init__(self, comm=None):
        self.comm, self.recorder = comm, Recorder()

    def __enter__(self):
        self.recorder.align(world() if self.comm is None else self.comm)
        return self.recorder.__enter__()

    def __exit__(self, *exc):
        self.recorder.__exit__(*exc)


class span:
    """Record the block under a name of yours, if this rank is recording."""

    __slots__ = ("name", "span")

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        recorder = current().recorder
        self.span = None if recorder is None else recorder.span("user", self.name)
        if self.span is not None:
            self.span.__enter__()

    def __exit__(self, *exc):
        if self.span is not None:
            self.span.__exit__(*exc)
