"""Gradient sinks: where the gradient of a leaf goes, and the gradients that write themselves.

Beside `tensor.py`, below it: knows arrays, no tensors and no ranks. Every leaf that requires a
gradient has one sink. Behind it lies a plain array, or a slice of a larger one (`buffer=`): a
flat bucket of data parallelism, a shared window, a shard. The first write after `reset` assigns
and later ones add, so no buffer is ever filled with zeros first; `.grad` is None in between.
"""

from .device import assign, empty, place_of


class Deferred:
    """A gradient that its node can write but has not written yet.

    write(out): out[...] = gradient.     add(out): out += gradient.     At least one is given.
    Two uses. The weight gradient of a matrix product or convolution gives `write`, is postponable
    (zero-bubble pipelines run it later) and lands in its sink without a temporary. The gradient
    of a slice or of a table look-up gives `add`, and touches only its own region.
    """

    __slots__ = ("shape", "dtype", "device", "_write", "_add", "postponable")

    def __init__(self, like, *, write=None, add=None, postponable=False):
        self.shape, self.dtype, self.device = like.shape, like.dtype, like.device
        self._write, self._add, self.postponable = write, add, postponable

    def write(self, out):
        if self._write is not None:
            self._write(out)
        else:
            out.fill(0)
            self._add(out)

    def add(self, out):
        if self._add is not None:
            self._add(out)
        else:
            out += self.array()

    def array(self):
        """The gradient as a new array."""
        out = empty(self.shape, self.dtype, self.device)
        self.write(out)
        return out


class Sink:
    """The gradient of one leaf: `shape`, `dtype`, an optional fixed `buffer`, and a fresh flag.

    device: what `.device` of an array says, of the leaf's own.
    """

    __slots__ = ("shape", "dtype", "device", "buffer", "fresh", "hooks", "filters",
                 "provide")

    def __init__(self, shape, dtype, buffer=None, device="cpu"):
        self.shape, self.dtype, self.device = shape, dtype, device
        self.buffer = buffer  # None until the first gradient, unless someone places it
        self.fresh = True  # no gradient since the last reset
        self.hooks = {}  # of callables without arguments, for when the gradient is complete
        self.filters = None  # of hooks that each backward's gradient passes through (`hooks.py`)
        self.provide = None  # called when there is no buffer, to place the sink in one

    def out_buffer(self):
        """The array to assign the gradient to (`matmul(out=...)`), or None if it has one already.

        Whoever takes it must write all of it, then call `written()`.
        """
        if not self.fresh:
            return None
        if self.buffer is None:
            if self.provide is None:
                self.buffer = empty(self.shape, self.dtype, self.device)
            else:
                self.provide()
        return self.buffer

    def written(self):
        self.fresh = False

    def deposit(self, gradient):
        """Assign the gradient if it is the first since the reset, else add it."""
        if gradient.shape != self.shape:
            raise RuntimeError(f"a gradient of shape {gradient.shape} for a leaf of {self.shape}")
        out = self.out_buffer()
        if gradient.__class__ is Deferred:
            gradient.add(self.buffer) if out is None else gradient.write(out)
        elif out is None:
            self.buffer += gradient
        else:
            out[...] = gradient
        self.fresh = False

    def filtered(self, gradient, pending):
        """What the filters make of the sum over a leaf's uses in one backward, after the last one.

        pending: {sink: its uses to come} of that backward, in which the sum is kept until then.
        """
        key = "sum", self
        if gradient is not None:
            gradient = gradient.array() if gradient.__class__ is Deferred else gradient
            pending[key] = pending[key] + gradient if key in pending else gradient
        if pending[self] > 1 or key not in pending:
            return None
        total = pending.pop(key)
        for function in tuple(self.filters.values()):
            total = function(total)
        return total

    def reset(self):
        """Forget the gradient; the buffer stays and is assigned to next time."""
        self.fresh = True

    def place(self, buffer):
        """Move the sink into `buffer` (same shape and dtype), with the gradient it holds."""
        if buffer.shape != self.shape or buffer.dtype != self.dtype:
            raise ValueError(f"sink of {self.shape} {self.dtype} placed in {buffer.shape} "
                             f"{buffer.dtype}")
        if not self.fresh:
            assign(buffer, self.buffer)
        self.buffer, self.device = buffer, buffer.device

    def convert(self, dtype, device=None):
        """Change to another NumPy dtype and `device`, with the gradient it holds."""
        old, self.dtype = self.buffer, dtype
        self.device = self.device if device is None else place_of(device)
        self.buffer = None
        if not self.fresh:
            self.buffer = empty(self.shape, dtype, self.device)
            assign(self.buffer, old)
