"""Convolution layers. Their parameters are uniform in +-1/sqrt(elements of one filter)."""

import math

from ..ops.windows import pair, single
from . import functional as F
from . import init
from .module import Module
from .parameter import Parameter


class _Conv(Module):
    """What the layers share: sizes as tuples, and the parameters.

    transposed: weight (in, out / groups, *kernel); otherwise (out, in / groups, *kernel).
    """

    transposed = False

    def __init__(self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups,
                 bias):
        super().__init__()
        name = type(self).__name__
        single(f"{name}: groups", groups, 1)
        for what, channels in (("in", in_channels), ("out", out_channels)):
            if channels % groups:
                raise ValueError(f"{name}: {what}_channels {channels} do not divide into {groups} "
                                 f"groups")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = self._sizes("kernel_size", kernel_size, 1)
        self.stride = self._sizes("stride", stride, 1)
        self.dilation = self._sizes("dilation", dilation, 1)
        if padding not in ("same", "valid") or self.transposed:
            padding = self._sizes("padding", padding, 0)
        elif padding == "same" and max(self.stride) > 1:
            raise ValueError(f"{name}: padding='same' needs stride 1, not {self.stride}")
        self.padding = padding
        rows, inner = ((in_channels, out_channels) if self.transposed else
                       (out_channels, in_channels))
        shape = (rows, inner // groups, *self.kernel_size)
        bound = 1 / math.sqrt(max(1, math.prod(shape[1:])))
        recipe = init.uniform(-bound, bound)
        self.weight = Parameter.lazy(*shape, initializer=recipe)
        self.register_parameter(
            "bias", Parameter.lazy(out_channels, initializer=recipe) if bias else None)

    def _sizes(self, what, value, least):
        return pair(f"{type(self).__name__}: {what}", value, least)

    def extra_repr(self):
        text = (f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
                f"stride={self.stride}")
        for name, usual in (("padding", 0), ("dilation", 1), ("output_padding", 0)):
            value = getattr(self, name, usual)
            if value not in (usual, (usual,) * len(self.stride)):
                text += f", {name}={value}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text + (", bias=False" if self.bias is None else "")


class Conv2d(_Conv):
    """2-D convolution. weight (out, in / groups, kh, kw), bias (out,).

    padding: an int, a pair, "same" or "valid". Raises ValueError for sizes that cannot be.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1,
                 groups=1, bias=True):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation,
                         groups, bias)

    def forward(self, x):
        """x (N, in, H, W) -> (N, out, Ho, Wo)."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation,
                        self.groups)


class Conv1d(_Conv):
    """1-D convolution. weight (out, in / groups, k), bias (out,). See Conv2d."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1,
                 groups=1, bias=True):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation,
                         groups, bias)

    def _sizes(self, what, value, least):
        return (single(f"Conv1d: {what}", value, least),)

    def forward(self, x):
        """x (N, in, L) -> (N, out, Lo)."""
        return F.conv1d(x, self.weight, self.bias, self.stride, self.padding, self.dilation,
                        self.groups)


class ConvTranspose2d(_Conv):
    """The transpose of Conv2d, which enlarges. weight (in, out / groups, kh, kw), bias (out,)."""

    transposed = True

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0,
                 output_padding=0, groups=1, bias=True, dilation=1):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation,
                         groups, bias)
        self.output_padding = self._sizes("output_padding", output_padding, 0)

    def forward(self, x):
        """x (N, in, H, W) -> (N, out, Ho, Wo)."""
        return F.conv_transpose2d(x, self.weight, self.bias, self.stride, self.padding,
                                  self.output_padding, self.groups, self.dilation)
