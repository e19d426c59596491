"""The few largest elements of the gradient, with their places.

Aji & Heafield 2017, "Sparse communication for distributed gradient descent"; Lin et al. 2018, "Deep
gradient compression"; for the proof Stich, Cordonnier, Jaggi 2018, "Sparsified SGD with memory".
"""

import math

import numpy as np

from ...quantise import accumulator
from .state import FlatResiduals


class TopKState(FlatResiduals):
    """What `topk_hook` goes by.

    ratio: which part of a bucket's elements is sent, in (0, 1].
    process_group: a Communicator; the buckets' own if None.
    residuals: {bucket: (n,)}, what this rank has not sent yet.
    Raises ValueError for another ratio.
    """

    def __init__(self, process_group=None, ratio=0.01):
        if not 0 < ratio <= 1:
            raise ValueError(f"topk: a part in (0, 1] of the elements is sent, not {ratio}")
        self.process_group, self.ratio, self.residuals = process_group, ratio, {}

    def count(self, n):
        """How many of n elements are sent."""
        return min(n, math.ceil(self.ratio * n))


def topk_hook(state, bucket):
    """Replace the bucket by the mean (or sum) of each rank's k = ceil(ratio n) largest elements.

    Each rank sends those of y = gradient + residual, and keeps the others: what was sent + the new
    residual = gradient + the old one, exactly. The ranks' places differ, so they are gathered, not
    reduced: (p-1) k (4 + 4) bytes (4 + 8 for float64).
    A gradient with NaN or infinity leaves the residual as it was.
    """
    comm = bucket.comm if state.process_group is None else state.process_group
    x = bucket.buffer().array
    kind, n, k = accumulator(x.dtype), x.size, state.count(x.size)
    if bucket.index() not in state.residuals:
        state.residuals[bucket.index()] = np.zeros(n, kind)
    residual = state.residuals[bucket.index()]
    y = x + residual
    places = np.argpartition(np.abs(y), n - k)[n - k:].astype(np.int32)  # NaN counts as largest
    values = y[places]
    if np.isfinite(y).all():
        y[places] = 0
        residual[...] = y
    row = np.concatenate([values.view(np.uint8), places.view(np.uint8)])
    rows = np.empty((comm.size, row.size), np.uint8)

    def sum_up(_):
        total = np.zeros(n, kind)
        for row in rows:  # in the order of the ranks
            total[row[values.nbytes:].view(np.int32)] += row[:values.nbytes].view(kind)
        total /= bucket.divisor
        x[...] = total
        return bucket.buffer()
    return comm.all_gather(row, out=rows, async_op=True).get_future().then(sum_up)
