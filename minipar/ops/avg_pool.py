"""Average pooling: sums of windows. Without the kernel: first of rows and then of columns.

Every array keeps the memory order of the input, so that what comes from a convolution goes to
the next one as it lies.
"""

import numpy as np

from ..device import beside
from ..execution import Kernel
from ..tensor import record
from .base import quiet, wide
from .softmax import ones
from .windows import Images, inside, output_size, pair, single

_KERNELS = {name: Kernel("pool.cu", name, rows="lines", width="inner")
            for name in ("average_pool_forward", "average_pool_backward")}


def avg_pool1d(input, kernel_size, stride=None, padding=0, ceil_mode=False,
               count_include_pad=True):
    """`avg_pool2d` along one axis: input (N, C, L) -> (N, C, Lo)."""
    if input.ndim != 3:
        raise ValueError(f"avg_pool1d: input {input.shape}: expected (N, C, L)")
    kernel = 1, single("avg_pool1d: kernel_size", kernel_size, 1)
    stride = kernel if stride is None else (1, single("avg_pool1d: stride", stride, 1))
    padding = 0, single("avg_pool1d: padding", padding, 0)
    return avg_pool2d(input[:, :, None], kernel, stride, padding, ceil_mode,
                      count_include_pad)[:, :, 0]


def avg_pool2d(input, kernel_size, stride=None, padding=0, ceil_mode=False,
               count_include_pad=True, divisor_override=None):
    """The mean of each window.

    input (N, C, H, W), floating -> (N, C, Ho, Wo). kernel_size, stride (the kernel if None) and
    padding (with 0): an int or a (vertical, horizontal) pair. ceil_mode: a window that ends beyond
    the padding counts too, with what it has before there. count_include_pad: whether the mean is
    also over the padding; divisor_override: what to divide by instead of a number of elements.
    Raises ValueError if the padding is over half the kernel, the kernel does not fit or the
    divisor is 0; TypeError for other types.
    """
    kernel = pair("avg_pool2d: kernel_size", kernel_size, 1)
    stride = kernel if stride is None else pair("avg_pool2d: stride", stride, 1)
    padding = pair("avg_pool2d: padding", padding, 0)
    if any(2 * p > k for p, k in zip(padding, kernel)):
        raise ValueError(f"avg_pool2d: padding {padding} is over half the kernel {kernel}")
    if divisor_override == 0:
        raise ValueError("avg_pool2d: divisor_override is 0")
    _check("avg_pool2d", input)
    outs, counts = [], []
    for size, k, s, p in zip(input.shape[2:], kernel, stride, padding):
        out = output_size("avg_pool2d", size, k, s, p, p, ceil_mode)
        outs.append(out)
        start = np.arange(out) * s - p
        if count_include_pad:
            counts.append(np.minimum(start + k, size + p) - start)
        else:
            counts.append(np.minimum(start + k, size) - np.maximum(start, 0))
    divisor = np.multiply.outer(*counts) if divisor_override is None else divisor_override
    return _average(input, outs, divisor, windows=(kernel, stride, padding))


def adaptive_avg_pool2d(input, output_size):
    """The means of windows that divide the input: of H rows, output row i averages
    [floor(i H / Ho), ceil((i + 1) H / Ho)).

    input (N, C, H, W), floating -> (N, C, Ho, Wo). output_size: an int or a pair; None keeps the
    input's size. Raises ValueError for another, or for an input without elements to average;
    TypeError for other types.
    """
    _check("adaptive_avg_pool2d", input)
    both = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    if len(both) != 2:
        raise ValueError(f"adaptive_avg_pool2d: output_size is an int or a pair of them, "
                         f"not {output_size!r}")
    size = pair("adaptive_avg_pool2d: output_size",
                [n if o is None else o for n, o in zip(input.shape[2:], both)], 0)
    if not input.shape[2] * input.shape[3]:
        raise ValueError(f"adaptive_avg_pool2d: input {input.shape} has no element to average")
    if size == (1, 1) and input.array.flags.c_contiguous:
        return _recorded(input, lambda x: _of_whole_images(x, x.shape[2] * x.shape[3]))
    if all(n % max(1, out) == 0 for n, out in zip(input.shape[2:], size)) and min(size):
        return avg_pool2d(input, [n // out for n, out in zip(input.shape[2:], size)])
    sums, counts = [], []
    for n, out in zip(input.shape[2:], size):
        windows = [(i * n // out, -(-(i + 1) * n // out)) for i in range(out)]
        sums.append((out, [(i, slice(*window)) for i, window in enumerate(windows)]))
        counts.append(np.array([stop - start for start, stop in windows], np.int64))
    return _average(input, size, np.multiply.outer(*counts), sums=sums)


def _check(name, input):
    if input.ndim != 4:
        raise ValueError(f"{name}: input {input.shape}: expected (N, C, H, W)")
    if not input.dtype.is_floating_point:
        raise TypeError(f"{name}: a floating type is needed, not {input.dtype}")


def _average(input, size, divisor, *, windows=None, sums=None):
    """Sums over windows of the last two axes, divided by `divisor` (a number or (Ho, Wo)).

    size: (Ho, Wo). windows: the (vertical, horizontal) kernel, stride and padding; or sums: for
    each axis its new size and its parts (to, source): the elements [to] of the output get those
    [source] of the input added; a number as `to` means that the sources are summed.
    """
    def way(x):
        if windows and windows[0] == x.shape[2:] and windows[2] == (0, 0) and x.flags.c_contiguous:
            return _of_whole_images(x, divisor)
        kernels = [kernel.build(x) for kernel in _KERNELS.values()]
        images = Images(x, size, *windows) if windows else None
        if windows and images.fit and kernels[0]:
            return _gathered(x, images, size, divisor, *kernels)
        parts = sums or [(out, [inside(tap, n, out, s, p) for tap in range(k)])
                         for n, out, k, s, p in zip(x.shape[2:], size, *windows)]
        return _summed(x, parts, np.asarray(divisor, x.dtype, like=x))
    return _recorded(input, way)


@quiet
def _recorded(input, way):
    """The result of way(x) -> (result, backward), for x in the type to compute in."""
    dtype = input.array.dtype
    out, backward = way(input.array.astype(wide(dtype), copy=False))

    def converted(g):
        return (backward(g.astype(out.dtype, copy=False)).astype(dtype, copy=False),)
    converted.__qualname__ = "avg_pool2d"  # what the graph calls the node
    return record(out.astype(dtype, copy=False), (input,), converted)


def _of_whole_images(x, divisor):
    """(result, backward) for one window an image: sums of rows are products with a vector."""
    shape, pixels = x.shape, x.shape[2] * x.shape[3]
    out = x.reshape(*shape[:2], pixels) @ ones(pixels, x)
    divisor = x.dtype.type(np.asarray(divisor).item())
    out = (out / divisor).reshape(*shape[:2], 1, 1)

    def backward(g):
        gx = np.empty(shape, g.dtype, like=g)
        gx[...] = g / divisor
        return gx
    return out, backward


def _gathered(x, images, size, divisor, forward, gather):
    """(result, backward) by kernels."""
    share, shape = np.empty(size, x.dtype), x.shape[2:]
    share[...] = 1 / np.asarray(divisor, np.float64)
    share = beside(x, share)
    out = images.empty(size, x.dtype, x)
    images.run(forward, images.lay(x), share, out, rows=size[0])

    def backward(g):
        gx = images.empty(shape, g.dtype, g)
        images.run(gather, images.lay(g), share, gx, rows=shape[0])
        return images.view(gx)
    return images.view(out), backward


def _summed(x, sums, divisor):
    """(result, backward) in NumPy, first along columns and then along rows."""
    shape, (rows, columns) = x.shape, sums
    out = _sum(_sum(x, -2, *rows), -1, *columns)
    out /= divisor

    def backward(g):
        # Laid out like the output, whoever made it: then the spreading runs along memory.
        scaled = np.divide(g, divisor, out=np.empty_like(out))
        return _spread(_spread(scaled, -1, shape[3], columns[1]), -2, shape[2], rows[1])
    return out, backward


def _at(axis, index):
    """The index of `index` along the axis -2 or -1."""
    return (..., index, slice(None)) if axis == -2 else (..., index)


def _sum(x, axis, size, parts):
    """A new array, in the memory order of x: the sums along `axis`."""
    shape = list(x.shape)
    shape[axis] = size
    out = np.zeros_like(x, shape=shape)
    for to, source in parts:
        part = x[_at(axis, source)]
        out[_at(axis, to)] += part if isinstance(to, slice) else part.sum(axis=axis)
    return out


def _spread(g, axis, size, parts):
    """The gradient of `_sum`: each source gets that of the sums it went into."""
    shape = list(g.shape)
    shape[axis] = size
    gx = np.zeros_like(g, shape=shape)
    for to, source in parts:
        part = g[_at(axis, to)]
        gx[_at(axis, source)] += part if isinstance(to, slice) else np.expand_dims(part, axis)
    return gx
