"""Optimizers over flat parameters, with PyTorch's names and formulas.

A step runs over a few long stretches of memory, each made of neighbouring parameters that share
their hyper-parameters, in blocks that stay in the cache. A parameter without a gradient is left
alone: it neither decays nor counts a step.
"""

import math

import numpy as np

from ..context import enable_grad, recorded
from ..nn.flat import flatten
from ..nn.parameter import Parameter
from ..tensor import Tensor
from .saving import Saving

BLOCK = 16384  # elements: a handful of such arrays fit a second-level cache


class Optimizer(Saving):
    """Base class: parameter groups, gradient scale and clipping, stretches of flat memory.

    params: parameters, pairs (name, parameter), or dicts {"params": either, option: value} that
    override the defaults. Sub-classes give `state_names`, one per state array, and `_update`.
    """

    state_names = ()

    def __init__(self, params, defaults):
        if isinstance(params, Tensor):
            raise TypeError("an optimizer takes an iterable of parameters, not a tensor")
        params = list(params)
        if not params:
            raise ValueError("an optimizer was given no parameters")
        self.defaults, self.param_groups = defaults, []
        self._state, self._order, self._steps = {}, [], []
        self.grad_norm = None  # of the last step with max_norm, before clipping
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
        self._steps = [steps.get(id(p), 0) for p, *_ in self._order]
        self._all_used = None  # stretches when every parameter has a gradient
        self._scratch = {f.data.dtype: np.empty((2, BLOCK), f.data.dtype) for f in self._flats}

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

    def zero_grad(self, set_to_none=True):
        """Forget all gradients: `.grad` is None again, or 0 where there was one."""
        for p, *_ in self._order:
            if set_to_none:
                p.sink.reset()
            elif not p.sink.fresh:
                p.sink.buffer.fill(0)

    @recorded("optimizer")
    @np.errstate(all="ignore")  # Inf and NaN pass, as in backward
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
            total = sum(_squares(flat.grad[start:stop]) for _, _, flat, start, stop in stretches)
            self.grad_norm = math.sqrt(total) * abs(scale)
            # PyTorch's clip_grad_norm_, with its 1e-6. A NaN norm must reach the parameters.
            factor = max_norm / (self.grad_norm + 1e-6)
            scale *= factor if not factor > 1 else 1.0
        for group, step, flat, start, stop in stretches:
            data, grad, states = flat.data, flat.grad, self._state[id(flat)]
            scratch = self._scratch[data.dtype]
            signed = -scale if group.get("maximize") else scale
            for a in range(start, stop, BLOCK):
                b = min(a + BLOCK, stop)
                self._update(data[a:b], grad[a:b], signed, [s[a:b] for s in states], group, step,
                             scratch[:, :b - a])
        return loss

    def _stretches(self):
        """[(group, step, flat, start, stop)] of what is to be updated; counts the steps."""
        used = [not p._sink.fresh for p, *_ in self._order]
        everything = all(used) and len(set(self._steps)) <= 1
        for i, yes in enumerate(used):
            if yes:
                self._steps[i] += 1
                self._order[i][0].storage.version += 1
        if everything and self._all_used is not None:
            return [(group, self._steps[0], *rest) for group, _, *rest in self._all_used]
        out, previous = [], None
        for i, (p, group, flat, start, stop) in enumerate(self._order):
            if not used[i]:
                previous = None
                continue
            index = flat.index[id(p)]
            if previous == (id(group), self._steps[i], id(flat), index - 1):
                out[-1][4] = stop
            else:
                out.append([group, self._steps[i], flat, start, stop])
            previous = id(group), self._steps[i], id(flat), index
        if everything:
            self._all_used = out
        return out

    def _update(self, p, grad, scale, states, group, step, scratch):
        """Update block p (1-D, in place) from `grad`, which is to be multiplied by `scale`.

        states: the block's state arrays. step: from 1. scratch: two arrays of the block's size.
        """
        raise TypeError(f"{type(self).__name__} defines no _update()")


def _squares(x):
    """The sum of squares of a 1-D array, as a Python float."""
    return sum(float(np.dot(x[a:a + BLOCK], x[a:a + BLOCK])) for a in range(0, len(x), BLOCK))
