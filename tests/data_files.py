"""Data files written byte by byte, as an independent oracle of the readers' formats."""

import gzip
import struct

import numpy as np

IDX_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array, kind="u1"):
    """An IDX file of the array, its elements stored as `kind`, big-endian."""
    head = struct.pack(">BBBB", 0, 0, IDX_CODES[kind], array.ndim)
    head += b"".join(struct.pack(">I", n) for n in array.shape)
    return head + array.astype(">" + kind).tobytes()


def idx_images(count=20, height=4, width=5, seed=0):
    """(images uint8 (count, height, width), labels uint8 (count,)): label i is i mod 3."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (count, height, width)).astype(np.uint8),
            (np.arange(count) % 3).astype(np.uint8))


def write_mnist(folder, packed=False, dot=False, counts=(20, 6)):
    """The four files of MNIST in a folder; returns {part: (images, labels)}."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {}
    for part, prefix, count in zip(("train", "test"), ("train", "t10k"), counts):
        parts[part] = images, labels = idx_images(count, seed=count)
        for kind, axes, array in (("images", 3, images), ("labels", 1, labels)):
            name = f"{prefix}-{kind}{'.' if dot else '-'}idx{axes}-ubyte"
            content = idx_bytes(array)
            if packed:
                name, content = name + ".gz", gzip.compress(content)
            (folder / name).write_bytes(content)
    return parts
