"""Parallel training."""

from . import schedules  # noqa: F401  (registers them)
from .ddp import DistributedDataParallel
from .mesh import Mesh
from .pipelined import Pipelined
from .trainer import Diverged, Replicated, Trainer

__all__ = ["DistributedDataParallel", "Diverged", "Mesh", "Pipelined", "Replicated", "Trainer"]
