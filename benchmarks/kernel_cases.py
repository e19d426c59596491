"""The cases of benchmarks/kernels.py: the same operation in minipar and in PyTorch.

A case is a function that returns (ours, theirs, (our results, their results)): two functions to
be timed, and two that return arrays to be compared.
"""

import numpy as np
import torch

import minipar
from minipar import nn
from minipar.nn import functional as F

TF = torch.nn.functional


def pair(op, their_op, *arrays, backward=True, fixed=()):
    """A case of `op(*tensors, *fixed)`: forward, or forward and backward by a fixed gradient."""
    def make():
        rng = np.random.default_rng(0)
        ours = [minipar.Tensor(a.copy()) for a in arrays]
        theirs = [torch.tensor(a) for a in arrays]
        for a, b in zip(ours, theirs):
            if backward and b.is_floating_point():
                a.requires_grad_()
                b.requires_grad_()
        shape = their_op(*theirs, *fixed).shape
        g = np.asarray(rng.standard_normal(shape), np.float32)
        our_g, their_g = minipar.Tensor(g), torch.tensor(g)
        leaves = [(a, b) for a, b in zip(ours, theirs) if b.requires_grad]

        def run_ours():
            for a, _ in leaves:
                a.grad = None
            out = op(*ours, *fixed)
            if backward:
                out.backward(our_g)
            return out

        def run_theirs():
            for _, b in leaves:
                b.grad = None
            out = their_op(*theirs, *fixed)
            if backward:
                out.backward(their_g)
            return out

        def results(run, which):
            def get():
                out = run()
                grads = [pair[which].grad for pair in leaves]
                return [t.detach().numpy() for t in (out, *grads)]
            return get
        return run_ours, run_theirs, (results(run_ours, 0), results(run_theirs, 1))
    return make


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


CASES = {}


def add(name, op, their_op, *arrays, fixed=()):
    """Both cases of an operation: forward alone, and forward with backward."""
    CASES[f"{name} forward"] = pair(op, their_op, *arrays, backward=False, fixed=fixed)
    CASES[f"{name} forward+backward"] = pair(op, their_op, *arrays, fixed=fixed)


for rows, n in ((1024, 1024), (4096, 128), (64, 10)):
    add(f"softmax {rows}x{n}", minipar.softmax, torch.softmax, normal(rows, n), fixed=(-1,))
    add(f"log_softmax {rows}x{n}", minipar.log_softmax, torch.log_softmax, normal(rows, n),
        fixed=(-1,))
