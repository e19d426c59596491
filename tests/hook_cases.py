"""Modules whose gradients are what a test says, reduced by communication hooks on threads."""

import numpy as np

import minipar as mp
from minipar import nn
from minipar.comm import run_threads, world
from minipar.futures import Future
from minipar.parallel import DistributedDataParallel
from minipar.tensor import Tensor

TINY = 1e-6  # MiB: every parameter has its own bucket


class Given(nn.Module):
    """Parameters of `shapes` whose gradients are what forward is given; None for an unused one."""

    def __init__(self, shapes):
        super().__init__()
        for i, shape in enumerate(shapes):
            self.register_parameter(f"p{i}", nn.Parameter(mp.zeros(shape)))

    def forward(self, gradients):
        return sum((p * Tensor(g)).sum() for p, g in zip(self.parameters(), gradients, strict=True)
                   if g is not None)


def drawn(shapes, rank, step, dtype):
    """Gradients of one rank at one step: of different sizes, and some of them 0."""
    rng = np.random.default_rng((7, rank, step))
    out = []
    for i, shape in enumerate(shapes):
        g = rng.standard_normal(shape) * 10.0 ** (i - 1)
        g.reshape(-1)[::7] = 0
        out.append(g.astype(dtype))
    return out


def exchange(n, make=None, shapes=((40, 30), (17,), (), (5, 6, 7)), *, steps=1, dtype="float64",
             cap=25, gradient="sum", given=drawn, after=None):
    """Backward `steps` times on n ranks, whose gradients are given(shapes, rank, step, dtype).

    make() -> (state, hook), called on each rank; None for no hook. after(state): called after each
    step, what it returns is returned. Of each rank: a list with, for each step, (its gradients
    afterwards, the bytes it sent, what `after` returned).
    """
    def work():
        mp.set_default_dtype(dtype)
        model = DistributedDataParallel(Given(shapes), bucket_cap_mb=cap, gradient=gradient)
        state, hook = make() if make else (None, None)
        if hook:
            model.register_comm_hook(state, hook)
        out = []
        for step in range(steps):
            sent = world().bytes_sent
            model.zero_grad()
            model(given(shapes, world().rank, step, dtype)).backward()
            sent = world().bytes_sent - sent
            out.append(([None if p.grad is None else p.grad.array.copy()
                         for p in model.parameters()], sent, after and after(state)))
        return out
    return run_threads(work, n)


def keep(state, bucket):
    """A hook that leaves every rank its own gradient."""
    future = Future()
    future.set_result(bucket.buffer())
    return future


def assert_same_bits(results):
    """Every rank has rank 0's gradients, in every step."""
    for other in results[1:]:
        for (mine, *_), (theirs, *_) in zip(results[0], other, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                np.testing.assert_array_equal(a, b)
