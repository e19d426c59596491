"""What a slow rank costs, and what shares by speed or asynchronous methods bring back.

    python benchmarks/stragglers.py [--ranks 4] [--factor 2] [--per-sample 3] [--batch 28]
                                    [--steps 60] [--how threads] [--json FILE]

Trains a small model with the main job; every rank sleeps `--per-sample` milliseconds for each of
its samples, so there may be more ranks than cores. The last one that trains is `--slow` by the
factor. Throughput is what all ranks train on in a second, in the second half of the steps: of
methods in which nobody waits, while all are still at it. Parameter servers are one rank more.
`regained` is the part of the lost throughput; `possible` what best shares would regain of it:
(n - 1 + 1 / factor) / n of the undisturbed throughput.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

from minipar import options, train
from minipar.comm import launch, world
from minipar.evaluation import loss_and_count
from minipar.interrupt import Interrupt

ASYNCHRONOUS = ("ps", "ps:async", "ssp:4", "adpsgd:ring", "gossip:ring")


class Timed(train.Job):
    """The main job, which also keeps [(seconds at a step's end, own samples, all shares)]."""

    def __init__(self, *args):
        self.ends = []
        super().__init__(*args)

    def _step(self, shard, *args):
        stop = super()._step(shard, *args)
        self.ends.append((time.perf_counter(), len(shard.indices), shard.shares))
        return stop


def measure(argv, per_sample):
    """(samples/s of this rank, the shares at the end, test accuracy), on one of the ranks."""
    def sleepy(outputs, targets):
        time.sleep(per_sample * len(targets))
        return loss_and_count(outputs, targets)
    train.loss_and_count, comm = sleepy, world()
    job = Timed(options.parse(argv, comm.size), comm, Interrupt())
    accuracy = job.run()["test_accuracy"]
    half = len(job.ends) // 2
    seconds = job.ends[-1][0] - job.ends[half - 1][0]
    return sum(samples for _, samples, _ in job.ends[half:]) / seconds, job.ends[-1][2], accuracy


def row(name, o, *more, slow=True):
    """What was found of one way to train, as a dict."""
    servers = name.startswith(("ps", "ssp"))
    argv = ["--hidden", "16", "--batch-size", str(o.batch * o.ranks), "--steps", str(o.steps),
            "--quiet", *more]
    if slow:
        argv += ["--slow", f"{o.ranks - 1}:{o.factor}"]
    found = launch(measure, o.ranks + servers, how=o.how, args=(argv, o.per_sample * 1e-3),
                   timeout=600)
    rates, shares, accuracy = zip(*found)
    return {"way": name, "samples_per_s": sum(rates), "shares": shares[0], "accuracy": accuracy[0]}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--ranks", type=int, default=4)
    p.add_argument("--factor", type=float, default=2)
    p.add_argument("--per-sample", type=float, default=3, metavar="MS")
    p.add_argument("--batch", type=int, default=28, help="samples a rank, if shares are equal")
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--how", default="threads", help="threads, processes or mpi")
    p.add_argument("--json", metavar="FILE")
    o = p.parse_args()
    given = ",".join(["1"] * (o.ranks - 1) + [f"{1 / o.factor:g}"])
    ways = [("no straggler", (), False), ("equal shares", (), True),
            (f"--speeds {given}", ("--speeds", given), True),
            ("--speeds auto", ("--speeds", "auto"), True),
            *((sync, ("--sync", sync), True) for sync in ASYNCHRONOUS)]
    best, rows = (o.ranks - 1 + 1 / o.factor) / o.ranks, []
    print(f"{o.ranks} ranks, one {o.factor:g} x slower; possible {best:.0%} of the undisturbed "
          f"throughput: {(best - 1 / o.factor) / (1 - 1 / o.factor):.0%} of the lost")
    print(f"{'':<22}{'samples/s':>10}{'of best':>9}{'regained':>10}{'accuracy':>10}  shares")
    for name, more, slow in ways:
        rows.append(r := row(name, o, *more, slow=slow))
        whole, low = rows[0]["samples_per_s"], rows[min(1, len(rows) - 1)]["samples_per_s"]
        rate = r["samples_per_s"]
        r["of_best"] = rate / (whole if name == "no straggler" else best * whole)
        r["regained"] = (rate - low) / (whole - low) if len(rows) > 2 else None
        words = f"{r['regained']:10.0%}" if r["regained"] is not None else " " * 10
        print(f"{name:<22}{rate:>10.0f}{r['of_best']:>9.0%}{words}{r['accuracy']:>10.1%}  "
              f"{r['shares'] or ''}", flush=True)
    if o.json:
        Path(o.json).write_text(json.dumps({
            "date": time.strftime("%Y-%m-%d"), "machine": platform.machine(),
            "cores": os.cpu_count(), "python": platform.python_version(), "how": o.how,
            "ranks": o.ranks, "factor": o.factor, "possible": best, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
