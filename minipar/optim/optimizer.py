"""Optimizers over flat parameters, with PyTorch's names and formulas.

A step runs over a few long stretches of memory, each made of neighbouring parameters that share
their hyper-parameters: by one launch of a kernel, or by NumPy in blocks that stay in the cache. A
parameter without a gradient is left alone: it neither decays nor counts a step.
"""

import math

import numpy as np

from ..context import enable_grad, recorded
from ..device import device_of
from ..nn.flat import flatten
from ..nn.parameter import Parameter
from ..nn.utils import sum_of_squares
from ..ops.base import wide
from ..tensor import Tensor
from .saving import Saving

BLOCK = 16384  # elements: a handful of such arrays fit a second-level cache


class Optimizer(Saving):
    """Base class: parameter groups, gradient scale and clipping, stretches of flat memory.

    params: parameters, pairs (name, parameter), or dicts {"params": either, option: value} that
    override the defaults. Sub-classes give `state_names`, one per state array, and `_update`; and
    `_launch`, if they have a kernel.
    """

    state_names = ()

    def __init__(self, params, defaults):
        if isinstance(params, Tensor):
            raise TypeError("an optimizer takes an iterable of parameters, not a tensor")
        params = list(params)
        if not params:
            raise ValueError("an optimizer was given no parameters")
        self.defaults, self.param_groups = defaults, []
        self._state, self._order, self._steps = {}, [], np.zeros(0, np.int64)
        self.grad_norm = None  # of the last step with max_norm, before clipping
        # From this rank's sum of squares to that of all ranks which hold other parameters.
        self.sum_over_ranks = None
        self._extend(params if isinstance(params[0], dict) else [{"params": params}])

    def add_param_group(self, param_group):
        """Update more parameters: a dict as the constructor takes them."""
        self._extend([param_group])

    def _extend(self, groups):
        groups = self.param_groups + [self._complete(group) for group in groups]
        listed = [p for group in groups for p in group["params"]]
        if len({id(p) for p in listed}) != len(listed):
            raise ValueError("a parameter is in more than one group, or twice in one")
        if len({"param_names" in group for group in groups}) > 1:
            raise ValueError("some parameter groups have names and some have none")
        self._flats, self.param_groups = flatten(listed), groups
        for f in self._flats:
            if id(f) not in self._state:
                self._state[id(f)] = [np.zeros_like(f.data) for _ in self.state_names]
        # In flat order, so that neighbours in memory are neighbours in the list.
        where = {id(p): g for g in groups for p in g["params"]}
        steps = {id(p): step for (p, *_), step in zip(self._order, self._steps)}
        self._order = [(p, where[id(p)], flat, *flat.range_of(p)) for flat in self._flats
                       for p in flat.parameters if id(p) in where]
        self._steps = np.array([steps.get(id(p), 0) for p, *_ in self._order], np.int64)
        self._sinks = [flat.sinks[flat.index[id(p)]] for p, _, flat, *_ in self._order]
        self._fresh = None  # which had no gradient when the stretches were last cut
        self._scratch = {(f.data.dtype, device_of(f.data)): np.empty(
            (2, BLOCK), wide(f.data.dtype), like=f.data) for f in self._flats}

    def _complete(self, group):
        """A group with all options, checked, its parameters in a list and names in another."""
        unknown = set(group) - set(self.defaults) - {"params", "param_names", "initial_lr"}
        if unknown:
            raise ValueError(f"no option {', '.join(sorted(unknown))} in a parameter group: "
                             f"there are {', '.join(self.defaults)}")
        members = group["params"]
        members = [members] if isinstance(members, Tensor) else list(members)
        names = [m[0] for m in members if isinstance(m, tuple)]
        if names and len(names) < len(members):
            raise ValueError(f"{len(names)} of {len(members)} parameters of a group have names")
        if names:
            members = [p for _, p in members]
        if not all(isinstance(p, Parameter) for p in members):
            raise TypeError("an optimizer updates nn.Parameters")
        group = {**self.defaults, **group, "params": members}
        if names:
            group["param_names"] = names
        self._check(group)
        return group

    def _check(self, group):
        """Raise ValueError for a value that an option cannot have."""
        for name in ("lr", "momentum", "weight_decay", "eps"):
            if name in group and not group[name] >= 0:
                raise ValueError(f"{name} = {group[name]} is not >= 0")

    def gradients(self):
        """The arrays of the gradients there are, of what this rank updates."""
        return [sink.buffer for sink in self._sinks if not sink.fresh]

    def zero_grad(self, set_to_none=True):
        """Forget all gradients: `.grad` is None again, or 0 where there was one."""
        for sink in self._sinks:
            if set_to_none:
                sink.reset()
            elif not sink.fresh:
                sink.buffer.fill(0)

    @recorded("optimizer")
    def step(self, closure=None, *, scale=1.0, max_norm=None):
        """Update every parameter that has a gradient; returns what `closure` returned.

        closure:  called first, with gradients on: computes the loss and its gradients.
        scale:    gradients are multiplied by it first (1 / count, when losses are sums).
        max_norm: the global 2-norm of the scaled gradients is clipped to it; the norm before
                  clipping is kept in `grad_norm`.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        stretches = self._stretches()
        if max_norm is not None:
            self.grad_norm = math.sqrt(self._sum_of_squares(stretches)) * abs(scale)
            # PyTorch's clip_grad_norm_, with its 1e-6. A NaN norm must reach the parameters.
            factor = max_norm / (self.grad_norm + 1e-6)
            scale *= factor if not factor > 1 else 1.0
        for group, step, data, grad, states in stretches:
            signed = -scale if group.get("maximize") else scale
            if not self._launch(data, grad, signed, states, group, step):
                self._in_blocks(data, grad, signed, states, group, step)
        return loss

    def _sum_of_squares(self, stretches):
        """Of all gradients, each parameter counted once: here, or by the rank that counts it."""
        if all(p.counted for p, *_ in self._order):
            total = sum(sum_of_squares(grad) for _, _, _, grad, _ in stretches)
        else:
            total = sum(sum_of_squares(sink.buffer) for (p, *_), sink in
                        zip(self._order, self._sinks) if p.counted and not sink.fresh)
        return total if self.sum_over_ranks is None else self.sum_over_ranks(total)

    def _stretches(self):
        """[(group, step, data, grad, states)] of what is to be updated: views of flat memory.

        Counts the steps. As long as the same parameters have gradients, the stretches stay.
        """
        fresh = [sink.fresh for sink in self._sinks]
        if fresh != self._fresh or any(f.grad is not g for f, g in zip(self._flats, self._grads)):
            self._fresh, self._cut = fresh, self._cut_stretches(fresh)
            self._grads = [f.grad for f in self._flats]  # data parallelism may move them
        used, storages, stretches = self._cut
        self._steps += used
        for storage in storages:
            storage.version += 1
        return [(group, int(self._steps[first]), *arrays) for group, first, *arrays in stretches]

    def _cut_stretches(self, fresh):
        """(1 for each parameter that is used, their storages, [(group, position of the first
        parameter, data, grad, states)]). Neighbours in memory that share group and step go
        together.
        """
        where, cuts, previous = [i for i, new in enumerate(fresh) if not new], [], None
        for i in where:
            p, group, flat, start, stop = self._order[i]
            index = flat.index[id(p)]
            if previous == (id(group), self._steps[i], id(flat), index - 1):
                cuts[-1][-1] = stop
            else:
                cuts.append([group, i, flat, start, stop])
            previous = id(group), self._steps[i], id(flat), index
        used = np.zeros_like(self._steps)
        used[where] = 1
        return used, [self._order[i][0].storage for i in where], [
            (group, i, flat.data[start:stop], flat.grad[start:stop],
             [array[start:stop] for array in self._state[id(flat)]])
            for group, i, flat, start, stop in cuts if stop > start]

    def _launch(self, p, grad, scale, states, group, step):
        """Do for a whole stretch what `_update` does for a block, by a kernel, if there is one.

        Returns whether there was.
        """
        return False

    @np.errstate(all="ignore")  # Inf and NaN pass, as in backward
    def _in_blocks(self, p, grad, scale, states, group, step):
        scratch = self._scratch[p.dtype, device_of(p)]
        for a in range(0, len(p), BLOCK):
            own = [array[a:a + BLOCK] for array in (p, grad, *states)]
            block = [array.astype(scratch.dtype, copy=False) for array in own]  # of 16 bits: copies
            self._update(block[0], block[1], scale, block[2:], group, step,
                         scratch[:, :len(p) - a])
            for array, new in zip(own, block):
                if new is not array:
                    array[...] = new

    def _update(self, p, grad, scale, states, group, step, scratch):
        """Update block p (1-D, in place) from `grad`, which is to be multiplied by `scale`.

        states: the block's state arrays. step: from 1. scratch: two arrays of the block's size.
        """
        raise TypeError(f"{type(self).__name__} defines no _update()")
