"""Data sets, samplers and loaders; PyTorch's names where it has one. Knows no MPI and no model."""

from .datasets import NAMES, Blocks, Classification, Text, load
from .loader import DataLoader, Dataset, TensorDataset, default_collate
from .sampler import (BatchSampler, DistributedSampler, GlobalBatchSampler, RandomSampler, Sampler,
                      SequentialSampler, Shard, permutation)

__all__ = ["load", "NAMES", "Classification", "Text", "Blocks",
           "Dataset", "TensorDataset", "DataLoader", "default_collate",
           "Sampler", "SequentialSampler", "RandomSampler", "BatchSampler", "DistributedSampler",
           "GlobalBatchSampler", "Shard", "permutation"]
