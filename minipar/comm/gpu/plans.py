"""How a communicator serves arrays that lie on GPUs: staged, mapped, or by NCCL."""

from functools import partial

from ...device import on_gpu
from ..mpi_plan import LIBRARY
from ..window import Arena
from .nccl import NCCL, NcclPlan, connect
from .staging import stage
from .window import DeviceFence, DeviceWindow


class DevicePlans:
    """The part of a communicator that is about GPUs, on top of its plans."""

    _nccl = None  # connected for the first plan that asks for it
    _device_arena = None  # made for the first program that maps memory of GPUs

    def _stages(self, algorithm):
        """Whether a collective of arrays on GPUs goes by way of the host's memory.

        "auto" does: whether mapped memory is faster, nobody has measured yet. So does what a thread
        advances: it would reduce on a stream of its own.
        """
        if algorithm == NCCL.name:
            return False
        mapped = algorithm == "shared" or getattr(algorithm, "one_sided", False)
        return self.progress == "thread" or not (mapped or self.transport.takes_device_memory)

    def _by_nccl(self, kind, arrays, op, root):
        array = next(iter(arrays.values()))
        if not on_gpu(array):
            raise ValueError(f"nccl: {kind} of arrays on GPUs, not on the CPU")
        self._nccl = self._nccl or connect(self)
        self._held.append(NcclPlan(self._nccl, kind, array, self.engine, op, root))
        return self._held[-1]

    def _staged(self, kind, arrays, slot, kept, *options):
        """A plan for arrays of a GPU, by way of the host's memory.

        kept: whether it is run many times, and has tags of its own.
        """
        algorithm = options[1]

        def compile_(hosts, number):
            plan = (self._compile(kind, hosts, slot, *options) if number == 0 else
                    self.plan(kind, hosts, *options))
            if not plan.reused:
                self._held.remove(plan)  # it is the staged plan's
            return plan
        plan = stage(kind, arrays, self.engine, compile_, kept, algorithm == LIBRARY.name)
        self._held.append(plan)
        return plan

    def _mapped(self):
        """(Arena, Fence) of programs that work in each other's GPU memory."""
        self._device_arena = self._device_arena or Arena(partial(DeviceWindow, self))
        return self._device_arena, DeviceFence

    def _close_device(self):
        if self._device_arena is not None:
            self._device_arena.close()
