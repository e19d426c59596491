"""Communication: collectives written as programs, run over MPI or between threads."""

from .codecs import CODECS, Codec
from .communicator import Communicator
from .compose import both, channels, compressed, on
from .kinds import Kind, register_kind
from .launcher import launch
from .program import (collective, copy, fence, get, get_reduce, put, recv, recv_reduce, reduce,
                      register, send)
from .topology import Topology
from .transport.base import RankFailed
from .transport.threads import run_threads
from .world import world
from .work import Work

__all__ = ["CODECS", "Codec", "Communicator", "Kind", "RankFailed", "Topology", "Work", "both",
           "channels", "collective", "compressed", "copy", "fence", "get", "get_reduce", "launch",
           "on", "put", "recv", "recv_reduce", "reduce", "register", "register_kind",
           "run_threads", "send", "world"]
