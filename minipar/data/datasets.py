"""The data sets that training can ask for: three embedded ones, and files of the user.

`load` returns a `Classification` or a `Text`. Both have `kind`, `name`, and two data sets, `train`
and `test`, whose samples are pairs (input, target) and whose `get_batch(indices)` returns
[inputs, targets]: a training loop needs to know no more.
"""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from .. import dtypes
from ..random import generator
from .files import read_npz
from .idx import idx_folder, is_idx, labels_beside, read_pair
from .images import ImageFiles, Pixels, find_images
from .loader import Dataset, TensorDataset
from .table import read_table
from .text import load_text

EMBEDDED = Path(__file__).parent / "embedded"
NAMES = ("digits", "fashion", "plays")


@dataclass(frozen=True, eq=False)
class Classification:
    """Samples with a class each.

    train, test: data sets of (input, label): floating (*input_shape), int64 (). TensorDatasets,
                 or, for images that are kept as bytes or read when asked for, `Pixels`.
    num_classes: labels are 0 .. num_classes - 1.
    classes:     their names, a tuple of str, where the data has names; else None.
    """

    kind: ClassVar[str] = "classification"
    name: str
    train: Dataset
    test: Dataset
    num_classes: int
    input_shape: tuple
    classes: tuple | None = None


def load(data, *, block_size=128, dtype=dtypes.float32, image_size=64):
    """Load a data set by name, or from files.

    data: "digits":  1,437 + 360 images (1, 8, 8) in [0, 1] of 10 classes;
          "fashion": 4,300 + 500 images (1, 28, 28) in [0, 1] of 10 classes;
          "plays":   1.1 MB of Shakespeare, 63 different characters;
          a path ending in .npz: `x` (N, ...) and `y` (N,), labels from 0; uint8 images are scaled
          to [0, 1]; `x_test` and `y_test` too;
          a folder with the four IDX files of MNIST (train-images-idx3-ubyte, ...), packed as .gz
          or not; or an IDX file of images with its labels beside it. Bytes are scaled to [0, 1];
          a path ending in .csv or .csv.gz: a row a sample, numbers, the label in the last column
          or in the one that the header calls label, y or target (see `read_table`);
          a folder of images, one folder for each class (see `find_images`), or of two such
          folders, train and test (or val): each image RGB, resized and cut to a square;
          a path ending in .txt or .txt.gz: a text in UTF-8, by characters.
          Where the data has no test part, a fixed random tenth becomes it.
    block_size: tokens in a sample of a text.
    dtype:      floating type of inputs that are not tokens.
    image_size: height and width in pixels of the images of a folder.
    Raises ValueError, in one line, for an unknown name and for files that cannot serve. Of images
    in folders only the headers are read here (see `ImageFiles.check`): one that is damaged behind
    its header raises the same when it is asked for.
    """
    dtype = dtypes.dtype(dtype)
    if not dtype.is_floating_point:
        raise ValueError(f"data cannot be {dtype.name}: a floating type is needed")
    if data == "digits":
        return _arrays(data, read_npz(EMBEDDED / "digits.npz", dtype.storage, scale=16))
    if data == "fashion":
        return _arrays(data, read_npz(EMBEDDED / "fashion.npz", dtype.storage))
    if data == "plays":
        return load_text(data, EMBEDDED / "plays.txt.gz", block_size)
    path = os.fspath(data)
    if not os.path.exists(path):
        near = difflib.get_close_matches(path, NAMES, cutoff=0.4)
        near = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"{path!r} is neither a data set ({', '.join(NAMES)}) nor a file{near}")
    return _from_path(path, block_size, dtype, image_size)


def _from_path(path, block_size, dtype, image_size):
    lower = path.lower()
    if lower.endswith(".npz"):
        return _arrays(path, read_npz(path, dtype.storage))
    if lower.endswith((".txt", ".txt.gz")):
        return load_text(path, path, block_size)
    if lower.endswith((".csv", ".csv.gz")):
        return _arrays(path, [read_table(path, dtype.storage)])
    if os.path.isdir(path):
        pairs = idx_folder(path)
        return _idx(path, pairs, dtype) if pairs else _images(path, image_size, dtype)
    if is_idx(path):
        return _idx(path, [(path, labels_beside(path))], dtype)
    raise ValueError(f"{path}: data files are .npz (arrays x and y), .csv, IDX (MNIST's), .txt and "
                     ".txt.gz, and folders of images")


def tenth(path, length):
    """Indices of the training and of the test part, both int64, of data that has no test part.

    Of the length alone: the same whatever the seed of the run, so that runs compare.
    Raises ValueError if there is not one sample for each.
    """
    if length < 2:
        raise ValueError(f"{path}: {length} sample cannot be split into training and test")
    order = generator("split", length).permutation(length)
    return np.split(order, [-max(1, length // 10)])


def _arrays(name, parts):
    """The Classification of [(x, y)] or [(x, y), (x_test, y_test)], all in memory.

    x: floating, or uint8 for bytes that batches scale to [0, 1]: then a pair is (x, y, dtype).
    """
    if len(parts) == 1:
        x, y, *dtype = parts[0]
        parts = [(x[part], y[part], *dtype) for part in tenth(name, len(x))]
    classes = 1 + max(int(y.max()) for _, y, *_ in parts)
    train, test = [Pixels(*part) if len(part) == 3 else TensorDataset(*part) for part in parts]
    return Classification(name, train, test, classes, parts[0][0].shape[1:])


def _idx(name, pairs, dtype):
    parts = [read_pair(images, labels, dtype) for images, labels in pairs]
    shapes = [x.shape[1:] for x, *_ in parts]
    if shapes[0] != shapes[-1]:
        raise ValueError(f"{pairs[0][0]}: samples have shape {shapes[0]}, those of {pairs[1][0]} "
                         f"{shapes[1]}")
    return _arrays(name, parts)


def _images(root, image_size, dtype):
    classes, train, test = find_images(root)
    if test is None:
        train, test = [[train[i] for i in part] for part in tenth(root, len(train))]
    train, test = [ImageFiles(part, image_size, dtype) for part in (train, test)]
    for part in train, test:
        part.check()
    return Classification(root, train, test, len(classes), train.input_shape, tuple(classes))
