"""Convolutions and transposed convolutions.

`mec.py` has the arithmetic in NumPy, `direct_conv.py` by kernels, on images laid out (H, C, W, N).
The result here is an (N, O, H, W) view of that layout, which elementwise operations, normalisation
and pooling keep: between two convolutions nothing is transposed. A line (N, C, L) is an image of
one row.
"""

import numpy as np

from ..device import one_device
from ..sinks import Deferred
from ..tensor import record
from . import mec
from .base import Like, for_kernel
from .precision import arithmetic, autocasts
from .softmax import ones
from .windows import output_size, pair, single


@autocasts("low")
@arithmetic
def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Cross-correlation: out[n, o, i, j] = bias[o] + the sum over c, k, l of
    weight[o, c, k, l] * padded[n, c, i * stride + k * dilation, j * stride + l * dilation].

    input (N, C, H, W), weight (O, C / groups, kh, kw), bias (O,) -> (N, O, Ho, Wo), all of one
    floating type. stride, padding, dilation: an int or a (vertical, horizontal) pair; padding may
    be "valid" (none) or "same" (Ho, Wo = H, W; stride 1 only). N may be 0. groups: channels and
    outputs are cut into so many groups, and each output sees the channels of its own group.
    Raises ValueError, with the sizes, if they do not match or the kernel does not fit; TypeError
    if the types differ.
    """
    stride, dilation = pair("conv2d: stride", stride, 1), pair("conv2d: dilation", dilation, 1)
    if not isinstance(padding, str):
        padding = pair("conv2d: padding", padding, 0)
    return _convolution("conv2d", input, weight, bias, stride, padding, dilation, groups)


@autocasts("low")
@arithmetic
def conv1d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """`conv2d` along one axis: input (N, C, L), weight (O, C / groups, k) -> (N, O, Lo).

    stride, padding and dilation are ints, or lists of one.
    """
    stride = 1, single("conv1d: stride", stride, 1)
    dilation = 1, single("conv1d: dilation", dilation, 1)
    if not isinstance(padding, str):
        padding = 0, single("conv1d: padding", padding, 0)
    return _convolution("conv1d", input, weight, bias, stride, padding, dilation, groups)


def _image(a):
    """An image, or the weight of one, of a line or its weight."""
    return a[:, :, None] if a.ndim == 3 else a


def _convolution(name, input, weight, bias, stride, padding, dilation, groups):
    x, w = input.array, weight.array
    c = "C" if groups == 1 else f"C / {groups}"
    inputs, weights = (("(N, C, L)", f"(O, {c}, k)") if name == "conv1d" else
                       ("(N, C, H, W)", f"(O, {c}, kh, kw)"))
    if x.ndim != w.ndim or x.ndim != inputs.count(",") + 1:
        raise ValueError(f"{name}: input {x.shape} and weight {w.shape}: expected {inputs} "
                         f"and {weights}")
    single(f"{name}: groups", groups, 1)
    if x.shape[1] != w.shape[1] * groups:
        by = f" x {groups} groups" if groups > 1 else ""
        raise ValueError(f"{name}: input {x.shape} and weight {w.shape}: "
                         f"{x.shape[1]} channels != {w.shape[1]}{by}")
    if len(w) % groups:
        raise ValueError(f"{name}: {len(w)} outputs do not divide into {groups} groups")
    if bias is not None and bias.shape != w.shape[:1]:
        raise ValueError(f"{name}: bias {bias.shape} and weight {w.shape} {weights}")
    _check_types(name, input, weight, bias)
    x, flat, like = _image(x), x.ndim == 3, Like(w.shape, w.dtype, w.device)
    geometry = _geometry(name, x.shape, _image(w).shape, stride, padding, dilation, groups)
    # A later layer's input has this layout already; for the first one this copies.
    rows = for_kernel(x.transpose(2, 1, 3, 0))
    out = mec.forward(rows, _image(w), None if bias is None else bias.array, geometry)
    out = out.transpose(3, 1, 0, 2)
    need_x, need_w = input.requires_grad, weight.requires_grad
    if not need_w:
        rows = None

    def backward(g):
        g = for_kernel(_image(g).transpose(2, 1, 3, 0))
        gx = gw = None
        if need_x:
            gx = mec.input_gradient(g, _image(weight.array), geometry).transpose(3, 1, 0, 2)
            gx = gx[:, :, 0] if flat else gx
        if need_w:
            gw = Deferred(like, write=lambda out: mec.weight_gradient(g, rows, geometry, out),
                          postponable=True)
        return gx, gw, _bias_gradient(g, bias)
    saved = ([weight] if need_x else []) + ([input] if need_w else [])
    return record(out[:, :, 0] if flat else out, (input, weight, bias), backward, saved)


def _check_types(name, *tensors):
    tensors = [t for t in tensors if t is not None]
    one_device(name, *(t.array for t in tensors))
    if not tensors[0].dtype.is_floating_point or any(
            t.dtype is not tensors[0].dtype for t in tensors):
        types = ", ".join(str(t.dtype) for t in tensors)
        raise TypeError(f"{name}: one floating type is needed, not {types}")


def _geometry(name, x, w, stride, padding, dilation, groups):
    """The Geometry of an image and a weight of these shapes."""
    kernel = [(k - 1) * d + 1 for k, d in zip(w[2:], dilation)]  # from its first tap to its last
    if padding == "same":
        if stride != (1, 1):
            raise ValueError(f"{name}: padding='same' needs stride 1, not {stride}")
        before = [(k - 1) // 2 for k in kernel]
        after = [k // 2 for k in kernel]  # an even kernel pads one more here, as in PyTorch
    elif isinstance(padding, str):
        if padding != "valid":
            raise ValueError(f"{name}: padding is a number of elements, 'same' or 'valid', "
                             f"not {padding!r}")
        before = after = 0, 0
    else:
        before = after = padding
    out = [output_size(name, *sizes) for sizes in zip(x[2:], kernel, stride, before, after)]
    return mec.Geometry(x, w, out, stride, before, dilation, groups)


def _bias_gradient(g, bias):
    """The sums of g (Ho, O, Wo, N) over all but the outputs; None if no bias wants them."""
    if bias is None or not bias.requires_grad:
        return None
    ho, o, wo, n = g.shape
    by_row = g.reshape(ho * o, wo * n) @ ones(wo * n, g)
    return by_row.reshape(ho, o).sum(0)


@autocasts("low")
@arithmetic
def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1,
                     dilation=1):
    """The transpose of `conv2d` as a linear map: its input gradient, as a layer that enlarges
    (Zeiler et al. 2010, "Deconvolutional networks").

    input (N, C, H, W), weight (C, O / groups, kh, kw), bias (O,) -> (N, O, Ho, Wo) with
    Ho = (H - 1) * stride - 2 * padding + (kh - 1) * dilation + output_padding + 1. All of one
    floating type. output_padding: rows and columns more at the end, fewer than the stride or the
    dilation. Raises ValueError, with the sizes, if they do not match or nothing is left; TypeError
    if the types differ.
    """
    x, w = input.array, weight.array
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(f"conv_transpose2d: input {x.shape} and weight {w.shape}: expected "
                         f"(N, C, H, W) and (C, O / groups, kh, kw)")
    stride, padding = (pair(f"conv_transpose2d: {name}", value, least) for name, value, least in
                       (("stride", stride, 1), ("padding", padding, 0)))
    dilation = pair("conv_transpose2d: dilation", dilation, 1)
    more = pair("conv_transpose2d: output_padding", output_padding, 0)
    single("conv_transpose2d: groups", groups, 1)
    if x.shape[1] != len(w) or len(w) % groups:
        raise ValueError(f"conv_transpose2d: input {x.shape} and weight {w.shape}: {x.shape[1]} "
                         f"channels != {len(w)}, or they do not divide into {groups} groups")
    outputs = w.shape[1] * groups
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"conv_transpose2d: bias {bias.shape} for {outputs} outputs")
    if any(m >= max(s, d) for m, s, d in zip(more, stride, dilation)):
        raise ValueError(f"conv_transpose2d: output_padding {more} is not smaller than stride "
                         f"{stride} or dilation {dilation}")
    _check_types("conv_transpose2d", input, weight, bias)
    out = [(n - 1) * s - 2 * p + (k - 1) * d + m + 1 for n, s, p, k, d, m in
           zip(x.shape[2:], stride, padding, w.shape[2:], dilation, more)]
    if min(out) < 1:
        raise ValueError(f"conv_transpose2d: padding {padding} leaves {out[0]} x {out[1]} of "
                         f"input {x.shape} and weight {w.shape}")
    # Of the convolution that this transposes: from the output here to the input here.
    geometry = mec.Geometry((len(x), outputs, *out), w.shape, x.shape[2:], stride, padding,
                            dilation, groups)
    rows = for_kernel(x.transpose(2, 1, 3, 0))
    out = mec.input_gradient(rows, w, geometry)
    if bias is not None:
        out += bias.array[:, None, None]
    need_x, need_w = input.requires_grad, weight.requires_grad
    like = Like(w.shape, w.dtype, w.device)
    if not need_w:
        rows = None

    def backward(g):
        g = for_kernel(g.transpose(2, 1, 3, 0))
        gx = gw = None
        if need_x:
            gx = mec.forward(g, weight.array, None, geometry).transpose(3, 1, 0, 2)
        if need_w:
            gw = Deferred(like, write=lambda out: mec.weight_gradient(rows, g, geometry, out),
                          postponable=True)
        return gx, gw, _bias_gradient(g, bias)
    saved = ([weight] if need_x else []) + ([input] if need_w else [])
    return record(out.transpose(3, 1, 0, 2), (input, weight, bias), backward, saved)
