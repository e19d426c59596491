"""IDX files, the format of MNIST and its relatives (http://yann.lecun.com/exdb/mnist).

A file is a header and an array in row order, all numbers big-endian:

    0 0 T D         two zero bytes, the type of an element (0x08: uint8, ...), the number of axes
    n_1 ... n_D     the shape, 32-bit integers
    elements

so that images of bytes begin with 0x00000803 and their labels with 0x00000801. Either may be packed
by gzip: what a file is shows in its bytes, not in its name.
"""

import math
import os
import re
import struct

import numpy as np

from .files import labels, read_bytes, same_length, samples

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_AXES = 8
FOLDER = (("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
          ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"))


def read_idx(path):
    """The array of an IDX file, packed by gzip or not, in the machine's byte order.

    Raises ValueError if the file is none, or has more or fewer bytes than its header says.
    """
    content = read_bytes(path, "IDX file", packed=None)
    if len(content) < 4:
        raise ValueError(f"{path}: {len(content)} bytes: an IDX file begins with a magic number "
                         "of 4")
    zero, code, axes = struct.unpack(">HBB", content[:4])
    if zero or code not in TYPES or not axes:
        raise ValueError(f"{path}: magic number 0x{content[:4].hex()} is not that of an IDX file "
                         "(0x00000803 for images, 0x00000801 for labels)")
    if axes > MAX_AXES:
        raise ValueError(f"{path}: {axes} axes: samples have at most {MAX_AXES - 1}")
    start = 4 + 4 * axes
    if len(content) < start:
        raise ValueError(f"{path}: a header of {axes} axes has {start} bytes, the file "
                         f"{len(content)}")
    shape, dtype = struct.unpack(f">{axes}I", content[4:start]), np.dtype(TYPES[code])
    expected, found = math.prod(shape) * dtype.itemsize, len(content) - start
    if found != expected:
        raise ValueError(f"{path}: the header says {' x '.join(map(str, shape))} elements of "
                         f"{dtype.itemsize} bytes = {expected} bytes, but {found} follow it")
    if found == 0:
        raise ValueError(f"{path}: an array of shape {shape} holds no samples")
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def read_pair(images, labels_path, dtype):
    """The samples of two IDX files: images (N, H, W) become (N, 1, H, W), other shapes stay.

    Returns (x, y), x as `dtype` (a floating DType); or (x, y, dtype) if x is uint8, which batches
    scale to [0, 1]. y is int64 (N,).
    """
    x, y = read_idx(images), read_idx(labels_path)
    if x.ndim < 2:
        raise ValueError(f"{images}: an array of shape {x.shape} holds labels, not images")
    same_length(labels_path, os.path.basename(images), x, "it", y)
    y = labels(labels_path, "it", y)
    x = x[:, None] if x.ndim == 3 else x
    if x.dtype == np.uint8:
        return x, y, dtype
    return samples(images, "it", x, dtype.storage), y


def idx_folder(folder):
    """[(images, labels)] of the training and the test part, paths, in a folder of four IDX files.

    None if it holds none of them; ValueError if it holds some. Names end in -idx3-ubyte or, as
    some copies do, in .idx3-ubyte; .gz may follow.
    """
    try:
        held = set(os.listdir(folder))
    except OSError as error:
        raise ValueError(f"{folder}: not a readable folder ({error.strerror})") from None
    names = [name for pair in FOLDER for name in pair]
    found = {name: next((f for f in _spellings(name) if f in held), None) for name in names}
    missing = [name for name in names if found[name] is None]
    if len(missing) == len(names):
        return None
    if missing:
        raise ValueError(f"{folder}: {len(names) - len(missing)} of 4 IDX files: no "
                         f"{', '.join(missing)} (or .gz)")
    return [tuple(os.path.join(folder, found[name]) for name in pair) for pair in FOLDER]


def _spellings(name):
    return [stem + end for stem in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]


def is_idx(path):
    """Whether a file's name is that of an IDX file: it ends in -idx3-ubyte.gz or the like."""
    return re.search(r"[-.]idx\d*([-.]ubyte)?(\.gz)?$", os.fspath(path).lower()) is not None


def labels_beside(images):
    """The path of the labels of a file of images: "labels" and "idx1" for "images" and "idx3"."""
    folder, name = os.path.split(images)
    if "images" not in name:
        raise ValueError(f"{images}: the name of a file of images has 'images' in it; its labels "
                         "are found beside it")
    stem = name.replace("images", "labels").replace("idx3", "idx1").removesuffix(".gz")
    for candidate in (stem, stem + ".gz"):
        path = os.path.join(folder, candidate)
        if os.path.exists(path):
            return path
    raise ValueError(f"{images}: no file of labels beside it ({stem} or {stem}.gz)")
