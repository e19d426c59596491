"""Tensor parallelism at both ends of a language model: each rank has some rows of the vocabulary.

Pieces differ by one row at most: rank i of p has rows [i V // p, (i + 1) V // p) of V. The
embedding and the head may be one tied weight. Logits of the whole vocabulary are never made in
training: the loss is computed from pieces (Shoeybi et al. 2019, section 3).
"""

import numpy as np

from ..nn import functional as F
from ..nn.placement import Shard
from ..ops.base import quiet
from ..ops.cross_entropy import check_targets
from ..ops.precision import autocasts
from ..tensor import Tensor, record
from .mappings import gather_alike
from .tensor import Sharded


class _Vocabulary(Sharded):
    """Cuts `weight` (V, features) by rows; `rows` are this rank's (first, last + 1)."""

    def __init__(self, layer, comm, sequence=False):
        super().__init__(layer, comm, sequence)
        if self.weight.whole_shape[0] < comm.size:
            raise ValueError(f"a vocabulary of {self.weight.whole_shape[0]} does not give each "
                             f"of {comm.size} ranks a row")
        self._cut(self.weight, 0, length=self.weight.whole_shape[0])
        self.length, self.rows = self.weight.placement.length, self.weight.placement.bounds()


class VocabParallelEmbedding(_Vocabulary):
    """nn.Embedding whose rows are cut: an index that another rank has adds zeros here."""

    def forward(self, index):
        """index (N, T) -> (N, T, features); (N, T / ranks, features) along the sequence.

        Raises IndexError as F.embedding does.
        """
        places, (start, stop) = index.array, self.rows
        if places.size and not 0 <= places.min() <= places.max() < self.length:
            wrong = places.min() if places.min() < 0 else places.max()
            raise IndexError(f"index {wrong} is not in a table of {self.length} rows")
        here = (places >= start) & (places < stop)
        found = F.embedding(Tensor(np.where(here, places - start, 0)), self.weight)
        return self._leave(found * Tensor(here[..., None].astype(found.array.dtype)))


class VocabParallelHead(_Vocabulary):
    """nn.Linear without bias whose outputs are cut: the logits of this rank's rows.

    gathers: whether training, too, has the logits of the whole vocabulary, for any loss; without
    it they are for `vocab_parallel_cross_entropy`. In eval mode every rank has them all.
    """

    def __init__(self, linear, comm, sequence=False, gathers=True):
        super().__init__(linear, comm, sequence)
        if self.bias is not None:
            raise ValueError("a vocabulary-parallel head has no bias")
        self.gathers = gathers

    def forward(self, x):
        """x (N, T, features); (N, T / ranks, features) along the sequence -> (N, T, V or V's
        piece)."""
        logits = F.linear(self._enter(x), self.weight)
        if self.training and not self.gathers:
            return logits
        return gather_alike(logits, self.comm, logits.ndim - 1, self.length)


@autocasts("float32")
@quiet
def vocab_parallel_cross_entropy(logits, targets, length, comm, *, ignore_index=-100):
    """(sum of the cross-entropies, 0-d tensor; number of targets that are not ignored).

    logits: this rank's piece of (N, length), as VocabParallelHead cuts it. targets: integers
    (N,), equal on every rank of `comm`, which all get the same bits. As F.cross_entropy's sum for
    the whole logits; raises IndexError as it does, ValueError for shapes that do not fit.
    """
    a, dtype = logits.array, logits.array.dtype
    start, stop = Shard(1, comm.rank, comm.size, length=length).bounds()
    if a.shape != (*targets.shape, stop - start):
        raise ValueError(f"cross_entropy: logits {a.shape} and targets {targets.shape}: expected "
                         f"(N, {stop - start}), rows {start} to {stop} of {length}, and (N,)")
    if dtype.itemsize == 2:
        a = a.astype(np.float32)
    t, kept, count = check_targets("cross_entropy", targets.array, length, ignore_index)
    kept = np.ones_like(t, bool) if kept is None else kept
    here = np.flatnonzero((t >= start) & (t < stop))
    largest = a.max(axis=1)
    comm.all_reduce(largest, "max")
    e = a - largest[:, None]
    sums = np.zeros((2, len(t)), a.dtype, like=a)  # of the exponentials; of the target's own logit
    sums[1, here] = e[here, t[here] - start]
    np.exp(e, out=e)
    np.sum(e, axis=1, out=sums[0])
    comm.all_reduce(sums)
    losses = np.where(kept, np.log(sums[0]) - sums[1], 0)

    def backward(g):
        # dx = (softmax(x) - one_hot(target)) * g, of the rows that count
        gx = e * (g * kept / sums[0])[:, None]
        gx[here, t[here] - start] -= g * kept[here]
        return (gx.astype(dtype, copy=False),)
    return record(losses.sum().astype(dtype), (logits,), backward), count
