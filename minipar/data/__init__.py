"""Data sets, samplers and loaders; PyTorch's names where it has one. Knows no MPI and no model."""

from . import transforms
from .datasets import NAMES, Classification, load
from .draws import at_sample, sample_draws
from .images import ImageFiles, ImageFolder, Pixels
from .loader import DataLoader, Dataset, TensorDataset, default_collate
from .sampler import (BatchSampler, DistributedSampler, GlobalBatchSampler, RandomSampler, Sampler,
                      SequentialSampler, Shard, permutation)
from .subset import ConcatDataset, Subset, random_split
from .text import Blocks, Text

__all__ = ["load", "NAMES", "Classification", "Text", "Blocks", "Pixels", "ImageFiles",
           "ImageFolder", "transforms",
           "Dataset", "TensorDataset", "Subset", "ConcatDataset", "random_split",
           "DataLoader", "default_collate", "at_sample", "sample_draws",
           "Sampler", "SequentialSampler", "RandomSampler", "BatchSampler", "DistributedSampler",
           "GlobalBatchSampler", "Shard", "permutation"]
