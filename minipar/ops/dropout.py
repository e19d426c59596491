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


def keep_mask(shape, p, name, like=None):
    """A bool array, True with probability 1 - p; dim 0 of `shape` counts the samples.

    p is rounded down to a multiple of 2**-32: an element is kept if its 32 random bits are at
    least floor(p 2**32). Element e of the sample at position i of the global batch has number
    i * stride + e of the stream, where stride is the sample's size rounded up to whole blocks.
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
    blocks = -(-size // random.LANES)  # of the generator, in a sample
    stride, first = blocks * random.LANES, batch.start * blocks
    key = random.key(context.seed, "dropout", batch.step, name, call)
    run = _MASK.build(np.empty(0, np.float32, like=like))
    if run and first + samples * blocks < 2**64:
        words = np.empty(samples * blocks, np.uint64, like=like)
        run(words, key % 2**64, key >> 64, first, threshold, words.size)
        kept = words.view(bool)
    else:
        kept = random.bits(key, first * random.LANES, samples * stride) >= threshold
        kept = kept if like is None else beside(like, kept)
    return for_kernel(kept.reshape(samples, stride)[:, :size]).reshape(shape)


def check_probability(name, p):
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: probability {p} is not between 0 and 1")


@quiet
def dropout(input, p=0.5, training=True, *, name=""):
    """input with each element zeroed with probability p, the others scaled by 1 / (1 - p).

    input: floating, any shape; dim 0 counts the samples. name: of the layer, such that two of one
    forward draw different masks. The input itself if not training or p is 0.
    Raises ValueError unless 0 <= p <= 1, TypeError for other types.
    """
    check_probability("dropout", p)
    if not input.dtype.is_floating_point:
        raise TypeError(f"dropout: a floating type is needed, not {input.dtype}")
    if not training or not p:
        return input
    mask = keep_mask(input.shape, p, name, input.array)
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
