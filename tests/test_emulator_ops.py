"""Every operation that has a kernel, emulated: no error on a GPU's terms, the reference's results.

Operations without a kernel compare equal at once; as soon as one gets a kernel it is tested here.
"""

import sys

import numpy as np
import pytest

import minipar as mp
from minipar import execution
from minipar.context import current, set_kernels
from minipar.nn import Parameter
from minipar.nn import functional as F
from minipar.optim import SGD, AdamW

pytestmark = pytest.mark.skipif(
    execution.compiler() is None or sys.platform != "linux",
    reason="kernels are emulated with a C++ compiler, on Linux")


def targets(x):
    return mp.tensor(np.arange(x.shape[0]) % x.shape[1])


def _images(x):
    """x (rows, n) -> (8, 2, rows, n), laid out as what comes from a convolution."""
    copies = mp.tensor(np.linspace(1, 2, 16).reshape(1, 2, 1, 8))
    return (mp.reshape(x, (x.shape[0], 1, x.shape[1], 1)) * copies).permute(3, 1, 0, 2)


# (operation on x (rows, n) -> tensor), applied to several shapes.
OPERATIONS = {
    "softmax": lambda x: F.softmax(x, 1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "cross_entropy": lambda x: F.cross_entropy(x, targets(x)),
    "cross_entropy, smoothed": lambda x: F.cross_entropy(x, targets(x), label_smoothing=0.1),
    "relu": F.relu, "sigmoid": F.sigmoid, "tanh": F.tanh, "silu": F.silu, "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "dropout": lambda x: F.dropout(x, 0.3, True),
    "layer_norm": lambda x: F.layer_norm(x, (x.shape[1],)),
    "rms_norm": lambda x: F.rms_norm(x, (x.shape[1],)),
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "group_norm": lambda x: F.group_norm(mp.reshape(x, (*x.shape, 1)), 1),
    "group_norm of images": lambda x: F.group_norm(_images(x), 1),
    "max_pool2d": lambda x: F.max_pool2d(_images(x), 3, 2, 1),
    "avg_pool2d": lambda x: F.avg_pool2d(_images(x), 2, 1, 1),
    "depthwise convolution": lambda x: F.conv2d(
        _images(x), mp.tensor(np.arange(18.0).reshape(2, 1, 3, 3)), padding=1, groups=2),
    "embedding": lambda x: F.embedding(mp.tensor([[0, 0], [x.shape[0] - 1, 0]]), x),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "attention, causal": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "attention, dropout": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.2),
}


def with_kernels(kernels, function):
    before = current().kernels
    set_kernels(kernels)
    try:
        mp.manual_seed(3)
        return function()
    finally:
        set_kernels(before)


@pytest.mark.parametrize("name", OPERATIONS)
def test_value_and_gradient_are_the_references(name):
    for shape in ((2, 1), (5, 33), (40, 7), (3, 128)):
        def run():
            x = mp.tensor(np.random.default_rng(0).standard_normal(shape), requires_grad=True)
            y = OPERATIONS[name](x)
            (y * mp.tensor(np.random.default_rng(1).standard_normal(y.shape))).sum().backward()
            return y.array, x.grad.array
        for ours, expected in zip(with_kernels("emulated", run), with_kernels("reference", run),
                                  strict=True):
            assert ours.shape == expected.shape
            np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("make", [
    lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True), lambda p: AdamW(p, lr=0.1)],
    ids=["SGD", "AdamW"])
def test_optimizer_steps_are_the_references(make):
    def run():
        rng = np.random.default_rng(0)
        parameters = [Parameter(mp.tensor(rng.standard_normal(s))) for s in ((33, 5), (7,), ())]
        optimizer = make(parameters)
        for _ in range(3):
            optimizer.zero_grad()
            sum((p * p).sum() for p in parameters).backward()
            optimizer.step()
        return [p.array.copy() for p in parameters]
    for ours, expected in zip(with_kernels("emulated", run), with_kernels("reference", run),
                              strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-14)
