"""Where a parameter that is cut has its pieces: which part of the whole a rank holds.

A rank-blind description, used when the parameter is made (it draws the whole and keeps its part,
so that initial weights do not depend on the cut), and when checkpoints, hashes and norms put the
whole together.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shard:
    """Piece `index` of `count` equal pieces along dimension `dim`.

    parts:  the dimension consists of so many equal parts, each of which is cut by itself: query,
    key and value of one projection are 3.
    length: of the whole dimension, if the pieces need not be equal (a vocabulary of 65): piece i
    has elements [i length // count, (i + 1) length // count). parts is 1 then.
    """
    dim: int
    index: int
    count: int
    parts: int = 1
    length: int | None = None

    def bounds(self):
        """(first, last + 1) of the elements of a piece that has `length`."""
        return (self.index * self.length // self.count,
                (self.index + 1) * self.length // self.count)

    def shape(self, whole):
        """The piece's shape, given the whole's. ValueError, with the arithmetic, if it is odd."""
        n = whole[self.dim]
        if self.length is not None:
            start, stop = self.bounds()
            if n != self.length or start == stop:
                raise ValueError(f"{n} elements along dimension {self.dim} are no {self.count} "
                                 f"pieces of {self.length}")
            return (*whole[:self.dim], stop - start, *whole[self.dim + 1:])
        if n % (self.count * self.parts):
            raise ValueError(f"{n} elements along dimension {self.dim} do not divide into "
                             f"{self.parts} x {self.count} pieces" if self.parts > 1 else
                             f"{n} elements along dimension {self.dim} do not divide into "
                             f"{self.count} pieces")
        return (*whole[:self.dim], n // self.count, *whole[self.dim + 1:])

    def whole(self, shape):
        """The whole's shape, given the piece's."""
        n = shape[self.dim] * self.count if self.length is None else self.length
        return (*shape[:self.dim], n, *shape[self.dim + 1:])

    def take(self, whole):
        """This piece of `whole`, a new contiguous array."""
        return np.array(self._view(whole), order="C").reshape(self.shape(whole.shape))

    def put(self, piece, whole):
        """Write this piece into `whole`."""
        view = self._view(whole)
        view[...] = piece.reshape(view.shape)

    def _view(self, whole):
        """The piece as a view, its dimension split into (parts, elements)."""
        self.shape(whole.shape)
        if self.length is not None:
            return whole[(*[slice(None)] * self.dim, slice(*self.bounds()))]
        before, after = whole.shape[:self.dim], whole.shape[self.dim + 1:]
        split = whole.reshape(*before, self.parts, self.count, -1, *after)
        return split[(*[slice(None)] * (self.dim + 1), self.index)]


@dataclass(frozen=True)
class Stretch:
    """Elements [start, stop) of a whole of shape `form`, its elements taken in order: a 1-D piece.

    Other ranks hold the other stretches; one may be empty.
    """
    start: int
    stop: int
    form: tuple

    def whole(self, shape):
        """The whole's shape."""
        return self.form

    def take(self, whole):
        """This piece of `whole`, a new 1-D array."""
        return whole.reshape(-1)[self.start:self.stop].copy()

    def put(self, piece, whole):
        """Write this piece into `whole`, which is contiguous."""
        whole.reshape(-1)[self.start:self.stop] = piece


@dataclass(frozen=True)
class StretchOfShard:
    """A Stretch of the piece that a Shard is: 1-D, as replicas of a model that is cut keep it."""
    stretch: Stretch
    shard: Shard

    def whole(self, shape):
        """The whole's shape."""
        return self.shard.whole(self.stretch.form)

    def take(self, whole):
        """This piece of `whole`, a new 1-D array."""
        return self.stretch.take(self.shard.take(whole))

    def put(self, piece, whole):
        """Write this piece into `whole`, which is contiguous."""
        shard = self.shard.take(whole)
        self.stretch.put(piece, shard)
        self.shard.put(shard, whole)
