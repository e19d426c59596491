"""Parallel training."""

from . import schedules, sync  # noqa: F401  (the former registers them)
from .ddp import DistributedDataParallel
from .exact import Exact
from .experts import MixtureOfExperts
from .measured import Measured
from .mesh import Mesh
from .pipelined import Pipelined
from .pipelined_zero import PipelinedZero
from .ring_attention import ring_attention
from .shard import shard_model
from .sync_batch_norm import SyncBatchNorm
from .tensor import ColumnParallelLinear, RowParallelLinear
from .trainer import Diverged, Replicated, Trainer
from .vocabulary import (VocabParallelEmbedding, VocabParallelHead,
                         vocab_parallel_cross_entropy)
from .zero import Zero

__all__ = ["ColumnParallelLinear", "DistributedDataParallel", "Diverged", "Exact", "Measured",
           "Mesh", "MixtureOfExperts", "Pipelined", "PipelinedZero", "Replicated",
           "RowParallelLinear", "SyncBatchNorm", "Trainer", "VocabParallelEmbedding",
           "VocabParallelHead", "Zero", "ring_attention", "shard_model",
           "vocab_parallel_cross_entropy"]
