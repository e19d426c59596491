"""Pipelines: what the runtime adds to an action, a gpt in 2 stages against PyTorch's, and memory.

    python benchmarks/pipeline.py [--rounds 3] [--seconds 3] [--json FILE]

Overhead: the time of a step of tiny blocks, without its waits, less that of the same forwards and
backwards in a plain loop, for each action of the rank's lowered list. gpt: the one of
`train_step.py`, batch 16, on 2 ranks of one thread each, against torch.distributed.pipelining over
gloo with the same cut, schedule, micro-batches and optimizer, embedding and head tied on both
sides (there by an all-reduce of their gradient); the losses of the first steps are compared before
anything is timed, and the sides run in turn. Memory: by how much the resident memory of a rank
grows at most while it builds its model and trains, beside one rank with the whole model.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ.pop("OPENBLAS_CORETYPE", None)  # each library chooses its kernels by itself

import numpy as np

import peers

BATCH, WIDTH = 16, 4
COUNTS = [3, 3]  # embedding and two blocks; two blocks and the head
CASES = [("gpipe", 4), ("gpipe", 8), ("1f1b", 4), ("1f1b", 8)]


def data():
    tokens = np.random.default_rng(1).integers(0, peers.GPT["vocab_size"],
                                               (BATCH, peers.GPT["block_size"] + 1))
    return tokens[:, :-1].copy(), tokens[:, 1:].copy()


# Overhead


def overhead(name, microbatches, steps=30):
    """(microseconds for each lowered action, actions of a step) on the calling rank."""
    from minipar import nn, optim
    from minipar.comm import world
    from minipar.ops.loss import cross_entropy_sum_count
    from minipar.parallel import Pipelined
    from minipar.parallel.lower import lower
    from minipar.parallel.mesh import Mesh
    from minipar.parallel.schedule import SCHEDULES
    comm = world()
    schedule = SCHEDULES[name](comm.size, microbatches)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(schedule.stages)))
    trainer = Pipelined(model, lambda module: optim.SGD(module.parameters(), 0.1),
                        cross_entropy_sum_count, comm, Mesh(pp=comm.size), schedule)
    x = np.zeros((microbatches, WIDTH), np.float32)
    y, sizes = np.zeros(len(x), np.int64), [1] * microbatches
    actions, found = len(lower(schedule)[comm.rank]), []
    for step in range(steps):
        comm.barrier()
        begin, waited = time.perf_counter(), comm.engine.waited
        trainer.pipeline.step(x, y, sizes, step)
        whole = time.perf_counter() - begin - (comm.engine.waited - waited)
        found.append((whole - plain(trainer.pipeline, x, y)) / actions)
    return 1e6 * statistics.median(found), actions


def plain(pipeline, x, y):
    """Seconds of the same forwards and backwards, one after another."""
    from minipar.tensor import Tensor, backward
    begin = time.perf_counter()
    for index, stage in pipeline.part.stages.items():
        for m in range(len(x)):
            given = Tensor(x[m:m + 1])
            given.requires_grad = index > 0
            out = stage(given)
            gradient = x[m:m + 1]
            if index == pipeline.schedule.stages - 1:
                out, gradient = pipeline.loss(out, Tensor(y[m:m + 1]))[0], None
            backward([out], [gradient])
    return time.perf_counter() - begin


def overheads():
    from minipar.comm import launch
    rows = []
    for name, ranks, m in (("gpipe", 1, 32), ("interleaved", 1, 32), ("1f1b", 2, 32),
                           ("zb-h1", 2, 32)):
        found = launch(overhead, ranks, args=(name, m), how="processes", timeout=100)
        rows.append({"schedule": name, "ranks": ranks, "microbatches": m,
                     "actions": max(n for _, n in found), "us": max(us for us, _ in found)})
        print(f"{name:<12} on {ranks} ranks, {m} micro-batches: {rows[-1]['us']:6.1f} us for each "
              f"of {rows[-1]['actions']} actions", flush=True)
    return rows


# gpt on 2 ranks


def grown(before):
    """MiB by which the resident memory has grown at most since `before`."""
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def our_step(schedule, microbatches):
    """(a function that makes a step and returns the loss, the communicator)."""
    import minipar
    from minipar import models, optim
    from minipar.comm import world
    from minipar.ops.loss import cross_entropy_sum_count
    from minipar.parallel import Mesh, Pipelined
    from minipar.parallel.schedule import SCHEDULES
    from minipar.tensor import Tensor

    def loss(out, targets):
        return cross_entropy_sum_count(out.reshape(-1, out.shape[-1]), targets.reshape(-1))
    comm = world()
    minipar.manual_seed(0)
    ranks = comm.size
    made = SCHEDULES[schedule](ranks, microbatches)
    trainer = Pipelined(models.GPT(models.GPTConfig(**peers.GPT)),
                        lambda module: optim.AdamW(module.parameters(), lr=1e-3), loss, comm,
                        Mesh(pp=ranks), made, counts=COUNTS if ranks == 2 else [sum(COUNTS)])
    batch, turn = [Tensor(a) for a in data()], iter(range(10**9))
    return (lambda: trainer.step(batch, SimpleNamespace(start=0), next(turn))[0]), comm


def torch_step(schedule, microbatches, rank):
    """The same in PyTorch; the loss is 0 on rank 0, which does not have it."""
    import torch
    import torch.distributed as dist
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
    torch.set_num_threads(1)
    whole = peers.torch_model("gpt")
    t, half = whole.transformer, len(whole.transformer.h) // 2
    wte = t.wte.weight

    class First(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe, self.h = t.wte, t.wpe, torch.nn.ModuleList(t.h[:half])

        def forward(self, index):
            x = self.wte(index) + self.wpe(torch.arange(index.shape[1]))
            for block in self.h:
                x = block(x)
            return x

    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.h, self.ln_f, self.head = torch.nn.ModuleList(t.h[half:]), t.ln_f, whole.lm_head

        def forward(self, x):
            for block in self.h:
                x = block(x)
            return self.head(self.ln_f(x))

    def loss(out, targets):
        return torch.nn.functional.cross_entropy(out.reshape(-1, out.shape[-1]),
                                                 targets.reshape(-1))
    module = Last() if rank else First()
    stage = PipelineStage(module, rank, 2, torch.device("cpu"))
    run = (Schedule1F1B if schedule == "1f1b" else ScheduleGPipe)(stage, microbatches, loss)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    x, y = map(torch.from_numpy, data())

    def step():
        optimizer.zero_grad()
        losses = []
        if rank:
            run.step(target=y, losses=losses, return_outputs=False)
        else:
            run.step(x)
        dist.all_reduce(wte.grad)  # embedding and head are one parameter
        optimizer.step()
        return sum(v.item() for v in losses) / microbatches
    return step


def worker(side, schedule, microbatches, seconds):
    """One rank; rank 0 prints {"losses", "median" seconds of a step, "memory" MiB a rank}."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if side == "minipar":
        step, comm = our_step(schedule, microbatches)
        rank = comm.rank

        def everywhere(value):
            return comm.all_gather(np.array([float(value)]))[:, 0].tolist()
    else:
        import torch
        import torch.distributed as dist
        dist.init_process_group("gloo")
        rank, before = dist.get_rank(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step = torch_step(schedule, microbatches, rank)

        def everywhere(value):
            out = [torch.zeros(1, dtype=torch.float64) for _ in range(2)]
            dist.all_gather(out, torch.tensor([value], dtype=torch.float64))
            return [v.item() for v in out]
    losses = [max(everywhere(step())) for _ in range(3)]
    begin = time.perf_counter()
    for _ in range(3):
        step()
    count = max(5, int(3 * seconds / max(everywhere(time.perf_counter() - begin))))
    times = []
    for _ in range(count):
        everywhere(0)
        begin = time.perf_counter()
        step()
        times.append(max(everywhere(time.perf_counter() - begin)))
    memory = everywhere(grown(before))
    if rank == 0:
        print(json.dumps({"losses": losses, "median": statistics.median(times),
                          "memory": memory}), flush=True)
    if side == "torch":
        dist.barrier()
        os._exit(0)  # gloo's threads abort the process now and then when it is taken down


def start(side, schedule, microbatches, seconds, ranks=2):
    """Run the ranks of one side; returns what rank 0 printed."""
    program = [sys.executable, __file__, "--worker", side, schedule, str(microbatches),
               "--seconds", str(seconds)]
    if side == "minipar":
        mpirun = Path(sys.executable).with_name("mpirun")
        command = [str(mpirun) if mpirun.exists() else "mpirun", "-n", str(ranks), *program]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    else:
        port = str(20000 + os.getpid() % 20000)
        started = [subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env={
            **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "RANK": str(r), "WORLD_SIZE": "2"}) for r in range(2)]
        out = [p.communicate()[0] for p in started][0]
    return json.loads(out.strip().splitlines()[-1])


def against_torch(rounds, seconds):
    rows = []
    for schedule, m in CASES:
        pairs, memory = [], []
        for _ in range(rounds):
            ours, theirs = (start(side, schedule, m, seconds) for side in ("minipar", "torch"))
            if not np.allclose(ours["losses"], theirs["losses"], rtol=2e-4):
                raise SystemExit(f"{schedule}: losses differ, nothing is timed: {ours['losses']} "
                                 f"and {theirs['losses']}")
            pairs.append((ours["median"], theirs["median"]))
            memory.append((ours["memory"], theirs["memory"]))
        ratios = sorted(a / b for a, b in pairs)
        row = {"schedule": schedule, "microbatches": m, "low": ratios[0], "high": ratios[-1],
               "minipar_ms": 1e3 * statistics.median(a for a, _ in pairs),
               "torch_ms": 1e3 * statistics.median(b for _, b in pairs),
               "memory_mib": memory[0][0], "torch_memory_mib": memory[0][1]}
        row["ratio"] = row["minipar_ms"] / row["torch_ms"]
        rows.append(row)
        print(f"gpt, 2 stages, {schedule:<6}{m:>3} micro-batches: {row['minipar_ms']:.1f} ms, "
              f"PyTorch {row['torch_ms']:.1f} ms, ratio {row['ratio']:.2f} "
              f"({row['low']:.2f}-{row['high']:.2f}); memory {_mib(row['memory_mib'])} MiB, "
              f"PyTorch {_mib(row['torch_memory_mib'])} MiB", flush=True)
    return rows


def _mib(values):
    return " + ".join(f"{v:.0f}" for v in values)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=3, help="timed of each side in each round")
    p.add_argument("--json", metavar="FILE")
    p.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    o = p.parse_args()
    if o.worker:
        return worker(o.worker[0], o.worker[1], int(o.worker[2]), o.seconds)
    found = {"overhead": overheads(), "gpt": against_torch(o.rounds, o.seconds)}
    serial = start("minipar", "1f1b", 4, 0.5, ranks=1)
    found["serial"] = {"ms": 1e3 * serial["median"], "memory_mib": serial["memory"]}
    print(f"gpt on 1 rank, 4 micro-batches: {found['serial']['ms']:.1f} ms; memory "
          f"{_mib(serial['memory'])} MiB")
    if o.json:
        import torch
        Path(o.json).write_text(json.dumps({
            "date": time.strftime("%Y-%m-%d"), "machine": platform.machine(),
            "cores": os.cpu_count(), "python": platform.python_version(),
            "numpy": np.__version__, "torch": torch.__version__, **found}, indent=1) + "\n")
    return None


if __name__ == "__main__":
    sys.exit(main())
