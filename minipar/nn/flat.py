"""Flat parameters: many parameters in one array, and their gradients in another like it.

An optimizer then updates, and data parallelism reduces, a few long arrays instead of many short
ones. Parameters stay what they were: views. Whoever comes first lays them out (`flatten`), and
whoever comes later finds them so.
"""

import numpy as np

from ..device import assign, on_gpu

ALIGN = 64  # bytes: a cache line, and the widest vector


class FlatParameters:
    """Parameters of one dtype and device, one after another.

    data, grad: 1-D arrays of equal length; parameter i has elements [starts[i], stops[i]).
    Each start is aligned; the few elements in between are 0 in both and stay 0.
    used:       one element per parameter, in front of `grad` in the same memory (`reduced`), so
                that which parameters had a gradient is reduced together with the gradients.
    sinks:      of the parameters, one each.
    parts:      the length is a multiple of so many aligned parts.
    """

    def __init__(self, parameters, parts=1):
        self.parameters = list(parameters)
        dtype = self.parameters[0].array.dtype
        step = ALIGN // dtype.itemsize

        def up(n):
            return -(-n // step) * step
        self.starts, self.stops, at = [], [], 0
        for p in self.parameters:
            self.starts.append(at)
            self.stops.append(at + p.numel())
            at = up(at + p.numel())
        at = -(-at // (step * parts)) * step * parts
        head = up(len(self.parameters))
        self.data = aligned_zeros(at, dtype, self.parameters[0].array)
        self.reduced = aligned_zeros(head + at, dtype, self.parameters[0].array)
        self.used, self.grad = self.reduced[:len(self.parameters)], self.reduced[head:]
        self.head = head
        self.index = {}
        for i, p in enumerate(self.parameters):
            self._adopt(i, p)
        self.sinks = [p.sink for p in self.parameters]

    def _adopt(self, i, p):
        """Move one parameter and its gradient here."""
        part = slice(self.starts[i], self.stops[i])
        view = self.data[part].reshape(p.shape)
        assign(view, p.array)
        p.array = view
        p.storage.owner = self
        p.sink.place(self.grad[part].reshape(p.shape))
        self.index[id(p)] = i

    def move_gradients(self, reduced):
        """Have the gradients and used flags in `reduced`, 1-D and as long as the one there is."""
        assign(reduced, self.reduced)
        self.reduced = reduced
        self.used, self.grad = reduced[:len(self.parameters)], reduced[self.head:]
        for i, p in enumerate(self.parameters):
            p.sink.place(self.grad[self.starts[i]:self.stops[i]].reshape(p.shape))

    def range_of(self, parameter):
        """(start, stop) of a parameter in `data` and `grad`."""
        i = self.index[id(parameter)]
        return self.starts[i], self.stops[i]

    def view(self, parameter, array):
        """What belongs to a parameter in an array like `data`, in the parameter's shape."""
        start, stop = self.range_of(parameter)
        return array[start:stop].reshape(parameter.shape)


def aligned_zeros(n, dtype, like=None):
    """n zeros, the first of them at an aligned address; where the array `like` is, if given."""
    if like is not None and on_gpu(like):  # which aligns all it has to wider boundaries
        return np.zeros(n, dtype, like=like)
    raw = np.zeros(n * dtype.itemsize + ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    return raw[start:start + n * dtype.itemsize].view(dtype)


def flatten(parameters):
    """The FlatParameters that hold `parameters`, made (one per dtype and device) for those in none
    yet.

    Raises ValueError for two parameters on one memory: only one could move. (A tied parameter is
    one Parameter under two names.)
    """
    parameters = list(parameters)
    loose, storages = {}, set()
    for p in parameters:
        flat = p.storage.owner
        if not isinstance(flat, FlatParameters):
            if p.storage in storages:
                raise ValueError(f"a parameter of shape {p.shape} shares its memory with another")
            storages.add(p.storage)
            p.materialize()
            loose.setdefault((p.array.dtype, p.device), []).append(p)
        elif id(p) not in flat.index:
            raise ValueError(f"a parameter of shape {p.shape} shares its memory with another")
    for group in loose.values():
        FlatParameters(group)
    return list({id(p.storage.owner): p.storage.owner for p in parameters}.values())
