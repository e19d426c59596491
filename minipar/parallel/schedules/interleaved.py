"""Interleaved 1F1B: several short stages a rank fill and drain the pipe sooner."""

from ..schedule import B, F, schedule


def _problem(ranks, microbatches, chunks):
    if microbatches % ranks:
        return f"{microbatches} micro-batches are no multiple of {ranks} ranks"


@schedule("interleaved", chunks=None, problem=_problem)
def interleaved(rank, ranks, microbatches, chunks):
    """Narayanan et al. 2021 (Megatron-LM), section 2.2.2: rank r holds stages r, r + p, ...;
    groups of p micro-batches pass one chunk after the other. m is a multiple of p.

    Bubble (p-1)(F+B+W)/v for v chunks, where F, B, W are times of a whole rank; v times the
    messages. Rank r keeps the activations of at most 2(p-1-r) + (v-1)p + 1 chunks: up to
    p(1 + 1/v) micro-batches on rank 0, about.
    """
    total = microbatches * chunks

    def forward(k):
        group, chunk, i = k // (ranks * chunks), k // ranks % chunks, k % ranks
        return F(chunk * ranks + rank, group * ranks + i)

    def backward(k):
        stage, m = forward(k).stage, forward(k).microbatch
        return B((chunks - 1) * ranks + 2 * rank - stage, m)  # the last chunk comes first
    ahead = min(2 * (ranks - 1 - rank) + (chunks - 1) * ranks, total)
    for k in range(ahead):
        yield forward(k)
    for k in range(total - ahead):
        yield forward(ahead + k)
        yield backward(k)
    for k in range(total - ahead, total):
        yield backward(k)
