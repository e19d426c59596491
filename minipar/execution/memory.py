"""The emulated GPU's memory: copies of a launch's arrays, apart from each other."""

import ctypes

import numpy as np


def _extent(array, whole):
    """(first byte, byte after the last) of an array, or of all memory that it is a view of."""
    if whole and isinstance(array.base, np.ndarray):
        return np.lib.array_utils.byte_bounds(array.base)
    return array.ctypes.data, array.ctypes.data + array.nbytes


class Memory:
    """Copies of the arrays of one launch; arrays that overlap stay one piece.

    values:  the arguments, arrays being views of the copies.
    regions: (names, address, bytes, an element's bytes, whether it is constant) of every piece.
    """

    def __init__(self, parameters, arguments):
        whole = any(p.name == "strides" for p in parameters)
        extents = sorted((*_extent(a, whole), i) for i, (p, a) in enumerate(
            zip(parameters, arguments)) if p.pointer)
        pieces = []
        for start, end, i in extents:
            if pieces and end > start and start < pieces[-1][1]:
                pieces[-1][1] = max(pieces[-1][1], end)
                pieces[-1][2].append(i)
            else:
                pieces.append([start, end, [i]])
        self.values, self.regions, self._pieces = list(arguments), [], []
        for start, end, members in pieces:
            size = end - start
            gap = max(4096, size)  # what steps over an array's end shall not meet another
            buffer = np.empty(size + 2 * gap + 256, np.uint8)
            begin = gap + -(buffer.ctypes.data + gap) % 256
            copy = buffer[begin:begin + size]
            copy[...] = original = _bytes_at(start, size)
            for i in members:
                a = arguments[i]
                at = a.ctypes.data - start
                self.values[i] = copy[at:at + a.nbytes].view(a.dtype)
            constant = all(parameters[i].const for i in members)
            self.regions.append((" = ".join(parameters[i].name for i in members).encode(),
                                 copy.ctypes.data, size,
                                 min(arguments[i].itemsize for i in members), int(constant)))
            self._pieces.append((constant, original, copy))

    def copy_back(self):
        """Write what the launch has changed to where the arrays are."""
        for constant, original, copy in self._pieces:
            if not constant:
                changed = original != copy
                original[changed] = copy[changed]


def _bytes_at(address, size):
    """Memory as an array of bytes; a view."""
    if size == 0:
        return np.empty(0, np.uint8)
    return np.frombuffer((ctypes.c_ubyte * size).from_address(address), np.uint8)
