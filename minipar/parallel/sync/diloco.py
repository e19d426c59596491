"""DiLoCo: local steps by an inner optimizer, and an outer one for what they amount to.

Douillard et al. 2023, "DiLoCo: distributed low-communication training of language models",
algorithm 1. Every H steps the mean over the ranks of (parameters before - parameters after) is
taken for a gradient, and SGD with Nesterov's momentum steps along it from where all began. With
outer_lr = 1 and outer_momentum = 0 this is local SGD.
"""

import numpy as np

from .local import Local


class DiLoCo(Local):
    """period: H. outer_lr, outer_momentum: the paper's 0.7 and 0.9. Others as for Replicated."""

    def __init__(self, *args, period, outer_lr=0.7, outer_momentum=0.9, **options):
        super().__init__(*args, period=period, **options)
        self.outer_lr, self.outer_momentum = outer_lr, outer_momentum
        self.begin = [flat.data.copy() for flat in self.flats]  # where all ranks began
        self.velocity = [np.zeros_like(flat.data) for flat in self.flats]

    def average(self):
        super().average()
        for flat, begin, velocity in zip(self.flats, self.begin, self.velocity):
            difference = begin - flat.data
            velocity *= self.outer_momentum
            velocity += difference
            difference += self.outer_momentum * velocity  # Nesterov's look ahead, as PyTorch's
            begin -= self.outer_lr * difference
            flat.data[...] = begin

    def shared(self):
        return {f"outer.{name}.{i}": array
                for name, arrays in (("begin", self.begin), ("velocity", self.velocity))
                for i, array in enumerate(arrays)}

    def load(self, model, optimizer):
        super().load(model, optimizer)
        if not self.comm.broadcast_object("outer.begin.0" in optimizer):
            for flat, begin in zip(self.flats, self.begin):
                begin[...] = flat.data
