"""One call with both libraries: values, gradients, changed buffers and types beside PyTorch's."""

import numpy as np
import pytest

from minipar.nn import functional as F
from minipar.tensor import Tensor, backward

REFUSALS = (ValueError, TypeError, IndexError, RuntimeError, NotImplementedError,
            ZeroDivisionError)


def single_threaded_torch():
    """PyTorch, where it is installed, else the test is skipped. On one thread: threads that spin
    on cores that others need make small cases 10 times as slow.
    """
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


def memory_orders(a):
    """`a` (N, C, ...) as arrays that lie differently in memory, strided with gaps among them."""
    yield a
    order = (*range(2, a.ndim), 1, 0) if a.ndim != 4 else (2, 1, 3, 0)  # as convolutions lay out
    yield np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))
    order = (0, *range(2, a.ndim), 1)  # channels last
    yield np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))
    yield np.repeat(a, 2, axis=-1)[..., ::2]


def both(torch, name, arrays, options, buffers=()):
    """Call functional.<name>(*arrays, **options, **buffers) with minipar and PyTorch, and assert
    that they agree: the value, the gradients of all floating arrays (for an output gradient that
    grows along it), and what the call made of the buffers.

    arrays, options: arrays among them become tensors; others are passed. buffers: {name: array}.
    """
    def call(library, tensor, run_backward):
        def leaf(a):
            return tensor(a, a.dtype.kind == "f") if isinstance(a, np.ndarray) else a
        positional = [leaf(a) for a in arrays]
        named = {k: leaf(a) for k, a in options.items()}
        state = {k: tensor(a.copy(), False) for k, a in dict(buffers).items()}
        out = getattr(library, name)(*positional, **named, **state)
        g = np.linspace(-1, 2, int(np.prod(out.shape))).reshape(tuple(out.shape))
        run_backward(out, g)
        leaves = [t for t in (*positional, *named.values()) if getattr(t, "requires_grad", False)]
        return out, [out.detach(), *(t.grad for t in leaves), *state.values()]
    out, ours = call(F, Tensor, lambda out, g: backward([out], [g]))
    _, theirs = call(
        torch.nn.functional,
        lambda a, grad: torch.tensor(np.ascontiguousarray(a), requires_grad=grad),
        lambda out, g: out.backward(torch.tensor(g).to(out.dtype)))
    tolerance = {"float64": 1e-9, "float32": 2e-4, "float16": 5e-3}[out.dtype.name]
    for own, other in zip(ours, theirs, strict=True):
        own, other = own.numpy(), other.numpy()
        assert own.dtype == other.dtype
        np.testing.assert_allclose(own, other, rtol=tolerance, atol=tolerance)
