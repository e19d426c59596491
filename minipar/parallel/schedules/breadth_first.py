"""Breadth-first: several stages a rank, each of which all micro-batches pass before the next."""

from ..schedule import B, F, schedule


@schedule("breadth-first", chunks=None)
def breadth_first(rank, ranks, microbatches, chunks):
    """Lamy-Poirier 2023, "Breadth-first pipeline parallelism": GPipe on v chunks a rank; all
    micro-batches pass a chunk before the next one begins, so that its weights are gathered, or
    its gradients reduced, once.

    Bubble (p-1)(F+B+W)/v if m >= p, where F, B, W are times of a whole rank. A rank keeps the
    activations of all m micro-batches.
    """
    for chunk in range(chunks):
        for m in range(microbatches):
            yield F(chunk * ranks + rank, m)
    for chunk in reversed(range(chunks)):
        for m in range(microbatches):
            yield B(chunk * ranks + rank, m)
