"""16-bit types: what is computed from them is what PyTorch computes, to one rounding."""

import numpy as np
import pytest
from peer import single_threaded_torch

import minipar as mp
from minipar import execution
from minipar.context import set_kernels
from minipar.nn import functional as F
from minipar.tensor import backward

pytest.importorskip("ml_dtypes")
pytestmark = pytest.mark.filterwarnings("error")

TYPES = [mp.float16, mp.bfloat16]
ULP = {mp.float16: 2.0**-10, mp.bfloat16: 2.0**-7}  # of a number in [1, 2)
SMALLEST = {mp.float16: 2.0**-14, mp.bfloat16: 2.0**-126}  # that is not subnormal


@pytest.fixture(params=["compiled", "reference"])
def kernels(request):
    if request.param == "compiled" and execution.compiler() is None:
        pytest.skip("there is no C++ compiler")
    before = mp.context.current().kernels
    set_kernels(request.param)
    yield
    set_kernels(before)


# {name: (function of the library's functional module and of tensors, *their arrays)}
R = np.random.default_rng(5).standard_normal
I = np.random.default_rng(6).integers  # noqa: E741
CASES = {
    "add": (lambda f, x, y: x + y, R((7, 33)), R(33)),
    "a number": (lambda f, x: x * 1.7, R((7, 33))), "by 3": (lambda f, x: x / 3, R((7, 33))),
    "sub": (lambda f, x, y: x - y, R((1, 5)), R((4, 1))),
    "mul": (lambda f, x, y: x * y, R((300, 3)), R(3)),
    "div": (lambda f, x, y: x / y, R((7, 5)), R((7, 5)) + 4),
    "pow": (lambda f, x: x**3, R(40)), "exp": (lambda f, x: x.exp(), R(40)),
    "sqrt": (lambda f, x: x.sqrt(), R(40)**2 + 0.1),
    "rsqrt": (lambda f, x: x.rsqrt(), R(40)**2 + 0.1),
    "log": (lambda f, x: x.log(), R(40)**2 + 0.1), "tanh": (lambda f, x: x.tanh(), R((3, 40))),
    "abs": (lambda f, x: x.abs(), R(40)), "neg": (lambda f, x: -x, R(40)),
    "clamp": (lambda f, x: x.clamp(-0.3, 0.7), R(40)),
    "sum": (lambda f, x: x.sum(), R(4000)), "sum of rows": (lambda f, x: x.sum(1), R((3, 999))),
    "mean": (lambda f, x: x.mean(0), R((3000, 2)) + 1), "var": (lambda f, x: x.var(1), R((3, 500))),
    "std": (lambda f, x: x.std(), R((3, 50))), "norm": (lambda f, x: x.norm(), R((50, 50))),
    "logsumexp": (lambda f, x: x.logsumexp(1), R((5, 200))),
    "cumsum": (lambda f, x: x.cumsum(0), R((500, 2))), "prod": (lambda f, x: x.prod(1), R((5, 8))),
    "max": (lambda f, x: x.max(1)[0], R((5, 40))), "amax": (lambda f, x: x.amax(0), R((5, 40))),
    "sort": (lambda f, x: x.sort(1)[0],
             np.random.default_rng(8).permutation(40).reshape(2, 20) * 1.0),
    "topk": (lambda f, x: x.topk(3)[0], R((5, 40))),
    "matmul": (lambda f, x, y: x @ y, R((9, 300)), R((300, 7))),
    "batches": (lambda f, x, y: x @ y, R((4, 9, 30)), R((4, 30, 7))),
    "linear": (lambda f, x, w, b: f.linear(x, w, b), R((4, 9, 200)), R((6, 200)), R(6)),
    "conv2d": (lambda f, x, w, b: f.conv2d(x, w, b, padding=1), R((2, 5, 7, 6)), R((4, 5, 3, 3)),
               R(4)),
    "relu": (lambda f, x: f.relu(x), R((5, 33))),
    "sigmoid": (lambda f, x: f.sigmoid(x), R((5, 33))),
    "silu": (lambda f, x: f.silu(x), R((5, 33))), "gelu": (lambda f, x: f.gelu(x), R((5, 33))),
    "gelu tanh": (lambda f, x: f.gelu(x, approximate="tanh"), R((5, 33))),
    "leaky relu": (lambda f, x: f.leaky_relu(x, 0.1), R((5, 33))),
    "softmax": (lambda f, x: f.softmax(x, -1), R((9, 129)) * 3),
    "softmax of columns": (lambda f, x: f.softmax(x, 0), R((99, 5)) * 3),
    "log softmax": (lambda f, x: f.log_softmax(x, -1), R((9, 129)) * 3),
    "cross entropy": (lambda f, x, t: f.cross_entropy(x, t), R((40, 65)) * 2, I(0, 65, 40)),
    "smoothed": (lambda f, x, t: f.cross_entropy(x, t, label_smoothing=0.1), R((40, 65)) * 2,
                 I(0, 65, 40)),
    "nll": (lambda f, x, t: f.nll_loss(x, t), R((40, 65)), I(0, 65, 40)),
    "mse": (lambda f, x, y: f.mse_loss(x, y), R((40, 65)), R((40, 65))),
    "l1": (lambda f, x, y: f.l1_loss(x, y), R((40, 65)), R((40, 65))),
    "bce": (lambda f, x, y: f.binary_cross_entropy_with_logits(x, y), R((40, 9)),
            np.random.default_rng(7).random((40, 9))),
    "layer norm": (lambda f, x, w, b: f.layer_norm(x, (100,), w, b), R((40, 100)) + 1, R(100),
                   R(100)),
    "rms norm": (lambda f, x, w: f.rms_norm(x, (100,), w), R((40, 100)), R(100)),
    "group norm": (lambda f, x, w, b: f.group_norm(x, 3, w, b), R((4, 6, 5)), R(6), R(6)),
    "batch norm": (lambda f, x, w, b: f.batch_norm(x, None, None, w, b, True), R((8, 6, 5)), R(6),
                   R(6)),
    "attention": (lambda f, q, k, v: f.scaled_dot_product_attention(q, k, v, is_causal=True),
                  *R((3, 2, 2, 40, 16))),
    "embedding": (lambda f, i, w: f.embedding(i, w), I(0, 7, (4, 9)), R((7, 20))),
    "max pool": (lambda f, x: f.max_pool2d(x, 3, 2, 1), R((2, 3, 9, 8))),
    "avg pool": (lambda f, x: f.avg_pool2d(x, 2), R((2, 3, 8, 8))),
    "views": (lambda f, x, y: x[1:] * y[:, :2].T.reshape(3, 2)[:, 1:], R((4, 5)), R((3, 5))),
    "masked": (lambda f, x: x.masked_fill(x > 0.5, 2.5), R((4, 5))),
    "0-d": (lambda f, x: x * x + x, R(())), "empty": (lambda f, x: x.sum() + 1, R((0, 3))),
    "not contiguous": (lambda f, x: f.softmax(x.T, -1), R((9, 5)))}


@pytest.mark.peer
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_right_to_one_rounding_or_no_worse_than_pytorchs(
        name, dtype, kernels):
    torch = single_threaded_torch()
    function, *arrays = CASES[name]
    rounded = [mp.tensor(a, dtype).double().array if a.dtype.kind == "f" else a
               for a in map(np.asarray, arrays)]

    def call(library, tensor, run_backward):  # output and gradients of the inputs
        inputs = [tensor(a) for a in rounded]
        leaves = [t for t, a in zip(inputs, rounded) if a.dtype.kind == "f"]
        for t in leaves:
            t.requires_grad_()
        out = function(library, *inputs)
        g = np.linspace(-1, 2, int(np.prod(out.shape))).reshape(tuple(out.shape))
        run_backward(out, mp.tensor(g, dtype).double().array)
        return [out.detach(), *(t.grad for t in leaves)]

    def theirs(kind):
        return call(torch.nn.functional,
                    lambda a: torch.tensor(a).to(kind if a.dtype.kind == "f" else torch.int64),
                    lambda out, g: out.backward(torch.tensor(g).to(kind)))
    ours = call(F, lambda a: mp.tensor(a, dtype if a.dtype.kind == "f" else None),
                lambda out, g: backward([out], [mp.tensor(g, dtype)]))
    for own, other, exact in zip(ours, theirs(getattr(torch, dtype.name)), theirs(torch.float64),
                                 strict=True):
        assert own.dtype is dtype and own.shape == tuple(exact.shape)
        own, other, exact = own.double().array, other.double().numpy(), exact.numpy()
        unit = ULP[dtype] / 2 * np.maximum(np.abs(exact), SMALLEST[dtype])
        unit = np.maximum(unit, 1e-3 * unit.max(initial=0))  # where terms cancel
        worst, allowed = ((np.abs(a - exact) / unit).max(initial=0) for a in (own, other))
        assert worst <= max(2, 1.5 * allowed), (worst, allowed)
