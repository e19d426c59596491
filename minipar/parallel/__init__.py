"""Parallel training."""

from .ddp import DistributedDataParallel

__all__ = ["DistributedDataParallel"]
