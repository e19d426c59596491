"""ZB-H1 and ZB-H2: weight gradients wait, and fill what was a bubble."""

from ..schedule import F, I, W, schedule


def postponed(rank, microbatches, ahead, late):
    """1F1B's order with `ahead` forwards before the first backward; W is `late` micro-batches late.
    """
    begun = 0
    for m in range(microbatches):
        while begun < min(m + ahead + 1, microbatches):
            yield F(rank, begun)
            begun += 1
        yield I(rank, m)
        if m >= late:
            yield W(rank, m - late)
    for m in range(max(0, microbatches - late), microbatches):
        yield W(rank, m)


@schedule("zb-h1")
def zb_h1(rank, ranks, microbatches):
    """Qi et al. 2024, "Zero bubble pipeline parallelism", H1: the memory of 1F1B's first stage.

    1F1B's order, but the gradient leaves before W, and stage s does W s micro-batches late.
    Bubble (p-1)(F+B-W); every stage keeps the activations of at most p micro-batches.
    """
    yield from postponed(rank, microbatches, ranks - 1 - rank, rank)


@schedule("zb-h2")
def zb_h2(rank, ranks, microbatches):
    """Qi et al. 2024, "Zero bubble pipeline parallelism", H2: twice as many forwards ahead.

    Stage s does W 2s micro-batches late, so that forwards fill the start and Ws the end. Bubble
    (p-1)(F+B-2W), if m >= 2p-1; every stage keeps the activations of at most 2p-1 micro-batches.
    """
    yield from postponed(rank, microbatches, 2 * (ranks - 1 - rank), 2 * rank)
