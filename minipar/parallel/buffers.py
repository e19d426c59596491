"""Buffers of replicas (batch-norm statistics): rank 0's are the truth, and others get them."""

import numpy as np


class Buffers:
    """The buffers of a module, packed into one array for each of their dtypes.

    share() gives every rank those of rank 0, after which they are alike until `changed()`.
    Collective over `comm`, as is making one.
    """

    def __init__(self, module, comm):
        self._plans = [comm.plan("broadcast", array) for array in pack(module.buffers())]
        self._stale = True
        self.share()

    def share(self):
        """Give every rank the buffers of rank 0, if they may differ."""
        for plan in self._plans if self._stale else ():
            plan.start()
            plan.wait()
        self._stale = False

    def changed(self):
        """A forward in training has changed them, on each rank in its way."""
        self._stale = True


def pack(tensors):
    """Move tensors into one array for each of their dtypes and devices; returns these arrays."""
    groups = {}
    for t in tensors:
        groups.setdefault((t.array.dtype, t.device), []).append(t)
    packed = []
    for (dtype, _), members in groups.items():
        array, at = np.empty(sum(t.numel() for t in members), dtype, like=members[0].array), 0
        for t in members:
            view = array[at:at + t.numel()].reshape(t.shape)
            view[...] = t.array
            t.array, at = view, at + t.numel()
        packed.append(array)
    return packed
