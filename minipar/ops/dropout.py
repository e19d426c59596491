"""Dropout (Srivastava et al. 2014) with masks that do not depend on who holds which sample.

The mask of a sample is a function of the seed, the optimizer step, the name of the layer, how
often that name has drawn in this forward, and the sample's position in the global batch. So any
cut of the batch over ranks and micro-batches drops the same elements, and a recomputed forward
(same BatchPosition, counted afresh) too.
"""

import math

import numpy as np

from .. import random
from ..context import current
from ..device import beside
from ..execution import Kernel
from ..tensor import record
from .base import for_kernel, quiet, wide

_MASK = Kernel("dropout.cu", "keep_mask", elements="count")
_SCALE = Kernel("dropout.cu", "masked_scale", elements="n")


def keep_mask(shape, p, name, piece=(0, 1), like=None):
    """A bool array, True with probability 1 - p; dim 0 of `shape` counts the samples.

    piece: (index, count): dim 1 is the piece `index` of `count` equal ones of a whole sample's,
    and the mask is that piece of the whole's.

    p is rounded down to a multiple of 2**-32: an element is kept if its 32 random bits are at
    least floor(p 2**32). Element e of the sample at position i of the global batch has number
    i * stride + e of the stream, where stride is a whole sample's size rounded up to whole blocks.
    like: the mask lies where this array does, on the CPU if None. Counts as one call of `name`.
    """
    context = current()
    batch = context.batch
    call = batch.calls.get(name, 0)
    batch.calls[name] = call + 1
    threshold = math.floor(p * 2**32)
    samples, size = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    if threshold == 2**32 or not samples * size:
        return np.zeros(shape, bool, like=like)
    index, count = piece
    blocks = -(-size * count // random.LANES)  # of the generator, in a whole sample
    key = random.key(context.seed, "dropout", batch.step, name, call)
    if count == 1:
        kept, skip = _kept(key, threshold, batch.start * blocks, samples * blocks, like), 0
    else:
        begin, skip = divmod(index * size, random.LANES)
        end = -(-(index + 1) * size // random.LANES)
        kept = np.concatenate([_kept(key, threshold, (batch.start + i) * blocks + begin,
                                     end - begin, like) for i in range(samples)])
    return for_kernel(kept.reshape(samples, -1)[:, skip:skip + size]).reshape(shape)


def _kept(key, threshold, first, blocks, like):
    """Whether the random numbers of so many blocks, from block `first`, reach the threshold."""
    run = _MASK.build(np.empty(0, np.float32, like=like))
    if run and first + blocks < 2**64:
        words = np.empty(blocks, np.uint64, like=like)
        run(words, key % 2**64, key >> 64, first, threshold, words.size)
        return words.view(bool)
    kept = random.bits(key, first * random.LANES, blocks * random.LANES) >= threshold
    return kept if like is None else beside(like, kept)


def check_probability(name, p):
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: probability {p} is not between 0 and 1")


@quiet
def dropout(input, p=0.5, training=True, *, name="", piece=(0, 1)):
    """input with each element zeroed with probability p, the others scaled by 1 / (1 - p).

    input: floating, any shape; dim 0 counts the samples. name: of the layer, such that two of one
    forward draw different masks. piece: of a sample that dim 1 is, as for `keep_mask`. The input
    itself if not training or p is 0.
    Raises ValueError unless 0 <= p <= 1, TypeError for other types.
    """
    check_probability("dropout", p)
    if not input.dtype.is_floating_point:
        raise TypeError(f"dropout: a floating type is needed, not {input.dtype}")
    if not training or not p:
        return input
    mask = keep_mask(input.shape, p, name, piece, input.array)
    scale = 1 / (1 - p) if p < 1 else 0.0

    def scaled(a):
        run = _SCALE.build(a)
        if run and a.shape == mask.shape:
            out = np.empty_like(a, order="C")
            run(for_kernel(a), for_kernel(mask.view(np.uint8)), out, scale, a.size)
            return out
        kept = np.multiply(a, mask, dtype=wide(a.dtype))
        kept *= scale
        return kept.astype(a.dtype, copy=False)
    return record(scaled(input.array), (input,), lambda g: (scaled(g),))
