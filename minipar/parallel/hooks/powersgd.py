"""Gradient matrices as products of two thin ones, which can be summed over the ranks.

Vogels, Karimireddy, Jaggi 2019, "PowerSGD: practical low-rank gradient compression for distributed
optimization", algorithm 1. Of the mean M of the ranks' matrices (n, m) one step of power iteration:
with last step's Q (m, r) made orthogonal, P = M Q; P is made orthogonal; Q = M^T P; and
P Q^T = P P^T M is M's part in the space of P. Both products are linear in M, so an all-reduce of
the ranks' P and then of their Q serves, and nobody sees all of M.
"""

import numpy as np

from ...quantise import accumulator
from .allreduce import allreduce_hook
from .state import HookState


class PowerSGDState(HookState):
    """What `powerSGD_hook` goes by; names and defaults are PyTorch's.

    process_group:             a Communicator; the buckets' own if None.
    matrix_approximation_rank: r, or the smaller side of a matrix if that is less.
    start_powerSGD_iter:       backwards that are reduced whole before the first compressed one.
    min_compression_rate:      matrices for which (n + m) r times this is not < n m go whole.
    use_error_feedback:        whether what a step leaves out is added to the next one's gradient.
    warm_start:                whether Q starts from the last step's, not from random numbers.
    random_seed:               of a Q that starts anew, alike on all ranks.
    errors, qs: {bucket: ...}, what is kept from step to step.
    Raises ValueError for a rank below 1.
    """

    def __init__(self, process_group=None, matrix_approximation_rank=1, start_powerSGD_iter=1000,
                 min_compression_rate=2, use_error_feedback=True, warm_start=True, random_seed=0):
        if matrix_approximation_rank < 1:
            raise ValueError(f"PowerSGD: the rank is 1 or more, not {matrix_approximation_rank}")
        self.process_group, self.iter = process_group, 0
        self.matrix_approximation_rank = matrix_approximation_rank
        self.start_powerSGD_iter = start_powerSGD_iter
        self.min_compression_rate = min_compression_rate
        self.use_error_feedback, self.warm_start = use_error_feedback, warm_start
        self.random_seed, self.errors, self.qs = random_seed, {}, {}
        self.unsent = {}  # {bucket: {number: what is owed of a gradient that goes whole now}}

    def rank_for(self, shape):
        """The rank that a gradient of this shape is compressed to; 0 for one that goes whole."""
        if len(shape) < 2:
            return 0
        n, m = shape[0], int(np.prod(shape[1:]))
        r = min(n, m, self.matrix_approximation_rank)
        return r if (n + m) * r * self.min_compression_rate < n * m else 0

    def keep(self, bucket):
        """As HookState: Q (m, r), and the number of backwards so far, are common to all ranks."""
        key, shapes = bucket.index(), [tuple(p.shape) for p in bucket.parameters()]
        common = {"iter": [np.array(self.iter)] * len(shapes)}
        if key in self.qs:
            common["q"] = self._spread(shapes, self.qs[key])
        if key not in self.errors:
            return {}, common
        owed = [e if e is None else e.reshape(shape) for e, shape in
                zip(self._spread(shapes, self.errors[key]), shapes, strict=True)]
        return {"owed": owed}, common

    def restore(self, bucket, own, common):
        key, shapes = bucket.index(), [tuple(p.shape) for p in bucket.parameters()]
        sides = [(shape[0], int(np.prod(shape[1:])), r) if (r := self.rank_for(shape)) else None
                 for shape in shapes]
        self.iter = int(next((a for a in common.get("iter", ()) if a is not None), self.iter))
        qs = [q for q, side in zip(common.get("q", ()), sides, strict=False) if side]
        if qs and [None if q is None else q.shape for q in qs] == [s[1:] for s in sides if s]:
            self.qs[key] = qs
        if "owed" not in own:
            return
        kind = next(e.dtype for e in own["owed"] if e is not None)
        self.errors[key] = [np.zeros(side[:2], kind) if e is None else e.reshape(side[:2])
                            for e, side in zip(own["owed"], sides, strict=True) if side]
        self.unsent[key] = {i: e for i, (e, side) in enumerate(
            zip(own["owed"], sides, strict=True)) if e is not None and not side}

    def _spread(self, shapes, arrays):
        """Arrays of the matrices that are compressed, with None for the other parameters."""
        arrays = iter(arrays)
        return [next(arrays) if self.rank_for(shape) else None for shape in shapes]

    def start_of(self, bucket, sides, kind):
        """The Q (m, r) that each matrix of a bucket starts from. sides: [(m, r)]."""
        if self.warm_start and bucket.index() in self.qs:
            return self.qs[bucket.index()]
        rng = np.random.default_rng((self.random_seed, self.iter, bucket.index()))
        return [rng.standard_normal(side).astype(kind) for side in sides]


def powerSGD_hook(state, bucket):
    """Replace the bucket's matrices by an approximation of their mean (or sum), of rank r.

    Sends 2 (p-1)/p (w + sum of r (n + m)) elements, where w counts those that go whole: vectors,
    and matrices too small to gain. With error feedback, each rank adds what it owes and then owes
    what the mean's approximation leaves out of its own: gradient + owed before = approximated mean
    + owed after. A gradient with NaN or infinity leaves what is owed as it was.
    """
    whole_bucket = state.iter < state.start_powerSGD_iter
    state.iter += bucket.is_last()
    for i, debt in state.unsent.pop(bucket.index(), {}).items():
        bucket.gradients()[i].array[...] += debt
    if whole_bucket:
        return allreduce_hook(state.process_group, bucket)
    comm = bucket.comm if state.process_group is None else state.process_group
    kind, key = accumulator(bucket.buffer().array.dtype), bucket.index()
    gradients = [gradient.array for gradient in bucket.gradients()]
    whole = [g for g in gradients if not state.rank_for(g.shape)]
    targets = [g.reshape(len(g), -1) for g in gradients if state.rank_for(g.shape)]
    owed = state.errors.get(key, [0] * len(targets))
    matrices = [t.astype(kind) + e for t, e in zip(targets, owed, strict=True)]
    starts = state.start_of(bucket, [(t.shape[1], state.rank_for(t.shape)) for t in targets], kind)
    products = [m @ _orthogonal(q) for m, q in zip(matrices, starts, strict=True)]
    first = _packed([*whole, *products], kind)

    def compute_qs(_):
        sums = _unpacked(first, [*whole, *products])
        for g in whole:
            g[...] = sums.pop(0) / bucket.divisor
        ps = [_orthogonal(p) for p in sums]
        qs = [m.T @ p for m, p in zip(matrices, ps, strict=True)]
        second = _packed(qs, kind)
        if qs:
            comm.all_reduce(second)
        for target, p, q in zip(targets, ps, qs := _unpacked(second, qs), strict=True):
            target[...] = p @ q.T / bucket.divisor
        if np.isfinite(second).all():
            state.qs[key] = qs
            if state.use_error_feedback:
                state.errors[key] = [m - p @ q.T / comm.size
                                     for m, p, q in zip(matrices, ps, qs, strict=True)]
        return bucket.buffer()
    return comm.all_reduce(first, async_op=True).get_future().then(compute_qs)


def _orthogonal(matrix):
    """(n, r): an orthonormal basis of the columns' space."""
    return np.linalg.qr(matrix)[0]


def _packed(arrays, kind):
    """The elements of all arrays in one (n,)."""
    return np.concatenate([np.empty(0, kind), *(a.reshape(-1) for a in arrays)], dtype=kind)


def _unpacked(flat, like):
    """What `_packed` has packed, in the shapes of the arrays `like`."""
    cuts = np.cumsum([a.size for a in like])[:-1]
    return [part.reshape(a.shape) for part, a in zip(np.split(flat, cuts), like)] if like else []
