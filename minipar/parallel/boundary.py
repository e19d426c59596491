"""What passes between two stages of a pipeline: outputs one way, their gradients the other.

No pickling. What one sample is (shape and dtype) is told once, by the first message; from then on
both ends know how long every message is.
"""

import numpy as np

from .. import dtypes
from ..device import CPU, put

_HEADER = 16  # integers: number of dims, dims of one sample, the dtype's number
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")


class Boundary:
    """The place between stage - 1 and `stage`, as one of the two ranks beside it sees it.

    comm: the ranks of the pipeline; peer: the other one of the two. microbatches: of a step.
    varying: whether samples have another shape in every message, which is then told each time.
    device: where what arrives is to be; it travels by way of the host's memory.
    """

    def __init__(self, comm, peer, stage, microbatches, varying=False, device=CPU):
        self._comm, self._peer, self._varying = comm, peer, varying
        self._tag, self._count = stage * (2 * microbatches + 2), microbatches
        self._stage, self._form, self._device = stage, None, device
        self._telling = None  # the form, on its way

    def __repr__(self):
        return f"<before stage {self._stage}>"

    def send(self, array, microbatch):
        """Start to send stage - 1's output; returns the Work. Keep the array until it is done.

        Raises ValueError for samples of another form than the first's, unless they are varying.
        """
        form = array.shape[1:], array.dtype
        if self._varying or self._form is None:
            if self._telling is not None:
                self._telling.wait()
            self._telling = self._comm.isend(_header(form), self._peer, self._tag + microbatch)
            self._form = form
        elif form != self._form:
            raise ValueError(f"stage {self._stage - 1} sends samples of {form[1]}{form[0]} where "
                             f"it sent {self._form[1]}{self._form[0]} before: the pipeline has "
                             f"to be told that they are varying")
        return self._comm.isend(array, self._peer, self._tag + microbatch)

    def receive(self, samples, microbatch):
        """Post the receive of so many samples of stage's input; returns a function that waits for
        them and returns the array.

        The first one cannot be posted ahead: how long it is comes with it.
        """
        if self._form is None or self._varying:
            return lambda: self._post(samples, microbatch, True)()
        return self._post(samples, microbatch, False)

    def _post(self, samples, microbatch, told):
        tag = self._tag + microbatch
        if told and (self._form is None or self._varying):
            header = np.empty(_HEADER, np.int64)
            self._comm.recv(header, self._peer, tag)
            ndim, *dims = header[:-1].tolist()
            self._form = tuple(dims[:ndim]), dtypes.dtype(_DTYPES[header[-1]]).storage
        shape, dtype = self._form
        return self._arriving((samples, *shape), dtype, tag)

    def send_gradient(self, array, microbatch):
        """Start to send the gradient of stage's input; returns the Work."""
        return self._comm.isend(array, self._peer, self._tag + self._count + microbatch)

    def receive_gradient(self, shape, dtype, microbatch):
        """Post the receive of the gradient of stage - 1's output; as `receive`."""
        return self._arriving(shape, dtype, self._tag + self._count + microbatch)

    def _arriving(self, shape, dtype, tag):
        array = np.empty(shape, dtype)
        work = self._comm.irecv(array, self._peer, tag)

        def arrived():
            work.wait()
            return put(array, self._device)
        return arrived


def _header(form):
    shape, dtype = form
    if len(shape) > _HEADER - 2:
        raise ValueError(f"samples of {len(shape)} dims: at most {_HEADER - 2} pass a boundary")
    header = np.zeros(_HEADER, np.int64)
    header[:len(shape) + 1] = len(shape), *shape
    header[-1] = _DTYPES.index(dtypes.dtype(dtype).name)
    return header
