"""Bad inputs: refused in one line of words, and (marked `peer`) by PyTorch too."""


import numpy as np
import pytest
from refusals import assert_pytorch_refuses, assert_refused
from test_ops_peer import normal

import minipar as mp
import minipar.nn.functional as F
from minipar.tensor import Tensor

pytestmark = pytest.mark.filterwarnings("error")

nan, inf = np.nan, np.inf
X = normal(3, 4)
REFUSED = {  # name: (function of (library, functional, x), what our message must say)
    "pow broadcast": (lambda t, f, x: x ** x[:2], r"pow: shapes \(3, 4\) and \(2, 4\)"),
    "pow None": (lambda t, f, x: x ** None, None),
    "pow of numbers": (lambda t, f, x: t.pow(2, 3), "pow: one of the operands must be a tensor"),
    "integer ** -1": (lambda t, f, x: x.long() ** -1, "negative integer powers"),
    "bool ** bool": (lambda t, f, x: (x > 0) ** (x > 0), "pow: not of two bools"),
    "% broadcast": (lambda t, f, x: x % x[:2], r"remainder: shapes \(3, 4\) and \(2, 4\)"),
    "% 0": (lambda t, f, x: (x.long() % 0), "remainder: an integer is divided by 0"),
    "// 0": (lambda t, f, x: x.long() // (x.long() * 0),
        "floor_divide: an integer is divided by 0"),
    "abs of bools": (lambda t, f, x: (x > 0).abs(), "abs: a number type is needed"),
    "floor of bools": (lambda t, f, x: (x > 0).floor(), "floor: a number type is needed"),
    "relu of bools": (lambda t, f, x: f.relu(x > 0), "relu: a number type is needed"),
    "silu of integers": (lambda t, f, x: f.silu(x.long()), "silu: a floating type is needed"),
    "leaky_relu of integers": (lambda t, f, x: f.leaky_relu(x.long()),
        "leaky_relu: a floating type"),
    "maximum number": (lambda t, f, x: t.maximum(x, 1), "maximum: two tensors are needed, not int"),
    "minimum broadcast": (lambda t, f, x: t.minimum(x, x[:2]),
        r"minimum: shapes \(3, 4\) and \(2, 4\)"),
    "clamp": (lambda t, f, x: x.clamp(), "clamp: min, max or both"),
    "clamp broadcast": (lambda t, f, x: x.clamp(x[:2]), r"clamp: shapes \(3, 4\) and \(2, 4\)"),
    "clamp str": (lambda t, f, x: x.clamp("a"), None),
    "where floats": (lambda t, f, x: t.where(x, x, x), "tensor of bools, not minipar.float64"),
    "where bool": (lambda t, f, x: t.where(True, x, x), "tensor of bools, not bool"),
    "where broadcast": (lambda t, f, x: t.where(x > 0, x[:2], 0),
        r"where: shapes \(3, 4\), \(2, 4\) and \(\)"),
    "logical_and number": (lambda t, f, x: t.logical_and(x, 1), "logical_and: two tensors"),
    "logical_or broadcast": (lambda t, f, x: x.logical_or(x[:2]), r"logical_or: shapes"),
    "eq None": (lambda t, f, x: t.eq(x, None), None), "lt str": (lambda t, f, x: x.lt("a"), None),
    "& floats": (lambda t, f, x: x & x, "not of floating"),
    "~ floats": (lambda t, f, x: ~x, "float64"),
    "& number": (lambda t, f, x: x.long() & 1.0, "not of floating"),
    "& broadcast": (lambda t, f, x: x.long() & x[:2].long(), r"&: shapes \(3, 4\) and \(2, 4\)"),
    "var of integers": (lambda t, f, x: x.long().var(), "var: a floating type is needed"),
    "std dims": (lambda t, f, x: x.std((0, -2)), r"std: dims \(0, -2\)"),
    "var unbiased, correction": (lambda t, f, x: x.var(0, unbiased=True, correction=1), "exclude"),
    "norm of integers": (lambda t, f, x: x.long().norm(), "norm: a floating type is needed"),
    "norm p": (lambda t, f, x: x.norm("sum"), "norm: p is 1, 2 or inf, not 'sum'"),
    "norm dim": (lambda t, f, x: x.norm(dim=2), "dim 2"),
    "norm inf of nothing": (lambda t, f, x: x[:0].norm(inf), None),
    "amax of nothing": (lambda t, f, x: x[:0].amax(), r"amax: no element .* \(0, 4\)"),
    "amin along nothing": (lambda t, f, x: x[:0].amin(0), r"amin: no element"),
    "amax dim": (lambda t, f, x: x.amax(2), "dim 2"),
    "min of nothing": (lambda t, f, x: x[:0].min(), r"min: no element to choose in shape \(0, 4\)"),
    "min along nothing": (lambda t, f, x: x[:0].min(0), r"min: dim 0 of shape \(0, 4\)"),
    "argmin of nothing": (lambda t, f, x: x[:0].argmin(), r"argmin: .* \(0, 4\)"),
    "argmin of bools": (lambda t, f, x: (x > 0).argmin(), "argmin: a number type is needed"),
    "logsumexp dim": (lambda t, f, x: x.logsumexp(2), "dim 2"),
    "logsumexp": (lambda t, f, x: x.logsumexp(), "dim"),
    "cumsum dim": (lambda t, f, x: x.cumsum(-3), "dim -3"),
    "cumsum": (lambda t, f, x: x.cumsum(), "dim"),
    "prod dim": (lambda t, f, x: x.prod(2), "dim 2"),
    "any dim": (lambda t, f, x: x.any(2), "dim 2"),
    "all dims": (lambda t, f, x: x.all((0, 0)), r"all: dims \(0, 0\)"),
    "topk 5": (lambda t, f, x: x.topk(5), r"topk: 5 of the 4 elements of dim -1 of shape \(3, 4\)"),
    "topk -1": (lambda t, f, x: x.topk(-1), "topk: -1"),
    "topk dim": (lambda t, f, x: x.topk(1, 2), "dim 2"),
    "topk of bools": (lambda t, f, x: (x > 0).topk(1), "topk: a number type is needed"),
    "sort dim": (lambda t, f, x: x.sort(2), "dim 2"),
    "argsort dim": (lambda t, f, x: x.argsort(2), "dim 2"),
    "zeros -1": (lambda t, f, x: t.zeros(2, -1), r"zeros: a size of shape \(2, -1\) is negative"),
    "ones 1.5": (lambda t, f, x: t.ones(1.5), None),
    "zeros dtype": (lambda t, f, x: t.zeros(1, dtype="x"), None),
    "full of a list": (lambda t, f, x: t.full((2,), [1, 2]), None),
    "zeros of integers with grad": (lambda t, f, x: t.zeros(1, dtype=t.int64, requires_grad=True),
        "only floating types"),
    "zeros_like of a list": (lambda t, f, x: t.zeros_like([1]), "zeros_like: a tensor is needed"),
    "arange step 0": (lambda t, f, x: t.arange(0, 3, 0), "arange: no step of 0 leads from 0 to 3"),
    "arange away": (lambda t, f, x: t.arange(3, 0), "arange: no step of 1 leads from 3 to 0"),
    "linspace -1": (lambda t, f, x: t.linspace(0, 1, -1), "not -1"),
    "eye -1": (lambda t, f, x: t.eye(-1), "eye: a size"),
    "rand of integers": (lambda t, f, x: t.rand(2, dtype=t.int64),
        "rand: a floating type is needed"),
    "randn_like of integers": (lambda t, f, x: t.randn_like(x.long()),
        "randn_like: a floating type"),
    "rand generator": (lambda t, f, x: t.rand(2, generator=3), "rand: generator is .*, not int"),
    "randint empty": (lambda t, f, x: t.randint(3, 3, (2,)),
        "randint: no integer from 3 to below 3"),
    "randint size": (lambda t, f, x: t.randint(3), "randint: the size is missing"),
    "randint uint8": (lambda t, f, x: t.randint(0, 300, (2,), dtype=t.uint8), None),
    "randperm -1": (lambda t, f, x: t.randperm(-1), "randperm: n must not be negative, not -1"),
    "bernoulli 2": (lambda t, f, x: t.bernoulli(x * 0 + 2), "not between 0 and 1"),
    "bernoulli NaN": (lambda t, f, x: t.bernoulli(x * nan), "not between 0 and 1"),
    "multinomial -": (lambda t, f, x: t.multinomial(x, 1), "negative, Inf or NaN"),
    "multinomial NaN": (lambda t, f, x: t.multinomial(x * nan, 1), "negative, Inf or NaN"),
    "multinomial of zeros": (lambda t, f, x: t.multinomial(x * 0, 1), "from 0 elements"),
    "multinomial 5 of 4": (lambda t, f, x: t.multinomial(x.abs(), 5),
        "5 samples without replacement "
        "from 4 elements"),
    "multinomial 0": (lambda t, f, x: t.multinomial(x.abs(), 0),
        "num_samples must be positive, not 0"),
    "multinomial of integers": (lambda t, f, x: t.multinomial(x.long() * 0 + 1, 1),
        "floating type"),
    "multinomial 3-d": (lambda t, f, x: t.multinomial(x[None].abs(), 1), r"not shape \(1, 3, 4\)"),
    "multinomial 0-d": (lambda t, f, x: t.multinomial(x[0, 0].abs(), 1), r"not shape \(\)"),
    "floor_divide backward": (lambda t, f,
        x: (x * 1).requires_grad_().__floordiv__(2).sum().backward(),
        "floor_divide has no gradient"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_input_is_refused_in_words(name):
    function, message = REFUSED[name]
    assert_refused(lambda: function(mp, F, Tensor(X)), message)


@pytest.mark.peer
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_by_pytorch_too(name):
    assert_pytorch_refuses(REFUSED[name][0], X)
