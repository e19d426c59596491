"""Batch normalisation over the samples of all ranks, whatever each of them has.

Ioffe & Szegedy 2015; over ranks Zhang et al. 2018, "Context encoding for semantic segmentation",
section 3.3. In forward one all-gather of each rank's count, means and variances, 8 (2 C + 1) bytes
of each for C channels, joined by Chan, Golub & LeVeque 1983: sums of squares would cancel where
the mean is far from 0. In backward one all-reduce of two sums a channel. What is joined is equal
on every rank to the bit, so the running statistics are, too.
"""

import numpy as np

from ..comm import world
from ..nn.norm import _BatchNorm


class _Batch:
    """What is spread over the ranks of `comm`, as F.batch_norm asks for it."""

    def __init__(self, comm):
        self._comm = comm

    def moments(self, mean, variance, n):
        """(mean, variance (C,), n) of all samples from those of this rank's."""
        own = np.stack((mean, variance)) if n else np.zeros_like(mean, shape=(2, len(mean)))
        own = np.concatenate((np.full_like(own, n, shape=1), own.reshape(-1)))
        table = self._comm.all_gather(own)
        counts, (means, variances) = table[:, :1], table[:, 1:].reshape(
            self._comm.size, 2, -1).swapaxes(0, 1)
        total = counts.sum()
        mean = (counts * means).sum(0) / max(total, 1)
        distances = means - mean
        variance = (counts * (variances + distances * distances)).sum(0) / max(total, 1)
        return mean, variance, int(total)

    def sums(self, both):
        """The sums of (2, C) over the ranks."""
        self._comm.all_reduce(both)
        return both


class SyncBatchNorm(_BatchNorm):
    """nn.BatchNorm1d and 2d (of (N, C) or (N, C, ...)) whose batch is that of all ranks together.

    process_group: a Communicator; the world if None. Its ranks call forward and backward in the
    same order, with any number of samples each, also 0. In eval mode ranks do not talk.
    The other arguments, buffers and the state dict are BatchNorm's. The gradients of weight and
    bias are those of the rank's samples, for data parallelism to sum like all others.
    """

    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True,
                 track_running_stats=True, process_group=None):
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.process_group = process_group

    @property
    def batch(self):
        comm = world() if self.process_group is None else self.process_group
        return _Batch(comm) if comm.size > 1 else None

    def _check_dims(self, x):
        if x.ndim < 2:
            raise ValueError(f"SyncBatchNorm: input {x.shape} has {x.ndim} dims: expected at "
                             f"least 2")

    @classmethod
    def convert_sync_batchnorm(cls, module, process_group=None):
        """Replace each BatchNorm in `module` by one of all ranks; returns it, or what replaces it.

        Parameters and buffers are taken over, with or without memory yet.
        """
        return _converted(cls, module, process_group, {})


def _converted(cls, module, group, done):
    """done: {id of a module: what takes its place}: one that stands in two places stays one."""
    if id(module) in done:
        return done[id(module)]
    done[id(module)] = module
    if isinstance(module, _BatchNorm) and not isinstance(module, cls):
        done[id(module)] = _taken_over(cls, module, group)
    for key, child in list(module._modules.items()):
        if child is not None and (new := _converted(cls, child, group, done)) is not child:
            setattr(module, key, new)
    return done[id(module)]


def _taken_over(cls, norm, group):
    new = cls(norm.num_features, norm.eps, norm.momentum, norm.weight is not None,
              norm.track_running_stats, group)
    new.__dict__.update(_path=norm._path, training=norm.training)
    for key, p in norm._parameters.items():
        if p is not None and p._module is not None and p._module() is norm:
            p._module = None  # the new one is its first module now
        new.register_parameter(key, p)
    for key, buffer in norm._buffers.items():
        new.register_buffer(key, buffer)
    return new
