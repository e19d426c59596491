"""Communication hooks: a function of the user's takes the place of a bucket's all-reduce.

    hook(state, bucket) -> Future

`state` is what was registered with it, `bucket` a GradBucket with this rank's gradients, and the
future's value what backward leaves in their place, an array like `bucket.buffer()`. Shape and
names are PyTorch's (`DistributedDataParallel.register_comm_hook`). Hooks are called in the order
of the buckets while backward computes; their futures are waited for in that order at its end, and
callbacks run then, so all that hooks start comes in the same order on every rank.
"""

import time

import numpy as np

from ...futures import Future
from ...tensor import Tensor


class GradBucket:
    """A stretch of this rank's flat gradient, complete and not yet reduced.

    comm:    a communicator of the same ranks for the hooks alone: nothing else that a rank does
             comes between their collectives.
    divisor: what a sum over the ranks is divided by: their number, or 1 if the gradient that is
             asked for is the sum.
    last:    a function: whether this bucket is the last one to start.
    """

    def __init__(self, comm, divisor, index, last, flat, first, after):
        self.comm, self.divisor, self._index, self._last = comm, divisor, index, last
        begin = flat.starts[first]
        end = flat.starts[after] if after < len(flat.starts) else len(flat.grad)
        self._buffer = Tensor(flat.grad[begin:end])
        self._parameters = flat.parameters[first:after]
        self._ranges = [(flat.starts[i] - begin, flat.stops[i] - begin)
                        for i in range(first, after)]

    def buffer(self):
        """The gradients as one Tensor (n,), which may be changed: those of `parameters()`, one
        after another, with up to 63 bytes of zeros after each, so that each starts on a line of
        the cache. A parameter without a gradient has zeros."""
        return self._buffer

    def index(self):
        """Which bucket it is, in every step: 0 holds the last parameters, the highest the first."""
        return self._index

    def is_last(self):
        """Whether it is the last bucket of a backward."""
        return self._last()

    def parameters(self):
        """The parameters whose gradients the buffer holds."""
        return list(self._parameters)

    def gradients(self):
        """Their gradients: Tensors of their shapes, on the buffer's memory."""
        return [Tensor(part) for part in self.split(self._buffer.array)]

    def set_buffer(self, tensor):
        """Put other values, of the same shape and dtype, into the buffer."""
        self._take(tensor, "set_buffer was given")

    def _take(self, value, what):
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        array, mine = value.array if isinstance(value, Tensor) else value, self._buffer.array
        found = f"{getattr(array, 'dtype', type(array).__name__)} {getattr(array, 'shape', '')}"
        if found != f"{mine.dtype} {mine.shape}":
            raise TypeError(f"{what} {found.strip()} for bucket {self._index} of "
                            f"{mine.dtype} {mine.shape}")
        if array is not mine:
            mine[...] = array
        self.clear(mine)  # what a hook makes of the zeros in between is no gradient

    # Arrays like the buffer

    def clear(self, flat):
        """Write 0 where an array like the buffer has no parameter's element."""
        end = 0
        for start, stop in self._ranges:
            flat[end:start] = 0
            end = stop
        flat[end:] = 0

    def split(self, flat):
        """The parameters' parts of an array like the buffer, in their shapes: views."""
        return [flat[a:b].reshape(p.shape)
                for p, (a, b) in zip(self._parameters, self._ranges, strict=True)]

    def join(self, arrays):
        """A new array like the buffer, with zeros in between, from one of each parameter's shape.

        Of their dtype; None stands for zeros.
        """
        kind = next(a.dtype for a in arrays if a is not None)
        flat = np.zeros(self._buffer.array.shape, kind)
        for part, array in zip(self.split(flat), arrays, strict=True):
            part[...] = 0 if array is None else array
        return flat


class Hooked:
    """A bucket's communication by a hook, with the interface of the plan that it replaces.

    flags: the plan that reduces the used flags of the bucket's flat array, exactly; or None.
    """

    def __init__(self, state, hook, bucket, flags):
        self.state, self.bucket, self._hook, self._flags = state, bucket, hook, flags
        self._name = getattr(hook, "__name__", type(hook).__name__)
        self._future, self.began, self.ended = None, 0.0, 0.0

    def start(self):
        """Call the hook."""
        self.began = time.perf_counter()
        future = self._hook(self.state, self.bucket)
        if not isinstance(future, Future):
            raise TypeError(f"communication hook {self._name} returned a {type(future).__name__}, "
                            f"not a Future")
        self._future = future
        if self._flags is not None:
            self._flags.start()

    def wait(self):
        """Wait for what it returned, and put the value where the gradients are."""
        future, self._future = self._future, None
        if future is not None:
            self.bucket._take(future.wait(), f"communication hook {self._name} returned")
        if self._flags is not None:
            self._flags.wait()
        self.ended = time.perf_counter()
