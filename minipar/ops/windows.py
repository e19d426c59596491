"""Windows that slide over an input: what convolution and pooling have in common."""

import numpy as np


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
