"""Expert parallelism: a mixture of experts (Shazeer et al. 2017) that live on several ranks.

Every rank has its own tokens and some of the experts. A token's row goes to the ranks of the k
experts that a gate chose for it, and what they made of it comes back: two exchanges of unequal
numbers of rows forward, two backward (Lepikhin et al. 2020, "GShard"). No row is dropped.
"""

import numpy as np

from .. import nn
from ..device import host
from ..nn import functional as F
from ..ops.indexing import gather, index_select
from ..ops.joining import cat
from ..tensor import Tensor, record


def exchange_rows(x, sent, received, comm):
    """The rows of x (N, features): the next sent[i] go to rank i. Returns what comes from rank 0,
    rank 1, ..., received[i] rows each; backward sends gradients the way back."""
    def pass_rows(rows, counts):
        return comm.all_to_all_v(np.ascontiguousarray(rows, like=rows), counts)[0]
    return record(pass_rows(x.array, sent), (x,), lambda g: (pass_rows(g, received),))


class MixtureOfExperts(nn.Module):
    """sum over the k likeliest experts e of softmax(gate(x))[e] * expert_e(x), for every row of x.

    features: of x. experts: how many there are in all; rank i of `comm` makes those from
    i experts // p to (i + 1) experts // p, by make(): a Module from (rows, features) to the same,
    also of 0 rows.
    Their names, and so their initial values, do not depend on the number of ranks. The softmax is
    over the k alone (Jiang et al. 2024, "Mixtral"); among equal ones the first is taken.
    Gradients of experts here are complete: from the rows of all ranks. The gate's are of this
    rank's rows, and to be summed over the ranks like those of any replicated parameter.
    Raises ValueError, with the arithmetic, unless 1 <= k <= experts and each rank has an expert.
    """

    def __init__(self, features, experts, k, make, comm):
        super().__init__()
        if not 1 <= k <= experts:
            raise ValueError(f"{k} of {experts} experts cannot be chosen")
        if experts < comm.size:
            raise ValueError(f"{experts} experts do not give each of {comm.size} ranks one")
        self.count, self.k, self.comm = experts, k, comm
        self.bounds = [i * experts // comm.size for i in range(comm.size + 1)]
        self.gate = nn.Linear(features, experts, bias=False)
        self.experts = nn.ModuleDict((str(e), make()) for e in range(
            self.bounds[comm.rank], self.bounds[comm.rank + 1]))

    def forward(self, x):
        """x (..., features) -> the same shape. Called by all ranks, whatever number of rows."""
        rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.reshape(0, x.shape[-1])
        logits = self.gate(rows)
        chosen = np.argsort(-host(logits.array), axis=1, kind="stable")[:, :self.k]
        weights = F.softmax(gather(logits, 1, Tensor(chosen).to(x.device)), 1)
        by_expert = np.argsort(chosen.reshape(-1), kind="stable")  # of the pairs (row, choice)
        given = np.bincount(chosen.reshape(-1), minlength=self.count)
        answers = self._answers(_take(rows, by_expert // self.k), given)
        answers = _take(answers, np.argsort(by_expert))
        answers = answers.reshape(len(chosen), self.k, rows.shape[1])
        return (answers * weights.reshape(len(chosen), self.k, 1)).sum(1).reshape(*x.shape)

    def _answers(self, rows, given):
        """What the experts make of rows, of which given[e] are for expert e, in their order."""
        comm, first, last = self.comm, *self.bounds[self.comm.rank:self.comm.rank + 2]
        table = comm.all_gather(given)  # (rank it comes from, expert)
        sent = [int(given[a:b].sum()) for a, b in zip(self.bounds, self.bounds[1:])]
        received = table[:, first:last].sum(axis=1).tolist()
        here = exchange_rows(rows, sent, received, comm)
        # They came by rank, then by expert; each expert takes the rows of all ranks at once.
        expert_of = np.concatenate([np.repeat(np.arange(first, last), row[first:last])
                                    for row in table])
        by_expert = np.argsort(expert_of, kind="stable")
        # Also of no rows: then its gradients are 0, and every rank has a graph to go back.
        made = [expert(_take(here, by_expert[expert_of[by_expert] == int(e)]))
                for e, expert in self.experts.items()]
        return exchange_rows(_take(cat(made), np.argsort(by_expert)), received, sent, comm)


def _take(rows, order):
    return index_select(rows, 0, Tensor(order).to(rows.device))
