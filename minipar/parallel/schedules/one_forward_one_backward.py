"""1F1B: the bubble of GPipe, with activations of at most p micro-batches."""

from ..schedule import B, F, schedule


@schedule("1f1b")
def one_forward_one_backward(rank, ranks, microbatches):
    """Narayanan et al. 2019 (PipeDream-flush): as few forwards ahead as keep the pipe full. The
    bubble is GPipe's, (p-1)(F+B+W) of time, but stage s keeps the activations of at most p - s
    micro-batches."""
    ahead = min(ranks - 1 - rank, microbatches)
    for m in range(ahead):
        yield F(rank, m)
    for m in range(microbatches - ahead):
        yield F(rank, ahead + m)
        yield B(rank, m)
    for m in range(microbatches - ahead, microbatches):
        yield B(rank, m)
