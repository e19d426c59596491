"""`minipar bench KIND`: collectives timed, size by size, algorithms side by side.

Sizes, bandwidths and columns are those of nccl-tests: size is the buffer's, for kinds where each
rank has a block the total of all; algbw = size / time, with 1 GB = 1e9 bytes; busbw = algbw times
what a rank must move for each byte, 2(n-1)/n for an all-reduce. Every result is checked before
anything is timed. Two cadences, which differ by a factor of two for the same code: `streaming`
times runs back to back; `isolated` times each run alone, after a barrier that is not counted.
"""

import argparse
import json
import re
import statistics
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from . import dtypes
from .comm import world
from .comm.program import ALGORITHMS
from .options import UsageError

# Bytes that a rank sends at least, over the buffer's bytes, on n ranks.
BUS = {"all_reduce": lambda n: 2 * (n - 1) / n, "reduce_scatter": lambda n: (n - 1) / n,
       "all_gather": lambda n: (n - 1) / n, "broadcast": lambda n: 1, "reduce": lambda n: 1}
UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "K": 2**10, "M": 2**20,
         "G": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_size(text):
    """Bytes of "4", "64KiB", "1.5M" (2^20), "3MB" (10^6). Raises UsageError for other text."""
    match = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", text.strip())
    unit = UNITS.get(match[2].upper()) if match else None
    try:
        return int(float(match[1]) * unit)
    except (TypeError, ValueError):
        raise UsageError(f"{text!r} is no size: 4, 64KiB, 1.5MiB, 3MB") from None


def sizes_between(low, high, factor=4):
    """Sizes from `low` to `high` bytes, each `factor` times the one before."""
    out = [low]
    while out[-1] * factor <= high:
        out.append(out[-1] * factor)
    return out


def fill(array, rank, size, kind, root):
    """Small whole numbers, other ones on every rank; what the kind promises nothing of is -1."""
    n = array.size
    values = (np.arange(n) % 61 + 1 + rank).astype(array.dtype)
    if kind == "all_gather":
        array.fill(-1)
        own = slice(rank * n // size, (rank + 1) * n // size)
        array[own] = values[own]
    elif kind == "broadcast" and rank != root:
        array.fill(-1)
    else:
        array[...] = values


def wrong(array, rank, size, kind, root):
    """How many elements are not what the kind promises after one run."""
    n = array.size
    base = (np.arange(n) % 61 + 1).astype(array.dtype)
    owner = np.searchsorted([(b + 1) * n // size for b in range(size)], np.arange(n), "right")
    summed = base * size + size * (size - 1) // 2
    if kind == "all_reduce":
        return int((array != summed).sum())
    if kind == "reduce_scatter":
        return int((array != summed)[owner == rank].sum())
    if kind == "reduce":
        return int((array != summed).sum()) if rank == root else 0
    if kind == "all_gather":
        return int((array != base + owner.astype(array.dtype)).sum())
    return int((array != base + root).sum())


def measure(comm, kind, nbytes, algorithm, dtype, cadence, seconds=0.2):
    """One row: {"algorithm", "time_us", "min_us", "p99_us", "algbw", "busbw", "wrong"}.

    Times are the mean over the ranks of each rank's median (streaming: of the mean run).
    """
    array = comm.empty((nbytes // dtype.itemsize,), dtype)
    plan = comm.plan(kind, array, algorithm=algorithm)
    fill(array, comm.rank, comm.size, kind, 0)
    plan.start()
    plan.wait()
    errors = np.array([wrong(array, comm.rank, comm.size, kind, 0)])
    comm.all_reduce(errors)
    array.fill(0)  # sums must not grow over the runs
    once = _runs(comm, plan, 3, cadence)[0]
    guess = np.array([statistics.median(once)])
    comm.all_reduce(guess, op="max")
    count = int(min(1000, max(5, seconds / max(guess[0], 1e-7))))
    times, each = _runs(comm, plan, count, cadence)
    name = plan.name.split()[-1]
    comm.free(plan)
    stats = np.array([each, min(times), sorted(times)[int(0.99 * (len(times) - 1))]])
    comm.all_reduce(stats, op="mean")
    seconds_each = float(stats[0])
    return {"algorithm": name, "time_us": seconds_each * 1e6, "min_us": float(stats[1]) * 1e6,
            "p99_us": float(stats[2]) * 1e6, "algbw": nbytes / seconds_each / 1e9,
            "busbw": nbytes / seconds_each / 1e9 * BUS[kind](comm.size), "wrong": int(errors[0])}


def _runs(comm, plan, count, cadence):
    """(seconds of each run, the figure for all of them) of `count` runs."""
    times = []
    comm.barrier()
    begin = time.perf_counter()
    for _ in range(count):
        if cadence == "isolated":
            comm.barrier()
        started = time.perf_counter()
        plan.start()
        plan.wait()
        times.append(time.perf_counter() - started)
    total = (time.perf_counter() - begin) / count
    return times, total if cadence == "streaming" else statistics.median(times)


def parser():
    p = argparse.ArgumentParser(prog="minipar bench", description=__doc__.split("\n")[0])
    p.add_argument("kind", choices=sorted(BUS))
    p.add_argument("--algorithms", default="auto", help="names, with commas; or all")
    p.add_argument("--sizes", default="4:16MiB", metavar="LOW:HIGH",
                   help="bytes of the buffer, in steps of 4; or one size, or several with commas")
    p.add_argument("--dtype", default="float32")
    p.add_argument("--cadence", choices=("streaming", "isolated"), default="streaming")
    p.add_argument("--json", metavar="FILE", help="also write the rows")
    p.add_argument("--plot", metavar="FILE.png", help="also draw them (needs matplotlib)")
    return p


def main(argv=None):
    """Run the benchmark on the ranks of this job; returns the exit status."""
    comm = world()
    try:
        o = parser().parse_args(argv)
        _check_outputs(o)
        rows = run(o, comm)
    except (UsageError, ValueError, TypeError) as error:
        if comm.rank == 0:
            print(f"minipar: error: {error}", file=sys.stderr)
        return 2
    if comm.rank == 0 and o.json:
        with open(o.json, "w", encoding="utf-8") as file:
            json.dump({"kind": o.kind, "ranks": comm.size, "cadence": o.cadence, "rows": rows},
                      file, indent=1)
    if comm.rank == 0 and o.plot:
        plot(rows, o, comm.size)
    return 1 if any(row["wrong"] for row in rows) else 0


def run(o, comm):
    """Print the table; returns its rows."""
    dtype = dtypes.dtype(o.dtype).storage
    if ":" in o.sizes:
        low, high = map(parse_size, o.sizes.split(":"))
        sizes = sizes_between(max(low, dtype.itemsize), high)
    else:
        sizes = [parse_size(text) for text in o.sizes.split(",")]
    names = o.algorithms.split(",")
    if o.algorithms == "all":
        names = [n for n, p in ALGORITHMS[o.kind].items() if p.refusal(comm.size) is None]
    say = print if comm.rank == 0 else lambda *a, **k: None
    say(f"# {o.kind}, {comm.size} ranks, {o.dtype}, cadence {o.cadence}")
    say(f"# {'size':>10} {'count':>10} {'algorithm':>24} {'time':>10} {'min':>10} {'p99':>10} "
        f"{'algbw':>7} {'busbw':>7} #wrong")
    say(f"# {'(B)':>10} {'(elements)':>10} {'':>24} {'(us)':>10} {'(us)':>10} {'(us)':>10} "
        f"{'(GB/s)':>7} {'(GB/s)':>7}")
    rows = []
    for nbytes in sizes:
        for name in names:
            row = measure(comm, o.kind, nbytes, name, dtype, o.cadence)
            rows.append({"size": nbytes, **row})
            say(f"  {nbytes:10} {nbytes // dtype.itemsize:10} {row['algorithm']:>24} "
                f"{row['time_us']:10.1f} {row['min_us']:10.1f} {row['p99_us']:10.1f} "
                f"{row['algbw']:7.2f} {row['busbw']:7.2f} {row['wrong']:6}", flush=True)
    say(f"# Avg bus bandwidth: {statistics.mean(row['busbw'] for row in rows):.3f} GB/s")
    return rows


def _check_outputs(o):
    """Refuse what could not be written, before anything is timed."""
    for path in filter(None, (o.json, o.plot)):
        if not Path(path).resolve().parent.is_dir() or Path(path).is_dir():
            raise UsageError(f"{path} cannot be written: {Path(path).resolve().parent} is no "
                             f"folder, or it is one itself")
    if o.plot and find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'minipar[viz]'")


def plot(rows, o, size):
    """Time and bus bandwidth over size, a line for each algorithm, as an image file."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name in dict.fromkeys(row["algorithm"] for row in rows):
        mine = [row for row in rows if row["algorithm"] == name]
        for axis, key in zip(axes, ("time_us", "busbw")):
            axis.plot([row["size"] for row in mine], [row[key] for row in mine], "o-",
                      markersize=3, label=name)
    for axis, title in zip(axes, ("time (us)", "bus bandwidth (GB/s)")):
        axis.set(xscale="log", xlabel="size (bytes)", title=title)
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[0].legend(fontsize=8)
    figure.suptitle(f"{o.kind}, {size} ranks, {o.cadence}")
    figure.savefig(o.plot, dpi=130)
