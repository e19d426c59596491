"""Maximum pooling. Without the kernel: a maximum over strided slices, one a tap of the window.

Averages stand in `avg_pool.py`.
"""

import numpy as np

from ..context import current
from ..execution import Kernel
from ..tensor import record
from .elementwise import keep
from .precision import in_float32
from .windows import Images, inside, output_size, pair, single

_KERNELS = {name: Kernel("pool.cu", name, rows="lines", width="inner")
            for name in ("max_pool_forward", "max_pool_backward")}
_BY_PLANE = {"max_pool_rows": Kernel("pool.cu", "max_pool_rows", rows="lines", width="wo"),
             "max_pool_planes": Kernel("pool.cu", "max_pool_planes", elements="lines")}


def max_pool1d(input, kernel_size, stride=None, padding=0, *, ceil_mode=False):
    """`max_pool2d` along one axis: input (N, C, L) -> (N, C, Lo)."""
    if input.ndim != 3:
        raise ValueError(f"max_pool1d: input {input.shape}: expected (N, C, L)")
    kernel = 1, single("max_pool1d: kernel_size", kernel_size, 1)
    stride = kernel if stride is None else (1, single("max_pool1d: stride", stride, 1))
    padding = 0, single("max_pool1d: padding", padding, 0)
    return max_pool2d(input[:, :, None], kernel, stride, padding, ceil_mode=ceil_mode)[:, :, 0]


def max_pool2d(input, kernel_size, stride=None, padding=0, *, ceil_mode=False):
    """The largest element of each window; its gradient goes to the first of equal ones.

    input (N, C, H, W), floating -> (N, C, Ho, Wo). kernel_size, stride (the kernel if None) and
    padding (with -inf): an int or a (vertical, horizontal) pair. ceil_mode: windows that end
    beyond the input count too. A window that has a NaN becomes NaN (to which of its elements the
    gradient then goes is not defined).
    Raises ValueError if the padding is over half the kernel or the kernel does not fit; TypeError
    for other types.
    """
    x = input.array
    if x.ndim != 4:
        raise ValueError(f"max_pool2d: input {x.shape}: expected (N, C, H, W)")
    if not input.dtype.is_floating_point:
        raise TypeError(f"max_pool2d: a floating type is needed, not {input.dtype}")
    kh, kw = kernel = pair("max_pool2d: kernel_size", kernel_size, 1)
    sh, sw = kernel if stride is None else pair("max_pool2d: stride", stride, 1)
    ph, pw = pair("max_pool2d: padding", padding, 0)
    if 2 * ph > kh or 2 * pw > kw:
        raise ValueError(f"max_pool2d: padding {ph, pw} is over half the kernel {kernel}")
    n, c, h, w = x.shape
    ho = output_size("max_pool2d", h, kh, sh, ph, ph, ceil_mode)
    wo = output_size("max_pool2d", w, kw, sw, pw, pw, ceil_mode)
    windows = (ho, wo), kernel, (sh, sw), (ph, pw)
    images = Images(x, *windows)
    # Of (N, C, H, W), NumPy's slices are faster where nobody goes back, or windows do not overlap.
    # (Overlapping 16-bit gradients would be rounded at each addition.)
    by_plane = (images.planes and x.itemsize > 2 and (sh < kh or sw < kw) and input.requires_grad
                and current().grad_enabled)
    forward, back = (kernel.build(x) for kernel in (_BY_PLANE if by_plane else _KERNELS).values())
    if not (forward and (images.fit or by_plane)):
        if x.itemsize == 2:
            return in_float32(max_pool2d, input, kernel, stride, padding, ceil_mode=ceil_mode)
        out, backward = _by_tap(x, *windows)
        return record(out, (input,), backward, (input,), saves_output=True)
    # Of the forward its backward needs no more than which tap each window took: a byte.
    out, taps = images.empty((ho, wo), x.dtype, x), images.empty((ho, wo), np.uint8, x)
    images.run(forward, images.lay(x), out, taps, rows=ho)
    del x

    def backward(g):
        gx = images.empty((h, w), g.dtype, g)
        images.run(back, images.lay(g), taps, gx, rows=1 if by_plane else h)
        return (images.view(gx),)
    return record(images.view(out), (input,), backward)


def _by_tap(x, size, kernel, stride, padding):
    """(result, backward) in NumPy. The backward reads x and the result."""
    (n, c, h, w), (ho, wo) = x.shape, size
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    rows = [inside(tap, h, ho, sh, ph) for tap in range(kh)]
    columns = [inside(tap, w, wo, sw, pw) for tap in range(kw)]
    # For each tap of a window, in row-major order: which outputs it serves, and from where.
    taps = [((..., to_h, to_w), (..., from_h, from_w))
            for to_h, from_h in rows for to_w, from_w in columns]
    out = np.empty_like(x, shape=(n, c, ho, wo))  # in the memory order of x
    if ph or pw or (ho - 1) * sh + kh > h or (wo - 1) * sw + kw > w:  # not every tap everywhere
        out.fill(-np.inf)
        remaining = taps
    elif len(taps) == 1:
        out[...] = x[taps[0][1]]
        remaining = ()
    else:
        np.maximum(x[taps[0][1]], x[taps[1][1]], out=out)
        remaining = taps[2:]
    for to, source in remaining:
        np.maximum(out[to], x[source], out=out[to])
    disjoint = sh >= kh and sw >= kw
    # Every element of the input is under exactly one tap:
    tiles = (sh, sw) == (kh, kw) and not ph and not pw and (ho * kh, wo * kw) == (h, w)

    def backward(g):
        gx = np.empty_like(x) if tiles else np.zeros_like(x)
        left = g.copy(order="K").view(f"i{g.itemsize}")  # the bits of what no tap has taken yet
        for number, (to, source) in enumerate(taps, 1):
            if tiles and number == len(taps):
                taken = left[to]
            else:
                taken = keep(left[to], x[source] == out[to])
                left[to] ^= taken  # zero where taken: a later tap that ties gets nothing
            if disjoint:
                gx[source] = taken.view(g.dtype)
            else:
                gx[source] += taken.view(g.dtype)
        return (gx,)
    backward.__qualname__ = "max_pool2d"  # what the graph calls the node
    return out, backward
