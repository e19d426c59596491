"""Copies of a tensor with its elements in other places: repeat, flip, roll, pad."""

from operator import index

import numpy as np

from ..device import as_array
from ..tensor import record
from .base import method, normal_dim


def _dims(dims, ndim):
    """The dims counted from the front, from an int, a tuple or a list."""
    return [normal_dim(d, ndim) for d in (dims if isinstance(dims, (tuple, list)) else (dims,))]


@method()
def repeat(x, *repeats):
    """x laid side by side `repeats` times along each dim (numbers or a tuple); new dims in front.

    Raises ValueError for fewer numbers than dims, and for negative ones.
    """
    repeats = repeats[0] if len(repeats) == 1 and isinstance(repeats[0], (tuple, list)) else repeats
    repeats, shape = [index(n) for n in repeats], x.array.shape
    if len(repeats) < len(shape) or min(repeats, default=0) < 0:
        raise ValueError(f"repeat: {tuple(repeats)} for shape {shape}: a number >= 0 for each dim")
    sizes = (1,) * (len(repeats) - len(shape)) + shape
    pairs = [n for pair in zip(repeats, sizes) for n in pair]

    def backward(g):
        return (g.reshape(pairs).sum(axis=tuple(range(0, len(pairs), 2))).reshape(shape),)
    return record(np.tile(x.array, repeats), (x,), backward)


@method()
def flip(x, *dims):
    """x with the order along `dims` (numbers or a tuple) reversed: a copy, as in PyTorch.

    Raises ValueError for a dim named twice.
    """
    axes = _dims(dims[0] if len(dims) == 1 else dims, x.array.ndim)
    if len({*axes}) < len(axes):
        raise ValueError(f"flip: dims {dims} of shape {x.shape} name one dim twice")
    axes = tuple(axes) if x.array.ndim else ()
    return record(np.flip(x.array, axes).copy(), (x,), lambda g: (np.flip(g, axes),))


@method()
def roll(x, shifts, dims=None):
    """x with its elements moved by `shifts` along `dims` (ints or tuples), round the end.

    Over the flattened x if dims is None. Raises ValueError unless there are as many shifts as dims.
    """
    shifts = tuple(shifts) if isinstance(shifts, (tuple, list)) else (shifts,)
    axes = None if dims is None else tuple(_dims(dims, x.array.ndim))
    if len(shifts) != (1 if axes is None else len(axes)) or not shifts:
        raise ValueError(f"roll: shifts {shifts} and dims {dims}: one shift for each dim")
    back = tuple(-n for n in shifts)
    return record(np.roll(x.array, shifts, axes), (x,), lambda g: (np.roll(g, back, axes),))


def pad(input, pad, mode="constant", value=None):
    """input with `value` (0 if None) around it: pad = (left, right, top, bottom, ...), last dim
    first.

    Negative numbers cut off. `mode` is "constant". Raises ValueError `pad: 4 - 3 - 2 < 0 in dim
    1 of shape (3, 4)` where more is cut off than there is, for another mode, and for an odd or
    too large number of numbers.
    """
    if mode != "constant":
        raise ValueError(f"pad: mode {mode!r}: only 'constant' is known")
    a, sides = as_array(input.array), [index(n) for n in pad]
    if len(sides) % 2 or len(sides) > 2 * a.ndim:
        raise ValueError(f"pad: {tuple(sides)} for shape {a.shape}: two numbers for each dim, at "
                         f"most {2 * a.ndim}")
    shape, inner, outer = list(a.shape), [slice(None)] * a.ndim, [slice(None)] * a.ndim
    for d, before, after in zip(range(a.ndim - 1, -1, -1), sides[::2], sides[1::2]):
        size, cut = shape[d], (max(-before, 0), max(-after, 0))
        if sum(cut) > size:
            raise ValueError(f"pad: {size} - {cut[0]} - {cut[1]} < 0 in dim {d} of shape {a.shape}")
        shape[d] = size + before + after
        inner[d] = slice(cut[0], size - cut[1])
        outer[d] = slice(max(before, 0), shape[d] - max(after, 0))
    inner, outer = tuple(inner), tuple(outer)
    out = np.full_like(a, 0 if value is None else value, shape=shape, order="C")
    out[outer] = a[inner]
    whole, old = all(n >= 0 for n in sides), a.shape

    def backward(g):
        if whole:
            return (g[outer],)
        gx = np.zeros(old, g.dtype, like=g)
        gx[inner] = g[outer]
        return (gx,)
    return record(out, (input,), backward)
