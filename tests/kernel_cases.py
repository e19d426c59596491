"""What each kernel computes, in float64: the table that the emulator's test goes through.

CASES[kernel] = case(rng, rows, n) -> arguments. Floating arrays are made in float64 and handed
over in the type that is tested; Out(expected) stands for an array that the kernel writes. A new
kernel gets a line here.
"""

import numpy as np


class Out:
    """An array that a kernel writes, and what shall be in it then."""

    def __init__(self, expected):
        self.expected = np.asarray(expected)


def _softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def softmax_forward(rng, rows, n):
    x = rng.standard_normal((rows, n)) * 5
    return x, Out(_softmax(x)), rows, n


def softmax_backward(rng, rows, n):
    y, g = _softmax(rng.standard_normal((rows, n))), rng.standard_normal((rows, n))
    return y, g, Out(y * (g - (g * y).sum(1, keepdims=True))), rows, n


def log_softmax_forward(rng, rows, n):
    x = rng.standard_normal((rows, n)) * 5
    return x, Out(np.log(_softmax(x))), rows, n


def log_softmax_backward(rng, rows, n):
    y, g = np.log(_softmax(rng.standard_normal((rows, n)))), rng.standard_normal((rows, n))
    return y, g, Out(g - np.exp(y) * g.sum(1, keepdims=True)), rows, n


CASES = {f.__name__: f for f in (softmax_forward, softmax_backward, log_softmax_forward,
                                 log_softmax_backward)}
