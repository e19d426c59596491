"""Stochastic gradient descent."""

import numpy as np

from ..execution import Kernel
from .optimizer import Optimizer

_PLAIN = Kernel("optimizer.cu", "sgd", elements="n")
_MOMENTUM = Kernel("optimizer.cu", "sgd_momentum", elements="n")


class SGD(Optimizer):
    """p -= lr * g, with weight decay added to g, momentum (Polyak 1964) and Nesterov's variant.

    v = momentum * v + (1 - dampening) * g, where the first v is g itself, as in PyTorch.
    maximize: the gradient is followed upwards.
    """

    saves_step = False

    def __init__(self, params, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0,
                 nesterov=False, *, maximize=False):
        self.state_names = ("momentum_buffer",) if momentum else ()
        super().__init__(params, dict(lr=lr, momentum=momentum, dampening=dampening,
                                      weight_decay=weight_decay, nesterov=nesterov,
                                      maximize=maximize))

    def _check(self, group):
        super()._check(group)
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("nesterov needs a momentum > 0 and no dampening")
        if group["momentum"] and not self.state_names:
            raise ValueError("a group has momentum but the optimizer was made without")

    def _launch(self, p, grad, scale, states, group, step):
        momentum = group["momentum"]
        run = (_MOMENTUM if momentum else _PLAIN).build(p)
        if run is None:
            return False
        common = len(p), scale, group["weight_decay"], group["lr"]
        if momentum:  # the first v is 0 before
            fresh = 1.0 if step == 1 else 1 - group["dampening"]
            run(p, grad, states[0], *common, momentum, fresh, bool(group["nesterov"]))
        else:
            run(p, grad, *common)
        return True

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
