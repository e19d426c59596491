"""Texts as characters, to be predicted one after the other, and the blocks that training takes."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..tensor import Tensor
from .files import read_text
from .loader import Dataset


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


def _codes(text):
    """The code points of a str: uint32 (len(text),)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def load_text(name, path, block_size):
    """The `Text` of a file in UTF-8; `name` is what it is called. Raises ValueError in one line."""
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
