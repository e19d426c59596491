"""Numbers in 8 bits, 4 bits, or 1: what gradients are sent as when links are slow.

On arrays, not tensors, and not differentiable: beside `execution`, knows no ranks. The NumPy
reference stands beside each kernel (kernels/quantise.cu) and gives the same bits.

With error feedback (Seide, Fu, Droppo, Li, Yu 2014; Karimireddy et al. 2019) what is lost to
rounding is owed to the next call: `y = x + residual` is sent, and `residual` becomes `y` minus
what the receiver makes of it.

Not-a-number and infinity pass: a block (of signs: the whole array) that holds one has a scale that
is not finite, and comes back as NaN (signs: as NaN or +- infinity). Nothing is told by that, so
its residual stays as it was: a step that is skipped and repeated owes what it did before.
"""

import numpy as np

from .execution import Kernel

_FILE = "quantise.cu"
_FLOATS = (np.float16, np.float32, np.float64)
_LEVELS = {8: 127, 4: 7}  # {bits: the largest magnitude}
_QUANTISE = {(8, False): Kernel(_FILE, "quantise_8", rows="rows", width="size"),
             (4, False): Kernel(_FILE, "quantise_4", rows="rows", width="size"),
             (8, True): Kernel(_FILE, "quantise_8_feedback", rows="rows", width="size"),
             (4, True): Kernel(_FILE, "quantise_4_feedback", rows="rows", width="size")}
_DEQUANTISE = {8: Kernel(_FILE, "dequantise_8", rows="rows", width="size"),
               4: Kernel(_FILE, "dequantise_4", rows="rows", width="size")}
_MAGNITUDES = {False: Kernel(_FILE, "magnitudes", rows="rows"),
               True: Kernel(_FILE, "magnitudes_feedback", rows="rows")}
_PACK = {False: Kernel(_FILE, "pack_signs", rows="rows"),
         True: Kernel(_FILE, "pack_signs_feedback", rows="rows")}
_UNPACK = Kernel(_FILE, "unpack_signs", elements="n")


def quantise(x, bits=8, block=256, residual=None):
    """x in integers of 8 or 4 bits, each block of it with a scale: x ~ integer * scale.

    x:        floating array of n elements, any shape.
    block:    elements that share a scale, a multiple of 2. The scale is the largest magnitude / 127
              (8 bits) or / 7 (4), at least the smallest normal number; 0 if all of the block are 0.
    residual: array of x's shape in the scales' type, in C order, added to x and updated in place.
    Returns (packed, scales): packed is int8 (n,), or uint8 (ceil(n / 2),) with two integers a byte,
    in two's complement, the first in the lower half; scales (ceil(n / block),) is float64 for x of
    float64, else float32.
    Rounding is to the nearest integer, halves to the even one: off by at most scale / 2.
    Raises TypeError or ValueError for what does not fit.
    """
    _check_format("quantise", bits, block)
    x, residual = _inputs("quantise", x, residual)
    n, rows, kind = x.size, -(-x.size // block), accumulator(x.dtype)
    run = _QUANTISE[bits, residual is not None].build(x.dtype)
    if run is None:
        return _quantise_reference(x, bits, block, residual, kind)
    packed = np.empty(packed_size(n, bits), np.int8 if bits == 8 else np.uint8)
    scales = np.empty(rows, kind)
    run(x, *_given(residual), packed, scales, rows, block, n)
    return packed, scales


def dequantise(packed, scales, n, bits=8, block=256, dtype=np.float32, out=None):
    """The n numbers (n,), of a floating `dtype`, that `quantise` has packed: integer * scale.

    packed, scales, bits, block: as there. out: an array to write to, of n elements, in C order.
    Raises TypeError or ValueError for what does not fit.
    """
    _check_format("dequantise", bits, block)
    out = _output("dequantise", out, n, dtype)
    rows = -(-n // block)
    kind = np.dtype(np.int8 if bits == 8 else np.uint8)
    _check_part("dequantise", "packed", packed, packed_size(n, bits), kind)
    _check_part("dequantise", "scales", scales, rows, accumulator(out.dtype))
    run = _DEQUANTISE[bits].build(out.dtype)
    if run is None:
        if bits == 4:
            halves = np.stack([packed & 15, packed >> 4], 1).reshape(-1)[:n].astype(np.int8)
            packed = (halves ^ 8) - 8
        with np.errstate(all="ignore"):
            out.reshape(-1)[...] = packed.astype(scales.dtype) * np.repeat(scales, block)[:n]
    else:
        run(_laid_out(packed), _laid_out(scales), out, rows, block, n)
    return out


def pack_signs(x, residual=None):
    """The signs of x, and one scale for all: x ~ +- scale.

    x, residual: as for `quantise`.
    Returns (bits, scale): bits uint8 (ceil(n / 8),), 8 numbers a byte, the first in the lowest bit,
    1 where a number is below 0, and 0 after the last; scale (1,) is the mean magnitude, as float64
    for x of float64, else float32.
    """
    x, residual = _inputs("pack_signs", x, residual)
    n, feedback = x.size, residual is not None
    kind, rows = accumulator(x.dtype), -(-n // 4096)
    partial, bits = np.empty((rows, 64)), np.empty(packed_size(n, 1), np.uint8)
    sum_up, pack = _MAGNITUDES[feedback].build(x.dtype), _PACK[feedback].build(x.dtype)
    with np.errstate(all="ignore"):
        if sum_up and pack:
            sum_up(x, *_given(residual), partial, rows, n)
            scale = _mean(partial, n).astype(kind)
            pack(x, *_given(residual), bits, float(scale[0]), rows, n)
            return bits, scale
        y = x.astype(kind) if residual is None else x.astype(kind) + residual
        padded = np.zeros(rows * 4096, kind)
        padded[:n] = np.abs(y)
        partial[...] = 0
        for step in padded.reshape(rows, 64, 64).swapaxes(0, 1):
            partial += step
        scale = _mean(partial, n).astype(kind)
        if feedback and np.isfinite(scale[0]):
            np.subtract(y, np.where(y < 0, -scale, scale), out=residual)
        bits[...] = np.packbits(y < 0, bitorder="little")
        return bits, scale


def unpack_signs(bits, scale, n, dtype=np.float32, out=None):
    """The n numbers (n,), of a floating `dtype`, that `pack_signs` has packed: +- scale.

    bits, scale: as there. out: an array to write to, of n elements, in C order.
    Raises TypeError or ValueError for what does not fit.
    """
    out = _output("unpack_signs", out, n, dtype)
    _check_part("unpack_signs", "bits", bits, packed_size(n, 1), np.dtype(np.uint8))
    _check_part("unpack_signs", "scale", scale, 1, accumulator(out.dtype))
    run = _UNPACK.build(out.dtype)
    if run is None:
        below = np.unpackbits(bits, count=n, bitorder="little")
        with np.errstate(all="ignore"):
            out.reshape(-1)[...] = np.where(below, -scale, scale)
    else:
        run(_laid_out(bits), out, float(scale[0]), n)
    return out


def packed_size(n, bits):
    """Bytes of n numbers of 8, 4 or 1 bits."""
    return -(-n * bits // 8)


def accumulator(dtype):
    """The type of scales and residuals for numbers of a floating type."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def _quantise_reference(x, bits, block, residual, kind):
    n, rows = x.size, -(-x.size // block)
    with np.errstate(all="ignore"):
        y = np.zeros(rows * block, kind)
        y[:n] = x if residual is None else x.astype(kind) + residual
        y = y.reshape(rows, block)
        top = np.abs(y).max(1, initial=0)
        scales, told = top / kind.type(_LEVELS[bits]), np.isfinite(top)[:, None]
        most = np.nextafter(np.finfo(kind).max, kind.type(0)) / kind.type(_LEVELS[bits])
        np.clip(scales, np.finfo(kind).smallest_normal, most, out=scales,
                where=(top > 0) & np.isfinite(top))
        levels = np.rint(y / np.where(scales == 0, 1, scales).astype(kind)[:, None])
        levels[~told[:, 0]] = 0
        if residual is not None:
            rest = y - levels * scales[:, None]
            np.copyto(residual, rest.reshape(-1)[:n],
                      where=np.broadcast_to(told, y.shape).reshape(-1)[:n])
    packed = levels.astype(np.int8).reshape(-1)[:n]
    if bits == 4:
        halves = np.append(packed, np.zeros(n % 2, np.int8)).view(np.uint8) & 15
        packed = halves[0::2] | halves[1::2] << 4
    return packed, scales


def _mean(partial, n):
    """(1,): the sum of `partial` (rows, 64), one row after another, / n."""
    total = np.zeros(1)
    for row in np.add.reduce(partial, 0):
        total += row
    return total / max(n, 1)


def _laid_out(a):
    return np.require(a, requirements="CA")  # in C order and aligned: as kernels take it


def _given(residual):
    return () if residual is None else (residual,)


def _check_format(name, bits, block):
    if bits not in _LEVELS:
        raise ValueError(f"{name}: bits is 8 or 4, not {bits}")
    if block < 2 or block % 2:
        raise ValueError(f"{name}: a block is of 2, 4, 6, ... elements, not {block}")


def _inputs(name, x, residual):
    """(x, residual) as one-dimensional arrays that a kernel takes."""
    if not isinstance(x, np.ndarray) or x.dtype not in _FLOATS:
        raise TypeError(f"{name}: x is an ndarray of float16, float32 or float64, not "
                        f"{getattr(x, 'dtype', type(x).__name__)}")
    if residual is not None:
        kind = accumulator(x.dtype)
        if residual.shape != x.shape or residual.dtype != kind:
            raise TypeError(f"{name}: residual is {residual.dtype} {residual.shape}, where x of "
                            f"{x.dtype} {x.shape} needs {kind} {x.shape}")
        if not residual.flags.c_contiguous:
            raise ValueError(f"{name}: residual of shape {residual.shape} is not contiguous")
        residual = residual.reshape(-1)
    return _laid_out(x).reshape(-1), residual


def _output(name, out, n, dtype):
    if out is None:
        out = np.empty(n, dtype)
    if out.dtype not in _FLOATS:
        raise TypeError(f"{name}: numbers are of float16, float32 or float64, not {out.dtype}")
    if out.size != n or not out.flags.c_contiguous:
        raise ValueError(f"{name}: out is of {out.size} elements"
                         f"{'' if out.flags.c_contiguous else ', not contiguous'}, where {n} in C "
                         f"order are needed")
    return out


def _check_part(name, what, array, size, kind):
    if array.dtype != kind or array.shape != (size,):
        raise ValueError(f"{name}: {what} is {array.dtype} {array.shape}, not {kind} ({size},)")
