"""Where the ranks of a group stand: what algorithms for more than one level of network read."""

import math
import socket
import zlib
from typing import NamedTuple

import numpy as np


class Topology(NamedTuple):
    """Levels of a network, the innermost first, ranks being numbered from the inside out.

    levels: how many members a group has at each level: (4, 2) is ranks 0-3 in one node and 4-7
            in another; (2, 4, 3) is 3 cabinets of 4 nodes of 2 ranks.
    """
    levels: tuple

    def coordinates(self, rank):
        """The position of a rank in its group at each level: (rank in the node, node, ...)."""
        out = []
        for level in self.levels:
            out.append(rank % level)
            rank //= level
        return tuple(out)

    def problem(self, size):
        """Why this is not a topology of `size` ranks, in words; None if it is."""
        if not self.levels or math.prod(self.levels) != size:
            product = " x ".join(map(str, self.levels)) or "nothing"
            return f"topology {product} = {math.prod(self.levels)} != {size} ranks"
        return None


def rank_on_host(comm):
    """This rank's number among those of its host. Called by all ranks."""
    names = host_names(comm)
    return names[:comm.rank].count(names[comm.rank])


def host_names(comm):
    """A name for every rank's host, equal for ranks of one. Called by all ranks of `comm`."""
    name = socket.gethostname().encode()
    names = comm.all_gather(np.array([zlib.crc32(name), zlib.adler32(name)], np.int64),
                            algorithm="bruck")  # which needs no choice, that this may be part of
    return [tuple(row) for row in names.tolist()]


def hosts(comm):
    """The topology of a communicator by the names of its ranks' hosts: (ranks a host, hosts).

    Called by all of its ranks. Raises ValueError if hosts have different numbers of ranks, or if
    ranks are not numbered host by host.
    """
    names = host_names(comm)
    seen = list(dict.fromkeys(names))
    counts = [names.count(name) for name in seen]
    if len(set(counts)) > 1:
        raise ValueError(f"hosts have {', '.join(map(str, counts))} ranks: a topology needs equal "
                         f"numbers on all")
    if names != [name for name in seen for _ in range(counts[0])]:
        numbers = ", ".join(str(seen.index(name)) for name in names)
        raise ValueError(f"ranks are not numbered host by host: they are on hosts {numbers}")
    return Topology((counts[0], len(seen)))
