"""Local SGD: every rank trains by itself, and every H steps all take the average.

McMahan et al. 2017; Stich 2019, "Local SGD converges fast and communicates little". Sends the
parameters once in H steps: with H = 1 and plain SGD (momentum too) it computes what synchronous
SGD does. The state of the optimizer stays each rank's own.
"""

import numpy as np

from .alone import Alone


class Local(Alone):
    """period: H, optimizer steps between two averages. Others as for Replicated.

    Ranks that were asked to stop do so after the next average.
    """

    def __init__(self, *args, period, **options):
        super().__init__(*args, **options)
        if period < 1:
            raise ValueError(f"local SGD averages every H >= 1 steps, not {period}")
        self.period = period

    def combine(self, step, stop):
        self.equal = (step + 1) % self.period == 0
        if not self.equal:
            return False
        stops = np.array([float(stop)])
        self.comm.all_reduce(stops)
        self.average()
        self.changed()
        return stops[0] > 0

    def average(self):
        """Replace the parameters, on all ranks, by what all go on from. Collective."""
        self.mean(self.arrays())
