"""Optimizers and schedules of their learning rates, under PyTorch's names. Knows no ranks."""

from . import lr_scheduler
from .adam import Adam, AdamW
from .optimizer import BLOCK, Optimizer
from .sgd import SGD

__all__ = ["Adam", "AdamW", "BLOCK", "Optimizer", "SGD", "lr_scheduler"]
