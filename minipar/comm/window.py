"""Shared windows: memory of every rank of a group that all of them have mapped.

Windows are made by all ranks together, and cut into regions that lie at one offset in the segments
of all. Plans run one-sided operations in them.

Between processes a segment is an anonymous file in memory, which the others open through /proc:
it has no name, so nothing is left behind however ranks end; it is not limited by the size of
/dev/shm; and its pages are reserved when it is made, so that a lack of memory is an error then
and not a SIGBUS later. Linux on x86 only: elsewhere ranks send messages.
"""

import hashlib
import mmap
import os

import numpy as np

from ..device import on_gpu

LINE = 64  # bytes of a cache line; every region starts on one


def address_of(array):
    """Where the elements of an array begin, in the memory of the host or of a GPU."""
    return array.data.ptr if on_gpu(array) else array.__array_interface__["data"][0]


class Window:
    """segments[r]: uint8 array over the memory of rank r of the group, as this rank maps it.

    rank: this rank. The memory is given back when nobody holds a view of it any more.
    """

    def __init__(self, segments, rank):
        self.segments, self.rank = segments, rank
        mine = segments[rank]
        self.base, self.nbytes = address_of(mine), mine.nbytes

    def view(self, rank, offset, count, dtype):
        """`count` elements of `dtype` at `offset` bytes of rank `rank`'s segment."""
        return self.segments[rank][offset:offset + count * dtype.itemsize].view(dtype)


class Fence:
    """Waits of all ranks for each other through memory: a mark for each, which it counts up.

    offset: of a region of 8 bytes in the window. It must never have held anything
    else: the marks of all ranks start at 0.
    """

    def __init__(self, window, offset):
        self._marks = [memoryview(window.view(r, offset, 8, np.dtype(np.uint8))).cast("q")
                       for r in range(len(window.segments))]
        self._mine = self._marks[window.rank]
        self._count = self._mine[0]

    def arrive(self):
        """Come to the next fence: what this rank has written before is seen by who passes it."""
        self._count += 1
        self._mine[0] = self._count  # on x86, after what was written before it

    def passed(self):
        """Whether all ranks have come to the fence that this rank is at."""
        count = self._count
        for mark in self._marks:
            if mark[0] < count:
                return False
        return True


class Arena:
    """Windows cut into regions. Every rank takes the same ones in the same order.

    make: nbytes -> Window, called by all ranks together.
    """

    CHUNK = 4 * 2**20  # bytes of a window, if no larger one is asked for

    def __init__(self, make):
        self._make, self._windows = make, []
        self._next = 0  # the first free byte of the last window

    def take(self, nbytes):
        """(window, offset) of a region. Collective."""
        nbytes = _lines(nbytes)
        if not self._windows or self._next + nbytes > self._windows[-1].nbytes:
            self._windows.append(self._make(max(nbytes, self.CHUNK)))
            self._next = 0
        offset, self._next = self._next, self._next + nbytes
        return self._windows[-1], offset

    def close(self):
        """Close the windows that hold something of other ranks."""
        for window in self._windows:
            window.close()

    def find(self, array):
        """(window, offset) of an array whose memory lies in a window, or None."""
        address = address_of(array)
        for window in self._windows:
            if window.base <= address and address + array.nbytes <= window.base + window.nbytes:
                return window, address - window.base
        return None


def _lines(nbytes):
    return -(-max(nbytes, 1) // LINE) * LINE


def memory_key():
    """A number that is equal for processes that can map each other's memory; 0 for none can.

    Only where stores become visible in order, as a fence between processes needs it.
    """
    from .transport.shared import machine  # which needs sockets
    about = machine()
    digest = hashlib.blake2b(repr(about).encode(), digest_size=7).digest()
    return 0 if about is None else int.from_bytes(digest, "little")


def mapped_segments(comm, nbytes, owners):
    """A segment of `nbytes` of each of the ranks `owners` of `comm`, processes of one machine.

    Called by all ranks of `comm`, which all get all of the segments, in the order of `owners`.
    Raises ValueError, on all ranks, if there is not enough memory.
    """
    descriptor, problem = -1, 0
    try:
        if comm.rank in owners:
            descriptor = os.memfd_create("minipar", os.MFD_CLOEXEC)
            os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        problem = error.errno
    table = comm.all_gather(np.array([os.getpid(), descriptor, problem], np.int64),
                            algorithm="bruck")  # auto may want a window itself
    segments = []
    try:
        if table[:, 2].any():
            failed = int(np.flatnonzero(table[:, 2])[0])
            raise ValueError(f"a window of {nbytes} bytes of {len(owners)} ranks cannot be made: "
                             f"rank {failed}: {os.strerror(int(table[failed, 2]))}")
        for pid, number, _ in table[list(owners)].tolist():
            path = f"/proc/{pid}/fd/{number}"
            opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            segments.append(np.frombuffer(mmap.mmap(opened, nbytes), np.uint8))
            os.close(opened)
        comm.barrier()  # then every rank has opened every file
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return segments
