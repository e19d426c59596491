"""How long each block of a model takes on this machine, for a cut by time."""

import time

import numpy as np

from ..context import batch_position, current, use
from ..nn.blocks import blocks_of
from ..tensor import Tensor, backward
from .partition import Part


def block_seconds(make_model, inputs, repeats=3):
    """Seconds of a forward and backward of each block; the shortest of `repeats`.

    make_model: () -> the model, without memory. inputs: array of the first block's input, a
    micro-batch. One block is materialised at a time. The calling rank alone; random state stays.
    """
    found, x = [], inputs
    count = len(blocks_of(make_model()))
    with use(current().copy()):
        for i in range(count):
            stage = Part(make_model(), [1] * count, range(count), i).materialize().stages[i]
            seconds = []
            for _ in range(repeats):
                given, begin = Tensor(x), time.perf_counter()
                given.requires_grad = i > 0 and given.dtype.is_floating_point
                with batch_position(0, 0):
                    y = stage(given)
                if y.requires_grad:
                    backward([y], [np.ones_like(y.array)])
                seconds.append(time.perf_counter() - begin)
            found.append(min(seconds))
            x = y.array
    return found
