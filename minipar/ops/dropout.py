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
from ..launch import Kernel
from ..tensor import record
from .base import for_kernel, quiet

_MASK = Kernel("dropout.cu", "keep_mask", elements="count")
_SCALE = Kernel("dropout.cu", "masked_scale", rows="rows", width="n")


def keep_mask(shape, p, name):
    """A bool array, True with probability 1 - p; dim 0 of `shape` counts the samples.

    p is rounded down to a multiple of 2**-32: an element is kept if its 32 random bits are at
    least floor(p 2**32). Element e of the sample at position i of the global batch has number
    i * stride + e of the stream, where stride is the sample's size rounded up to whole blocks.
    Counts as one call of `name`.
    """
    samples, size = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    return _padded_mask(samples, size, p, name)[:, :size].reshape(shape)


def _padded_mask(samples, size, p, name):
    """The mask as (samples, stride), where stride is at least the sample's size."""
    context = current()
    batch = context.batch
    call = batch.calls.get(name, 0)
    batch.calls[name] = call + 1
    threshold = math.floor(p * 2**32)
    if threshold == 2**32 or not samples * size:
        return np.zeros((samples, size), bool)
    blocks = -(-size // random.LANES)  # of the generator, in a sample
    stride, first = blocks * random.LANES, batch.start * blocks
    key = random.key(context.seed, "dropout", batch.step, name, call)
    run = _MASK.build(np.dtype(np.float32))
    if run and first + samples * blocks < 2**64:
        mask = np.empty((samples, blocks), np.uint64)
        run(mask, key % 2**64, key >> 64, first, threshold, mask.size)
        return mask.view(bool)
    return (random.bits(key, first * random.LANES, samples * stride) >= threshold).reshape(
        samples, stride)


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
    shape = input.shape
    samples, size = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    padded = _padded_mask(samples, size, p, name)
    stride, scale = padded.shape[1], 1 / (1 - p) if p < 1 else 0.0
    if size == stride:
        samples, size, stride = 1, padded.size, padded.size  # one long row

    def scaled(a):
        run = _SCALE.build(a.dtype)
        if run and a.shape == shape:
            out = np.empty(shape, a.dtype)
            run(for_kernel(a), padded.view(np.uint8), out, scale, samples, size, stride)
            return out
        out = np.multiply(a, padded.reshape(samples, stride)[:, :size].reshape(shape))
        out *= scale
        return out
    return record(scaled(input.array), (input,), lambda g: (scaled(g),))
