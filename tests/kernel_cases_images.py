"""More of the table of `kernel_cases.py`: normalisation, pooling, convolution."""

import numpy as np
from kernel_cases import Out

from minipar.ops import direct_conv, mec


def _rows(rng, rows, n):
    """x, g, w, and of the rows of x the mean and 1 / deviation."""
    x, g = rng.standard_normal((2, rows, n))
    return x, g, rng.standard_normal(n), x.mean(1), 1 / np.sqrt(x.var(1) + 0.1)


def _in_parts(a):
    """(rows, n) -> the sums of each 32 rows."""
    return np.stack([a[i:i + 32].sum(0) for i in range(0, len(a), 32)]) if len(a) else a


def layer_norm_forward(rng, rows, n):
    x, b, w, mean, scale = _rows(rng, rows, n)
    b = rng.standard_normal(n)
    y = (x - mean[:, None]) * scale[:, None] * w + b
    return x, w, b, Out(y), Out(mean), Out(scale), rows, n, 0.1


def layer_norm_backward(rng, rows, n):
    x, g, w, mean, scale = _rows(rng, rows * 7, n)
    unit, d = (x - mean[:, None]) * scale[:, None], g * w
    gx = d - d.mean(1, keepdims=True) - unit * (d * unit).mean(1, keepdims=True)
    sums = np.stack([_in_parts(g * unit), _in_parts(g)], 1)
    return x, g, w, mean, scale, Out(gx * scale[:, None]), Out(sums), len(x), n, len(sums)


def rms_norm_forward(rng, rows, n):
    x, _, w, *_ = _rows(rng, rows, n)
    scale = 1 / np.sqrt((x * x).mean(1) + 0.1)
    return x, w, Out(x * scale[:, None] * w), Out(scale), rows, n, 0.1


def rms_norm_backward(rng, rows, n):
    x, g, w, *_ = _rows(rng, rows * 7, n)
    scale = 1 / np.sqrt((x * x).mean(1) + 0.1)
    unit, d = x * scale[:, None], g * w
    gx = (d - unit * (d * unit).mean(1, keepdims=True)) * scale[:, None]
    sums = _in_parts(g * unit)
    return x, g, w, scale, Out(gx), Out(sums), len(x), n, len(sums)


def add_parts(rng, rows, n):
    partial = rng.standard_normal((rows, n))
    return partial, Out(partial.sum(0)), rows, n


def run_moments(rng, rows, n):
    x = rng.standard_normal((rows, n)) + 3
    return x, Out(x.mean(1)), Out(x.var(1) * n), rows, n


def column_moments(rng, rows, n):
    x = rng.standard_normal((rows * 4, n)) + 3  # matrices of 4 rows, of which the last has 3
    parts, total = [x[i:i + 4] for i in range(0, len(x), 4)], max(0, len(x) - 1)
    parts = [part[:total - 4 * i] for i, part in enumerate(parts)]
    mean = np.reshape([part.mean(0) for part in parts], (rows, n))
    squares = np.reshape([part.var(0) * len(part) for part in parts], (rows, n))
    return x, Out(mean), Out(squares), rows, 4, n, total


def join_moments(rng, rows, n):
    x = rng.standard_normal((rows + 1, 4, n)) + 3
    mean, squares = x.mean(1), x.var(1) * 4
    whole = x.reshape(-1, n)
    return (mean, squares, Out(whole.mean(0)), Out(whole.var(0)), len(x), n, 4, len(whole))


def join_sums(rng, rows, n):
    sums = rng.standard_normal((rows, n))
    return sums, Out(sums.sum(0)), rows, n


def channel_numbers(rng, rows, n):
    mean, weight = rng.standard_normal((2, n))
    variance = np.abs(rng.standard_normal(n))
    scale = 1 / np.sqrt(variance + 0.1)
    return mean, variance, weight, Out(np.stack([mean, scale, scale * weight])), n, 0.1


def follow(rng, rows, n):
    mean, running_mean = rng.standard_normal((2, n))
    variance, running_variance = np.abs(rng.standard_normal((2, n)))
    return (mean, variance, Out(0.75 * running_mean + 0.25 * mean, running_mean),
            Out(0.75 * running_variance + 0.25 * 1.5 * variance, running_variance), n, 0.25, 1.5)


def channel_gradients(rng, rows, n):
    sums, numbers = rng.standard_normal((2, rows, n)), rng.standard_normal((3, n))
    (total, along), (_, scale, slope) = sums.sum(1), numbers
    expected = [along * scale, total, along * scale**2 * slope / 9, total * slope / 9]
    return sums, numbers, Out(np.stack(expected)), rows, n, 9.0


def _of_matrices(step):
    """The case of a step for matrices of one column, and that for those of several."""
    def run(rng, rows, n):
        g, x = rng.standard_normal((2, 3, rows, n, 1))
        return *step(g, x, *rng.standard_normal((4, rows, 1, 1))), 3 * rows, n, rows

    def column(rng, rows, n):
        g, x = rng.standard_normal((2, 3 * rows, 5, n))
        return *step(g, x, *rng.standard_normal((4, n))), 3 * rows, 5, n, 15 * rows
    return run, column


def _normalise(g, x, mean, slope, offset, _):
    return x, mean, slope, offset, Out((x - mean) * slope + offset)


def _products(g, x, mean, *_):
    return g, x, mean, Out(g.sum(-2)), Out((g * (x - mean)).sum(-2))


def _gradient(g, x, mean, slope, tilt, level):
    return g, x, mean, slope, tilt, level, Out(g * slope - tilt * (x - mean) - level)


def _group_norm(rng, n, groups, members, length):
    """x, g (n, groups, members, length), w, b, mean and scale, y, gx and the shares (2, n, groups,
    members) in the gradients of w and b.
    """
    x, g = rng.standard_normal((2, n, groups, members, length))
    w, b = rng.standard_normal((2, groups, members))
    axes, eps = (2, 3), 0.1
    mean, variance = x.mean(axes), x.var(axes)
    scale = 1 / np.sqrt(variance + eps)
    unit = (x - mean[:, :, None, None]) * scale[:, :, None, None]
    d = g * w[:, :, None]
    level, tilt = (a.mean(axes, keepdims=True) for a in (d, d * unit))
    gx = (d - level - unit * tilt) * scale[:, :, None, None]
    return (x, g, w, b, mean, scale, unit * w[:, :, None] + b[:, :, None], gx,
            np.stack([(g * unit).sum(3), g.sum(3)]))


def group_norm_forward(rng, rows, n):
    x, _, w, b, mean, scale, y, *_ = _group_norm(rng, rows, 2, 3, n)
    return x, w, b, Out(y), Out(mean), Out(scale), 2 * rows, 2, 3, n, 0.1


def group_norm_backward(rng, rows, n):
    x, g, w, _, mean, scale, _, gx, shares = _group_norm(rng, rows, 2, 3, n)
    return x, g, w, mean, scale, Out(gx), Out(shares), 2 * rows, 2, 3, n


def _samples_last(rng, rows, n):
    """`_group_norm` of rows groups, in 2 parts of 3 rows of n columns, where each sample has 1 or
    3; a function that lays out what has a number for each pixel, and one for each group.
    """
    samples = n // 3 if n % 3 == 0 else n

    def pixels(a):  # (samples, rows, 2, 2 * 3 * columns of a sample) -> (2, rows, 2, 3, n)
        a = a.reshape(samples, rows, 2, 2, 3, n // samples)
        return np.ascontiguousarray(a.transpose(3, 1, 2, 4, 5, 0)).reshape(2, rows, 2, 3, n)

    def columns(a):
        return np.ascontiguousarray(np.tile(a.T, n // samples))
    return _group_norm(rng, samples, rows, 2, 6 * (n // samples)), pixels, columns


def column_group_norm_forward(rng, rows, n):
    (x, _, w, b, mean, scale, y, *_), pixels, columns = _samples_last(rng, rows, n)
    return (pixels(x), w, b, Out(pixels(y)), np.zeros((rows, 4, n)), Out(columns(mean)),
            Out(columns(scale)), 2, rows, 2, 3, n, mean.shape[0], 0.1)


def column_group_norm_backward(rng, rows, n):
    (x, g, w, _, mean, scale, _, gx, shares), pixels, columns = _samples_last(rng, rows, n)
    return (pixels(x), pixels(g), w, columns(mean), columns(scale), Out(pixels(gx)),
            np.zeros((rows, 4, n)), np.zeros((2, rows, 2, n)), Out(shares.sum(1)), 2, rows, 2, 3, n,
            mean.shape[0])


# Windows (3, 2) with strides (2, 1) and padding (1, 1) over images (4, rows, 5, n).
_WINDOWS = 4, 5, 2, 6, 3, 2, 2, 1, 1, 1


def _sizes(lines, rows, n):
    h, w, *others = _WINDOWS
    return lines * rows, h, rows, w, n, *others


def _windows(x, fill):
    """{(i, j): [the taps (rows, n) of a window, in order]}, and the same of places in x."""
    padded = np.full((6, x.shape[1], 7, x.shape[3]), fill)
    padded[1:-1, :, 1:-1] = x
    return {(i, j): [padded[2 * i + a, :, j + b] for a in range(3) for b in range(2)]
            for i in range(2) for j in range(6)}


def _outputs(function, rows, n):
    out = np.empty((2, rows, 6, n))
    for i in range(2):
        for j in range(6):
            out[i, :, j] = function(i, j)
    return out


def _spread(weights, rows, n):
    """gx (4, rows, 5, n): weights(i, j, tap) (rows, n) of all windows, added where the taps are."""
    padded = np.zeros((6, rows, 7, n))
    for i in range(2):
        for j in range(6):
            for tap in range(6):
                padded[2 * i + tap // 2, :, j + tap % 2] += weights(i, j, tap)
    return padded[1:-1, :, 1:-1]


def max_pool_forward(rng, rows, n):
    x = np.round(rng.standard_normal((4, rows, 5, n)))  # with ties
    taps = _windows(x, -np.inf)
    best = _outputs(lambda i, j: np.max(taps[i, j], 0), rows, n)
    which = _outputs(lambda i, j: np.argmax(taps[i, j], 0), rows, n).astype(np.uint8)
    return x, Out(best), Out(which), *_sizes(2, rows, n)


def max_pool_backward(rng, rows, n):
    g, tap = rng.standard_normal((2, rows, 6, n)), rng.integers(0, 6, (2, rows, 6, n), np.uint8)
    gx = _spread(lambda i, j, t: g[i, :, j] * (tap[i, :, j] == t), rows, n)
    return g, tap, Out(gx), *_sizes(4, rows, n)


def _planes(a):
    """(height, rows, width, n) -> (rows * n, height, width)."""
    height, rows, width, n = a.shape
    return np.ascontiguousarray(a.transpose(1, 3, 0, 2)).reshape(rows * n, height, width)


def max_pool_rows(rng, rows, n):
    x, best, which, *_ = max_pool_forward(rng, rows, n)
    return (_planes(x), Out(_planes(best.expected)), Out(_planes(which.expected)),
            *_sizes(2 * rows * n, 1, 1))


def max_pool_planes(rng, rows, n):
    _, g, which, *_ = max_pool_forward(rng, rows, n)
    g, tap = g.expected, which.expected
    gx = _spread(lambda i, j, t: g[i, :, j] * (tap[i, :, j] == t), rows, n)
    return _planes(g), _planes(tap), Out(_planes(gx)), *_sizes(rows * n, 1, 1)


def average_pool_forward(rng, rows, n):
    x, share = rng.standard_normal((4, rows, 5, n)), rng.random((2, 6))
    taps = _windows(x, 0.0)
    y = _outputs(lambda i, j: np.sum(taps[i, j], 0) * share[i, j], rows, n)
    return x, share, Out(y), *_sizes(2, rows, n)


def average_pool_backward(rng, rows, n):
    g, share = rng.standard_normal((2, rows, 6, n)), rng.random((2, 6))
    gx = _spread(lambda i, j, t: g[i, :, j] * share[i, j], rows, n)
    return g, share, Out(gx), *_sizes(4, rows, n)


def depthwise_forward(rng, rows, n):
    x, w, bias = (rng.standard_normal(s) for s in ((4, rows, 5, n), (rows, 6), rows))
    taps = _windows(x, 0.0)
    y = _outputs(lambda i, j: bias[:, None] + np.einsum("crn,rc->rn", taps[i, j], w), rows, n)
    return x, w, bias, Out(y), *_sizes(2, rows, n)


def depthwise_input_gradient(rng, rows, n):
    g, w = rng.standard_normal((2, rows, 6, n)), rng.standard_normal((rows, 6))
    gx = _spread(lambda i, j, t: g[i, :, j] * w[:, t, None], rows, n)
    return g, w, Out(gx), *_sizes(4, rows, n)


def depthwise_weight_gradient(rng, rows, n):
    g, x = rng.standard_normal((2, rows, 6, n)), rng.standard_normal((4, rows, 5, n))
    taps = _windows(x, 0.0)
    gw = sum(np.einsum("rn,crn->rc", g[0, :, j], taps[0, j]) for j in range(6))
    other = sum(np.einsum("rn,crn->rc", g[1, :, j], taps[1, j]) for j in range(6))
    return g, x, Out(np.stack([gw, other])), *_sizes(2, rows, n)


def _convolution(rng, rows, n):
    """A geometry, x, w (O, C, kh, kw) and g, and for each tap the part of x that it reads."""
    samples, c, o, groups = 16 + n % 33, 8 + rows % 5, 8 + rows, 2
    sizes = mec.Geometry((samples, 2 * c, 4, 5), (2 * o, c, 2, 3), (5, 3), (1, 2), (1, 1), (1, 1),
                         groups)
    x, w = rng.standard_normal((4, 2, c, 5, samples)), rng.standard_normal((2, o, c, 2, 3))
    padded = np.zeros((6, 2, c, 7, samples))
    padded[1:-1, :, :, 1:-1] = x
    taps = {(k, m): padded[k:k + 5, :, :, m:m + 5:2] for k in range(2) for m in range(3)}
    return sizes, x, w, rng.standard_normal((5, 2, o, 3, samples)), taps


def conv_taps(rng, rows, n):
    s, x, w, _, taps = _convolution(rng, rows, n)
    bias = rng.standard_normal((2, s.o))
    out = bias[:, :, None, None] + sum(
        np.einsum("igcjn,goc->igojn", a, w[:, :, :, k, m]) for (k, m), a in taps.items())
    return x, w, bias, Out(out), *direct_conv.output_sums(s)


def conv_weight_gradient(rng, rows, n):
    s, x, _, g, taps = _convolution(rng, rows, n)
    gw = np.stack([np.einsum("igcjn,igojn->gco", a, g) for a in taps.values()], 1)
    return g, x, Out(gw), *direct_conv.weight_sums(s)


CASES = {f.__name__: f for f in (
    layer_norm_forward, layer_norm_backward, rms_norm_forward, rms_norm_backward, add_parts,
    run_moments, column_moments, join_moments, join_sums, channel_numbers, follow,
    channel_gradients, group_norm_forward, group_norm_backward, column_group_norm_forward,
    column_group_norm_backward, max_pool_forward, max_pool_backward, max_pool_rows, max_pool_planes,
    average_pool_forward, average_pool_backward, depthwise_forward, depthwise_input_gradient,
    depthwise_weight_gradient, conv_taps, conv_weight_gradient)}
for _name, _step in (("normalise", _normalise), ("products", _products), ("gradient", _gradient)):
    CASES[f"run_{_name}"], CASES[f"column_{_name}"] = _of_matrices(_step)
