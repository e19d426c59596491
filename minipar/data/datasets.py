"""The data sets that training can ask for: two embedded ones, and files of the user.

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
from ..tensor import Tensor
from .files import read_npz, read_text
from .loader import Dataset, TensorDataset

EMBEDDED = Path(__file__).parent / "embedded"
NAMES = ("digits", "plays")


@dataclass(frozen=True, eq=False)
class Classification:
    """Samples with a class each.

    train, test: TensorDatasets of (input, label): floating (*input_shape), int64 ().
    num_classes: labels are 0 .. num_classes - 1.
    """

    kind: ClassVar[str] = "classification"
    name: str
    train: TensorDataset
    test: TensorDataset
    num_classes: int
    input_shape: tuple


class Blocks(Dataset):
    """A text cut into blocks: sample i is tokens [i*T, (i+1)*T) and, shifted by one, its targets.

    tokens:     integers (M,), not copied; M >= T + 1.
    block_size: T, tokens in a block. The blocks do not overlap, so an epoch predicts every token
                once, but for the first and up to T - 1 at the end.
    A sample is a tuple of two int64 Tensors (T,), a batch a list of two (len(indices), T).
    Raises ValueError if there is not one block.
    """

    def __init__(self, tokens, block_size):
        if block_size < 1 or len(tokens) < block_size + 1:
            raise ValueError(f"{len(tokens)} tokens for blocks of {block_size}: one block needs "
                             f"{block_size} + 1, and at least 1 + 1")
        count = (len(tokens) - 1) // block_size
        end = count * block_size
        self.tokens, self.block_size = tokens, block_size
        self._inputs = tokens[:end].reshape(count, block_size)
        self._targets = tokens[1:end + 1].reshape(count, block_size)

    def __len__(self):
        return len(self._inputs)

    def __getitem__(self, index):
        return tuple(Tensor(rows[index].astype(np.int64)) for rows in (self._inputs, self._targets))

    def get_batch(self, indices):
        """[inputs, targets], both int64 Tensors (len(indices), block_size)."""
        indices = np.asarray(indices, dtype=np.int64)
        return [Tensor(rows.take(indices, axis=0).astype(np.int64))
                for rows in (self._inputs, self._targets)]


@dataclass(frozen=True, eq=False)
class Text:
    """A text as characters, to be predicted one after the other.

    train, test: Blocks of the first 90 % and the last 10 % of the text.
    chars:       the vocabulary, a str of the text's different characters in order; the token of
                 a character is its position in it.
    """

    kind: ClassVar[str] = "text"
    name: str
    train: Blocks
    test: Blocks
    chars: str

    @property
    def vocab_size(self):
        return len(self.chars)

    @property
    def block_size(self):
        return self.train.block_size

    def encode(self, text):
        """The tokens of a str, int64 (len(text),). Raises ValueError for other characters."""
        codes, vocabulary = _codes(text), _codes(self.chars)
        tokens = np.searchsorted(vocabulary, codes).clip(max=len(vocabulary) - 1)
        unknown = np.flatnonzero(vocabulary[tokens] != codes)
        if len(unknown):
            raise ValueError(f"character {text[unknown[0]]!r} is not in the vocabulary "
                             f"of {len(self.chars)} of {self.name}")
        return tokens.astype(np.int64)

    def decode(self, tokens):
        """The str of a sequence of tokens (integers, array or Tensor of one axis)."""
        tokens = np.asarray(tokens.array if isinstance(tokens, Tensor) else tokens, dtype=np.int64)
        if tokens.size and not (0 <= tokens.min() and tokens.max() < len(self.chars)):
            raise ValueError(f"tokens from {tokens.min()} to {tokens.max()}: "
                             f"the vocabulary has 0 to {len(self.chars) - 1}")
        return "".join(self.chars[token] for token in tokens.tolist())


def load(data, *, block_size=128, dtype=dtypes.float32):
    """Load a data set by name, or from a file.

    data: "digits": 1,437 + 360 images (1, 8, 8) in [0, 1] of 10 classes;
          "plays":  1.1 MB of Shakespeare, 63 different characters;
          a path ending in .npz: `x` (N, ...) and `y` (N,), labels from 0; uint8 images are scaled
          to [0, 1]; `x_test` and `y_test` too, or a fixed random tenth becomes the test set;
          a path ending in .txt or .txt.gz: a text in UTF-8, by characters.
    block_size: tokens in a sample of a text.
    dtype:      floating type of inputs that are not tokens.
    Raises ValueError, in one line, for an unknown name and for a file that cannot serve.
    """
    dtype = dtypes.dtype(dtype)
    if not dtype.is_floating_point:
        raise ValueError(f"data cannot be {dtype.name}: a floating type is needed")
    if data == "digits":
        return _classification(data, EMBEDDED / "digits.npz", dtype, scale=16)
    if data == "plays":
        return _text(data, EMBEDDED / "plays.txt.gz", block_size)
    path = os.fspath(data)
    if not os.path.exists(path):
        near = difflib.get_close_matches(path, NAMES, cutoff=0.4)
        near = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"{path!r} is neither a data set ({', '.join(NAMES)}) nor a file{near}")
    if path.endswith(".npz"):
        return _classification(path, path, dtype)
    if path.endswith((".txt", ".txt.gz")):
        return _text(path, path, block_size)
    raise ValueError(f"{path}: data files are .npz (arrays x and y), .txt or .txt.gz")


def _classification(name, path, dtype, scale=None):
    (x, y), *rest = read_npz(path, dtype.storage, scale)
    if rest:
        x_test, y_test = rest[0]
    else:
        if len(x) < 2:
            raise ValueError(f"{path}: 1 sample cannot be split into training and test")
        # Of the length alone: the same whatever the seed of the run, so that runs compare.
        order = generator("split", len(x)).permutation(len(x))
        train, test = np.split(order, [-max(1, len(x) // 10)])
        x, x_test, y, y_test = x[train], x[test], y[train], y[test]
    classes = 1 + int(max(y.max(), y_test.max()))
    return Classification(name, TensorDataset(x, y), TensorDataset(x_test, y_test), classes,
                          x.shape[1:])


def _codes(text):
    """The code points of a str: uint32 (len(text),)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _text(name, path, block_size):
    if not isinstance(block_size, (int, np.integer)) or block_size < 1:
        raise ValueError(f"block_size should be a positive integer value, but got {block_size}")
    codes = _codes(read_text(path))
    # A table over all code points up to the largest: no sort of the whole text.
    table = np.zeros(int(codes.max()) + 1, dtype=np.int32)
    table[codes] = 1
    vocabulary = np.flatnonzero(table)
    smallest = np.uint8 if len(vocabulary) <= 256 else np.int32  # memory: 1 byte a character
    table[vocabulary] = np.arange(len(vocabulary))
    tokens = table[codes].astype(smallest)
    train, test = np.split(tokens, [len(tokens) * 9 // 10])
    if len(test) < block_size + 1:
        raise ValueError(f"{path}: the last tenth of {len(tokens)} characters is {len(test)}, "
                         f"but one block of {block_size} needs {block_size} + 1")
    return Text(name, Blocks(train, block_size), Blocks(test, block_size),
                "".join(map(chr, vocabulary)))
