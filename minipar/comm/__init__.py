"""Communication: collectives written as programs, run over MPI or between threads."""

from .communicator import Communicator, Work
from .program import collective, copy, recv, recv_reduce, reduce, register, send
from .transport.base import RankFailed
from .transport.threads import run_threads
from .world import world

__all__ = ["Communicator", "RankFailed", "Work", "collective", "copy", "recv", "recv_reduce",
           "reduce", "register", "run_threads", "send", "world"]
