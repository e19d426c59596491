"""Parallel training."""

from .ddp import DistributedDataParallel
from .mesh import Mesh
from .pipelined import Pipelined
from .trainer import Diverged, Replicated, Trainer

__all__ = ["DistributedDataParallel", "Diverged", "Mesh", "Pipelined", "Replicated", "Trainer"]
