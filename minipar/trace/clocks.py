"""Clocks of different ranks, brought together: whose 12:00 is it?

Rank 0 sends a ping, the other rank answers with its time, and the answer was given somewhere
between the two times that rank 0 reads: at their middle, give or take half of the round trip
(Cristian 1989). The shortest of several trips is kept. Two such samples, before and after, give
the speed of one clock against the other too. Ranks of one machine read one clock: there is
nothing to measure then.
"""

import hashlib
import os
import time
from pathlib import Path

import numpy as np

ROUNDS = 20
TAG = 16_000  # of messages between recorders: apart from the small tags that programs use


def measure(comm, now):
    """(own time, rank 0's time, uncertainty) of one moment, in ns. Called by all ranks.

    now: reads the rank's clock. The own time was read within `uncertainty` of rank 0's time.
    """
    clocks = comm.all_gather(np.array([_identity(now)]))[:, 0].tolist()
    other = [clock == 0 or clock != clocks[0] for clock in clocks]
    word = np.zeros(1, np.int64)
    if comm.rank and other[comm.rank]:
        for _ in range(ROUNDS):
            comm.recv(word, 0, TAG)
            word[0] = now()
            comm.send(word, 0, TAG)
        sample = np.zeros(3, np.int64)
        comm.recv(sample, 0, TAG)
        return tuple(sample.tolist())
    for peer in (rank for rank in range(1, comm.size) if other[rank] and not comm.rank):
        trips = []
        for _ in range(ROUNDS):
            sent = now()
            comm.send(word, peer, TAG)
            comm.recv(word, peer, TAG)
            trips.append((now() - sent, sent, int(word[0])))
        trip, sent, theirs = min(trips)
        comm.send(np.array([theirs, sent + trip // 2, trip // 2 + 1]), peer, TAG)
    moment = now()
    return moment, moment, 0


def _identity(now):
    """A number that only readers of the same clock share; 0 if there is no telling.

    On Linux, perf_counter is the machine's monotonic clock, one for all processes of a boot and
    of a time namespace.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        namespace = os.readlink("/proc/self/ns/time")
    except OSError:
        return 0
    if now is not time.perf_counter_ns:
        return 0
    digest = hashlib.blake2b(f"{boot} {namespace}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def to_rank_0(samples):
    """A function from a rank's times to rank 0's, both in ns (int); it keeps their order.

    samples: of `measure`. None: the time is taken as it is. One: clocks are a constant apart.
    More: a straight line through the first and the last, so that between these two the error is
    at most the larger of their uncertainties, if each clock keeps its own speed.
    """
    if not samples:
        return lambda time: time
    (own, reference, _), (own_end, reference_end, _) = samples[0], samples[-1]
    if own_end == own:
        return lambda time: time - own + reference
    run, rise = own_end - own, max(reference_end - reference, 0)
    return lambda time: reference + (time - own) * rise // run


def describe(samples):
    """What a reader of the trace should know: a dict.

    offset_us:      rank 0's clock minus the rank's, at the first sample.
    drift_ppm:      how much faster rank 0's clock runs; None if there was one sample.
    uncertainty_us: of the times between the samples; None if there was no sample.
    """
    if not samples:
        return dict(offset_us=0.0, drift_ppm=None, uncertainty_us=None)
    (own, reference, _), (own_end, reference_end, _) = samples[0], samples[-1]
    drift = (None if own_end == own else
             ((reference_end - reference) - (own_end - own)) / (own_end - own) * 1e6)
    return dict(offset_us=(reference - own) / 1e3, drift_ppm=drift,
                uncertainty_us=max(s[2] for s in (samples[0], samples[-1])) / 1e3)
