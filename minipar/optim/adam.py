"""Adam, with weight decay in the gradient or decoupled from it."""

import math

import numpy as np

from ..execution import Kernel
from ..ops.base import wide
from .optimizer import Optimizer

_ADAM = Kernel("optimizer.cu", "adam", elements="n")
_AMSGRAD = Kernel("optimizer.cu", "amsgrad", elements="n")


def _corrections(group, step, dtype):
    """(eps, rate) with p -= rate m / (sqrt(v) + eps): the corrections for the first steps, which
    the paper applies to m and v, moved out of the pass over memory.

    0 / 0 is to be no step, in the padding between parameters too, so eps is never 0.
    """
    beta1, beta2 = group["betas"]
    root = math.sqrt(1 - beta2 ** step)
    tiny = float(np.finfo(wide(dtype)).tiny)
    return max(group["eps"] * root, tiny), group["lr"] * root / (1 - beta1 ** step)


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), with weight decay added to the gradient.

    amsgrad: divide by the largest second moment so far (Reddi et al. 2018).
    maximize: the gradient is followed upwards. decoupled_weight_decay: see AdamW.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0,
                 amsgrad=False, *, maximize=False, decoupled_weight_decay=False):
        self.state_names = ("exp_avg", "exp_avg_sq") + ("max_exp_avg_sq",) * bool(amsgrad)
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
                                      amsgrad=amsgrad, maximize=maximize,
                                      decoupled_weight_decay=decoupled_weight_decay))

    def _check(self, group):
        super()._check(group)
        for i, beta in enumerate(group["betas"]):
            if not 0 <= beta < 1:
                raise ValueError(f"betas[{i}] = {beta} is not in [0, 1)")
        if group["amsgrad"] and len(self.state_names) < 3:
            raise ValueError("a group has amsgrad but the optimizer was made without")

    def _launch(self, p, grad, scale, states, group, step):
        run = (_AMSGRAD if group["amsgrad"] else _ADAM).build(p)
        if run is None:
            return False
        m, v, *largest = states
        decay, shrink = group["weight_decay"], 0.0
        if group["decoupled_weight_decay"]:
            decay, shrink = 0.0, group["lr"] * decay
        beta1, beta2 = group["betas"]
        run(p, grad, m, v, *largest[:group["amsgrad"]], len(p), scale, decay, shrink, beta1,
            1 - beta1, beta2, math.sqrt(1 - beta2), *_corrections(group, step, p.dtype))
        return True

    def _update(self, p, grad, scale, states, group, step, scratch):
        (m, v, *largest), (t, g) = states, scratch
        lr, (beta1, beta2) = group["lr"], group["betas"]
        if group["weight_decay"]:
            if group["decoupled_weight_decay"]:
                p *= 1 - lr * group["weight_decay"]
            else:
                np.multiply(grad, scale, out=g)
                np.multiply(p, group["weight_decay"], out=t)
                g += t
                grad, scale = g, 1.0
        np.multiply(grad, (1 - beta1) * scale, out=t)
        m *= beta1
        m += t
        np.multiply(grad, math.sqrt(1 - beta2) * scale, out=t)
        t *= t
        v *= beta2
        v += t
        if group["amsgrad"]:
            v = np.maximum(largest[0], v, out=largest[0])
        eps, rate = _corrections(group, step, p.dtype)
        np.sqrt(v, out=t)
        t += eps
        np.divide(m, t, out=t)
        t *= rate
        p -= t


class AdamW(Adam):
    """Adam with weight decay decoupled from the gradient (Loshchilov & Hutter 2019)."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2,
                 amsgrad=False, *, maximize=False):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize,
                         decoupled_weight_decay=True)

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for group in self.param_groups:  # whatever the one it was saved from did
            group["decoupled_weight_decay"] = True
