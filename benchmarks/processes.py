"""Ring all-reduce between processes without MPI, against the same plan over MPI.

    python benchmarks/processes.py [RANKS] [--json FILE]

Values are checked before anything is timed. A round launches every way once, one after another;
the time of a way is the best of its rounds' medians, slowest rank. Times in microseconds; the
ratios are to MPI's.
"""

import argparse
import json
import os
import statistics
import time

import numpy as np

from minipar.comm import launch, world

SIZES = [64, 1024, 16 * 1024, 256 * 1024, 2**20, 4 * 2**20, 16 * 2**20]  # bytes
ROUNDS = 3


def measure():
    """Seconds of one all-reduce of float32, {bytes: median over the repetitions}."""
    comm, out = world(), {}
    for size in SIZES:
        x = np.arange(size // 4, dtype=np.float32) % 100 + comm.rank
        expected = np.arange(size // 4) % 100 * comm.size + comm.size * (comm.size - 1) / 2
        plan = comm.plan("all_reduce", x, algorithm="ring")
        plan.start()
        plan.wait()
        assert (x == expected).all(), size
        x[...] = 0
        times = []
        for _ in range(max(7, min(300, 2**25 // max(size, 4096)))):
            comm.barrier()
            begin = time.perf_counter()
            plan.start()
            plan.wait()
            times.append(time.perf_counter() - begin)
        slowest = np.array(times)
        comm.all_reduce(slowest, "max")
        out[size] = statistics.median(slowest)
        comm.free(plan)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ranks", nargs="?", type=int, default=2)
    parser.add_argument("--json", help="write the table to this file too")
    o = parser.parse_args()
    ways = {"mpi": ("mpi", ""), "shared memory": ("processes", ""), "sockets": ("processes", "off")}
    best = {way: {} for way in ways}
    for _ in range(ROUNDS):
        for way, (how, setting) in ways.items():
            os.environ["MINIPAR_SHARED_MEMORY"] = setting
            found = launch(measure, o.ranks, how=how, timeout=600)[0]
            for size, seconds in found.items():
                best[way][size] = min(seconds, best[way].get(size, seconds))
    ours = [way for way in ways if way != "mpi"]
    print(f"{'bytes':>10} {'mpi us':>10}" + "".join(f"{way + ' / mpi':>21}" for way in ours))
    for size in SIZES:
        ratios = [best[way][size] / best["mpi"][size] for way in ours]
        print(f"{size:>10} {best['mpi'][size] * 1e6:>10.1f}"
              + "".join(f"{r:21.2f}" for r in ratios))
    if o.json:
        with open(o.json, "w") as file:
            json.dump({"ranks": o.ranks, "seconds": best}, file, indent=1)


if __name__ == "__main__":
    main()
