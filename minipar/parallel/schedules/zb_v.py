"""ZB-V: no bubble at the memory of 1F1B, by a V of two chunks a rank."""

from ..schedule import schedule
from .phases import passes


@schedule("zb-v", placement="v", chunks=2)
def zb_v(rank, ranks, microbatches):
    """Qi et al. 2024, "Pipeline parallelism with controllable memory" (and section 6 of "Zero
    bubble pipeline parallelism"): rank r holds stages r and 2p-1-r, so that the gradient of a
    micro-batch starts where its forward ended, on the rank that has least to do.

    No bubble if F = B = W and m >= 2p-1, and (p-1)(F+B-2W)/2 if W is shorter; a rank keeps the
    activations of at most 2p chunks, which is p micro-batches, as 1F1B's first stage does.
    """
    p, r, m = ranks, rank, max(microbatches, 2 * ranks - 1)
    return passes(rank, ranks, microbatches, [
        (2 * (p - r) - 1, "F0"),
        (r, "F1 F0"),
        (p - r, "F1 I1 W1"),
        (m - 2 * p + r + 1, "F0 I0 W0 F1 I1 W1"),
        (p - r - 1, "I0 W0 F1 I1 W1"),
        (r, "I0 I1"),
        (p - r, "I0 W0"),
        (r, "W1"),
        (r, "W0")])
