"""Gradients against central differences along random directions, in float64."""

import numpy as np

import minipar
from minipar.tensor import Tensor, backward


def gradcheck(function, *arrays, step=1e-6, tolerance=1e-7, seed=0):
    """Assert that the backward of `function` (tensors -> tensor) agrees with differences.

    arrays: float64 arrays are differentiated, others are passed as they are. For random
    directions u of the inputs and v of the output: <v, f(x + h u) - f(x - h u)> / 2h must equal
    <f'(x)^T v, u>.
    """
    rng = np.random.default_rng(seed)

    def leaf(a):
        differentiable = isinstance(a, np.ndarray) and a.dtype == np.float64
        # Tensor() keeps strides, so that a non-contiguous input arrives as one.
        return Tensor(a, requires_grad=True) if differentiable else a
    inputs = [leaf(a) for a in arrays]
    out = function(*inputs)
    v = np.asarray(rng.standard_normal(out.shape))
    backward([out], [v])
    for _ in range(3):
        moves = [rng.standard_normal(t.shape) if isinstance(t, Tensor) else None for t in inputs]
        analytic = sum(float((t.grad.array * u).sum()) for t, u in zip(inputs, moves)
                       if u is not None and t.grad is not None)
        sides = []
        with minipar.no_grad():
            for sign in (1, -1):
                moved = [Tensor(t.array + sign * step * u) if u is not None else t
                         for t, u in zip(inputs, moves)]
                sides.append(function(*moved).array)
        numeric = float((v * (sides[0] - sides[1])).sum()) / (2 * step)
        scale = max(1.0, abs(numeric), abs(analytic))
        assert abs(analytic - numeric) <= tolerance * scale * max(1, out.numel()) ** 0.5, \
            f"analytic {analytic:.12g}, numeric {numeric:.12g}"
    for t in inputs:
        if isinstance(t, Tensor) and t.grad is not None:
            assert t.grad.array.dtype == t.array.dtype and t.grad.shape == t.shape
