"""More cases of benchmarks/kernels.py: normalisation, and what convolutional networks are made of.

Ours gets its input as it is inside a network: made by an operation, so that its gradient is handed
on as it comes and not copied into a leaf's; images also laid out (H, C, W, N), as convolutions
leave them ("convolved"). PyTorch gets its own layout, (N, C, H, W), in a leaf, to which it hands
the gradient without a copy.
"""

import numpy as np
import torch

import minipar
from minipar.nn import functional as F
from minipar.tensor import record

TF = torch.nn.functional
CASES = {}


def convolved(a):
    """A copy of a (N, C, H, W) in the layout of what convolutions make."""
    return np.ascontiguousarray(a.transpose(2, 1, 3, 0)).transpose(3, 1, 0, 2)


def images(op, their_op, shape, *weights, layout, backward):
    """A case of op(x, *weights) for x of `shape` and weights of theirs."""
    def make():
        rng = np.random.default_rng(0)
        x, *arrays = (rng.standard_normal(s, np.float32) for s in (shape, *weights))
        leaf = minipar.Tensor(layout(x), backward)
        ours = [leaf, *(minipar.Tensor(a, backward) for a in arrays)]
        theirs = [torch.tensor(a, requires_grad=backward) for a in (x, *arrays)]
        taken = []  # the gradient of x

        def take(g):
            taken[:] = [g]
            return (None,)
        ours[0] = record(leaf.array, (leaf,), take)
        g = rng.standard_normal(tuple(their_op(*theirs).shape), np.float32)
        our_g, their_g = minipar.Tensor(layout(g) if g.ndim == 4 else g), torch.tensor(g)

        def run_ours():
            taken.clear()
            for t in ours[1:]:
                t.grad = None
            out = op(*ours)
            if backward:
                out.backward(our_g, retain_graph=True)  # of `record` above
            return out

        def run_theirs():
            for t in theirs:
                t.grad = None
            out = their_op(*theirs)
            if backward:
                out.backward(their_g)
            return out

        def our_results():
            return [run_ours().detach().numpy(), *taken, *(t.grad.numpy() for t in ours[1:]
                                                           if backward)]

        def their_results():
            return [run_theirs().detach().numpy(), *(t.grad.numpy() for t in theirs if backward)]
        return run_ours, run_theirs, (our_results, their_results)
    return make


def add(name, op, their_op, shape, *weights, layouts=("convolved", "")):
    """Forward, and forward with backward, of an input in the layouts."""
    for layout in layouts:
        for backward in (False, True):
            CASES[" ".join(filter(None, (
                name, "x".join(map(str, shape)), layout,
                "forward+backward" if backward else "forward")))] = images(
                    op, their_op, shape, *weights, backward=backward,
                    layout=convolved if layout else np.copy)


for rows, n in ((1024, 256), (4096, 128), (512, 768), (1024, 1024)):
    add("layer_norm", lambda x, w, b: F.layer_norm(x, w.shape, w, b),
        lambda x, w, b: TF.layer_norm(x, w.shape, w, b), (rows, n), (n,), (n,), layouts=("",))
    add("rms_norm", lambda x, w: F.rms_norm(x, w.shape, w),
        lambda x, w: TF.rms_norm(x, w.shape, w), (rows, n), (n,), layouts=("",))

for shape in ((64, 16, 28, 28), (32, 64, 32, 32), (32, 256, 7, 7), (64, 256), (1024, 64)):
    c, layouts = shape[1], ("convolved", "") if len(shape) == 4 else ("",)
    ours, theirs = ((library.zeros(c), library.ones(c)) for library in (minipar, torch))
    add("batch_norm", lambda x, w, b, s=ours: F.batch_norm(x, *s, w, b, True),
        lambda x, w, b, s=theirs: TF.batch_norm(x, *s, w, b, True), shape, (c,), (c,),
        layouts=layouts)
    ours, theirs = ((library.zeros(c), library.ones(c)) for library in (minipar, torch))
    add("batch_norm eval", lambda x, w, b, s=ours: F.batch_norm(x, *s, w, b),
        lambda x, w, b, s=theirs: TF.batch_norm(x, *s, w, b), shape, (c,), (c,), layouts=layouts)
    if len(shape) == 4:
        add("group_norm", lambda x, w, b: F.group_norm(x, 8, w, b),
            lambda x, w, b: TF.group_norm(x, 8, w, b), shape, (c,), (c,))

for shape, window in (((64, 16, 28, 28), (2, 2, 0)), ((64, 32, 14, 14), (2, 2, 0)),
                      ((32, 64, 32, 32), (3, 2, 1)), ((32, 64, 16, 16), (3, 1, 1))):
    for name in ("max_pool2d", "avg_pool2d"):
        k, s, p = window
        add(f"{name} {k}x{k} stride {s}", lambda x, f=getattr(F, name), w=window: f(x, *w),
            lambda x, f=getattr(TF, name), w=window: f(x, *w), shape)
add("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 1),
    lambda x: TF.adaptive_avg_pool2d(x, 1), (32, 512, 7, 7))

for shape, o, k, s, groups in (
        ((64, 1, 28, 28), 16, 3, 1, 1), ((64, 16, 14, 14), 32, 3, 1, 1),
        ((32, 64, 32, 32), 64, 3, 1, 1), ((32, 64, 32, 32), 128, 3, 2, 1),
        ((32, 128, 16, 16), 128, 1, 1, 1), ((32, 64, 28, 28), 64, 3, 1, 4),
        ((32, 64, 28, 28), 64, 3, 1, 64)):
    options = dict(stride=s, padding=k // 2, groups=groups)
    add(f"conv2d {k}x{k} to {o}, stride {s}, groups {groups}",
        lambda x, w, b, o=options: F.conv2d(x, w, b, **o),
        lambda x, w, b, o=options: TF.conv2d(x, w, b, **o),
        shape, (o, shape[1] // groups, k, k), (o,), layouts=("convolved",))
