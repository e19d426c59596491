"""The bubble of every schedule, measured with virtual compute beside the simulator's.

    python benchmarks/schedules.py [--stages 4] [--microbatches 8,16] [--times 40,40,40]
                                   [--schedules gpipe,1f1b,...] [--steps 3] [--how threads]
                                   [--json FILE]

Ranks pass real messages and sleep instead of computing (`minipar/parallel/virtual.py`), so there
may be more of them than cores. The rate is the median of the steps after the first. `cost` is the
longest time from a rank's first action to its last, in milliseconds, measured and simulated.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import minipar
from minipar import optim
from minipar.comm import launch, world
from minipar.commands.schedule_options import times
from minipar.models import MLP
from minipar.ops.loss import cross_entropy_sum_count
from minipar.parallel import Pipelined
from minipar.parallel.mesh import Mesh
from minipar.parallel.schedule import SCHEDULES
from minipar.sim.schedule import simulate
from minipar.tensor import Tensor

WIDTH, SAMPLES = 64, 8  # a message is a micro-batch's SAMPLES x WIDTH numbers of 4 bytes


def measure(name, p, m, milliseconds, steps):
    """Bubble rates of the steps after the first, on one of p ranks."""
    minipar.manual_seed(0)
    schedule = SCHEDULES[name](p, m, times=milliseconds)
    trainer = Pipelined(MLP([WIDTH] * (schedule.stages + 1)),
                        lambda module: optim.SGD(module.parameters(), 0.1),
                        cross_entropy_sum_count, world(), Mesh(pp=p), schedule,
                        virtual=milliseconds.scaled(1e-3))
    x = np.zeros((m * SAMPLES, WIDTH), np.float32)
    batch, rates = (Tensor(x), Tensor(np.zeros(len(x), np.int64))), []
    for step in range(steps + 1):
        trainer.step(batch, SimpleNamespace(start=0), step)
        rates.append(trainer.facts()["bubble_rate"])
    return rates[1:]


def row(name, p, m, o):
    """What was found of one schedule, as a dict."""
    found = simulate(SCHEDULES[name](p, m, times=o.times), o.times)
    rates = launch(measure, p, how=o.how, args=(name, p, m, o.times, o.steps), timeout=300)[0]
    measured, simulated = statistics.median(rates), float(found.bubble_rate)
    cost = float(found.cost)
    return {"schedule": name, "stages": p, "microbatches": m, "measured": measured,
            "simulated": simulated, "low": min(rates), "high": max(rates),
            "measured_ms": cost * (1 - simulated) / (1 - measured), "simulated_ms": cost}


def same_order(rows, near=0.02):
    """Whether schedules that differ by more than `near` in simulated time differ so in measured."""
    return all(a["measured_ms"] < b["measured_ms"] for a in rows for b in rows
               if a["simulated_ms"] * (1 + near) < b["simulated_ms"])


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--stages", type=int, default=4)
    p.add_argument("--microbatches", default="8,16")
    p.add_argument("--times", type=times, default=times("40,40,40"), metavar="F,B,W",
                   help="milliseconds, of a whole rank")
    p.add_argument("--schedules", default=",".join(SCHEDULES))
    p.add_argument("--steps", type=int, default=3)
    p.add_argument("--how", default="threads", help="threads, processes or mpi")
    p.add_argument("--json", metavar="FILE")
    o = p.parse_args()
    rows, ordered = [], {}
    print(f"{'schedule':<15}{'m':>4}{'measured':>10}{'simulated':>11}{'difference':>12}"
          f"{'range':>16}{'ms':>8}{'simulated':>11}")
    for m in map(int, o.microbatches.split(",")):
        for name in o.schedules.split(","):
            rows.append(r := row(name, o.stages, m, o))
            print(f"{name:<15}{m:>4}{r['measured']:>10.4f}{r['simulated']:>11.4f}"
                  f"{r['measured'] - r['simulated']:>+12.4f}"
                  f"{r['low']:>9.4f}-{r['high']:.4f}{r['measured_ms']:>7.0f}"
                  f"{r['simulated_ms']:>11.0f}", flush=True)
        ordered[m] = same_order([r for r in rows if r["microbatches"] == m])
        print(f"m = {m}: order by time the {'same' if ordered[m] else 'OTHER'}")
    worst = max(abs(r["measured"] - r["simulated"]) for r in rows)
    print(f"largest difference {worst:.4f} (target 0.03)")
    if o.json:
        Path(o.json).write_text(json.dumps({
            "date": time.strftime("%Y-%m-%d"), "machine": platform.machine(),
            "cores": os.cpu_count(), "python": platform.python_version(), "how": o.how,
            "times_ms": o.times, "worst": worst, "same_order": ordered, "rows": rows},
            indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
