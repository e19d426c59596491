"""Windows in the memory of GPUs, which ranks of one host map: CUDA's inter-process handles.

Beside `window.py`. Ranks may have a GPU each, if these reach each other's memory, or share one.
Programs of one-sided operations work in them as in the host's memory, and reduce on the GPU; the
marks of a fence stay in the host's memory, and a rank comes to one when its GPU has done what was
asked of it.
"""

import os

import numpy as np

from ...device import import_cupy
from ..window import Fence, Window

HANDLE = 64  # bytes of a cudaIpcMemHandle


class DeviceWindow(Window):
    """segments[r]: uint8 array over the GPU's memory of rank r, as this rank maps it.

    Made by all ranks of `comm` together. Raises RuntimeError, on the ranks that it happens to, for
    a GPU that cannot reach another's memory.
    """

    def __init__(self, comm, nbytes):
        cupy = import_cupy()
        runtime = cupy.cuda.runtime
        # Memory of its own, not of CuPy's pool: a handle stands for a whole allocation.
        own = cupy.cuda.Memory(nbytes)
        here = np.zeros(16 + HANDLE, np.uint8)
        here[:16] = np.array([os.getpid(), own.ptr], np.int64).view(np.uint8)
        here[16:] = np.frombuffer(runtime.ipcGetMemHandle(own.ptr), np.uint8)
        self._opened, segments = [], []
        for rank, row in enumerate(comm.all_gather(here)):
            pid, address = (int(n) for n in row[:16].view(np.int64))
            if rank == comm.rank:
                memory = own
            else:
                if pid != os.getpid():  # else the other rank is a thread
                    address = self._open(runtime, row[16:].tobytes(), rank)
                memory = cupy.cuda.UnownedMemory(address, nbytes, self)
            segments.append(cupy.ndarray(nbytes, np.uint8, cupy.cuda.MemoryPointer(memory, 0)))
        self._runtime = runtime
        super().__init__(segments, comm.rank)

    def _open(self, runtime, handle, rank):
        try:
            self._opened.append(runtime.ipcOpenMemHandle(handle))
        except runtime.CUDARuntimeError as error:
            raise RuntimeError(f"the memory of rank {rank}'s GPU cannot be mapped: {error}"
                               ) from None
        return self._opened[-1]

    def close(self):
        """Map the others' memory no longer. Nobody may use it any more."""
        opened, self._opened = self._opened, []
        for address in opened:
            self._runtime.ipcCloseMemHandle(address)


class DeviceFence(Fence):
    """A fence that a rank comes to when its GPU is done."""

    def arrive(self):
        import_cupy().cuda.get_current_stream().synchronize()
        super().arrive()
