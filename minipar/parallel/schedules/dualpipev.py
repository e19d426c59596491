"""DualPipeV: DualPipe cut in half, a V of two chunks a rank that works from both its ends."""

from ..schedule import schedule
from .phases import passes


@schedule("dualpipev", placement="v", chunks=2)
def dualpipev(rank, ranks, microbatches):
    """DeepSeek-AI 2025 (DualPipe), in the V shape of Qi et al.: forwards of one chunk stand beside
    whole backwards of the other, so that one's messages pass while the other computes; only the
    first and the last few micro-batches have their backward split.

    Here the two of such a pair follow each other. Bubble (p-1)(F+B-W)/2 if F = B >= W and
    m >= 2p; a rank keeps the activations of at most 2p + 1 chunks, p + 1/2 micro-batches.
    """
    p, r, m = ranks, rank, max(microbatches, 2 * ranks)
    half = (r + 1) // 2
    return passes(rank, ranks, microbatches, [
        (2 * (p - r - 1), "F0"),
        (r + 1, "F0 F1"),
        (p - r - 1, "I1 W1 F1"),
        (m - 2 * p + r + 1, "F0 B1 F1 B0"),
        (p - r - 1, "B1 F1 B0"),
        (half, "B1 B0"),
        (1, "I1 I0" if r % 2 else "B1 I0"),
        (r - half, "I1 I0"),
        (p - r - 1, "W I0"),
        (r + 1, "W")])
