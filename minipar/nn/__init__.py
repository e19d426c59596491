"""Neural network modules, under PyTorch's names. Knows no ranks."""

from . import functional, init
from .containers import ModuleList, Sequential
from .layers import (Conv2d, Dropout, Embedding, Flatten, GELU, LayerNorm, Linear, MaxPool2d,
                     ReLU, Tanh)
from .module import Module
from .parameter import Parameter

__all__ = ["Conv2d", "Dropout", "Embedding", "Flatten", "GELU", "LayerNorm", "Linear",
           "MaxPool2d", "Module", "ModuleList", "Parameter", "ReLU", "Sequential", "Tanh",
           "functional", "init"]
