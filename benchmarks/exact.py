"""The price of --exact: the time of a training step with it over one without, measured in one run.

    python benchmarks/exact.py [--ranks 1,2] [--cases linear,mlp,cnn,gpt] [--virtual-shards 16]
                               [--rounds 5] [--how processes] [--json FILE]

The steps of `train_step.py`, one thread a rank, their ways in turn on the same ranks:

    ordinary  each rank computes its samples at once, gradients summed by the ring beside backward
    cut       as many forwards and backwards as with --exact, gradients summed as before
    exact     the virtual shards, summed exactly

so that cut / ordinary is the price of small batches, and exact / cut that of the sum. It ends
with an error if --exact has other parameters on one number of ranks than on another. A round gives
each way's median step of the slowest rank; the table shows medians over the rounds of those, and
of the ratios, whose range is in the file.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ.pop("OPENBLAS_CORETYPE", None)

import numpy as np

import peers
from minipar import optim
from minipar.comm import launch, world
from minipar.data import GlobalBatchSampler
from minipar.evaluation import loss_and_count, params_sha256
from minipar.execution.threads import set_num_threads
from minipar.parallel import Exact, Mesh, Replicated
from minipar.tensor import Tensor

WAYS = ("ordinary", "cut", "exact")


def step_of(way, case, virtual_shards):
    """(function that takes a step, the trainer) on the calling rank."""
    comm = world()
    n, (x, y) = comm.size, peers.batch(case)
    cut = virtual_shards if way == "exact" else None
    shard = next(GlobalBatchSampler(len(x), len(x), rank=comm.rank, num_replicas=n, shuffle=False,
                                    virtual_shards=cut).shards(0))

    def optimizer(module):
        if case == "linear":
            return optim.SGD(module.parameters(), lr=0.01)
        return optim.AdamW(module.parameters(), lr=1e-3)
    args = peers.our_model(case), optimizer, loss_and_count, comm, Mesh(n)
    if way == "exact":
        trainer = Exact(*args, virtual_shards, algorithm="ring")
    else:
        parts = min(-(-virtual_shards // n), len(shard.indices)) if way == "cut" else 1
        trainer = Replicated(*args, microbatches=parts, algorithm="ring")
    batch = Tensor(x[shard.indices]), Tensor(y[shard.indices])
    return lambda: trainer.step(batch, shard, 0), trainer


def measure(case, virtual_shards, rounds, seconds):
    """(hash of the parameters after 3 exact steps, [{way: seconds of a step}] of the rounds)."""
    comm = world()
    set_num_threads(1)
    made = {way: step_of(way, case, virtual_shards) for way in WAYS}
    for step, _ in made.values():
        for _ in range(3):
            step()
    digest, found = params_sha256(made["exact"][1].parameters()), []
    for _ in range(rounds):
        found.append({})
        for way, (step, _) in made.items():
            comm.barrier()
            begin = time.perf_counter()
            step()
            count = np.array([max(5.0, seconds / (time.perf_counter() - begin))])
            comm.all_reduce(count, "min")
            times = []
            for _ in range(int(count[0])):
                begin = time.perf_counter()
                step()
                times.append(time.perf_counter() - begin)
            slowest = np.array([statistics.median(times)])
            comm.all_reduce(slowest, "max")
            found[-1][way] = float(slowest[0])
    return digest, found


def row(case, n, o):
    digest, found = launch(measure, n, how=o.how, timeout=900,
                           args=(case, o.virtual_shards, o.rounds, o.seconds))[0]
    out = {"case": case, "ranks": n, "digest": digest}
    out.update((f"{way}_ms", 1e3 * statistics.median(f[way] for f in found)) for way in WAYS)
    for a, b in (("cut", "ordinary"), ("exact", "cut"), ("exact", "ordinary")):
        ratios = [f[a] / f[b] for f in found]
        out[f"{a}/{b}"] = {"median": statistics.median(ratios), "low": min(ratios),
                           "high": max(ratios)}
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--ranks", default="1,2")
    p.add_argument("--cases", default=",".join(peers.CASES))
    p.add_argument("--virtual-shards", type=int, default=16)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=1.0, help="of each way in each round")
    p.add_argument("--how", default="processes", help="processes, threads or mpi")
    p.add_argument("--json", metavar="FILE")
    o = p.parse_args()
    rows = []
    print(f"{'case':<8}{'ranks':>6}" + "".join(f"{way + ' ms':>13}" for way in WAYS)
          + f"{'cut/ordinary':>15}{'exact/cut':>11}{'exact/ordinary':>16}")
    for case in o.cases.split(","):
        for n in map(int, o.ranks.split(",")):
            rows.append(r := row(case, n, o))
            if len({r["digest"] for r in rows if r["case"] == case}) > 1:
                raise SystemExit(f"{case}: on {n} ranks the parameters are others than before")
            print(f"{case:<8}{n:>6}" + "".join(f"{r[way + '_ms']:>13.2f}" for way in WAYS)
                  + f"{r['cut/ordinary']['median']:>15.2f}{r['exact/cut']['median']:>11.2f}"
                  f"{r['exact/ordinary']['median']:>16.2f}", flush=True)
    if o.json:
        Path(o.json).write_text(json.dumps({
            "date": time.strftime("%Y-%m-%d"), "machine": platform.machine(),
            "cores": os.cpu_count(), "python": platform.python_version(), "how": o.how,
            "virtual_shards": o.virtual_shards, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
