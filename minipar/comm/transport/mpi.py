"""Ranks as MPI processes. The only file that imports mpi4py's MPI."""

import ctypes
import os
import time

import mpi4py
import numpy as np

mpi4py.rc.initialize = False  # world() first looks whether launcher and library fit together
mpi4py.rc.finalize = True
from mpi4py import MPI  # noqa: E402

from .base import Transport

_NOTHING = np.empty(0, np.uint8)


class Mpi(Transport):
    """An endpoint on an MPI communicator of its own, so that no tag meets the user's."""

    def __init__(self, comm, members=None, label=()):
        self.comm = comm.Dup()
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        upper = comm.Get_attr(MPI.TAG_UB)
        self.max_tag = min(2**24, 32767 if upper is None else upper) - 1
        self._goodbye = self.max_tag + 1
        self._gone, self.members, self.label = set(), members, label
        self.takes_device_memory = is_cuda_aware()

    def send_init(self, array, peer, tag):
        return self.comm.Send_init([as_bytes(array), MPI.BYTE], peer, tag)

    def recv_init(self, array, peer, tag):
        return self.comm.Recv_init([as_bytes(array), MPI.BYTE], peer, tag)

    def start(self, messages):
        MPI.Prequest.Startall(messages)

    def test(self, messages):
        return MPI.Request.Testall(messages)

    def free(self, messages):
        for message in messages:
            message.Free()

    def collective(self, kind, arrays, op, root, counts):
        from . import mpi_collectives
        return mpi_collectives.collective(self.comm, kind, arrays, op, root, counts)

    def refuses_threads(self):
        level = MPI.Query_thread()
        return None if level == MPI.THREAD_MULTIPLE else (
            f"MPI was initialised for fewer threads: level {level}, not MPI_THREAD_MULTIPLE")

    def blocking(self, kind, arrays, op, root):
        from . import mpi_collectives
        return mpi_collectives.blocking(self.comm, kind, arrays, op, root)

    def subgroup(self, members, label):
        group = self.comm.Get_group().Incl(members)
        comm = self.comm.Create_group(group, tag=0)
        transport = Mpi(comm, [self.in_world(m) for m in members], (*self.label, label))
        comm.Free()
        return transport

    def departed(self):
        status = MPI.Status()
        while self.comm.Iprobe(MPI.ANY_SOURCE, self._goodbye, status):
            self.comm.Recv([_NOTHING, MPI.BYTE], status.Get_source(), self._goodbye)
            self._gone.add(status.Get_source())
        return self._gone

    def leave(self):
        # MPI_Finalize would wait for slower ranks at full speed; this sleeps in between.
        farewell = [self.comm.Isend([_NOTHING, MPI.BYTE], peer, self._goodbye)
                    for peer in range(self.size) if peer != self.rank]
        while len(self.departed()) < self.size - 1:
            time.sleep(1e-3)
        MPI.Request.Waitall(farewell)

    def abort(self, status):
        MPI.COMM_WORLD.Abort(status)


def as_bytes(array):
    """The memory of a contiguous array, as MPI.BYTE."""
    return array.reshape(-1).view(np.uint8) if array.size else _NOTHING


def is_cuda_aware():
    """Whether the library sends from a GPU's memory: what MINIPAR_CUDA_AWARE says (0 or 1); else
    what MPIX_Query_cuda_support does, which Open MPI and MPICH have.
    """
    told = os.environ.get("MINIPAR_CUDA_AWARE")
    if told:
        return told != "0"
    try:
        return bool(ctypes.CDLL(MPI.__file__).MPIX_Query_cuda_support())
    except (OSError, AttributeError):
        return False  # a library that cannot be asked does not


def world():
    """The endpoint on MPI_COMM_WORLD, which is initialised if nobody has done so.

    Raises RuntimeError if the launcher is of one MPI library and mpi4py has loaded another:
    initialising would end the process with an error that does not say so.
    """
    if not MPI.Is_initialized():
        for variable, launcher, other in (("OMPI_COMM_WORLD_SIZE", "Open MPI", "MPICH"),
                                          ("HYDI_CONTROL_FD", "MPICH", "Open MPI")):
            if variable in os.environ and other in version():
                raise RuntimeError(f"{launcher}'s mpirun started this process, but mpi4py has "
                                   f"loaded {other}: use the mpirun of one environment")
        MPI.Init_thread()
    return Mpi(MPI.COMM_WORLD)


def version():
    """The name and version of the MPI library, in one line."""
    return MPI.Get_library_version().split("\n")[0].strip("\x00 ")
