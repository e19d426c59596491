"""How the ranks' gradients differ, seen by a communication hook: nothing else can, for a bucket is
this rank's own until it is reduced, which is while backward goes on.
"""

import numpy as np


class Statistics:
    """What `statistics_hook` adds up over the buckets of a backward, in float64.

    algorithm: of the all-reduce.
    own, dot, whole: |g_r|^2, <g_r, g> and |g|^2, of this rank's gradient g_r and the reduced g.
    """

    def __init__(self, algorithm="auto"):
        self.algorithm = algorithm
        self.own = self.dot = self.whole = 0.0

    def take(self):
        """(own, dot, whole) since it was last called."""
        found = self.own, self.dot, self.whole
        self.own = self.dot = self.whole = 0.0
        return found


def statistics_hook(state, bucket):
    """All-reduce the bucket as it is, and tell `state` (a Statistics) how it was and became.

    Takes a copy of the bucket in float64.
    """
    before, buffer = bucket.buffer().array.astype(np.float64), bucket.buffer()

    def compare(future):
        reduced = future.value()[0]
        if bucket.divisor > 1:
            reduced.array[...] /= bucket.divisor
        after = reduced.array.astype(np.float64)
        state.own += float(before @ before)
        state.dot += float(before @ after)
        state.whole += float(after @ after)
        return reduced
    work = bucket.comm.all_reduce(buffer, algorithm=state.algorithm, async_op=True)
    return work.get_future().then(compare)
