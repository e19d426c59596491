"""Two-dimensional convolution as matrix products, one a row of the output.

Inside, images are laid out (H, C, W, N): rows outermost, samples innermost. Then the kh rows of the
input under one row of the output are one contiguous matrix of kh * C rows, so vertical neighbours
cost no copy; horizontal ones are `kw` shifted copies, whose runs are long because a shift by one
column is a shift by N elements. This is MEC (Cho & Brand 2017, "MEC: memory-efficient convolution
for deep neural network"): its lowered matrix is kh times as small as that of im2col (Chellapilla,
Puri & Simard 2006), and each product finds its operands in the cache.

The result is an (N, O, H, W) view of that layout, which elementwise operations and pooling keep:
between two convolutions nothing is transposed.
"""

import numpy as np

from ..sinks import Deferred
from ..tensor import record
from .softmax import ones


def pair(name, value, least):
    """(vertical, horizontal) from an int or a pair. Raises ValueError if one is below `least`."""
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2 or any(not isinstance(v, (int, np.integer)) or v < least for v in both):
        raise ValueError(f"{name} is an int >= {least} or a pair of them, not {value!r}")
    return both


def output_size(name, size, kernel, stride, before, after):
    """How many windows fit along one axis. Raises ValueError with the sum if none does."""
    if kernel > size + before + after:
        raise ValueError(f"{name}: the kernel is larger than the padded input: "
                         f"{kernel} > {size} + {before} + {after}")
    return (size + before + after - kernel) // stride + 1


def inside(tap, size, out, stride, pad):
    """Slices of the output and of the input: where `tap` of a window reads no padding.

    Output position i reads input position i * stride + tap - pad.
    """
    low = max(0, -((tap - pad) // stride))
    high = min(out, (size - 1 + pad - tap) // stride + 1)
    if high <= low:
        return slice(0, 0), slice(0, 0)
    start = low * stride + tap - pad
    return slice(low, high), slice(start, start + (high - low - 1) * stride + 1, stride)


def conv2d(input, weight, bias=None, stride=1, padding=0):
    """Cross-correlation: out[n, o, i, j] = bias[o] + the sum over c, k, l of
    weight[o, c, k, l] * padded[n, c, i * stride + k, j * stride + l].

    input (N, C, H, W), weight (O, C, kh, kw), bias (O,) -> (N, O, Ho, Wo), all of one floating
    type. stride, padding: an int or a (vertical, horizontal) pair; padding may be "valid" (none)
    or "same" (Ho, Wo = H, W; stride 1 only). N may be 0.
    Raises ValueError, with the sizes, if they do not match or the kernel does not fit; TypeError
    if the types differ.
    """
    x, w = input.array, weight.array
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(f"conv2d: input {x.shape} and weight {w.shape}: expected (N, C, H, W) "
                         f"and (O, C, kh, kw)")
    if x.shape[1] != w.shape[1]:
        raise ValueError(f"conv2d: input {x.shape} and weight {w.shape}: "
                         f"{x.shape[1]} channels != {w.shape[1]}")
    if bias is not None and bias.shape != w.shape[:1]:
        raise ValueError(f"conv2d: bias {bias.shape} and weight {w.shape} (O, C, kh, kw)")
    if not input.dtype.is_floating_point or any(
            t is not None and t.dtype is not input.dtype for t in (weight, bias)):
        types = ", ".join(str(t.dtype) for t in (input, weight, bias) if t is not None)
        raise TypeError(f"conv2d: one floating type is needed, not {types}")
    shape = _Shape(x.shape, w.shape, pair("conv2d: stride", stride, 1), padding)
    # A later layer's input has this layout already; for the first one this copies.
    rows = np.ascontiguousarray(x.transpose(2, 1, 3, 0))
    out = _forward(rows, w, None if bias is None else bias.array, shape)
    need_x, need_w = input.requires_grad, weight.requires_grad
    if not need_w:
        rows = None

    def backward(g):
        g = np.ascontiguousarray(g.transpose(2, 1, 3, 0))
        gx = gw = gb = None
        if need_x:
            gx = _input_gradient(g, weight.array, shape).transpose(3, 1, 0, 2)
        if need_w:
            gw = Deferred(w, write=lambda out: _weight_gradient(g, rows, shape, out),
                          postponable=True)
        if bias is not None and bias.requires_grad:
            by_row = g.reshape(shape.ho * shape.o, shape.columns) @ ones(shape.columns, g.dtype)
            gb = by_row.reshape(shape.ho, shape.o).sum(0)
        return gx, gw, gb
    saved = ([weight] if need_x else []) + ([input] if need_w else [])
    return record(out.transpose(3, 1, 0, 2), (input, weight, bias), backward, saved)


class _Shape:
    """The sizes of one convolution; `columns` is Wo * N, the width of every product."""

    def __init__(self, x, w, stride, padding):
        self.n, self.c, self.h, self.w = x
        self.o, _, self.kh, self.kw = w
        self.sh, self.sw = stride
        if padding == "same":
            if stride != (1, 1):
                raise ValueError(f"conv2d: padding='same' needs stride 1, not {stride}")
            before = (self.kh - 1) // 2, (self.kw - 1) // 2
            after = self.kh // 2, self.kw // 2  # an even kernel pads one more here, as in PyTorch
        elif padding == "valid":
            before = after = 0, 0
        else:
            before = after = pair("conv2d: padding", padding, 0)
        self.ph, self.pw = before
        self.ho = output_size("conv2d", self.h, self.kh, self.sh, before[0], after[0])
        self.wo = output_size("conv2d", self.w, self.kw, self.sw, before[1], after[1])
        self.columns = self.wo * self.n

    def lower(self, rows):
        """(H, C, W, N) -> (H, kw, C, Wo, N): for each tap of a row, the input it reads."""
        if self.kw == self.sw == 1 and self.wo == self.w:
            return rows[:, None]
        lowered = np.empty((self.h, self.kw, self.c, self.wo, self.n), rows.dtype)
        for tap in range(self.kw):
            to, source = inside(tap, self.w, self.wo, self.sw, self.pw)
            lowered[:, tap, :, :to.start] = 0
            lowered[:, tap, :, to] = rows[:, :, source]
            lowered[:, tap, :, to.stop:] = 0
        return lowered

    def under(self, lowered, i):
        """The matrix (taps, Wo * N) under output row i, and the slice of the kh*kw*C taps it has.

        A slice, since rows of padding are left out.
        """
        top = i * self.sh - self.ph
        first, last = max(0, -top), min(self.kh, self.h - top)
        last = max(first, last)
        taps = self.kw * self.c
        matrix = lowered[top + first:top + last].reshape(taps * (last - first), self.columns)
        return matrix, slice(taps * first, taps * last)


def _forward(rows, w, bias, shape):
    """rows (H, C, W, N) -> (Ho, O, Wo, N)."""
    lowered = shape.lower(rows)
    weights = w.transpose(0, 2, 3, 1).reshape(shape.o, -1)  # taps in the order (kh, kw, C)
    out = np.empty((shape.ho, shape.o, shape.columns), rows.dtype)
    if bias is not None:
        bias = bias[:, None]
    for i in range(shape.ho):
        matrix, taps = shape.under(lowered, i)
        np.matmul(weights[:, taps], matrix, out=out[i])
        if bias is not None:
            out[i] += bias  # while the row is in the cache
    return out.reshape(shape.ho, shape.o, shape.wo, shape.n)


def _weight_gradient(g, rows, shape, out):
    """out (O, C, kh, kw) = the gradient, from g (Ho, O, Wo, N) and rows (H, C, W, N).

    Lowers the rows again: that takes a tenth of the time of the products, and kw times the
    input need not be kept from the forward to here.
    """
    lowered = shape.lower(rows)
    total = np.zeros((shape.kh * shape.kw * shape.c, shape.o), g.dtype)
    for i in range(shape.ho):
        matrix, taps = shape.under(lowered, i)
        # In this order, not transposed: OpenBLAS packs it 1.4 times as fast.
        total[taps] += np.matmul(matrix, g[i].reshape(shape.o, shape.columns).T)
    out[...] = total.reshape(shape.kh, shape.kw, shape.c, shape.o).transpose(3, 2, 0, 1)


def _input_gradient(g, w, shape):
    """The gradient (H, C, W, N), from g (Ho, O, Wo, N).

    Input row i lies under some consecutive output rows, at every sh-th tap, the later the row the
    earlier the tap. So the taps are reversed and dealt into sh phases: then the output rows are
    one matrix (rows * O, Wo * N) and their weights one slice of a phase, without a copy.
    """
    reverse = w[:, :, ::-1].transpose(3, 1, 2, 0)  # (kw, C, kh, O)
    phases = [np.ascontiguousarray(reverse[:, :, r::shape.sh]).reshape(shape.kw * shape.c, -1)
              for r in range(min(shape.sh, shape.kh))]
    spots = [inside(tap, shape.w, shape.wo, shape.sw, shape.pw) for tap in range(shape.kw)]
    gx = np.zeros((shape.h, shape.c, shape.w, shape.n), g.dtype)
    taps = np.empty((shape.kw, shape.c, shape.wo, shape.n), g.dtype)
    for i in range(shape.h):
        bottom = i + shape.ph  # the output row with this as its first row would be bottom / sh
        first = max(0, -((shape.kh - 1 - bottom) // shape.sh))
        last = min(shape.ho, bottom // shape.sh + 1)
        if last <= first:
            continue  # the stride steps over this row
        skipped, phase = divmod(shape.kh - 1 - (bottom - first * shape.sh), shape.sh)
        weights = phases[phase][:, skipped * shape.o:(skipped + last - first) * shape.o]
        above = g[first:last].reshape((last - first) * shape.o, shape.columns)
        np.matmul(weights, above, out=taps.reshape(shape.kw * shape.c, shape.columns))
        for tap, (to, source) in zip(taps, spots):
            gx[i, :, source] += tap[:, to]
    return gx
