"""What each kernel computes, in float64: the table that the emulator's test goes through.

CASES[kernel] = case(rng, rows, n) -> arguments. Floating arrays are made in float64 and handed
over in the type that is tested; Out(expected) stands for an array that the kernel writes. A new
kernel gets a line here.
"""

import math

import numpy as np

from minipar import random


class Out:
    """An array that a kernel writes: what shall be in it then, and what is there before."""

    def __init__(self, expected, before=7):
        self.expected, self.before = np.asarray(expected), before


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def softmax_forward(rng, rows, n):
    x = rng.standard_normal((rows, n)) * 5
    return x, Out(softmax(x)), rows, n


def softmax_backward(rng, rows, n):
    y, g = softmax(rng.standard_normal((rows, n))), rng.standard_normal((rows, n))
    return y, g, Out(y * (g - (g * y).sum(1, keepdims=True))), rows, n


def log_softmax_forward(rng, rows, n):
    x = rng.standard_normal((rows, n)) * 5
    return x, Out(np.log(softmax(x))), rows, n


def log_softmax_backward(rng, rows, n):
    y, g = np.log(softmax(rng.standard_normal((rows, n)))), rng.standard_normal((rows, n))
    return y, g, Out(g - np.exp(y) * g.sum(1, keepdims=True)), rows, n


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    s = sigmoid(x)
    return x * s, s + x * s * (1 - s)


def gelu_tanh(x):
    k, c = math.sqrt(8 / math.pi), 0.044715  # (1 + tanh u) / 2 is sigmoid(2 u)
    u = k * (x + c * x**3)
    s = sigmoid(u)
    return x * s, s + x * s * sigmoid(-u) * k * (1 + 3 * c * x * x)


def gelu_none(x):
    share = 0.5 * np.vectorize(math.erfc, otypes=[float])(-x * math.sqrt(0.5))
    return x * share, share + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


# {kernel: (its inputs, a function of them that gives its outputs)}
ELEMENTWISE = {
    "relu_forward": (1, lambda x: (np.maximum(x, 0),)),
    "relu_backward": (2, lambda y, g: (np.where(y == 0, 0, g),)),
    "sigmoid_forward": (1, lambda x: (sigmoid(x),)),
    "sigmoid_backward": (2, lambda y, g: (g * y * (1 - y),)),
    "tanh_backward": (2, lambda y, g: (g * (1 - y * y),)),
    "silu": (1, lambda x: silu(x)[:1]), "silu_slope": (1, silu),
    "gelu_tanh": (1, lambda x: gelu_tanh(x)[:1]), "gelu_tanh_slope": (1, gelu_tanh),
    "gelu_none": (1, lambda x: gelu_none(x)[:1]), "gelu_none_slope": (1, gelu_none)}


def _elementwise(inputs, function):
    def case(rng, rows, n):
        arrays = list(rng.normal(0, 3, (inputs, rows * n)))
        if inputs == 2:
            arrays[0] = np.maximum(arrays[0], 0)  # some zeros, for relu
        return *arrays, *map(Out, function(*arrays)), rows * n
    return case


def add_row(rng, rows, n):
    x, row = rng.standard_normal((rows, n)), rng.standard_normal(n)
    return x, row, Out(x + row), rows, n


def reference_loss(x, target, scale):
    rows = np.arange(len(x))
    p = softmax(x)
    loss = np.where(target < 0, 0, -np.log(p[rows, target]))
    p[rows, target] -= 1
    return loss, np.where(target[:, None] < 0, 0, p * scale)


def _losses(rng, rows, n):
    target = rng.integers(0, n, rows)
    target[1::3] = -1
    return rng.normal(0, 3, (rows, n)), target


def cross_entropy(rng, rows, n):
    x, target = _losses(rng, rows, n)
    return x, target, Out(reference_loss(x, target, 1)[0]), rows, n


def cross_entropy_gradient(rng, rows, n):
    x, target = _losses(rng, rows, n)
    return x, target, *map(Out, reference_loss(x, target, 0.25)), 0.25, rows, n


def embedding_backward(rng, rows, n):
    index, g = rng.integers(0, 6, rows), rng.standard_normal((rows, n))
    expected = np.full((6, n), 7.0)  # what is there before
    np.add.at(expected, index, g)
    return index, g, Out(expected), rows, 6, n


def keep_mask(rng, rows, n):
    key, first, count = random.key("a case"), 2**40 + n, rows * n
    kept = random.bits(key, 8 * first, 8 * count) >= 2**30
    return Out(kept.view(np.uint64)), key % 2**64, key >> 64, first, 2**30, count


def masked_scale(rng, rows, n):
    x, mask = rng.standard_normal((rows, n)), rng.integers(0, 2, (rows, n), np.uint8)
    return x, mask, Out(x * mask * 1.25), 1.25, rows * n


def from_float(rng, rows, n):
    x = np.round(8 * rng.standard_normal((rows, n))) / 8  # of every type
    return x, Out(x * 0.5), 0.5, rows * n


def unscale(rng, rows, n):
    g = rng.standard_normal(rows * n * 3)
    bad = [False] * (-(-g.size // 4096))
    return Out(g * 0.25, g), Out(np.uint8(bad)), 0.25, len(bad), g.size


def _reduce(function):
    def case(rng, rows, n):
        a, b = np.round(4 * rng.standard_normal((2, rows, n))) / 4
        return Out(function(a, b), a), b, rows * n
    return case


CASES = {f.__name__: f for f in (
    softmax_forward, softmax_backward, log_softmax_forward, log_softmax_backward, cross_entropy,
    cross_entropy_gradient, embedding_backward, keep_mask, masked_scale, add_row)}
CASES |= {"from_float": from_float, "to_float": from_float, "unscale": unscale}
CASES |= {f"reduce_{name}": _reduce(f) for name, f in (
    ("sum", np.add), ("prod", np.multiply), ("max", np.maximum), ("min", np.minimum))}
CASES.update({name: _elementwise(*about) for name, about in ELEMENTWISE.items()})
