"""Shares of a global batch for machines that are not equally fast: given, or by measured speed.

A step is over when the slowest replica is done, so shares in proportion to speed end all together.
Losses are sums and are divided by the reduced count, once: the gradient is the global batch's mean
whatever the shares are (trainer.py), and the training stays that of one process.
"""

import statistics

import numpy as np

from ..data.shares import apportion

EVERY = 5     # steps between two looks at the speeds
GAIN = 0.05  # part of a step's time that new shares must save


def longest(shares, seconds):
    """Seconds until the last replica has computed its share; seconds: of a sample, by replica."""
    return max(share * each for share, each in zip(shares, seconds))


class Balance:
    """Shares that follow the speeds measured, alike on all ranks. One on each rank.

    comm:  all ranks of the job. mesh: how they share the work; a replica is as fast as the slowest
           of its ranks. Ranks beyond it (servers) take no share.
    size:  samples in a global batch. at_least: those that a replica has at any speed.
    every: steps between two agreements, which all ranks reach. A rank gives the median of its
           seconds per sample since the last one, so one odd step says nothing.
    gain:  shares change only if they would shorten the step of the slowest by this part, so that
           noise does not move them all the time.
    shares: those in use, a tuple; None while they are equal.
    """

    def __init__(self, comm, mesh, size, at_least=1, every=EVERY, gain=GAIN):
        self.comm, self.mesh, self._size, self._at_least = comm, mesh, size, at_least
        self.every, self._gain, self._measured, self.shares = every, gain, [], None

    def after(self, step, seconds, samples):
        """After a step (from 0) in which this rank computed for `seconds`, without its waits, on
        so many samples: the shares from now on. Every `every` steps collective.
        """
        if samples:
            self._measured.append(seconds / samples)
        if (step + 1) % self.every == 0:
            mine = statistics.median(self._measured) if self._measured else 0.0
            told = self.comm.all_gather(np.array([mine])).reshape(-1).tolist()
            self._measured = []
            self._follow([max(told[r] for r in range(self.mesh.size)
                              if self.mesh.coordinates(r)["dp"] == replica)
                          for replica in range(self.mesh.dp)])
        return self.shares

    def _follow(self, seconds):
        """Take other shares if they save enough. seconds: of a sample, by replica."""
        if not all(seconds):
            return  # of some nothing is known
        n = len(seconds)
        equal = tuple((r + 1) * self._size // n - r * self._size // n for r in range(n))
        shares = apportion(self._size, [1 / each for each in seconds], self._at_least)
        now = longest(self.shares or equal, seconds)
        if longest(shares, seconds) <= (1 - self._gain) * now:
            self.shares = None if max(shares) - min(shares) <= 1 else shares
