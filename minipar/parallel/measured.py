"""Data parallelism that tells, in each step, how far the ranks' gradients lie apart.

With c_r samples on rank r, C on all, and G_r the mean gradient of rank r's samples, the gradient
that all apply is G = sum of c_r / C G_r. Told are

    grad_norm      |G|
    grad_variance  sum of c_r / C |G_r - G|^2 = sum of c_r / C |G_r|^2 - |G|^2
    grad_cosine    the mean over the ranks of <G_r, G> / (|G_r| |G|)

Ranks without samples or gradient count in no cosine. If the samples of the ranks have nothing in
common but chance, the variance falls as one over the samples of a rank.
"""

import math

import numpy as np

from .hooks.statistics import Statistics, statistics_hook
from .trainer import Replicated


class Measured(Replicated):
    """Arguments as for Replicated, without `hook`. Costs a copy of the gradients in float64."""

    def __init__(self, module, make_optimizer, loss, comm, mesh, *, algorithm="auto", **options):
        self._seen, self._samples = Statistics(algorithm), 0

        def counted(outputs, targets):
            total, count = loss(outputs, targets)
            self._samples += count
            return total, count
        super().__init__(module, make_optimizer, counted, comm, mesh, algorithm=algorithm,
                         hook=(self._seen, statistics_hook), **options)

    def facts(self):
        (own, dot, whole), samples, self._samples = self._seen.take(), self._samples, 0
        lengths = math.sqrt(own) * math.sqrt(whole)
        sums = np.array([own / max(samples, 1), samples, dot / lengths if lengths else 0,
                         lengths > 0], np.float64)
        self.comm.all_reduce(sums)
        squares, samples, cosines, ranks = sums.tolist()
        samples = max(samples, 1)
        return {"grad_norm": math.sqrt(whole) / samples,
                "grad_variance": max(0.0, squares / samples - whole / samples ** 2),
                "grad_cosine": cosines / ranks if ranks else None}
