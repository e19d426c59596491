"""8 or 4 bits for each element of the gradient, with a scale for each block of them.

Integers with different scales cannot be added on the way, as a ring adds. Every rank sends each
other rank its block of the gradient (all-to-all), which that one decodes and sums in float32, and
quantises once more for all (all-gather). An all-gather of everybody's gradient, the simplest way,
saves the second rounding and sends p/2 times the bytes: as many on 2 ranks, more on all others.
Dettmers 2016, "8-bit approximations for parallelism in deep learning"; for the two-step exchange
Tang et al. 2021, "1-bit Adam", and Wang et al. 2023, "ZeRO++".
"""

import numpy as np

from ...quantise import accumulator, dequantise, packed_size, quantise
from .state import HookState


class QuantiseState(HookState):
    """What `quantise_hook` goes by.

    process_group:  a Communicator; the buckets' own if None.
    bits:           8 or 4. block: elements that share a scale.
    error_feedback: whether what is lost to rounding is added to the next step's gradient. Takes
                    (1 + 1/p) times the gradients' memory. `sent[b]` (p, shard) is what this rank
                    owes from what it sent of bucket b, `summed[b]` (shard,) from its block of the
                    result.
    """

    def __init__(self, process_group=None, bits=8, block=256, error_feedback=True):
        quantise(np.empty(0, np.float32), bits, block)  # refuses what cannot be
        self.process_group, self.bits, self.block = process_group, bits, block
        self.error_feedback = error_feedback
        self.sent, self.summed = {}, {}

    def encode(self, x, residual, row):
        """Quantise x (n,) into bytes: its scales, then its integers."""
        packed, scales = quantise(x, self.bits, self.block, residual)
        row[:scales.nbytes] = scales.view(np.uint8)
        row[scales.nbytes:] = packed.view(np.uint8)

    def decode(self, row, out):
        """The numbers (n,) of a row of bytes, into `out`."""
        kind = accumulator(out.dtype)
        head = -(-out.size // self.block) * kind.itemsize
        packed = row[head:].view(np.int8 if self.bits == 8 else np.uint8)
        return dequantise(packed, row[:head].view(kind), out.size, self.bits, self.block, out=out)

    def keep(self, bucket):
        """As HookState: the block of the result that each rank owes is common to all."""
        if bucket.index() not in self.sent:
            return {}, {}
        blocks = self._comm(bucket).all_gather(self.summed[bucket.index()])
        n = bucket.buffer().numel()
        return tuple({what: bucket.split(a.reshape(-1)[:n])} for what, a in (
            ("owed", self.sent[bucket.index()]), ("summed", blocks)))

    def restore(self, bucket, own, common):
        x, comm = bucket.buffer().array, self._comm(bucket)
        if not self.error_feedback or not (own or common):
            return
        sent, summed = np.zeros((2, comm.size, -(-x.size // comm.size)), accumulator(x.dtype))
        for blocks, arrays in ((sent, own.get("owed")), (summed, common.get("summed"))):
            if arrays is not None:
                blocks.reshape(-1)[:x.size] = bucket.join(arrays)
        self.sent[bucket.index()], self.summed[bucket.index()] = sent, summed[comm.rank].copy()

    def _comm(self, bucket):
        return bucket.comm if self.process_group is None else self.process_group

    def nbytes(self, n, kind):
        """Bytes that n numbers are sent as, with scales of type `kind`."""
        return packed_size(n, self.bits) + -(-n // self.block) * kind.itemsize


def quantise_hook(state, bucket):
    """Reduce the bucket as integers of `state.bits` bits.

    Each rank sends 2 (p-1) (s bits/8 + 4 ceil(s/block)) bytes, s = ceil(n/p) for n elements:
    2 (p-1)/p n (bits/8 + 4/block) (8 instead of 4 for scales of float64).
    With error feedback nothing is lost: summed over the ranks, gradients + what was owed before =
    what was sent + what is owed after; and so for the results of each rank's block.
    Raises TypeError for gradients that are not float16, float32 or float64.
    """
    comm = state._comm(bucket)
    x, k, p = bucket.buffer().array, bucket.index(), comm.size
    shard, kind = -(-x.size // p), accumulator(x.dtype)
    blocks = np.zeros((p, shard), x.dtype)
    blocks.reshape(-1)[:x.size] = x
    if state.error_feedback and k not in state.sent:
        state.sent[k], state.summed[k] = np.zeros((p, shard), kind), np.zeros(shard, kind)
    owed, owed_summed = state.sent.get(k, [None] * p), state.summed.get(k)
    rows = np.empty((p, state.nbytes(shard, kind)), np.uint8)
    for block, rest, row in zip(blocks, owed, rows, strict=True):
        state.encode(block, rest, row)
    arrived = np.empty_like(rows)

    def sum_up(_):
        total, one = np.zeros(shard, kind), np.empty(shard, kind)
        for row in arrived:  # in the order of the ranks
            total += state.decode(row, one)
        total /= bucket.divisor
        state.encode(total, owed_summed, rows[0])
        for block, row in zip(blocks, comm.all_gather(rows[0]), strict=True):
            state.decode(row, block)
        x[...] = blocks.reshape(-1)[:x.size]
        return bucket.buffer()
    work = comm.all_to_all(rows, out=arrived, async_op=True)
    return work.get_future().then(sum_up)
