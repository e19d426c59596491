"""Windows that slide over an input: what convolution and pooling have in common."""

import math

import numpy as np

from ..device import on_gpu
from .batch_norm import memory_order


def pair(name, value, least):
    """(vertical, horizontal) from an int or a pair. Raises ValueError if one is below `least`."""
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2 or any(not isinstance(v, (int, np.integer)) or v < least for v in both):
        raise ValueError(f"{name} is an int >= {least} or a pair of them, not {value!r}")
    return both


def single(name, value, least):
    """An int, given alone or in a list of one. Raises ValueError if it is below `least`."""
    one = value[0] if isinstance(value, (tuple, list)) and len(value) == 1 else value
    if not isinstance(one, (int, np.integer)) or one < least:
        raise ValueError(f"{name} is an int >= {least}, not {value!r}")
    return one


def output_size(name, size, kernel, stride, before, after, ceil_mode=False):
    """How many windows fit along one axis. Raises ValueError with the sum if none does.

    before, after: elements of padding. ceil_mode: also the window that ends beyond the padding,
    unless it would start there.
    """
    room = size + before + after - kernel
    out = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (out - 1) * stride >= size + before:
        out -= 1
    if out < 1:
        raise ValueError(f"{name}: the kernel is larger than the padded input: "
                         f"{kernel} > {size} + {before} + {after}")
    return out


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


class Images:
    """Windows over images (N, C, H, W) as they lie in memory, for the kernels of pool.cu.

    There they are (outer, H, middle, W, inner): (H, C, W, N), what convolutions make, has
    middle = C and inner = N.
    """

    def __init__(self, x, out, kernel, stride, padding):
        """x: an array (N, C, H, W); out: (Ho, Wo); the others: pairs of ints."""
        order = memory_order(x)
        for axis, other, after in ((2, 3, 0), (3, 2, 1)):
            if x.shape[axis] == 1:  # it may stand anywhere: beside the other
                order.remove(axis)
                order.insert(order.index(other) + after, axis)
        rows, columns = order.index(2), order.index(3)
        outer, middle, inner = (math.prod(x.shape[axis] for axis in axes) for axes in (
            order[:rows], order[rows + 1:columns], order[columns + 1:]))
        served = rows < columns and x.size and math.prod(kernel) <= 256
        # On a CPU lanes run along `inner`: where that is short, NumPy's slices are faster.
        self.fit = served and (inner >= 8 or on_gpu(x))
        self.planes = served and middle == inner == 1 and not on_gpu(x)  # (N, C, H, W)
        self._order, self._inverse = order, sorted(range(4), key=order.__getitem__)
        self._channels, self._count = x.shape[:2], outer * middle
        self._sizes = (x.shape[2], middle, x.shape[3], inner, *out, *kernel, *stride, *padding)

    def lay(self, a):
        """`a` (N, C, ., .) in the memory order, contiguous."""
        return np.ascontiguousarray(a.transpose(self._order), like=a)

    def empty(self, size, dtype, like):
        """A new array of images of (height, width) `size`, in the memory order, beside `like`."""
        shape = *self._channels, *size
        return np.empty([shape[axis] for axis in self._order], dtype, like=like)

    def run(self, kernel, *arrays, rows):
        """Run a kernel over images of so many rows."""
        kernel(*arrays, self._count * rows, *self._sizes)

    def view(self, a):
        """(N, C, ., .) of an array in the memory order."""
        return a.transpose(self._inverse)
