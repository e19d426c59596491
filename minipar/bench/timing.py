"""The loop that takes time: contestants in turn, several rounds, values checked around it."""

import statistics
import time

import numpy as np

from .cases import BUS, Case
from .contestants import contestant

ROUNDS = 5


def compare(case, algorithms, cadence="isolated", seconds=0.2, against=(), rounds=ROUNDS):
    """Time `algorithms` on one case, in turn in each of `rounds` rounds; a list of rows.

    seconds: for each, in all rounds together. against: names of algorithms; every row then has
    "against": {name: [median, least, greatest ratio of its time to that one's in a round]}.
    A row: {"algorithm", "time_us", "min_us", "p99_us", "algbw", "busbw", "wrong", "against"}, times
    in microseconds, bandwidths in 1e9 bytes/s. Times are means over the ranks: of each round's
    mean (streaming) or median (isolated) run, of which the median over the rounds is told; of the
    shortest run; and of the 99th percentile. wrong: elements of all ranks, before and after.
    """
    comm = case.comm
    found = [contestant(case, algorithm) for algorithm in algorithms]
    wrong, counts = np.zeros(len(found), np.int64), []
    for i, one in enumerate(found):
        wrong[i] += _check(case, one)
        guess = np.array([statistics.median(_runs(comm, one, 3, cadence)[0])])
        comm.all_reduce(guess, op="max")
        counts.append(int(min(1000, max(1, seconds / rounds / max(guess[0], 1e-7)))))
    figures, times = np.zeros((rounds, len(found))), [[] for _ in found]
    for number in range(rounds):
        for i, one in enumerate(found):
            each, figures[number, i] = _runs(comm, one, counts[i], cadence)
            times[i] += each
    for i, one in enumerate(found):
        wrong[i] += _check(case, one)
        one.free()
    ends = np.array([[min(each), sorted(each)[int(0.99 * (len(each) - 1))]] for each in times])
    comm.all_reduce(wrong)
    comm.all_reduce(figures, op="mean")
    comm.all_reduce(ends, op="mean")
    scales = np.array([one.scale for one in found])
    figures, ends = figures * scales, ends * scales[:, None]
    return [_row(case, one, figures[:, i], ends[i], int(wrong[i]),
                 {name: figures[:, i] / figures[:, list(algorithms).index(name)]
                  for name in against if name != algorithms[i]})
            for i, one in enumerate(found)]


def measure(comm, kind, nbytes, algorithm, dtype, cadence, seconds=0.2):
    """The row of `compare` for one algorithm on buffers that the ranks share, without "against".

    dtype: a NumPy dtype.
    """
    row, = compare(Case(comm, kind, nbytes, dtype), [algorithm], cadence, seconds)
    del row["against"]
    return row


def _row(case, one, figures, ends, wrong, ratios):
    seconds = float(np.median(figures))
    algbw = case.nbytes / seconds / 1e9
    return {"algorithm": one.name, "time_us": seconds * 1e6, "min_us": float(ends[0]) * 1e6,
            "p99_us": float(ends[1]) * 1e6, "algbw": algbw,
            "busbw": algbw * BUS[case.kind](case.comm.size), "wrong": wrong,
            "against": {name: [float(f(r)) for f in (np.median, np.min, np.max)]
                        for name, r in ratios.items()}}


def _check(case, one):
    """How many elements of this rank are wrong after one run; leaves the case at rest."""
    case.fill()
    if one.arrays:
        case.comm.barrier()
        for array in one.arrays.values():
            array.fill(0)
    case.comm.barrier()
    one.run()
    wrong = case.wrong(one.arrays) if one.checked else 0
    case.comm.barrier()
    case.rest()
    return wrong


def _runs(comm, one, count, cadence):
    """(seconds of each run, the figure for all of them) of `count` runs."""
    times, run = [], one.run
    comm.barrier()
    begin = time.perf_counter()
    for _ in range(count):
        if cadence == "isolated":
            comm.barrier()
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    total = (time.perf_counter() - begin) / count
    return times, total if cadence == "streaming" else statistics.median(times)
