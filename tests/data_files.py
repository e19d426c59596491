"""For tests: data files written byte by byte, independent of the readers, and a data set."""

import gzip
import io
import struct

import numpy as np
import pytest

from minipar.context import current
from minipar.data import Dataset

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
GOOD_TABLE = "a,b,label\n" + "".join(f"{i},{i / 4},{i % 3}\n" for i in range(20))
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


def png(size=(6, 4), kind="PNG"):
    Image = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def write_images(root, classes=("a", "b"), count=3):
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.png").write_bytes(png())
    return root


def good_files(folder):
    """{name: what to load} of one valid data set of each kind in the folder."""
    images, labels = idx_images()
    write_mnist(folder / "mnist")
    write_mnist(folder / "packed", packed=True)
    (folder / "t.csv").write_text(GOOD_TABLE)
    (folder / "t.csv.gz").write_bytes(gzip.compress(GOOD_TABLE.encode()))
    np.savez_compressed(folder / "a.npz", x=images, y=labels)
    (folder / "t.txt").write_text("to be or not to be " * 80)
    (folder / "t.txt.gz").write_bytes(gzip.compress(b"to be or not to be " * 80))
    names = ("t.csv", "t.csv.gz", "a.npz", "t.txt", "t.txt.gz")
    return {**{folder / name: folder / name for name in names},
            folder / "mnist" / TRAIN_IMAGES: folder / "mnist",
            folder / "mnist" / TRAIN_LABELS: folder / "mnist",
            folder / "packed" / (TRAIN_IMAGES + ".gz"): folder / "packed",
            folder / "packed" / (TRAIN_LABELS + ".gz"): folder / "packed"}


class Noisy(Dataset):
    """Sample i is (i, a random number)."""

    def __init__(self, length=23):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        if not 0 <= i < self.length:
            raise IndexError(i)
        return i, current().generator.random()
