"""Two-dimensional convolution of arrays as matrix products, one a row of the output.

Images are laid out (H, C, W, N): rows outermost, samples innermost. Then the kh rows of the input
under one row of the output are one contiguous matrix of kh * C rows, so vertical neighbours cost
no copy; horizontal ones are `kw` shifted copies, whose runs are long because a shift by one column
is a shift by N elements. This is MEC (Cho & Brand 2017, "MEC: memory-efficient convolution for
deep neural network"): its lowered matrix is kh times as small as that of im2col (Chellapilla,
Puri & Simard 2006), and each product finds its operands in the cache.

Groups are the outermost axis of every product: one call of np.matmul multiplies the matrices of
all groups. (Dilated rows do not lie together; they are copied, as im2col would.)

On a CPU with kernels most convolutions do without lowered matrices: `direct_conv.py`.
"""

from math import gcd

import numpy as np

from . import direct_conv
from .base import for_kernel
from .windows import inside


class Geometry:
    """The sizes of one convolution (N, C, H, W) -> (N, O, Ho, Wo).

    `c` and `o` are channels of one group; `columns` is Wo * N, the width of every product.
    """

    def __init__(self, x, w, out, stride, pad, dilation, groups):
        """x, w (O, C / groups, kh, kw): shapes; out (Ho, Wo); pad: above and left."""
        self.n, _, self.h, self.w = x
        outputs, self.c, self.kh, self.kw = w
        self.groups, self.o = groups, outputs // groups
        (self.ho, self.wo), (self.sh, self.sw) = out, stride
        (self.ph, self.pw), (self.dh, self.dw) = pad, dilation
        self.columns = self.wo * self.n
        # Lanes of the kernel run along the samples.
        self.depthwise = self.c == self.o == 1 and dilation == (1, 1) and self.n >= 8
        self.spots = [inside(tap * self.dw, self.w, self.wo, self.sw, self.pw)
                      for tap in range(self.kw)]

    def lower(self, rows):
        """(H, C, W, N) -> (groups, H, kw, c, Wo, N): for each tap of a row, the input it reads."""
        rows = rows.reshape(self.h, self.groups, self.c, self.w, self.n).swapaxes(0, 1)
        if self.kw == self.sw == 1 and self.wo == self.w and not self.pw:
            return rows[:, :, None]
        lowered = np.empty((self.groups, self.h, self.kw, self.c, self.wo, self.n), rows.dtype,
                           like=rows)
        for tap, (to, source) in enumerate(self.spots):
            lowered[:, :, tap, :, :to.start] = 0
            lowered[:, :, tap, :, to] = rows[:, :, :, source]
            lowered[:, :, tap, :, to.stop:] = 0
        return lowered

    def under(self, lowered, i):
        """The matrices (groups, taps, Wo * N) under output row i, and the slice of the kh*kw*c
        taps that they have: rows of padding are left out.
        """
        top = i * self.sh - self.ph
        first, last = max(0, -(top // self.dh)), min(self.kh, (self.h - 1 - top) // self.dh + 1)
        last = max(first, last)
        start, taps = top + first * self.dh, self.kw * self.c
        rows = lowered[:, start:start + (last - first) * self.dh:self.dh]
        matrix = rows.reshape(self.groups, taps * (last - first), self.columns)
        return matrix, slice(taps * first, taps * last)

    def over(self, i):
        """The slice of output rows that input row i lies under, and the taps it has there,
        counted from the last. As the rows grow the taps fall, both in even steps.
        """
        bottom = i + self.ph
        taps = [tap for tap in reversed(range(self.kh))
                if not (bottom - tap * self.dh) % self.sh
                and 0 <= bottom - tap * self.dh < self.ho * self.sh]
        if not taps:
            return slice(0, 0), taps
        first, last = ((bottom - tap * self.dh) // self.sh for tap in (taps[0], taps[-1]))
        step = self.dh // gcd(self.dh, self.sh)
        return slice(first, last + 1, step), [self.kh - 1 - tap for tap in taps]


def forward(rows, w, bias, geometry):
    """rows (H, C, W, N), w (O, C / groups, kh, kw), bias (O,) or None -> (Ho, O, Wo, N)."""
    s = geometry
    if (out := direct_conv.forward(rows, w, bias, s)) is not None:
        return out
    lowered = s.lower(rows)
    weights = w.reshape(s.groups, s.o, s.c, s.kh, s.kw).transpose(0, 1, 3, 4, 2)
    weights = weights.reshape(s.groups, s.o, s.kh * s.kw * s.c)
    out = np.empty((s.ho, s.groups, s.o, s.columns), rows.dtype, like=rows)
    if bias is not None:
        bias = bias.reshape(s.groups, s.o, 1)
    for i in range(s.ho):
        matrix, taps = s.under(lowered, i)
        np.matmul(weights[:, :, taps], matrix, out=out[i])
        if bias is not None:
            out[i] += bias  # while the row is in the cache
    return out.reshape(s.ho, s.groups * s.o, s.wo, s.n)


def weight_gradient(g, rows, geometry, out):
    """out (O, C / groups, kh, kw) = the gradient, from g (Ho, O, Wo, N) and rows (H, C, W, N).

    Lowers the rows again: that takes a tenth of the time of the products, and kw times the
    input need not be kept from the forward to here.
    """
    s = geometry
    if direct_conv.weight_gradient(g, rows, s, out):
        return
    lowered, g = s.lower(rows), g.reshape(s.ho, s.groups, s.o, s.columns)
    total = np.zeros((s.groups, s.kh * s.kw * s.c, s.o), g.dtype, like=g)
    for i in range(s.ho):
        matrix, taps = s.under(lowered, i)
        # In this order, not transposed: OpenBLAS packs it 1.4 times as fast.
        total[:, taps] += np.matmul(matrix, g[i].swapaxes(1, 2))
    total = total.reshape(s.groups, s.kh, s.kw, s.c, s.o).transpose(0, 4, 3, 1, 2)
    out[...] = total.reshape(out.shape)


def input_gradient(g, w, geometry):
    """The gradient (H, C, W, N), from g (Ho, O, Wo, N) and w (O, C / groups, kh, kw).

    The taps are reversed and dealt into phases, one for each remainder that a stride leaves: then
    the output rows over an input row are one matrix (rows * o, Wo * N), as long as there is no
    dilation, and their weights one slice of a phase, without a copy.
    """
    s = geometry
    if (gx := direct_conv.input_gradient(g, w, s)) is not None:
        return gx
    reverse = w.reshape(s.groups, s.o, s.c, s.kh, s.kw)[:, :, :, ::-1].transpose(0, 4, 2, 3, 1)
    count = s.sh // gcd(s.sh, s.dh)
    phases = [for_kernel(reverse[:, :, :, r::count]).reshape(
        s.groups, s.kw * s.c, len(range(r, s.kh, count)) * s.o) for r in range(min(count, s.kh))]
    g = for_kernel(g.reshape(s.ho, s.groups, s.o, s.columns).swapaxes(0, 1))
    gx = np.zeros((s.h, s.groups, s.c, s.w, s.n), g.dtype, like=g)
    taps = np.empty((s.groups, s.kw, s.c, s.wo, s.n), g.dtype, like=g)
    products = taps.reshape(s.groups, s.kw * s.c, s.columns)
    for i in range(s.h):
        rows, reached = s.over(i)
        if not reached:
            continue  # the stride steps over this row
        skipped, phase = divmod(reached[0], count)
        weights = phases[phase][:, :, skipped * s.o:(skipped + len(reached)) * s.o]
        above = g[:, rows].reshape(s.groups, len(reached) * s.o, s.columns)
        np.matmul(weights, above, out=products)
        for tap, (to, source) in enumerate(s.spots):
            gx[i, :, :, source] += taps[:, tap, :, to]
    return gx.reshape(s.h, s.groups * s.c, s.w, s.n)
