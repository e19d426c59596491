"""The transport interface: what moves bytes between ranks. Knows no collectives.

A rank's endpoint makes persistent messages, starts them, and asks whether they are complete;
every collective and every send is built on these. Messages match first-in-first-out per
(source, destination, tag) and carry raw bytes, so every dtype travels.
"""

import os
import time


class RankFailed(RuntimeError):
    """Another rank failed or left while this one was waiting for it."""


class Transport:
    """One rank's endpoint in a group. Sub-classes set `rank`, `size` and `max_tag`."""

    rank = 0
    size = 1
    max_tag = 2**20
    members = None  # of a subgroup: its ranks, as numbered in the world
    takes_device_memory = False  # whether messages may lie in the memory of a GPU
    label = ()  # of a subgroup: tells it from others, and is equal on all of its ranks

    def send_init(self, array, peer, tag):
        """A message that sends the contiguous `array` to `peer`, each time it is started."""
        raise TypeError(f"{type(self).__name__} is abstract here")

    def recv_init(self, array, peer, tag):
        """A message that receives into the contiguous `array` from `peer`; sizes must be equal."""
        raise TypeError(f"{type(self).__name__} is abstract here")

    def start(self, messages):
        """Start messages, in order."""
        raise TypeError(f"{type(self).__name__} is abstract here")

    def test(self, messages):
        """Whether all of the messages are complete. Never blocks."""
        raise TypeError(f"{type(self).__name__} is abstract here")

    def free(self, messages):
        """Release messages that are not in flight."""

    def collective(self, kind, arrays, op, root, counts):
        """(begin, end) of the transport's own collective: begin() starts a run and returns what
        `test` takes a list of; end(), if not None, is called after it."""
        raise ValueError(f"mpi, the MPI library's own {kind}, needs ranks under mpirun; these "
                         f"are {type(self).__name__}")

    def refuses_threads(self):
        """Why another thread of the rank may not move its messages, in words; None if it may."""
        return None

    def blocking(self, kind, arrays, op, root):
        """A function that runs the transport's own blocking collective: for comparisons."""
        return self.collective(kind, arrays, op, root, None)[0]

    def subgroup(self, members, label):
        """The endpoint of this rank in the group of `members` (ranks of this one, in order)."""
        raise TypeError(f"{type(self).__name__} is abstract here")

    def segments(self, nbytes):
        """A uint8 array of `nbytes` of every rank, if ranks are of one process; else None.

        Called by all ranks together.
        """
        return None

    def in_world(self, peer):
        """The number that rank `peer` of this group has in the world."""
        return peer if self.members is None else self.members[peer]

    def departed(self):
        """The ranks (of the world) known to have left the job. Raises RankFailed if one has failed.

        Called now and then in waits.
        """
        return frozenset()

    def leave(self):
        """Tell the peers that this rank leaves the job, and wait until they leave too."""

    def abort(self, status):
        """End every rank of the job."""

    def close(self):
        """Release what the endpoint holds."""

    def notify(self):
        """Wake the peers that sleep in `relax`: shared memory has changed."""

    def relax(self, turn, waited):
        """Give the core away while waiting: `turn` counts calls, `waited` is in seconds.

        Ranks outnumber cores in every course: a few tests at full speed, then offer the core to
        whoever has work for about a millisecond, then sleep. Four ranks on two cores took 5 us
        for a ring step so, 15 us with plain polling and 45 us when they slept at once.
        """
        if turn < 5:
            return
        if waited < 1e-3:
            _yield()
        else:
            time.sleep(5e-5 if waited < 0.1 else 5e-4)


_yield = getattr(os, "sched_yield", lambda: time.sleep(0))


class Lone(Transport):
    """The endpoint of a job of one rank: it has nobody to talk to."""

    def send_init(self, array, peer, tag):
        raise ValueError(f"no rank {peer} in a job of 1 rank")

    recv_init = send_init

    def start(self, messages):
        pass

    def test(self, messages):
        return True

    def subgroup(self, members, label):
        return Lone()
