"""16 bits for each element of the gradient: half of float32's bytes.

The messages are encoded by a codec (comm/codecs.py), and sums are taken in the gradient's own type
and rounded before they are sent on: of two 16-bit numbers that is the sum in 16 bits.
"""

from ...comm.codecs import bfloat16, float16
from ...comm.compose import compressed
from ...comm.program import ALGORITHMS

_RING = {codec: compressed(ALGORITHMS["all_reduce"]["ring"], codec)
         for codec in (float16, bfloat16)}


def fp16_compress_hook(process_group, bucket):
    """All-reduce the bucket in float16: 11 bits of mantissa, at most 65,504, above it infinite.

    As PyTorch's: cast, divided by the number of ranks, then summed.
    process_group: a Communicator; the bucket's own if None. Sends 2 (p-1)/p 2n bytes for n elements
    on each of p ranks. Micikevicius et al. 2018, "Mixed precision training".
    No error feedback: what rounding loses is lost.
    Raises TypeError for gradients of a type that the codec does not take.
    """
    return _reduce_as(float16, process_group, bucket)


def bf16_compress_hook(process_group, bucket):
    """All-reduce the bucket in bfloat16: 8 bits of mantissa, the range of float32.

    As fp16_compress_hook. Kalamkar et al. 2019, "A study of bfloat16 for deep learning training".
    """
    return _reduce_as(bfloat16, process_group, bucket)


def _reduce_as(codec, process_group, bucket):
    comm = bucket.comm if process_group is None else process_group
    buffer = bucket.buffer()
    codec.check(buffer.array.dtype)
    buffer.array[...] = codec.round_trip(buffer.array)
    if bucket.divisor > 1:
        buffer.array[...] = codec.round_trip(buffer.array / bucket.divisor)
    work = comm.all_reduce(buffer, algorithm=_RING[codec], async_op=True)
    return work.get_future().then(lambda future: future.value()[0])
