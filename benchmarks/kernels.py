"""Operations that have kernels, against PyTorch's eager ones on the CPU: time ratios in one run.

    python benchmarks/kernels.py [--only softmax] [--rounds 5] [--json FILE]

One thread each, float32, the same inputs; results (and gradients) are compared before anything
is timed. minipar and PyTorch take turns, many times; the ratio is that of the medians of a round,
and the range is over the rounds. Below 1, minipar is faster.
"""

import argparse
import json
import os
import platform
import statistics
import time

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.pop("OPENBLAS_CORETYPE", None)  # each library chooses its kernels by itself

import kernel_cases  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from threadpoolctl import threadpool_info  # noqa: E402

import minipar  # noqa: E402


def check(name, ours, theirs):
    """Both have to have computed the same."""
    for i, (a, b) in enumerate(zip(ours(), theirs(), strict=True)):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if not np.allclose(a, b, rtol=2e-4, atol=2e-5 * max(1, np.abs(b).max(initial=0))):
            raise SystemExit(f"{name}: result {i} differs by {np.abs(a - b).max()}")


def median_times(functions, seconds=0.25):
    """The median time of each function in seconds, taken in turns."""
    times = [[] for _ in functions]
    end = time.perf_counter() + seconds * len(functions)
    while time.perf_counter() < end or len(times[0]) < 5:
        for function, taken in zip(functions, times):
            begin = time.perf_counter()
            function()
            taken.append(time.perf_counter() - begin)
    return [statistics.median(taken) for taken in times]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    o = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    print(f"{'case':44} {'ours us':>9} {'theirs us':>9} {'ratio':>6}  range")
    for name, make in kernel_cases.CASES.items():
        if o.only not in name:
            continue
        minipar.manual_seed(0)
        ours, theirs, results = make()
        check(name, *results)
        median_times((ours, theirs), 0.05)
        rounds = [median_times((ours, theirs)) for _ in range(o.rounds)]
        ratios = [a / b for a, b in rounds]
        a, b = (statistics.median(r[i] for r in rounds) * 1e6 for i in (0, 1))
        rows[name] = {"ours_us": a, "theirs_us": b, "ratio": statistics.median(ratios),
                      "low": min(ratios), "high": max(ratios)}
        print(f"{name:44} {a:9.1f} {b:9.1f} {rows[name]['ratio']:6.2f}  "
              f"{min(ratios):.2f}-{max(ratios):.2f}", flush=True)
    mean = statistics.geometric_mean(r["ratio"] for r in rows.values())
    print(f"{'geometric mean':44} {'':19} {mean:6.2f}")
    if o.json:
        about = {"machine": platform.machine(), "python": platform.python_version(),
                 "numpy": np.__version__, "torch": torch.__version__, "threads": 1,
                 "blas": [f"{i['internal_api']} {i.get('architecture')}" for i in
                          threadpool_info() if i["user_api"] == "blas"],
                 "torch_cpu": torch.backends.cpu.get_cpu_capability()}
        with open(o.json, "w") as file:
            json.dump({"about": about, "geometric_mean": mean, "cases": rows}, file, indent=1)


if __name__ == "__main__":
    main()
