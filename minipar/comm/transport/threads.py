"""Ranks as threads of one process: no MPI library, easy to test and to debug.

A message is one copy from the sender's array to the receiver's. With `eager_bytes=0` (the
default) a send completes only when it is received, which is the strictest legal behaviour: a
program that needs buffering hangs here, not on somebody's cluster.
"""

import threading
import time
from collections import defaultdict, deque

import numpy as np

from ... import context
from .base import RankFailed, Transport


class _Message:
    __slots__ = ("array", "key", "peer", "sends", "done")

    def __init__(self, array, key, peer, sends):
        self.array, self.key, self.peer, self.sends, self.done = array, key, peer, sends, True


class World:
    """What the threads of one job share: a mailbox per rank."""

    def __init__(self, size, eager_bytes=0):
        self.size, self.eager_bytes = size, eager_bytes
        self.locks = [threading.Lock() for _ in range(size)]
        self.sends = [defaultdict(deque) for _ in range(size)]  # by destination, then by key
        self.recvs = [defaultdict(deque) for _ in range(size)]
        self.wake = [threading.Event() for _ in range(size)]
        self.failed = None  # the rank that failed first
        self.left = set()  # ranks that have returned
        self.windows = {}  # segments by group and number, as their ranks come with them


class Threads(Transport):
    """The endpoint of one thread."""

    def __init__(self, world, rank, members=None, label=()):
        self.world, self.label = world, label
        self.members = list(range(world.size)) if members is None else members
        self.rank, self.size, self._windows = rank, len(self.members), 0
        self._me = self.members[rank]

    def send_init(self, array, peer, tag):
        target = self.members[peer]
        return _Message(array, (self.label, self._me, tag), target, True)

    def recv_init(self, array, peer, tag):
        return _Message(array, (self.label, self.members[peer], tag), self._me, False)

    def start(self, messages):
        for message in messages:
            self._post(message)

    def _post(self, message):
        world, box = self.world, message.peer
        message.done = False
        with world.locks[box]:
            mine, others = world.sends[box], world.recvs[box]
            if not message.sends:
                mine, others = others, mine
            waiting = others.get(message.key)
            if not waiting:
                if message.sends and message.array.nbytes <= world.eager_bytes:
                    message.done = True
                    message = _Message(message.array.copy(), message.key, box, True)
                mine[message.key].append(message)
                return
            other = waiting.popleft()
            if not waiting:
                del others[message.key]
        send, recv = (message, other) if message.sends else (other, message)
        if send.array.nbytes != recv.array.nbytes:
            raise ValueError(f"rank {self.rank}: a message of {send.array.nbytes} bytes meets a "
                             f"receive of {recv.array.nbytes} bytes")
        if send.array.size:
            recv.array.reshape(-1).view(np.uint8)[...] = send.array.reshape(-1).view(np.uint8)
        send.done = recv.done = True
        world.wake[box].set()
        world.wake[message.key[1]].set()

    def test(self, messages):
        for message in messages:
            if not message.done:
                return False
        return True

    def departed(self):
        if self.world.failed is not None:
            raise RankFailed(f"rank {self.world.failed} failed")
        return self.world.left

    def notify(self):
        for member in self.members:
            self.world.wake[member].set()

    def relax(self, turn, waited):
        if turn < 3:
            time.sleep(0)  # lets another thread have the interpreter
            return
        wake = self.world.wake[self._me]
        wake.wait(0.01)
        wake.clear()
        self.departed()

    def segments(self, nbytes):
        self._windows += 1
        with self.world.locks[self.members[0]]:
            segments = self.world.windows.setdefault((self.label, self._windows), {})
            segments[self.rank] = np.zeros(nbytes, np.uint8)
        begin = time.monotonic()
        while len(segments) < self.size:
            self.departed()
            if time.monotonic() - begin > 60:
                raise RankFailed(f"rank {self.rank} waited for a window of {self.size} ranks, of "
                                 f"which {len(segments)} came")
            time.sleep(1e-4)
        return [segments[r] for r in range(self.size)]

    def subgroup(self, members, label):
        return Threads(self.world, members.index(self.rank),
                       [self.members[m] for m in members], (*self.label, label))


def run_threads(function, size, *args, eager_bytes=0, timeout=120.0):
    """Run `function(*args)` as `size` ranks, one thread each; returns their results in order.

    Inside, `minipar.comm.world()` is the rank's communicator. Each rank starts with a copy of the
    caller's context. If ranks raise, the first exception is raised here; TimeoutError after
    `timeout` seconds, if that is not None.
    """
    from ..communicator import Communicator
    from ..select.table_file import own_source
    from ..world import use_world
    world, settings, source = World(size, eager_bytes), context.current(), own_source()
    results, errors = [None] * size, []

    def rank_main(rank):
        communicator = None
        try:
            communicator = Communicator(Threads(world, rank))
            communicator.source = source  # one for all: nobody has to be told
            with context.use(settings.copy()), use_world(communicator):
                results[rank] = function(*args)
                communicator.close()
            world.left.add(rank)
        except BaseException as error:  # reported by the caller's thread
            if not isinstance(error, RankFailed) or world.failed is None:
                errors.append(error)
            if world.failed is None:
                world.failed = rank
            for event in world.wake:
                event.set()
        finally:
            if communicator is not None:
                communicator.engine.close()  # its thread, if the rank has failed
    threads = [threading.Thread(target=rank_main, args=(rank,), daemon=True, name=f"rank {rank}")
               for rank in range(size)]
    deadline = time.monotonic() + (threading.TIMEOUT_MAX if timeout is None else timeout)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
    except KeyboardInterrupt:
        world.failed = -1  # lets the ranks that wait end
        raise
    if errors:
        raise errors[0]
    if any(thread.is_alive() for thread in threads):
        world.failed = -1  # lets the ranks that wait end
        raise TimeoutError(f"{sum(t.is_alive() for t in threads)} of {size} ranks still ran "
                           f"after {timeout} s")
    return results
