"""Models."""

from .cnn import CNN
from .gpt import GPT, GPTConfig
from .mlp import MLP

__all__ = ["CNN", "GPT", "GPTConfig", "MLP"]
