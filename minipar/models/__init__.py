"""Models."""

from .cnn import CNN
from .gpt import GPT, GPTConfig
from .mlp import MLP
from .resnet import ResNet, resnet18, resnet34, resnet50

__all__ = ["CNN", "GPT", "GPTConfig", "MLP", "ResNet", "resnet18", "resnet34", "resnet50"]
