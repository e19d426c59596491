"""Optimizers over flat parameters, with PyTorch's names and formulas.

A step runs over a few long stretches of memory, each made of neighbouring parameters that share
their hyper-parameters, in blocks that stay in the cache. A parameter without a gradient is left
alone: it neither decays nor counts a step.
"""

import math

import numpy as np

from .context import recorded
from .nn.flat import flatten
from .nn.parameter import Parameter
from .tensor import Tensor

_NOT_NEGATIVE = {"lr", "momentum", "weight_decay", "eps"}
BLOCK = 16384  # elements: a handful of such arrays fit a second-level cache


class Optimizer:
    """Base class: parameter groups, gradient scale and clipping, stretches of flat memory.

    params: parameters, or dicts {"params": [...], option: value} that override the defaults.
    Sub-classes give `states`, the number of state arrays, and `_update`.
    """

    states = 0

    def __init__(self, params, defaults):
        params = list(params)
        if not params:
            raise ValueError("an optimizer was given no parameters")
        groups = params if isinstance(params[0], dict) else [{"params": params}]
        self.defaults = defaults
        self.param_groups = []
        for group in groups:
            unknown = set(group) - set(defaults) - {"params"}
            if unknown:
                raise ValueError(f"no option {', '.join(sorted(unknown))} in a parameter group: "
                                 f"there are {', '.join(defaults)}")
            _require(**{k: group[k] for k in group.keys() & _NOT_NEGATIVE})
            members = group["params"]
            members = [members] if isinstance(members, Tensor) else list(members)
            if not all(isinstance(p, Parameter) for p in members):
                raise TypeError("an optimizer updates nn.Parameters")
            self.param_groups.append({**defaults, **group, "params": members})
        listed = [p for group in self.param_groups for p in group["params"]]
        if len({id(p) for p in listed}) != len(listed):
            raise ValueError("a parameter is in more than one group, or twice in one")
        self._flats = flatten(listed)
        self._state = {id(f): [np.zeros_like(f.data) for _ in range(self.states)]
                       for f in self._flats}
        # In flat order, so that neighbours in memory are neighbours in the list.
        where = {id(p): g for g in self.param_groups for p in g["params"]}
        self._order = [(p, where[id(p)], flat, *flat.range_of(p)) for flat in self._flats
                       for p in flat.parameters if id(p) in where]
        self._steps = [0] * len(self._order)
        self._all_used = None  # stretches when every parameter has a gradient
        self._scratch = {f.data.dtype: np.empty((2, BLOCK), f.data.dtype) for f in self._flats}
        self.grad_norm = None  # of the last step with max_norm, before clipping

    def zero_grad(self):
        """Forget all gradients: `.grad` is None again."""
        for p, *_ in self._order:
            p.sink.reset()

    def named_state(self, model):
        names = {id(p): n for n, p in model.named_parameters()}
        out = {}
        for i, (p, g, flat, a, b) in enumerate(self._order):
            out[f"{names[id(p)]}.step"] = self._steps[i]
            for k, s in enumerate(self._state[id(flat)]):
                out[f"{names[id(p)]}.{k}"] = s[a:b].reshape(p.shape)
        return out

    def load_named_state(self, model, state):
        names = {id(p): n for n, p in model.named_parameters()}
        for i, (p, g, flat, a, b) in enumerate(self._order):
            self._steps[i] = int(state[f"{names[id(p)]}.step"])
            for k, s in enumerate(self._state[id(flat)]):
                s[a:b] = state[f"{names[id(p)]}.{k}"].reshape(-1)

    @recorded("optimizer")
    @np.errstate(all="ignore")  # Inf and NaN pass, as in backward
    def step(self, *, scale=1.0, max_norm=None):
        """Update every parameter that has a gradient.

        scale:    gradients are multiplied by it first (1 / count, when losses are sums).
        max_norm: the global 2-norm of the scaled gradients is clipped to it; the norm before
                  clipping is kept in `grad_norm`.
        """
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
            for a in range(start, stop, BLOCK):
                b = min(a + BLOCK, stop)
                self._update(data[a:b], grad[a:b], scale, [s[a:b] for s in states], group, step,
                             scratch[:, :b - a])

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


def _require(**at_least_zero):
    for name, value in at_least_zero.items():
        if not value >= 0:
            raise ValueError(f"{name} = {value} is not >= 0")


class SGD(Optimizer):
    """p -= lr * g, with weight decay added to g, momentum (Polyak 1964) and Nesterov's variant.

    v = momentum * v + (1 - dampening) * g, where the first v is g itself, as in PyTorch.
    """

    def __init__(self, params, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0,
                 nesterov=False):
        _require(lr=lr, momentum=momentum, weight_decay=weight_decay)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("nesterov needs a momentum > 0 and no dampening")
        self.states = 1 if momentum else 0
        super().__init__(params, dict(lr=lr, momentum=momentum, dampening=dampening,
                                      weight_decay=weight_decay, nesterov=nesterov))
        if not self.states and any(g["momentum"] for g in self.param_groups):
            raise ValueError("a group has momentum but the optimizer was made without")

    def _update(self, p, grad, scale, states, group, step, scratch):
        g, t = scratch
        np.multiply(grad, scale, out=g)
        if group["weight_decay"]:
            np.multiply(p, group["weight_decay"], out=t)
            g += t
        if group["momentum"]:
            v, = states
            if step == 1:
                v[...] = g
            else:
                v *= group["momentum"]
                np.multiply(g, 1 - group["dampening"], out=t)
                v += t
            if group["nesterov"]:
                np.multiply(v, group["momentum"], out=t)
                g += t
            else:
                g[...] = v
        g *= group["lr"]
        p -= g


class AdamW(Optimizer):
    """Adam (Kingma & Ba 2015) with decoupled weight decay (Loshchilov & Hutter 2019)."""

    states = 2

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        _require(lr=lr, eps=eps, weight_decay=weight_decay)
        for i, beta in enumerate(betas):
            if not 0 <= beta < 1:
                raise ValueError(f"betas[{i}] = {beta} is not in [0, 1)")
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    def _update(self, p, grad, scale, states, group, step, scratch):
        (m, v), t = states, scratch[0]
        lr, (beta1, beta2) = group["lr"], group["betas"]
        if group["weight_decay"]:
            p *= 1 - lr * group["weight_decay"]
        np.multiply(grad, (1 - beta1) * scale, out=t)
        m *= beta1
        m += t
        np.multiply(grad, math.sqrt(1 - beta2) * scale, out=t)
        t *= t
        v *= beta2
        v += t
        # m / c1 / (sqrt(v / c2) + eps), with both corrections moved out of the passes over memory.
        root = math.sqrt(1 - beta2 ** step)
        np.sqrt(v, out=t)
        t += group["eps"] * root or np.finfo(t.dtype).tiny  # 0 / 0 is no step, in the padding too
        np.divide(m, t, out=t)
        t *= lr * root / (1 - beta1 ** step)
        p -= t
