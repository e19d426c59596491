"""Normalisation layers."""

import numpy as np

from ..context import current
from ..tensor import Tensor
from . import functional as F
from . import init
from .module import Module
from .parameter import Parameter


def _affine(module, shape, weight, bias):
    """Register a weight of ones and a bias of zeros, or None for those that are not wanted."""
    for name, wanted, value in (("weight", weight, 1.0), ("bias", bias, 0.0)):
        module.register_parameter(name, Parameter.lazy(
            *shape, initializer=init.constant(value)) if wanted else None)


class LayerNorm(Module):
    """Normalises over the last dims, then weight * x + bias (Ba et al. 2016)."""

    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, bias=True):
        super().__init__()
        shape = ((normalized_shape,) if isinstance(normalized_shape, int)
                 else tuple(normalized_shape))
        self.normalized_shape, self.eps = shape, eps
        _affine(self, shape, elementwise_affine, elementwise_affine and bias)

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self):
        return f"{self.normalized_shape}"


class RMSNorm(Module):
    """Divides by the root mean square over the last dims, then weight * x (Zhang & Sennrich 2019).

    eps: of None, the distance from 1 to the next number of the type.
    """

    def __init__(self, normalized_shape, eps=None, elementwise_affine=True):
        super().__init__()
        shape = ((normalized_shape,) if isinstance(normalized_shape, int)
                 else tuple(normalized_shape))
        self.normalized_shape, self.eps = shape, eps
        weight = Parameter.lazy(*shape, initializer=init.constant(1.0))
        self.register_parameter("weight", weight if elementwise_affine else None)

    def forward(self, x):
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self):
        return f"{self.normalized_shape}, eps={self.eps}"


class GroupNorm(Module):
    """Normalises each sample's groups of channels, then weight * x + bias (Wu & He 2018).

    weight, bias: (num_channels,), per channel. Raises ValueError unless num_groups divides it.
    """

    def __init__(self, num_groups, num_channels, eps=1e-5, affine=True):
        super().__init__()
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(f"GroupNorm: {num_channels} channels do not divide into "
                             f"{num_groups} groups")
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        _affine(self, (num_channels,), affine, affine)

    def forward(self, x):
        """x (N, num_channels, ...), of any further dims."""
        if x.ndim > 1 and x.shape[1] != self.num_channels:
            raise ValueError(f"GroupNorm: {x.shape[1]} channels of input {x.shape} "
                             f"!= {self.num_channels}")
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self):
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}"


class _BatchNorm(Module):
    """Normalises each channel, then weight * x + bias (Ioffe & Szegedy 2015).

    While training with the batch's mean and variance, which the buffers running_mean and
    running_var (the variance over n - 1) follow; in eval mode with those.
    momentum: the share of the newest batch in them; None: the average of all batches so far, which
    num_batches_tracked (int64) counts. affine: whether there are weight and bias.
    track_running_stats: without, there are no buffers, and eval mode too takes the batch's.
    """

    dims = ()  # how many the input may have
    batch = None  # in training, what the input is a part of, as F.batch_norm takes it

    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True,
                 track_running_stats=True):
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.track_running_stats = track_running_stats
        _affine(self, (num_features,), affine, affine)
        dtype = current().default_dtype.storage
        for name, value in (("running_mean", np.zeros(num_features, dtype)),
                            ("running_var", np.ones(num_features, dtype)),
                            ("num_batches_tracked", np.zeros((), np.int64))):
            self.register_buffer(name, Tensor(value) if track_running_stats else None)

    def forward(self, x):
        """x (N, num_features, ...)."""
        self._check_dims(x)
        if x.shape[1] != self.num_features:
            raise ValueError(f"{type(self).__name__}: {x.shape[1]} channels of input {x.shape} "
                             f"!= {self.num_features}")
        momentum = self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1 / self.num_batches_tracked.item()
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias,
                            self.training or not self.track_running_stats, momentum, self.eps,
                            batch=self.batch if self.training else None)

    def _check_dims(self, x):
        if x.ndim not in self.dims:
            raise ValueError(f"{type(self).__name__}: input {x.shape} has {x.ndim} dims: expected "
                             f"{' or '.join(map(str, self.dims))}")

    def extra_repr(self):
        return (f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
                f"affine={self.weight is not None}, "
                f"track_running_stats={self.track_running_stats}")


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of (N, C) or (N, C, L); see _BatchNorm for the arguments."""

    dims = 2, 3


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of (N, C, H, W); see _BatchNorm for the arguments."""

    dims = 4,
