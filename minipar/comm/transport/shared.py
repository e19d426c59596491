"""Rings in shared memory: byte streams between ranks of one machine.

All rings of a machine's ranks lie in one anonymous file in memory, which its lowest rank makes
and the others open through /proc. It has no name, so nothing is left behind however the ranks
end, and it is not limited by the size of /dev/shm. Its pages are reserved when it is made:
a machine without the memory is found out then, and not by a SIGBUS later.

A ring has one writer and one reader. Each counts the bytes it has moved in a word of its own, and
never writes the other's. The writer's bytes must be seen before its count is: stores become
visible in order on x86, and Python offers no other way to order them, so elsewhere ranks use
sockets. MINIPAR_SHARED_MEMORY=off turns it off.
"""

import mmap
import os
import platform
import secrets
import socket
import sys

_RING = 2**20  # bytes of a ring where the ranks are few; a power of two
_MOST = 2**26  # bytes of all rings of a machine
_LEAST = 2**14  # a smaller ring than this is no better than a socket
_LINE = 64  # bytes of a cache line: words of different writers do not share one
_STEP = 2**17  # bytes written before the reader is told, so that both copy at once


class Ring:
    """A ring in `memory` (a memoryview of bytes): two counts, and `size` bytes of data."""

    def __init__(self, memory, size):
        self.written = memory[:8].cast("Q")
        self.read = memory[_LINE:_LINE + 8].cast("Q")
        self.data = memory[2 * _LINE:2 * _LINE + size]


class RingStream:
    """Two rings as a stream to one peer; the socket wakes the peer when it sleeps."""

    name = "shared memory"
    wakes = True

    def __init__(self, outgoing, incoming, peer_sleeps, sock):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a call must not wait
        self.socket = sock
        self._out, self._in, self._peer_sleeps = outgoing, incoming, peer_sleeps
        self._size = len(outgoing.data)
        self._written = self._read = 0  # this rank's own counts

    def write(self, parts):
        """Copy the buffers `parts` into the ring as far as there is room; returns bytes."""
        ring, size = self._out, self._size
        data, at = ring.data, self._written
        end = ring.read[0] + size  # room ends where the reader is
        first = told = at
        for part in parts:
            n, done = len(part), 0
            while done < n and at < end:
                place = at % size
                step = min(n - done, end - at, size - place, _STEP)
                data[place:place + step] = part if step == n else part[done:done + step]
                done += step
                at += step
                if at - told >= _STEP:
                    ring.written[0] = told = at
        if at != first:
            ring.written[0] = self._written = at
            self.call()
        return at - first

    def read(self, place):
        """Fill the memoryview `place` as far as bytes have come; returns how many."""
        ring, at = self._in, self._read
        have = ring.written[0] - at
        if not have:
            return 0
        start = at % self._size
        n = min(have, len(place), self._size - start)
        place[:n] = ring.data[start:start + n]
        ring.read[0] = self._read = at + n
        self.call()
        return n

    def call(self):
        """Wake the peer if it sleeps."""
        if not self._peer_sleeps[0]:
            return
        self._peer_sleeps[0] = 0
        try:
            self.socket.send(b"!")
        except OSError:
            pass  # it has more calls than it can read, or is gone, which it will not say here

    def woken(self):
        """Take what calls have come. False if the connection is closed."""
        try:
            return bool(self.socket.recv(4096))
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False


class Segment:
    """The rings between `ranks` (in the world) of one machine, as one of them sees them.

    joined: those of them that use it.
    """

    def __init__(self, memory, rank, ranks, joined, ring):
        self._memory, self._rank, self._ring = memoryview(memory), rank, ring
        self._index, self._joined = {r: i for i, r in enumerate(ranks)}, joined
        self._sleeps = self._flag(rank)

    @property
    def crowded(self):
        """Whether there are more ranks than cores."""
        return len(self._joined) > len(os.sched_getaffinity(0))

    def __contains__(self, rank):
        return rank in self._joined

    def asleep(self, yes):
        """Tell the peers whether this rank sleeps and wants to be woken."""
        self._sleeps[0] = yes

    def stream(self, peer, sock):
        """The stream between this rank and `peer`."""
        return RingStream(Ring(self._part(self._rank, peer), self._ring),
                          Ring(self._part(peer, self._rank), self._ring), self._flag(peer), sock)

    def _flag(self, rank):
        at = _LINE * (1 + self._index[rank])
        return self._memory[at:at + 8].cast("Q")

    def _part(self, source, target):
        count, i, j = len(self._index), self._index[source], self._index[target]
        at = _LINE * (1 + count) + (i * count + j) * (2 * _LINE + self._ring)
        return self._memory[at:at + 2 * _LINE + self._ring]


def ring_size(ranks):
    """(bytes of a ring, bytes of all) between so many ranks; (0, 0) if there are too many."""
    size = _RING
    while size >= _LEAST:
        total = _LINE * (1 + ranks) + ranks * ranks * (2 * _LINE + size)
        if total <= _MOST:
            return size, total
        size //= 2
    return 0, 0


def machine():
    """What ranks that can share memory have in common; None if this one cannot."""
    if (not sys.platform.startswith("linux") or not hasattr(os, "memfd_create")
            or platform.machine() not in ("x86_64", "AMD64", "i686")
            or os.environ.get("MINIPAR_SHARED_MEMORY") == "off"):
        return None
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return [file.read().strip(), os.readlink("/proc/self/ns/pid"), os.getuid(),
                    socket.gethostname()]
    except OSError:
        return None


def attach(meeting):
    """This rank's view of the rings of its machine, or None. Called by all ranks that meet."""
    machines = meeting.exchange(machine())
    mine = machines[meeting.rank]
    ranks = [r for r, other in enumerate(machines) if other == mine]
    able = mine is not None and len(ranks) > 1
    size, total = ring_size(len(ranks))
    made = fd = None
    if able and size and ranks[0] == meeting.rank:
        made, fd = _make(total)
    offers = meeting.exchange(made)
    memory = _open(offers[ranks[0]], total) if able and offers[ranks[0]] else None
    joined = meeting.exchange(memory is not None)
    if fd is not None:
        os.close(fd)
    joined = [r for r in ranks if joined[r]]
    if memory is None or len(joined) < 2:
        return None
    return Segment(memory, meeting.rank, ranks, joined, size)


def _make(total):
    """(how others find a new segment, its file descriptor), or (None, None)."""
    fd = None
    try:
        fd = os.memfd_create("minipar")
        os.posix_fallocate(fd, 0, total)
        cookie = secrets.token_hex(16)
        os.pwrite(fd, cookie.encode(), 0)
        return [os.getpid(), fd, cookie], fd
    except OSError:  # no memory for it
        if fd is not None:
            os.close(fd)
        return None, None


def _open(offer, total):
    """The memory of an offered segment, or None."""
    pid, fd, cookie = offer
    try:
        here = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR)
        try:
            memory = mmap.mmap(here, total)
        finally:
            os.close(here)
    except (OSError, ValueError):
        return None
    return memory if memory[:len(cookie)] == cookie.encode() else None
