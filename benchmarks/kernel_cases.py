"""The cases of benchmarks/kernels.py: the same operation in minipar and in PyTorch.

A case is a function that returns (ours, theirs, (our results, their results)): two functions to
be timed, and two that return arrays to be compared.
"""

import kernel_cases_images
import numpy as np
import torch

import minipar
import minipar.optim
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
        g = rng.standard_normal(shape, np.float32) if shape else np.ones((), np.float32)
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

for batch, heads, length in ((4, 8, 128), (2, 8, 512), (1, 8, 1024)):
    for dim in (32, 64):
        add(f"attention {batch}x{heads}x{length}x{dim}", F.scaled_dot_product_attention,
            TF.scaled_dot_product_attention,
            *(normal(batch, heads, length, dim, seed=s) for s in range(3)),
            fixed=(None, 0.0, True))  # causal


def step_case(name, shapes, max_norm=None, **options):
    """A case of an optimizer's step over float32 parameters, PyTorch's fused; zero_grad is not
    in it, as the gradients stay.
    """
    def make():
        ours = [nn.Parameter(minipar.Tensor(normal(*s, seed=i))) for i, s in enumerate(shapes)]
        theirs = [torch.nn.Parameter(torch.tensor(p.array)) for p in ours]
        for i, (p, q) in enumerate(zip(ours, theirs)):
            p.grad = normal(*shapes[i], seed=100 + i)
            q.grad = torch.tensor(p.grad.array)
        our = getattr(minipar.optim, name)(ours, lr=1e-4, **options)
        their = getattr(torch.optim, name)(theirs, lr=1e-4, fused=True, **options)

        def run_ours():
            our.step(max_norm=max_norm)

        def run_theirs():
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_(theirs, max_norm)
            their.step()

        def results(run, ps, array):
            def get():
                for _ in range(3):
                    run()
                return [array(p) for p in ps]
            return get
        return run_ours, run_theirs, (results(run_ours, ours, lambda p: p.array),
                                      results(run_theirs, theirs, lambda p: p.detach().numpy()))
    return make


def layers(width, count):
    """Shapes of the weights and biases of `count` square linear layers."""
    return [(width, width), (width,)] * count


for size, shapes in (("85k", layers(168, 3)), ("1M", layers(288, 12)), ("10M", layers(912, 12))):
    CASES[f"SGD step {size}"] = step_case("SGD", shapes)
    CASES[f"SGD momentum step {size}"] = step_case("SGD", shapes, momentum=0.9)
    CASES[f"Adam step {size}"] = step_case("Adam", shapes)
    CASES[f"AdamW step {size}"] = step_case("AdamW", shapes)
    CASES[f"AdamW AMSGrad step {size}"] = step_case("AdamW", shapes, amsgrad=True)
    CASES[f"AdamW clipped step {size}"] = step_case("AdamW", shapes, max_norm=1.0)


for rows, n in ((256, 63), (64, 10), (1024, 1024), (1024, 50257)):
    targets = np.random.default_rng(2).integers(0, n, rows)
    add(f"cross_entropy {rows}x{n}", F.cross_entropy, TF.cross_entropy, normal(rows, n), targets)

for table in (65, 50257):
    index = np.random.default_rng(3).integers(0, table, 512)
    add(f"embedding 512 of {table}x128", F.embedding, TF.embedding, index, normal(table, 128))

for rows, n in ((512, 1024), (1024, 1024), (64, 10)):
    x = normal(rows, n)
    for form in ("tanh", "none"):
        add(f"gelu {form} {rows}x{n}", lambda x, f=form: F.gelu(x, approximate=f),
            lambda x, f=form: TF.gelu(x, approximate=f), x)
    for name in ("relu", "silu", "sigmoid", "tanh"):
        add(f"{name} {rows}x{n}", getattr(F, name), getattr(TF, name), x)
    add(f"bias+gelu tanh {rows}x{n}", lambda x, b: F.gelu(x + b, approximate="tanh"),
        lambda x, b: TF.gelu(x + b, approximate="tanh"), x, normal(n))


def of_dropout(make):
    """Masks differ between the two, so what is compared is whether the rest is scaled."""
    def masked():
        ours, theirs, _ = make()

        def scaled(run):
            return lambda: [bool(np.isin(run().detach().numpy(), (0, 2)).all())]
        return ours, theirs, (scaled(ours), scaled(theirs))
    return masked


for shape in ((1024, 1024), (64, 1000), (64, 10)):
    name = f"dropout {shape[0]}x{shape[1]}"
    add(name, F.dropout, TF.dropout, np.ones(shape, np.float32))
    for key in (f"{name} forward", f"{name} forward+backward"):
        CASES[key] = of_dropout(CASES[key])

CASES |= kernel_cases_images.CASES
