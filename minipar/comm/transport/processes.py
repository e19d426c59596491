"""Ranks as processes without MPI: the standard library's sockets, and shared memory on one host.

Every pair of ranks has a connection from the start, so that a rank which dies is noticed: its
connections close without a goodbye. Between ranks of one machine the bytes go through rings in
shared memory (`shared.py`), and the connection only wakes a peer that sleeps. There are no
helper threads: bytes move when a rank starts, tests or waits.
"""

import os
import selectors
import time
from hashlib import blake2b
from os import _exit  # world.py puts another one in its place, which ends here

import numpy as np

from . import rendezvous, shared
from .base import Lone, RankFailed, Transport, _yield
from .frames import Link, Message
from .streams import SocketStream

_NOTHING = memoryview(bytearray())
_BOTH = selectors.EVENT_READ | selectors.EVENT_WRITE
_FAREWELL = 0.005  # seconds between looks while the last ranks are waited for


class Mesh:
    """The links of one rank to all others, and waiting on them."""

    def __init__(self, rank, sockets, segment=None):
        self.rank, self.segment = rank, segment
        self.links = {}
        self._selector = selectors.DefaultSelector()
        for peer, sock in sockets.items():
            stream = segment.stream(peer, sock) if segment is not None and peer in segment else None
            link = self.links[peer] = Link(stream or SocketStream(sock), rank, peer)
            self._selector.register(sock, selectors.EVENT_READ, link)
        self._all = list(self.links.values())
        self._tired = False  # whether peers have been told that this rank will sleep
        self._moves, self._still = 0, 0.0  # what had moved, and since when nothing has
        # Seconds without sleep when a long message stops; none if that takes others' cores.
        self.patience = 0.0 if segment is None or segment.crowded else 2e-4

    def poll(self, timeout=0):
        """Move what can be moved on all links; if nothing can, wait up to `timeout` seconds."""
        for link in self._all:
            if link.stream.wakes:
                moves = link.moves
                link.pump()
                timeout = timeout if link.moves == moves else 0
            elif link.unsent and not link.lost:
                self._selector.modify(link.stream.socket, _BOTH, link)
        for key, events in self._selector.select(timeout):
            link = key.data
            lost = link.stream.wakes and not link.stream.woken()
            link.pump()  # also what the peer wrote before it went
            link.lost = link.lost or lost
            if link.lost:
                self._selector.unregister(key.fileobj)
            elif key.events == _BOTH and not link.unsent:
                self._selector.modify(key.fileobj, selectors.EVENT_READ, link)

    def sleep(self, timeout):
        """Wait until a peer has done something, or `timeout` seconds.

        With shared memory the first call only says that this rank will sleep, and returns: what
        changes from then on wakes it, and what had changed before is found by its next test.
        """
        if self.segment is None:
            self.poll(timeout)
        elif not self._tired:
            self._tired = True
            self.segment.asleep(True)
        else:
            self.poll(timeout)
            self._tired = False
            self.segment.asleep(False)

    def wake(self, peers):
        """Wake those of `peers` that sleep and share memory with this rank."""
        for peer in peers:
            link = self.links.get(peer)
            if link is not None and link.stream.wakes:
                link.stream.call()

    def idle(self):
        """Seconds for which nothing has moved, as far as this has been asked."""
        moves, now = sum(link.moves for link in self._all), time.perf_counter()
        if moves != self._moves:
            self._moves, self._still = moves, now
        return now - self._still

    def left(self):
        """The ranks that have said goodbye. Raises RankFailed if one is gone without."""
        self.poll()
        self.check()
        return {link.peer for link in self._all if link.left}

    def check(self):
        """Raise RankFailed if a rank has gone without a goodbye."""
        for link in self._all:
            if link.lost and not link.left:
                raise RankFailed(f"rank {link.peer} failed")

    def close(self):
        for link in self._all:
            link.stream.socket.close()
        self._selector.close()


class Processes(Transport):
    """The endpoint of one process in a group. Groups of one job share the mesh."""

    max_tag = 2**24

    def __init__(self, mesh, rank, members, label=()):
        self.mesh, self.rank, self.size, self.members = mesh, rank, len(members), list(members)
        self.label = label
        digest = blake2b(repr(label).encode(), digest_size=8).digest()
        self._group = int.from_bytes(digest, "little")  # in the headers of its messages

    def paths(self):
        """What the bytes take to each peer: {rank in the world: "shared memory" or "sockets"}."""
        return {peer: link.stream.name for peer, link in self.mesh.links.items()}

    def send_init(self, array, peer, tag):
        return Message(_bytes(array), self._group, tag, self.mesh.links[self.members[peer]], True)

    def recv_init(self, array, peer, tag):
        return Message(_bytes(array), self._group, tag, self.mesh.links[self.members[peer]], False)

    def start(self, messages):
        for message in messages:
            message.done = False
            if message.sends:
                message.link.send(message)
            else:
                message.link.post(message)

    def test(self, messages):
        for message in messages:
            if not message.done:
                message.link.pump()
                if not message.done:
                    return False
        return True

    def subgroup(self, members, label):
        return Processes(self.mesh, members.index(self.rank),
                         [self.members[m] for m in members], (*self.label, label))

    def departed(self):
        return self.mesh.left()

    def notify(self):
        self.mesh.wake(self.members)

    def relax(self, turn, waited):
        if turn < 5:
            return
        if waited < 1e-3 or self.mesh.idle() < self.mesh.patience:
            _yield()
        else:
            self.mesh.sleep(0.01 if waited < 0.1 else 0.1)
        self.mesh.check()

    def leave(self):
        """Say goodbye, and keep what is in flight moving until everybody has."""
        for link in self.mesh.links.values():
            link.say_goodbye()
        while len(self.departed()) < len(self.mesh.links) or any(
                link.unsent and not link.lost for link in self.mesh.links.values()):
            self.mesh.sleep(_FAREWELL)
        self.mesh.close()

    def abort(self, status):
        _exit(status)  # the connections close without a goodbye, and the others know


def _bytes(array):
    return memoryview(array.reshape(-1).view(np.uint8)) if array.size else _NOTHING


def join(rank, size, host, port, token="", listener=None):
    """The endpoint of `rank` among `size` processes that meet at rank 0's (host, port).

    token:    a word that all ranks have; whoever has another one is turned away.
    listener: rank 0's listening socket, if there is one already.
    Raises RuntimeError if the ranks do not find each other.
    """
    if size == 1:
        if listener is not None:
            listener.close()
        return Lone()
    with rendezvous.Meeting(rank, size, host, port, token, listener) as meeting:
        sockets = meeting.connect_pairs()
        segment = shared.attach(meeting)
    return Processes(Mesh(rank, sockets, segment), rank, range(size))
