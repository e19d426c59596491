"""One call with both libraries: values, gradients, changed buffers and types beside PyTorch's."""

import numpy as np

from minipar.nn import functional as F
from minipar.tensor import Tensor, backward

REFUSALS = (ValueError, TypeError, IndexError, RuntimeError, NotImplementedError,
            ZeroDivisionError)


def memory_orders(a):
    """`a` (N, C, ...) as arrays that lie differently in memory, strided with gaps among them."""
    yield a
    order = (*range(2, a.ndim), 1, 0) if a.ndim != 4 else (2, 1, 3, 0)  # as convolutions lay out
    yield np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))
    order = (0, *range(2, a.ndim), 1)  # channels last
    yield np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))
    yield np.repeat(a, 2, axis=-1)[..., ::2]


def both(torch, name, arrays, options, buffers=()):
    """Call functional.<name>(*arrays, **options) with minipar and PyTorch, and assert that they
    agree: the value, the gradients of all floating arrays (for an output gradient that grows along
    it), and the buffers, options that the call may change in place.

    arrays: arrays become tensors; others are passed. buffers: {name: array}.
    """
    buffers = dict(buffers)

    def differentiable(a):
        return isinstance(a, np.ndarray) and a.dtype.kind == "f"
    ours = [Tensor(a, differentiable(a)) if isinstance(a, np.ndarray) else a for a in arrays]
    theirs = [torch.tensor(np.ascontiguousarray(a), requires_grad=differentiable(a))
              if isinstance(a, np.ndarray) else a for a in arrays]
    own = {k: Tensor(a.copy()) for k, a in buffers.items()}
    other = {k: torch.tensor(a) for k, a in buffers.items()}
    out = getattr(F, name)(*ours, **own, **options)
    expected = getattr(torch.nn.functional, name)(*theirs, **other, **options)
    assert str(out.dtype).split(".")[1] == str(expected.dtype).split(".")[1]
    g = np.linspace(-1, 2, out.numel()).reshape(out.shape).astype(out.array.dtype)
    backward([out], [g])
    expected.backward(torch.tensor(g))
    pairs = [(out.array, expected.detach())]
    pairs += [(t.grad.array, e.grad) for t, e in zip(ours, theirs) if isinstance(t, Tensor)
              and t.requires_grad]
    pairs += [(own[k].array, other[k]) for k in buffers]
    tolerance = 1e-9 if out.array.dtype == np.float64 else 2e-4
    for a, e in pairs:
        assert a.dtype == e.numpy().dtype
        np.testing.assert_allclose(a, e.numpy(), rtol=tolerance, atol=tolerance)
