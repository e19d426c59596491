"""The operations of nn beside PyTorch's: values, gradients, and which inputs are refused.

A case is one line, and runs with both libraries. Warnings are errors.
"""

import numpy as np
import pytest

from minipar.nn import functional as F
from minipar.tensor import Tensor, backward

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("error"),
              pytest.mark.filterwarnings("ignore:Using padding='same' with even:UserWarning")]
rng = np.random.default_rng(13)
X, W = (2, 3, 6, 7), (4, 3, 3, 3)
Q, K, V = (2, 2, 4, 3), (2, 2, 5, 3), (2, 2, 5, 2)
INF, NAN = np.inf, np.nan


def normal(*shape):
    return np.asarray(rng.standard_normal(shape))


SEEN = rng.random((4, 5)) < 0.5
SEEN[1] = False
POOLED = normal(2, 2, 6, 6).round()  # with ties
NANS = np.where(rng.random((1, 1, 6, 6)) < 0.1, NAN, normal(1, 1, 6, 6))
LOW = np.full((1, 1, 4, 4), -INF)

# (function, arguments, keywords): a tuple stands for a random tensor of that shape, a list is a
# list; tensors of float64 are differentiated.
SAME = [
    ("conv2d", [X, W], {}), ("conv2d", [X, W, (4,)], {"padding": 1}),
    ("conv2d", [X, W, (4,)], {"stride": 2}),
    ("conv2d", [X, W], {"stride": (3, 1), "padding": (0, 2)}),
    ("conv2d", [X, (4, 3, 1, 1), (4,)], {}), ("conv2d", [X, (4, 3, 1, 1)], {"stride": 2}),
    ("conv2d", [X, (4, 3, 6, 7), (4,)], {}), ("conv2d", [X, (4, 3, 2, 4)], {"padding": "same"}),
    ("conv2d", [X, W], {"padding": "valid"}), ("conv2d", [X, (1, 3, 1, 5)], {"padding": (4, 3)}),
    ("conv2d", [(0, 3, 6, 7), W, (4,)], {"padding": 1}),
    ("conv2d", [(1, 1, 1, 1), (1, 1, 1, 1)], {}),
    ("conv2d", [(2, 1, 6, 7), (2, 1, 3, 3)], {"stride": [1, 2], "padding": [2, 0]}),
    ("conv2d", [X, W], {"padding": "same", "stride": 1}),
    ("max_pool2d", [POOLED, 2], {}), ("max_pool2d", [POOLED, [3, 2]], {}),
    ("max_pool2d", [POOLED, 3, 2, 1], {}), ("max_pool2d", [POOLED, 4, [1, 3], [2, 0]], {}),
    ("max_pool2d", [POOLED, 2, 1], {}), ("max_pool2d", [POOLED, 2, 3], {}),
    ("max_pool2d", [POOLED, 4], {}), ("max_pool2d", [POOLED, 1], {"stride": 4}),
    ("max_pool2d", [LOW, 2], {}), ("max_pool2d", [LOW, 3], {"padding": 1}),
    ("max_pool2d", [(2, 2, 1, 1), 2], {"padding": 1}),
    ("layer_norm", [(3, 4), [4]], {}), ("layer_norm", [(2, 3, 4), [3, 4], (3, 4), (3, 4)], {}),
    ("layer_norm", [(3, 4), [4], (4,)], {}), ("layer_norm", [(3, 4), [4], None, (4,)], {}),
    ("layer_norm", [(3, 1), [1], (1,), (1,)], {}), ("layer_norm", [(0, 4), [4], (4,), (4,)], {}),
    ("layer_norm", [(5, 4), [4]], {"eps": 0.5}), ("layer_norm", [(4,), [4], (4,), (4,)], {}),
    ("layer_norm", [np.full((2, 4), 1e8), [4]], {}),
    ("layer_norm", [np.array([[1.0, NAN], [INF, 1], [1, 2]]), [2]], {}),
    ("embedding", [np.array([[4, 0], [4, 4]]), (5, 3)], {}),
    ("embedding", [np.array(2), (5, 3)], {}),
    ("embedding", [np.zeros((0, 2), np.int64), (5, 3)], {}),
    ("embedding", [np.array([1, 0], np.int32), (2, 1)], {}),
    ("scaled_dot_product_attention", [Q, K, V], {}),
    ("scaled_dot_product_attention", [Q, K, V], {"is_causal": True}),
    ("scaled_dot_product_attention", [K, Q, Q], {"is_causal": True}),
    ("scaled_dot_product_attention", [Q, K, V], {"scale": 0.1}),
    ("scaled_dot_product_attention", [Q, K, V], {"scale": 0.0}),
    ("scaled_dot_product_attention", [Q, K, V, SEEN], {}),
    ("scaled_dot_product_attention", [Q, K, V, np.where(SEEN, 0, -INF)], {}),
    ("scaled_dot_product_attention", [Q, K, V, (4, 5)], {}),
    ("scaled_dot_product_attention", [Q, K, V, (2, 1, 1, 5)], {}),
    ("scaled_dot_product_attention", [Q, K, V, (5,)], {}),
    ("scaled_dot_product_attention", [(4, 3), (5, 3), (5, 2)], {}),
    ("scaled_dot_product_attention", [(1, 1), (1, 1), (1, 1)], {"is_causal": True}),
    ("scaled_dot_product_attention", [(2, 1, 4, 3), (3, 5, 3), (2, 3, 5, 2)], {}),
    ("scaled_dot_product_attention", [(2, 4, 3), (2, 0, 3), (2, 0, 3)], {}),
    ("scaled_dot_product_attention", [(2, 0, 3), (2, 4, 3), (2, 4, 3)], {}),
    ("scaled_dot_product_attention", [(0, 4, 3), (0, 4, 3), (0, 4, 3)], {}),
    ("scaled_dot_product_attention", [np.full((1, 2, 2), INF), (1, 2, 2), (1, 2, 2)], {}),
    ("scaled_dot_product_attention", [np.ones((1, 2, 2)), np.full((1, 2, 2), -INF), (1, 2, 2)], {}),
    ("dropout", [X, 1.0], {}), ("dropout", [X, 0.0], {}), ("dropout", [X, 0.5, False], {}),
]


def named(cases):
    return [pytest.param(*case, id=f"{case[0]}-{i}") for i, case in enumerate(cases)]


def arrays(arguments):
    return [normal(*a) if isinstance(a, tuple) else a for a in arguments]


def run(library, name, arguments, options):
    """(output, gradients) of a function, for a gradient of the output that grows along it."""
    def tensor(a):
        if not isinstance(a, np.ndarray):
            return a
        grad = a.dtype == np.float64
        return Tensor(a, grad) if library is F else torch.tensor(a, requires_grad=grad)
    inputs = [tensor(a) for a in arguments]
    out = getattr(library, name)(*inputs, **options)
    g = np.linspace(-1, 2, int(np.prod(out.shape))).reshape(out.shape)
    leaves = [t for t in inputs if getattr(t, "requires_grad", False)]
    if library is F:
        backward([out], [g])
        return out.array, [t.grad.array for t in leaves]
    out.backward(torch.tensor(g))
    return out.detach().numpy(), [t.grad.numpy() for t in leaves]


@pytest.mark.parametrize("name, arguments, options", named(SAME))
def test_value_and_gradients_are_pytorchs(name, arguments, options):
    arguments = arrays(arguments)
    value, gradients = run(F, name, arguments, options)
    expected, expected_gradients = run(torch.nn.functional, name, arguments, options)
    np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-9)
    for g, e in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("arguments", [(2,), (3, 1), (3, 2, 1)])
def test_max_pool2d_passes_nan_as_pytorchs_does(arguments):
    ours = F.max_pool2d(Tensor(NANS), *arguments).array
    theirs = torch.nn.functional.max_pool2d(torch.tensor(NANS), *arguments).numpy()
    np.testing.assert_array_equal(ours, theirs)
    assert np.isnan(ours).any() and np.isfinite(ours).any()


REFUSED = [
    ("conv2d", [X, (4, 2, 3, 3)], {}), ("conv2d", [X, (4, 3, 7, 3)], {}),
    ("conv2d", [X, W, (3,)], {}),
    ("conv2d", [X, W], {"stride": 0}), ("conv2d", [X, W], {"padding": -1}),
    ("conv2d", [X, W], {"stride": 2, "padding": "same"}), ("conv2d", [X, W], {"padding": "full"}),
    ("conv2d", [X, normal(*W).astype("f4")], {}), ("conv2d", [X, (4, 3, 3)], {}),
    ("conv2d", [X, W], {"stride": (1, 1, 1)}), ("conv2d", [(6, 7), W], {}),
    ("max_pool2d", [X, 8], {}), ("max_pool2d", [X, 0], {}), ("max_pool2d", [X, 2, 0], {}),
    ("max_pool2d", [X, 3, 1, 2], {}), ("max_pool2d", [X, 2, 1, -1], {}),
    ("max_pool2d", [(6, 7), 2], {}),
    ("layer_norm", [(3, 4), [3]], {}), ("layer_norm", [(4,), [3, 4]], {}),
    ("layer_norm", [(3, 4), [4], (3,)], {}), ("layer_norm", [(3, 4), [4], None, (2, 4)], {}),
    ("layer_norm", [(3, 4), []], {}), ("layer_norm", [np.ones((3, 4), np.int64), [4]], {}),
    ("embedding", [np.array([5]), (5, 3)], {}), ("embedding", [np.array([-1]), (5, 3)], {}),
    ("embedding", [np.array([1.0]), (5, 3)], {}), ("embedding", [np.array([1]), (5,)], {}),
    ("embedding", [np.array([True]), (5, 3)], {}),
    ("dropout", [X, -0.1], {}), ("dropout", [X, 1.1], {}), ("dropout", [X, 2.0, False], {}),
    ("dropout", [np.ones(3, np.int64), 0.5], {}),
    ("scaled_dot_product_attention", [(4,), (5, 3), (5, 2)], {}),
    ("scaled_dot_product_attention", [Q, (2, 2, 5, 4), V], {}),
    ("scaled_dot_product_attention", [Q, K, (2, 2, 4, 2)], {}),
    ("scaled_dot_product_attention", [Q, (3, 2, 5, 3), V], {}),
    ("scaled_dot_product_attention", [Q, K, V, SEEN], {"is_causal": True}),
    ("scaled_dot_product_attention", [Q, K, V, (5, 5)], {}),
    ("scaled_dot_product_attention", [(4, 3), (5, 3), (5, 2), (2, 4, 5)], {}),
    ("scaled_dot_product_attention", [Q, K, V, np.ones((4, 5), np.int64)], {}),
    ("scaled_dot_product_attention", [Q, K, V], {"dropout_p": 1.5}),
    ("scaled_dot_product_attention", [Q, normal(*K).astype("f4"), V], {}),
]


@pytest.mark.parametrize("name, arguments, options", named(REFUSED))
def test_what_pytorch_refuses_is_refused(name, arguments, options):
    arguments = arrays(arguments)
    for library in (torch.nn.functional, F):
        with pytest.raises((ValueError, TypeError, IndexError, RuntimeError, NotImplementedError)):
            run(library, name, arguments, options)
