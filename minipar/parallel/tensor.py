"""Tensor parallelism: linear layers whose weights are cut over ranks (Shoeybi et al. 2019).

    Y = f(X A) B:  A is cut by columns, B by rows. Rank i has f(X A_i), and adds its part of the
    second product to the others' parts: one collective forward, one backward, for two layers.

(A linear layer's `weight` is (out, in), the transposed: its dim 0 are the columns.) What stands
between such pairs every rank does alike; or, with `sequence`, each for its piece of dim 1, the
sequence: then a sum on all ranks becomes a piece of the sum on each (scatter_sum), and the pieces
are put together before the next pair (gather_to_all): as many bytes, and norms and dropouts cost
each rank its share only. The layers take the parameters of ordinary ones, which they cut.
"""

from .. import nn
from ..nn import functional as F
from ..nn.placement import Shard
from .mappings import copy_to_ranks, gather_to_all, own_piece, scatter_sum, sum_over_ranks


class Sharded(nn.Module):
    """Base class: what a layer becomes whose parameters are cut over the ranks of `comm`.

    The new layer takes over the name and the parameters of `layer`, which is of no use afterwards.
    sequence: whether activations outside are pieces along dim 1.
    """

    def __init__(self, layer, comm, sequence=False):
        super().__init__()
        self.comm, self.sequence = comm, sequence
        self.__dict__["_path"] = layer._path
        for key, p in layer._parameters.items():
            if p is not None and p._module is not None and p._module() is layer:
                p._module = None  # the new one is its first module now
            self.register_parameter(key, p)

    def _cut(self, p, dim, parts=1, length=None):
        """Cut a parameter, once: a tied one may be cut already. ValueError, with its name and the
        arithmetic, if it does not divide."""
        if p is not None and p.placement is None:
            try:
                p.cut(Shard(dim, self.comm.rank, self.comm.size, parts, length))
            except ValueError as error:
                raise ValueError(f"{p.name}: {error}") from None

    def _alike(self, p):
        """A parameter that every rank has and one counts, as forward uses it.

        Where ranks use it for different pieces of the sequence, its gradients are summed.
        """
        return copy_to_ranks(p, self.comm) if self.sequence and p is not None else p

    def _enter(self, x):
        return gather_to_all(x, self.comm, 1) if self.sequence else copy_to_ranks(x, self.comm)

    def _leave(self, x):
        return scatter_sum(x, self.comm, 1) if self.sequence else sum_over_ranks(x, self.comm)

    def extra_repr(self):
        return f"1 of {self.comm.size}" + ", along the sequence" * self.sequence


class ColumnParallelLinear(Sharded):
    """nn.Linear whose output features are cut: x on every rank -> the rank's part of the output.

    parts: so many equal parts of the output are cut each by itself (query, key and value: 3).
    Raises ValueError, with the arithmetic, if the features do not divide.
    """

    def __init__(self, linear, comm, parts=1, sequence=False):
        super().__init__(linear, comm, sequence)
        for p in (self.weight, self.bias):
            self._cut(p, 0, parts)

    def forward(self, x):
        """x (..., in); (N, T / ranks, in) along the sequence -> (..., out / ranks)."""
        return F.linear(self._enter(x), self.weight, self.bias)


class RowParallelLinear(Sharded):
    """nn.Linear whose input features are cut: the rank's part of x -> the output on every rank.

    Every rank has the bias, which is added once. Raises ValueError if the features do not divide.
    """

    def __init__(self, linear, comm, sequence=False):
        super().__init__(linear, comm, sequence)
        self._cut(self.weight, 1)
        if self.bias is not None:
            self.bias.counted = comm.rank == 0

    def forward(self, x):
        """x (..., in / ranks) -> (..., out); (N, T / ranks, out) along the sequence."""
        x = self._leave(F.linear(x, self.weight))
        return x if self.bias is None else x + self._alike(self.bias)


class ReplicatedNorm(Sharded):
    """nn.LayerNorm, which every rank has, of the activations outside."""

    def __init__(self, norm, comm, sequence=False):
        super().__init__(norm, comm, sequence)
        self.normalized_shape, self.eps = norm.normalized_shape, norm.eps
        for p in self.parameters():
            p.counted = comm.rank == 0

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self._alike(self.weight),
                            self._alike(self.bias), self.eps)


class ReplicatedEmbedding(Sharded):
    """nn.Embedding of positions, which every rank has; of its piece of them along the sequence."""

    def __init__(self, embedding, comm, sequence=False):
        super().__init__(embedding, comm, sequence)
        self.weight.counted = comm.rank == 0

    def forward(self, index):
        """index (T,) -> (T, features); (T / ranks, features) along the sequence."""
        rows = F.embedding(index, self.weight)
        return own_piece(rows, self.comm, 0) if self.sequence else rows
