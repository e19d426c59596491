"""One bit for each element of the gradient: its sign, with one scale for the bucket.

Seide, Fu, Droppo, Li, Yu 2014, "1-bit stochastic gradient descent"; Karimireddy, Rebjock, Stich,
Jaggi 2019, "Error feedback fixes SignSGD" (EF-signSGD, whose scale this is).
"""

import numpy as np

from ...quantise import accumulator, pack_signs, unpack_signs
from .state import FlatResiduals


class SignState(FlatResiduals):
    """What `sign_hook` goes by: the Communicator (the buckets' own if None), and in `residuals[b]`
    (n,) what this rank owes of bucket b."""

    def __init__(self, process_group=None):
        self.process_group, self.residuals = process_group, {}


def sign_hook(state, bucket):
    """Replace the bucket by the mean (or sum) of the ranks' signs times mean magnitudes.

    Each rank sends y = gradient + residual as +- the mean of |y|, and keeps the rest: what was sent
    + the new residual = gradient + the old one. By an all-gather, and every rank sums alike: a sum
    of signs is no sign, and to round it to one for a second step would lose most of it. Sends
    (p-1) (n/8 + 4) bytes for n elements (8 for float64): less than a ring of float32 up to 63
    ranks.
    Raises TypeError for gradients that are not float16, float32 or float64.
    """
    comm = bucket.comm if state.process_group is None else state.process_group
    x, kind = bucket.buffer().array, accumulator(bucket.buffer().array.dtype)
    if bucket.index() not in state.residuals:
        state.residuals[bucket.index()] = np.zeros(x.size, kind)
    bits, scale = pack_signs(x, state.residuals[bucket.index()])
    bucket.clear(state.residuals[bucket.index()])  # zeros, too, were sent as +- the scale
    row = np.concatenate([scale.view(np.uint8), bits])
    rows = np.empty((comm.size, row.size), np.uint8)

    def sum_up(_):
        total, one = np.zeros(x.size, kind), np.empty(x.size, kind)
        for row in rows:  # in the order of the ranks
            total += unpack_signs(row[kind.itemsize:], row[:kind.itemsize].view(kind), x.size,
                                  out=one)
        total /= bucket.divisor
        x[...] = total
        return bucket.buffer()
    return comm.all_gather(row, out=rows, async_op=True).get_future().then(sum_up)
