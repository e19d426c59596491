"""Transforms of single images. torchvision's names, arguments and semantics.

They take Pillow images and Tensors (..., H, W) and return the same kind; ToTensor makes the one
into the other. Arrays go through ToTensor first, as in torchvision: theirs are (H, W, C).

Random ones draw from the context's generator. In a DataLoader that is a function of the seed, the
epoch and the sample (see `minipar.data.draws`), and so is what they do: not of rank or worker.
"""

import sys
from enum import Enum

import numpy as np

from ..context import current, get_default_dtype
from ..tensor import Tensor, from_numpy


class InterpolationMode(Enum):
    """How `Resize` finds pixels between pixels."""
    NEAREST = "nearest"
    BILINEAR = "bilinear"


class Compose:
    """One transform after the other."""

    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image


class Resize:
    """Resize to (height, width); or, given one number, the smaller edge to it, keeping the ratio.

    size:          int or (int,): the smaller edge becomes `size`, the other int(size * long /
                   short), both in pixels; or (height, width).
    interpolation: of InterpolationMode.
    max_size:      with one number: the longer edge is at most this, the smaller one then smaller.
    antialias:     bilinear: when making a Tensor smaller, average over all pixels that one new
                   pixel covers. Pillow images always are.
    Tensors of uint8 are rounded to uint8 again.
    """

    def __init__(self, size, interpolation=InterpolationMode.BILINEAR, max_size=None,
                 antialias=True):
        size = (size,) if isinstance(size, (int, np.integer)) else tuple(size)
        if len(size) not in (1, 2) or min(size) < 1:
            raise ValueError(f"size should be one or two positive integers, not {size}")
        if max_size is not None and (len(size) == 2 or max_size <= size[0]):
            raise ValueError(f"max_size = {max_size} must be larger than the one number that size "
                             f"is, not {size}")
        self.size, self.max_size, self.antialias = size, max_size, antialias
        self.interpolation = InterpolationMode(interpolation)

    def output_size(self, height, width):
        """(height, width) that an image of (height, width) gets."""
        if len(self.size) == 2:
            return self.size
        short, long = sorted((height, width))
        new_short, new_long = self.size[0], int(self.size[0] * long / short)
        if self.max_size is not None and new_long > self.max_size:
            new_short, new_long = int(self.max_size * new_short / new_long), self.max_size
        return (new_long, new_short) if width <= height else (new_short, new_long)

    def __call__(self, image):
        old = dimensions(image)
        new = self.output_size(*old)
        if min(new) < 1:
            raise ValueError(f"an image of {old[0]} x {old[1]} would become {new[0]} x {new[1]}")
        if new == old:
            return image
        nearest = self.interpolation is InterpolationMode.NEAREST
        if not isinstance(image, Tensor):
            modes = sys.modules["PIL.Image"].Resampling
            return image.resize(new[::-1], modes.NEAREST if nearest else modes.BILINEAR)
        if nearest:
            rows, columns = (np.arange(n) * o // n for n, o in zip(new, old))
            return Tensor(image.array[..., rows[:, None], columns])
        return Tensor(_bilinear(image.array, old, new, self.antialias))


def _bilinear(x, old, new, antialias):
    """x (..., H, W) resized along its last two axes, in the dtype of x."""
    floating = x if x.dtype.kind == "f" else x.astype(np.float32)
    rows, columns = (_weights(o, n, antialias).astype(floating.dtype) for o, n in zip(old, new))
    out = rows @ floating @ columns.T
    if out.dtype != x.dtype:
        limits = np.iinfo(x.dtype)
        out = np.rint(out).clip(limits.min, limits.max).astype(x.dtype)
    return out


def _weights(old, new, antialias):
    """(new, old): what each old pixel gives to each new one; rows sum to 1.

    A triangle around the new pixel's centre, 1 old pixel wide to each side, or, with antialias,
    as wide as a new pixel if that is more.
    """
    scale = old / new
    centers = (np.arange(new)[:, None] + 0.5) * scale
    distance = np.abs(np.arange(old) + 0.5 - centers)
    weights = np.clip(1 - distance / (max(scale, 1) if antialias else 1), 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


class CenterCrop:
    """The middle of the image, of `size`: (height, width), or one number for both.

    An image that is smaller is padded with zeros.
    """

    def __init__(self, size):
        self.size = _pair(size)

    def __call__(self, image):
        height, width = dimensions(image)
        h, w = self.size
        if h > height or w > width:
            down, right = max(h - height, 0), max(w - width, 0)
            image = pad(image, (right // 2, down // 2, (right + 1) // 2, (down + 1) // 2))
            height, width = dimensions(image)
        return _crop(image, round((height - h) / 2), round((width - w) / 2), h, w)


class RandomHorizontalFlip:
    """Left becomes right, with probability p."""

    def __init__(self, p=0.5):
        if not 0 <= p <= 1:
            raise ValueError(f"p = {p} is not a probability")
        self.p = p

    def __call__(self, image):
        dimensions(image)
        if current().generator.random() >= self.p:
            return image
        if isinstance(image, Tensor):
            return Tensor(image.array[..., ::-1])
        return image.transpose(sys.modules["PIL.Image"].Transpose.FLIP_LEFT_RIGHT)


class RandomCrop:
    """A part of the image, of `size` (height, width), or one number for both, at a random place.

    padding:       pixels added first: n, (left and right, top and bottom), or (left, top, right,
                   bottom).
    pad_if_needed: add what a smaller image lacks, on both sides.
    fill:          value of added pixels (for Pillow images, also one for each channel).
    padding_mode:  constant, edge, reflect or symmetric, as in `numpy.pad`.
    Raises ValueError for an image that is smaller than `size`.
    """

    def __init__(self, size, padding=None, pad_if_needed=False, fill=0, padding_mode="constant"):
        self.size, self.padding, self.pad_if_needed = _pair(size), padding, pad_if_needed
        self.fill, self.padding_mode = fill, padding_mode

    def __call__(self, image):
        h, w = self.size
        if self.padding is not None:
            image = pad(image, self.padding, self.fill, self.padding_mode)
        height, width = dimensions(image)
        if self.pad_if_needed and (height < h or width < w):
            image = pad(image, (max(w - width, 0), max(h - height, 0)), self.fill,
                        self.padding_mode)
            height, width = dimensions(image)
        if height < h or width < w:
            raise ValueError(f"Required crop size {(h, w)} is larger than input image size "
                             f"{(height, width)}")
        top, left = current().generator.integers(0, (height - h + 1, width - w + 1)).tolist()
        return _crop(image, top, left, h, w)


class ToTensor:
    """A Pillow image or an array (H, W) or (H, W, C) as a Tensor (C, H, W).

    Bytes become the default floating type in [0, 1]; other types keep their values.
    """

    def __call__(self, image):
        if not isinstance(image, np.ndarray):
            if isinstance(image, Tensor):
                raise TypeError("ToTensor takes a Pillow image or an array, not a Tensor")
            dimensions(image)
            if image.mode == "1":
                image = image.convert("L")
            wide = image.mode.startswith("I")  # 16 and 32 bits
            image = np.asarray(image, dtype=np.int32 if wide else None)
        if image.ndim not in (2, 3):
            raise ValueError(f"an image is (H, W) or (H, W, C), not {image.shape}")
        array = np.atleast_3d(image).transpose(2, 0, 1)
        if array.dtype == np.uint8:
            array = array.astype(get_default_dtype().storage)
            array /= array.dtype.type(255)
        return from_numpy(np.array(array, order="C"))


class Normalize:
    """(x - mean) / std for each channel of a floating Tensor (..., C, H, W).

    mean, std: a number for each channel, or one for all. inplace: change the Tensor itself.
    """

    def __init__(self, mean, std, inplace=False):
        self.mean, self.std, self.inplace = mean, std, inplace

    def __call__(self, image):
        if not isinstance(image, Tensor) or not image.dtype.is_floating_point:
            kind = f"a Tensor of {image.dtype}" if isinstance(image, Tensor) else type(image)
            raise TypeError(f"Normalize takes a floating Tensor, not {kind}: ToTensor goes first")
        x = image.array
        if x.ndim < 3:
            raise ValueError(f"Normalize takes (..., C, H, W), not {x.shape}")
        mean, std = (np.asarray(v, dtype=x.dtype).reshape(-1, 1, 1) for v in (self.mean, self.std))
        if not {len(mean), len(std)} <= {1, x.shape[-3]}:
            raise ValueError(f"{len(mean)} means and {len(std)} standard deviations for "
                             f"{x.shape[-3]} channels")
        if (std == 0).any():
            raise ValueError(f"std has a zero (as {x.dtype}): {self.std}")
        out = np.subtract(x, mean, out=x if self.inplace else None)
        out /= std
        return image if self.inplace else Tensor(out)


def dimensions(image):
    """(height, width) in pixels. Raises TypeError for what is no image."""
    if isinstance(image, Tensor):
        if image.ndim < 2:
            raise TypeError(f"a Tensor is an image if it is (..., H, W), not {image.shape}")
        return image.shape[-2:]
    pillow = sys.modules.get("PIL.Image")  # an image of Pillow's exists only if it is imported
    if pillow is None or not isinstance(image, pillow.Image):
        raise TypeError(f"an image is a Pillow image or a Tensor (..., H, W), not {type(image)}")
    return image.height, image.width


def pad(image, padding, fill=0, padding_mode="constant"):
    """The image with pixels added around it; the arguments are those of `RandomCrop`."""
    padding = (padding,) if isinstance(padding, (int, np.integer)) else tuple(padding)
    if len(padding) not in (1, 2, 4):
        raise ValueError(f"padding is 1, 2 or 4 numbers, not {len(padding)}")
    left, top, right, bottom = padding * (4 // len(padding))
    sides = ((top, bottom), (left, right))
    constant = padding_mode == "constant"
    if isinstance(image, Tensor):
        sides = ((0, 0),) * (image.ndim - 2) + sides
        options = {"constant_values": fill} if constant else {}
        return Tensor(np.pad(image.array, sides, padding_mode, **options))
    height, width = dimensions(image)
    if constant:
        bands = len(image.getbands())
        fill = (fill,) * bands if bands > 1 and not isinstance(fill, (tuple, list)) else fill
        from PIL import ImageOps
        return ImageOps.expand(image, (left, top, right, bottom), fill)
    array = np.asarray(image)
    array = np.pad(array, sides + ((0, 0),) * (array.ndim - 2), padding_mode)
    padded = sys.modules["PIL.Image"].fromarray(array)
    if image.mode == "P":
        padded.putpalette(image.getpalette())
    return padded


def _crop(image, top, left, height, width):
    if isinstance(image, Tensor):
        return Tensor(image.array[..., top:top + height, left:left + width])
    return image.crop((left, top, left + width, top + height))


def _pair(size):
    size = (size,) if isinstance(size, (int, np.integer)) else tuple(size)
    if len(size) not in (1, 2) or min(size) < 1:
        raise ValueError(f"size should be one or two positive integers, not {size}")
    return size * (2 // len(size))
