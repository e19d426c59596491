"""No overlap at all, and GPipe: all forwards, then all backwards."""

from ..schedule import B, F, schedule


@schedule("sequential")
def sequential(rank, ranks, microbatches):
    """One micro-batch at a time: forward and backward through all stages. Only one rank works:
    bubble (p-1)/p. A stage keeps the activations of 1 micro-batch."""
    for m in range(microbatches):
        yield F(rank, m)
        yield B(rank, m)


@schedule("gpipe")
def gpipe(rank, ranks, microbatches):
    """Huang et al. 2019: all forwards, then all backwards. Bubble (p-1)/(m+p-1) of the time; each
    stage keeps the activations of all m micro-batches."""
    for m in range(microbatches):
        yield F(rank, m)
    for m in range(microbatches):
        yield B(rank, m)
