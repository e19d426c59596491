"""Time of a training step against PyTorch's, as ratios measured in one run.

    python benchmarks/train_step.py [--cases linear,mlp,cnn,gpt] [--rounds 5] [--json FILE]

One thread a rank. Same weights and data on both sides; the losses of the first three steps are
compared before anything is timed. 1 rank: both in one process, in turn. 2 ranks: minipar's
DistributedDataParallel under mpirun against PyTorch's over gloo, processes started in turn; the
batch is split. Each round gives the median step of each side; the table shows the medians over
the rounds of those and of their ratio, and the ratio's range. `GEMM` is the time of the step's
matrix products alone, NumPy's BLAS against PyTorch's.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ.pop("OPENBLAS_CORETYPE", None)  # each library chooses its kernels by itself

import numpy as np

import peers

SECONDS = 1.5  # spent on each side in each round


def median_step(step, seconds=SECONDS):
    """(median seconds of a step, number of steps)."""
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return statistics.median(times), len(times)


def check(case, ours, theirs):
    """Both sides must have the same losses; float32 rounding grows by AdamW's first steps."""
    if not np.allclose(ours, theirs, rtol=2e-4, atol=2e-5):
        raise SystemExit(f"{case}: losses differ, nothing is timed: {ours} and {theirs}")


def one_rank(case, rounds):
    import torch
    torch.set_num_threads(1)
    x, y = peers.batch(case)
    ours = peers.our_step(case, peers.our_model(case), x, y)
    theirs = peers.torch_step(case, peers.torch_model(case), x, y)
    check(case, [ours().item() for _ in range(3)], [theirs().item() for _ in range(3)])
    pairs = [(median_step(ours)[0], median_step(theirs)[0]) for _ in range(rounds)]
    return pairs, gemm_ratio(case, rounds)


def gemm_ratio(case, rounds):
    import torch
    shapes = peers.gemms(case)
    rng = np.random.default_rng(0)
    arrays = [(rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32))
              for m, k, n in shapes]
    tensors = [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in arrays]
    outs = [np.empty((m, n), np.float32) for m, _, n in shapes]
    touts = [torch.from_numpy(o.copy()) for o in outs]

    def ours():
        for (a, b), out in zip(arrays, outs):
            np.matmul(a, b, out=out)

    def theirs():
        for (a, b), out in zip(tensors, touts):
            torch.mm(a, b, out=out)
    return statistics.median(median_step(ours, 0.3)[0] / median_step(theirs, 0.3)[0]
                             for _ in range(rounds))


def worker(side, case):
    """One rank of a 2-rank run; rank 0 prints {"losses", "median"} as JSON."""
    x, y = peers.batch(case)
    if side == "minipar":
        from minipar.comm import world
        from minipar.parallel import DistributedDataParallel
        comm = world()
        rank, size = comm.rank, comm.size
        model, make = DistributedDataParallel(peers.our_model(case)), peers.our_step

        def mean(value):
            total = np.array(value)
            comm.all_reduce(total, "mean")
            return total
    else:
        import torch
        import torch.distributed as dist
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        rank, size = dist.get_rank(), dist.get_world_size()
        model = torch.nn.parallel.DistributedDataParallel(peers.torch_model(case))
        make = peers.torch_step

        def mean(value):
            total = torch.tensor(value, dtype=torch.float64)
            dist.all_reduce(total)
            return (total / size).numpy()
    n = len(x)
    part = slice(rank * n // size, (rank + 1) * n // size)
    step = make(case, model, x[part], y[part])
    losses = mean([step().item() for _ in range(3)])
    # Every rank makes the same number of steps: agree on it from rank 0's speed.
    probe = mean([median_step_fixed(step, 10)])[0]
    count = max(10, int(SECONDS / probe))
    median = median_step_fixed(step, count)
    if rank == 0:
        print(json.dumps({"losses": list(losses), "median": median}), flush=True)
    if side == "torch":
        dist.barrier()
        os._exit(0)  # gloo's threads abort the process now and then when it is taken down


def median_step_fixed(step, count):
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def launch(side, case):
    """Run the two ranks of one side; returns what rank 0 printed."""
    program = [sys.executable, __file__, "--worker", side, "--cases", case]
    if side == "minipar":
        mpirun = Path(sys.executable).with_name("mpirun")
        command = [str(mpirun) if mpirun.exists() else "mpirun", "-n", "2", *program]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    else:
        port = str(20000 + os.getpid() % 20000)
        ranks = [subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env={
            **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "RANK": str(r), "WORLD_SIZE": "2"}) for r in range(2)]
        out = [p.communicate()[0] for p in ranks][0]
    return json.loads(out.strip().splitlines()[-1])


def two_ranks(case, rounds):
    pairs = []
    for _ in range(rounds):
        ours, theirs = launch("minipar", case), launch("torch", case)
        check(case, ours["losses"], theirs["losses"])
        pairs.append((ours["median"], theirs["median"]))
    return pairs


def row(case, ranks, pairs, gemm=None):
    ratios = sorted(a / b for a, b in pairs)
    return {"case": case, "ranks": ranks, "gemm_ratio": gemm,
            "minipar_ms": 1e3 * statistics.median(a for a, _ in pairs),
            "torch_ms": 1e3 * statistics.median(b for _, b in pairs),
            "ratio": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--cases", default=",".join(peers.CASES))
    p.add_argument("--ranks", default="1,2")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--json", metavar="FILE")
    p.add_argument("--worker", choices=("minipar", "torch"), help=argparse.SUPPRESS)
    o = p.parse_args()
    cases = o.cases.split(",")
    if o.worker:
        return worker(o.worker, cases[0])
    rows = []
    print(f"{'case':<54}{'ranks':>6}{'minipar':>10}{'PyTorch':>10}{'ratio':>7}"
          f"{'range':>13}{'GEMM':>7}")
    for ranks in o.ranks.split(","):
        for case in cases:
            if ranks == "1":
                rows.append(row(case, 1, *one_rank(case, o.rounds)))
            else:
                rows.append(row(case, 2, two_ranks(case, o.rounds)))
            r = rows[-1]
            gemm = f"{r['gemm_ratio']:.2f}" if r["gemm_ratio"] else ""
            print(f"{peers.CASES[case][0]:<54}{r['ranks']:>6}{r['minipar_ms']:>8.3f}ms"
                  f"{r['torch_ms']:>8.3f}ms{r['ratio']:>7.2f}"
                  f"{r['low']:>7.2f}-{r['high']:.2f}{gemm:>8}", flush=True)
    if o.json:
        import torch
        Path(o.json).write_text(json.dumps({
            "date": time.strftime("%Y-%m-%d"), "machine": platform.machine(),
            "cores": os.cpu_count(), "python": platform.python_version(),
            "numpy": np.__version__, "torch": torch.__version__, "rows": rows}, indent=1) + "\n")
    return None


if __name__ == "__main__":
    sys.exit(main())
