"""Ranks as MPI processes. The only file that imports mpi4py's MPI."""


from mpi4py import MPI
import numpy as np

from .base import RankFailed, Transport


class Mpi(Transport):
    """An endpoint on an MPI communicator of its own, so that no tag meets the user's."""

    def __init__(self, comm):
        self.comm = comm.Dup()
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        upper = comm.Get_attr(MPI.TAG_UB)
        self.max_tag = min(2**24, 32767 if upper is None else upper) - 1
        self._goodbye = self.max_tag + 1

    def send_init(self, array, peer, tag):
        return self.comm.Send_init([_bytes(array), MPI.BYTE], peer, tag)

    def recv_init(self, array, peer, tag):
        return self.comm.Recv_init([_bytes(array), MPI.BYTE], peer, tag)

    def start(self, messages):
        MPI.Prequest.Startall(messages)

    def test(self, messages):
        return MPI.Request.Testall(messages)

    def free(self, messages):
        for message in messages:
            message.Free()

    def subgroup(self, members, label):
        group = self.comm.Get_group().Incl(members)
        comm = self.comm.Create_group(group, tag=0)
        transport = Mpi(comm)
        comm.Free()
        return transport

    def say_goodbye(self):
        """Tell every peer that this rank is leaving: whoever waits for it then need not."""
        nothing = np.empty(0, np.uint8)
        # Never waited for: a peer that has already left will not receive it.
        self._farewell = [self.comm.Isend([nothing, MPI.BYTE], peer, self._goodbye)
                          for peer in range(self.size) if peer != self.rank]

    def check(self):
        status = MPI.Status()
        if self.comm.Iprobe(MPI.ANY_SOURCE, self._goodbye, status):
            raise RankFailed(f"rank {status.Get_source()} left the job while rank {self.rank} "
                             f"was waiting")

    def close(self):
        pass  # Comm.Free is collective: MPI_Finalize does it

    def abort(self, status):
        """End every process of the job."""
        MPI.COMM_WORLD.Abort(status)


def _bytes(array):
    return array.reshape(-1).view(np.uint8) if array.size else np.empty(0, np.uint8)


def world():
    """The endpoint on MPI_COMM_WORLD."""
    return Mpi(MPI.COMM_WORLD)


def library():
    """The name and version of the MPI library, in one line."""
    return MPI.Get_library_version().split("\n")[0].strip("\x00 ")
