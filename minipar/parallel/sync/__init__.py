"""Beyond one all-reduce a step: local SGD, DiLoCo, delayed, gossip, parameter servers.

Each is a Trainer (../trainer.py) in a short file. What they have in common is in alone.py.
"""

from .adpsgd import AsyncGossip
from .delayed import Delayed
from .diloco import DiLoCo
from .gossip import Gossip
from .graphs import mixing_matrix, second_eigenvalue
from .local import Local
from .method import FORMS, Method, parse_method
from .server import Server
from .worker import Worker

__all__ = ["FORMS", "AsyncGossip", "Delayed", "DiLoCo", "Gossip", "Local", "Method", "Server",
           "Worker", "make_trainer", "mixing_matrix", "parse_method", "second_eigenvalue"]


def make_trainer(method, module, make_optimizer, loss, comm, mesh, **options):
    """The Trainer of a Method other than ddp, on this rank. Collective over `comm`.

    mesh: of the ranks that train; ranks beyond it are servers. Others as for Replicated.
    """
    if method.servers:
        if comm.rank >= mesh.size:
            return Server(module, make_optimizer, comm, mesh, method)
        return Worker(module, loss, comm, mesh, method, **options)
    args = module, make_optimizer, loss, comm, mesh
    if method.name in ("gossip", "adpsgd"):
        kind = Gossip if method.name == "gossip" else AsyncGossip
        return kind(*args, graph=method.argument, **options)
    if method.name == "delayed":
        return Delayed(*args, **options)
    kind = Local if method.name == "local" else DiLoCo
    return kind(*args, period=method.argument, **options)
