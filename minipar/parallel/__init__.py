"""Parallel training."""

from . import schedules  # noqa: F401  (registers them)
from .ddp import DistributedDataParallel

__all__ = ["DistributedDataParallel"]
