"""Every operation on a GPU, as the stand-in of fake_cupy.py sees it: values and gradients are
those of the CPU, with kernels and without, and nothing lies where it should not.
"""

from pathlib import Path

import fake_cupy
import numpy as np
import pytest

import minipar
from minipar import nn
from minipar.context import current, set_kernels
from minipar.nn import functional as F
from minipar.tensor import Tensor


def case(f, *arrays):
    return f, arrays


def floats(*shape, low=0.5, high=2.0, seed=0):
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape).astype(np.float32)


def signed(*shape, seed=0):
    return floats(*shape, low=-2, high=2, seed=seed)


def ints(high, *shape):
    return np.random.default_rng(high).integers(0, high, shape)


M, S, X, IMAGES = signed(3, 4), signed(), signed(2, 3, 4), signed(2, 4, 6, 6)
BOOLS = M > 0
SAMPLES_LAST = signed(6, 4, 2, 8).transpose(3, 2, 0, 1)


def _unary(*names):
    return {n: case(lambda x, n=n: getattr(minipar, n)(x), floats(3, 4)) for n in names}


def _inplace(x):
    x = x * 1.0
    with minipar.no_grad():
        x += 1
        x *= x
        x[1:, 0] = 3
        x.masked_fill_(x > 2, 0.0)
        x.copy_(Tensor(np.float64(2) * np.ones(4)))  # from the CPU
    return x


def _dropout(x):
    minipar.manual_seed(1)
    return F.dropout(x, 0.5, name="d")


def _attention(q, k, v, **options):
    minipar.manual_seed(1)
    return F.scaled_dot_product_attention(q, k, v, **options)


QKV = [signed(2, 3, 5, 8, seed=i) for i in range(3)]
MOMENTS = signed(4), floats(4)
CASES = {
    **_unary("exp", "log", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tanh", "erf", "abs",
             "sign", "floor", "ceil", "round", "square", "sigmoid", "relu", "gelu", "neg"),
    "erf of all": case(minipar.erf, np.linspace(-7, 7, 41)),
    "0-d": case(lambda x: minipar.tanh(x) * x + 2 ** x, floats()),
    "add": case(lambda x, y: x + y + 1, M, signed(4)), "sub": case(lambda x, y: 1 - x - y, M, S),
    "mul": case(lambda x, y: 2 * x * y, M, signed(3, 1)),
    "div": case(lambda x, y: 1 / x / y, floats(3, 4), floats(4)),
    "pow": case(lambda x, y: x ** y + 2 ** x + x ** 3, floats(3, 4), floats(4)),
    "remainder": case(lambda x, y: x % y, M, floats(4)),
    "of a number on the CPU": case(lambda x: x * minipar.tensor(2.0) + minipar.tensor(3), M),
    "floor_divide": case(lambda x: (x.detach() // 0.3) * x, M),
    "integers": case(lambda i: (i + 1) * i % 3 // 2 - i, ints(9, 5)),
    "promotion": case(lambda x, i: x * i + i / 2, M, ints(5, 3, 4)),
    "where": case(lambda c, x, y: minipar.where(c, x, y) + minipar.where(c, x, 0), BOOLS, M, S),
    "where of numbers": case(lambda c: minipar.where(c, 1.0, 2.0), BOOLS),
    "maximum": case(minipar.maximum, M, signed(4)), "minimum": case(minipar.minimum, M, M),
    "clamp": case(lambda x: minipar.clamp(x, -1, 1), M),
    "clip": case(lambda x, y: minipar.clip(x, max=y), M, signed(4)),
    "eq": case(lambda x, y: (x == y) | (x < y) & (x > 0) ^ (x != 1) | ~(x >= y), M, signed(4)),
    **{n: case(lambda x, y, n=n: getattr(minipar, n)(x, y), M, signed(4)) for n in (
        "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or")},
    **{n: case(lambda x, n=n: getattr(minipar, n)(x), M) for n in (
        "logical_not", "isnan", "isinf", "isfinite")},
    "sum": case(lambda x: x.sum() + x.sum(1).sum(0), X),
    "sum of ints": case(minipar.sum, ints(4, 3)),
    "mean": case(lambda x: x.mean((0, 2), keepdim=True), X),
    "var": case(lambda x: minipar.var(x, 1), X), "std": case(lambda x: minipar.std(x), X),
    "norm": case(lambda x: minipar.norm(x) + x.norm(1, 0).sum() + x.norm(float("inf")), X),
    "prod": case(lambda x: minipar.prod(x) + x.prod(1).sum(), X),
    "logsumexp": case(lambda x: minipar.logsumexp(x, (0, 2)), X),
    "logsumexp of nothing": case(lambda x: minipar.logsumexp(x, 0), signed(0, 3)),
    "cumsum": case(lambda x: minipar.cumsum(x, 1), X),
    "any": case(lambda x: minipar.any(x > 1, 0), X),
    "all": case(lambda x: minipar.all(x > -1, 1), X),
    "max": case(lambda x: x.max() + minipar.max(x, 1)[0].sum(), X),
    "min": case(lambda x: x.min() + minipar.min(x, -1, keepdim=True)[0].sum(), X),
    "amax": case(lambda x: minipar.amax(x, (0, 1)), X), "amin": case(lambda x: minipar.amin(x), X),
    "argmax": case(lambda x: minipar.argmax(x, 1), X), "argmin": case(minipar.argmin, X),
    "sort": case(lambda x: minipar.sort(x, 1, descending=True)[0], X),
    "argsort": case(lambda x: minipar.argsort(x, 0), X),
    "topk": case(lambda x: minipar.topk(x, 2, 2)[0], X),
    "topk of all": case(lambda x: minipar.topk(x, 4)[0], X),
    "index": case(lambda x, i: x[0, 1:] * x[i].sum() + x[:, [0, 2]].sum() + x[x > 0].sum(), X,
                  ints(2, 5)),
    "index from the CPU": case(lambda x: x[minipar.tensor([0, 1, 1])], X),
    "gather": case(lambda x, i: minipar.gather(x, 1, i), M, ints(4, 3, 2)),
    "index_select": case(lambda x, i: minipar.index_select(x, 1, i), M, ints(4, 6)),
    "take_along_dim": case(lambda x, i: minipar.take_along_dim(x, i, 1), M, ints(4, 3, 2)),
    "cat": case(lambda x, y: minipar.cat([x, y, x], 1), M, signed(3, 2)),
    "stack": case(lambda x: minipar.stack([x, x + 1], 1), M),
    "split": case(lambda x: minipar.split(x, [1, 3], 1)[1], M),
    "chunk": case(lambda x: minipar.chunk(x, 2)[0], M), "unbind": case(lambda x: x.unbind(1)[2], M),
    "masked_fill": case(lambda x, m: minipar.masked_fill(x, m, 2.0), M, BOOLS),
    "tril": case(minipar.tril, M), "triu": case(lambda x: minipar.triu(x, 1), X),
    "flip": case(lambda x: minipar.flip(x, 0, 1), M),
    "roll": case(lambda x: minipar.roll(x, (1, 2), (0, 1)) + minipar.roll(x, 1), M),
    "repeat": case(lambda x: x.repeat(2, 1, 3), M),
    "pad": case(lambda x: F.pad(x, (1, 2, -1, 1), value=3.0), M),
    "reshape": case(lambda x: x.permute(2, 0, 1).reshape(4, -1), X),
    "views": case(lambda x: minipar.squeeze(minipar.unsqueeze(x, 1), 1).flatten(1).t(), X),
    "transpose": case(lambda x: minipar.transpose(x, 0, 1).contiguous(), X),
    "movedim": case(lambda x: minipar.movedim(x, 0, 2), X),
    "broadcast_to": case(lambda x: minipar.broadcast_to(x, (2, 3, 4)), M),
    "matmul": case(lambda x, y: x @ y, M, signed(4, 5)),
    "matmul of vectors": case(lambda x, y: (x @ y[0]) @ (x @ y[1]), M, signed(2, 4)),
    "bmm": case(minipar.bmm, X, signed(2, 4, 5)), "mm": case(minipar.mm, M, signed(4, 2)),
    "linear": case(minipar.linear, X, signed(5, 4), signed(5)),
    "einsum": case(lambda x, y: minipar.einsum("bij,jk->bk", x, y), X, signed(4, 5)),
    "einsum of one": case(lambda x: minipar.einsum("ii->i", x) + minipar.einsum("ij->", x),
                          signed(3, 3)),
    "silu": case(F.silu, M), "leaky_relu": case(F.leaky_relu, M),
    "gelu tanh": case(lambda x: F.gelu(x, approximate="tanh"), M),
    "gelu of strides": case(lambda x: F.gelu(x.t()) + F.silu(x.t()) + x.t().sigmoid(), M),
    "softmax": case(lambda x: minipar.softmax(x, -1), X),
    "softmax of rows apart": case(lambda x: minipar.softmax(x, 1), X),
    "log_softmax": case(lambda x: minipar.log_softmax(x, -1) + minipar.log_softmax(x, 0), X),
    "cross_entropy": case(F.cross_entropy, M, ints(4, 3)),
    "cross_entropy ignoring": case(lambda x, t: F.cross_entropy(x, t, ignore_index=1), M,
                                  ints(4, 3)),
    "cross_entropy weighted": case(lambda x, t, w: F.cross_entropy(
        x, t, w.detach(), label_smoothing=0.1), M, ints(4, 3), floats(4)),
    "cross_entropy of probabilities": case(F.cross_entropy, M, floats(3, 4)),
    "cross_entropy of images": case(F.cross_entropy, X, ints(3, 2, 4)),
    "nll_loss": case(lambda x, t: F.nll_loss(x, t, ignore_index=2), M, ints(4, 3)),
    "mse_loss": case(F.mse_loss, M, signed(3, 4, seed=1)),
    "l1_loss": case(F.l1_loss, M, signed(3, 4, seed=1)),
    "bce": case(F.binary_cross_entropy_with_logits, M, floats(3, 4, low=0, high=1)),
    "embedding": case(lambda i, w: F.embedding(i, w, padding_idx=1), ints(5, 2, 9), signed(5, 3)),
    "dropout": case(_dropout, X), "in place": case(_inplace, M),
    "attention": case(_attention, *QKV),
    "attention causal": case(lambda *a: _attention(*a, is_causal=True, dropout_p=0.5), *QKV),
    "attention masked": case(lambda q, k, v, m: _attention(q, k, v, attn_mask=m), *QKV,
                             np.tri(5, dtype=bool)),
    "layer_norm": case(lambda x, w, b: F.layer_norm(x, (4,), w, b), X, signed(4), signed(4)),
    "layer_norm alone": case(lambda x: F.layer_norm(x, (3, 4)), X),
    "rms_norm": case(lambda x, w: F.rms_norm(x, (4,), w), X, signed(4)),
    "batch_norm": case(lambda x, m, v, w, b: F.batch_norm(x, m.detach(), v.detach(), w, b, True),
                       IMAGES, *MOMENTS, signed(4), signed(4)),
    "batch_norm of rows": case(lambda x, m, v: F.batch_norm(
        x, m.detach(), v.detach(), training=True), signed(5, 4), *MOMENTS),
    "batch_norm running": case(lambda x, m, v: F.batch_norm(x, m.detach(), v.detach()), IMAGES,
                               *MOMENTS),
    "group_norm": case(lambda x, w: F.group_norm(x, 2, w), IMAGES, signed(4)),
    "group_norm lanes": case(lambda x: F.group_norm(x, 2), SAMPLES_LAST),
    "conv2d": case(lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1), IMAGES,
                   signed(6, 4, 3, 3), signed(6)),
    "conv2d depthwise": case(lambda x, w: F.conv2d(x, w, padding=1, groups=4), signed(8, 4, 5, 5),
                             signed(4, 1, 3, 3)),
    "conv1d": case(F.conv1d, X, signed(2, 3, 2)),
    "conv_transpose2d": case(lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2), IMAGES,
                             signed(4, 3, 3, 3), signed(3)),
    "max_pool2d": case(lambda x: F.max_pool2d(x, 3, 2, 1), IMAGES),
    "max_pool2d lanes": case(lambda x: F.max_pool2d(x, 2), SAMPLES_LAST),
    "avg_pool2d": case(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), IMAGES),
    "avg_pool2d lanes": case(lambda x: F.avg_pool2d(x, 2), SAMPLES_LAST),
    "avg_pool2d of all": case(lambda x: F.avg_pool2d(x, 6), IMAGES),
    "adaptive_avg_pool2d": case(lambda x: F.adaptive_avg_pool2d(x, 4), IMAGES),
    "interpolate": case(lambda x: F.interpolate(x, scale_factor=2)[:, :, :5].sum()
                        + F.interpolate(x, size=(4, 9)).sum(), IMAGES),
    "interpolate unevenly": case(lambda x: F.interpolate(x, size=(4, 9)), IMAGES),
    "like": case(lambda x: x * minipar.ones_like(x) + minipar.zeros_like(x)
                 + minipar.full_like(x, 2) + minipar.empty_like(x) * 0, M),
    "multinomial": case(lambda x: (minipar.manual_seed(3), minipar.multinomial(x, 2))[1],
                        floats(3, 4)),
    "bernoulli": case(lambda x: (minipar.manual_seed(3), minipar.bernoulli(x))[1],
                      floats(3, 4, low=0, high=1)),
    "cast": case(lambda x: x.double().float().half().float().int(), M),
}


def outcome(name, device):
    """(value, gradients of the inputs) as NumPy arrays of a case on a device."""
    function, arrays = CASES[name]
    minipar.manual_seed(0)
    inputs = [minipar.from_numpy(a).to(device) for a in arrays]
    for t in inputs:
        if t.dtype.is_floating_point:
            t.requires_grad_()
    out = function(*inputs)
    assert str(out.device) == device
    if out.requires_grad:
        out.backward(minipar.tensor(signed(*out.shape, seed=5), out.dtype).to(device))
    gradients = [None if t.grad is None else t.grad for t in inputs]
    assert all(str(g.device) == device for g in gradients if g is not None)
    return out.detach().cpu().numpy(), [g if g is None else g.cpu().numpy() for g in gradients]


def test_every_operation_has_a_case():
    text = Path(__file__).read_text(encoding="utf-8")
    elsewhere = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "zeros", "ones",
                 "empty", "full", "arange", "eye", "linspace", "tensor", "as_tensor",  # made there
                 "permute", "t", "max_pool1d", "avg_pool1d"}  # by methods, or by another
    missing = [n for n in {*minipar.ops.__all__, *F.__all__} - elsewhere
               if f'"{n}"' not in text and f"{n}(" not in text and f".{n}," not in text]
    assert not missing


@pytest.fixture(params=("compiled", "reference"))
def kernels(request):
    before = current().kernels
    set_kernels(request.param)
    yield request.param
    set_kernels(before)


@pytest.mark.parametrize("name", CASES)
def test_an_operation_on_a_gpu_gives_what_it_gives_on_the_cpu(name, kernels):
    expected, slopes = outcome(name, "cpu")
    with fake_cupy.installed():
        found, gradients = outcome(name, "cuda:0")
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, 1e-5, 1e-5)
    for gradient, slope in zip(gradients, slopes):
        assert (gradient is None) == (slope is None)
        if slope is not None:
            assert gradient.dtype == slope.dtype
            np.testing.assert_allclose(gradient, slope, 1e-5, 1e-5)
