"""Convolutions by kernels that read images where they lie: nothing is copied under the taps.

`forward` and the gradients are those of `mec.py`, and return None where that has to do it.
Depthwise convolutions have kernels on every device (depthwise.cu). Others have them on a CPU
(conv.cu), if there are enough samples to fill vectors, 8 channels and outputs, at most 64 taps, and
if they are not plain products of matrices (1 x 1); on a GPU its library's products do it.
"""

from functools import lru_cache
from math import gcd

import numpy as np

from ..device import on_gpu
from ..execution import Kernel
from .base import for_kernel
from .windows import inside

_TAPS = Kernel("conv.cu", "conv_taps", rows="lines", width="n")
_WEIGHT = Kernel("conv.cu", "conv_weight_gradient", rows="lines", width="channels")
_DEPTHWISE = {name: Kernel("depthwise.cu", f"depthwise_{name}", rows="lines", width="n")
              for name in ("forward", "input_gradient", "weight_gradient")}
LANES, ROWS, TAPS, OUTPUTS = 16, 8, 64, 32  # of conv.cu; the first two are less on some CPUs


@lru_cache(maxsize=256)
def _taps_of_places(positions, taps, w_step, step, pad, dilation, stride, size):
    """Which taps of each row, or column, read, int32 (positions, 3): (where the first one stands in
    the weight, how many do, what it reads); and from one to the next, in weight and input.

    Position i reads with tap k what stands at (i * step - pad + k * dilation) / stride, if that is
    a whole number and one of `size`.
    """
    table = np.zeros((positions, 3), np.int32)
    next_tap = stride // gcd(stride, dilation)
    for i in range(positions):
        at = [divmod(i * step - pad + k * dilation, stride) for k in range(taps)]
        reads = [k for k, (source, rest) in enumerate(at) if not rest and 0 <= source < size]
        if reads:
            table[i] = reads[0] * w_step, len(reads), at[reads[0]][0]
    table.setflags(write=False)
    return table, next_tap * w_step, next_tap * dilation // stride


@lru_cache(maxsize=256)
def _places_of_taps(taps, size, out, stride, pad, dilation):
    """Which rows, or columns, of the output have each tap, int32 (taps, 3): (first, how many, what
    the first one reads).
    """
    spots = [inside(tap * dilation, size, out, stride, pad) for tap in range(taps)]
    table = np.array([(to.start, to.stop - to.start, source.start) for to, source in spots],
                     np.int32)
    table.setflags(write=False)
    return table


def _serves(s, like, rows):
    """Whether conv.cu is for these arrays; rows: what it takes ROWS of, outputs or channels."""
    matrix = s.kh == s.kw == s.sh == s.sw == 1
    lanes = -(-s.n // LANES) * LANES  # of vectors that hold all samples
    return (rows >= ROWS and s.n >= LANES and s.n >= 0.75 * lanes and s.kh * s.kw <= TAPS
            and not matrix and not on_gpu(like))


def forward(rows, w, bias, s):
    """rows (H, C, W, N), w (O, C / groups, kh, kw), bias (O,) or None -> (Ho, O, Wo, N)."""
    run = _build("forward", s, rows, s.o)
    if run is None:
        return None
    outputs = s.groups * s.o
    out = np.empty((s.ho, outputs, s.wo, s.n), rows.dtype, like=rows)
    bias = np.zeros(outputs, rows.dtype, like=rows) if bias is None else for_kernel(bias)
    sizes = _depthwise_sizes(s, s.ho) if s.depthwise else output_sums(s)
    run(rows, for_kernel(w), bias, out, *sizes)
    return out


def input_gradient(g, w, s):
    """The gradient (H, C, W, N), from g (Ho, O, Wo, N) and w (O, C / groups, kh, kw)."""
    run = _build("input_gradient", s, g, s.c)
    if run is None:
        return None
    channels = s.groups * s.c
    gx = np.empty((s.h, channels, s.w, s.n), g.dtype, like=g)
    if s.depthwise:
        run(g, for_kernel(w), gx, *_depthwise_sizes(s, s.h))
    else:
        run(g, for_kernel(w), np.zeros(channels, g.dtype), gx, *_input_sums(s))
    return gx


def weight_gradient(g, rows, s, out):
    """out (O, C / groups, kh, kw), or (O, C / groups, kw) = the gradient, from g (Ho, O, Wo, N) and
    rows (H, C, W, N); True, or None.
    """
    run = _build("weight_gradient", s, g, s.c)
    if run is None:
        return None
    if s.depthwise:
        by_row = np.empty((s.ho, *out.shape), g.dtype, like=g)
        run(g, rows, by_row, *_depthwise_sizes(s, s.ho))
        by_row.sum(axis=0, out=out)
        return True
    taps = s.kh * s.kw
    total = np.empty((s.groups, taps, s.c, s.o), g.dtype)
    run(g, rows, total, *weight_sums(s))
    out = out[:, :, None] if out.ndim == 3 else out  # of a line
    for tap in range(taps):  # 1.8 times as fast as all at once
        out[:, :, tap // s.kw, tap % s.kw] = total[:, tap].swapaxes(1, 2).reshape(-1, s.c)
    return True


def output_sums(s):
    """What conv_taps takes after its arrays of numbers: tables, steps and sizes, for the output."""
    taps = s.kh * s.kw
    over, down, x_down = _taps_of_places(s.ho, s.kh, s.kw, s.sh, s.ph, s.dh, 1, s.h)
    beside, across, x_across = _taps_of_places(s.wo, s.kw, 1, s.sw, s.pw, s.dw, 1, s.w)
    steps = np.array([s.o * s.c * taps, s.c * taps, taps, down, across, x_down, x_across])
    return over, beside, steps, s.ho * s.groups, s.groups, s.c, s.o, s.w, s.n, s.wo


def _input_sums(s):
    """The same for the input's gradient: row y was read by tap k of the output's row
    (y + padding - k * dilation) / stride.
    """
    taps = s.kh * s.kw
    over, down, g_down = _taps_of_places(s.h, s.kh, s.kw, 1, -s.ph, -s.dh, s.sh, s.ho)
    beside, across, g_across = _taps_of_places(s.w, s.kw, 1, 1, -s.pw, -s.dw, s.sw, s.wo)
    steps = np.array([s.o * s.c * taps, taps, s.c * taps, down, across, g_down, g_across])
    return over, beside, steps, s.h * s.groups, s.groups, s.o, s.c, s.wo, s.n, s.w


def weight_sums(s):
    """What conv_weight_gradient takes after its arrays of numbers."""
    over = _places_of_taps(s.kh, s.h, s.ho, s.sh, s.ph, s.dh)
    beside = _places_of_taps(s.kw, s.w, s.wo, s.sw, s.pw, s.dw)
    return (over, beside, -(-s.o // OUTPUTS) * s.groups, s.groups, s.c, s.o, s.w, s.n, s.ho, s.wo,
            s.kh, s.kw, s.sh, s.sw)


def _build(name, s, like, rows):
    """The kernel, or None."""
    if s.depthwise:
        return _DEPTHWISE[name].build(like)
    if not _serves(s, like, rows):
        return None
    return (_WEIGHT if name == "weight_gradient" else _TAPS).build(like)


def _depthwise_sizes(s, rows):
    """What the kernels of depthwise.cu take after arrays; `rows`: of what is computed."""
    return (rows * s.groups, s.h, s.groups, s.w, s.n, s.ho, s.wo, s.kh, s.kw, s.sh, s.sw, s.ph,
            s.pw)
