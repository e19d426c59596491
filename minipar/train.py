"""The main job: train a model with data parallelism over all ranks.

    python -m minipar.train                       one rank, no MPI needed
    python -m minipar.train --ranks 4             four ranks, started here, the same result
    mpirun -n 4 python -m minipar.train           four ranks by MPI, the same result

Every rank holds the whole model and takes a slice of each global batch. Losses are sums: the
gradients and the count are reduced over the ranks and divided once, in the optimizer's step, so
the result does not depend on how the batch was cut. Exit status: 0 done, or interrupted with a
checkpoint written; 1 failed; 2 asked for something that cannot be.
"""

import math
import sys
import threading
import time
from contextlib import nullcontext
from functools import partial

import numpy as np

from . import data as datasets
from . import dtypes, trace
from .build import build_model, build_optimizer, choose_device, identity, learning_rate
from .checkpoint import CheckpointFolder, load_file
from .comm import RankFailed, launch, world
from .comm.world import is_launched, launched_rank
from .context import (batch_position, current, manual_seed, no_grad, set_default_dtype,
                      set_kernels)
from .data import GlobalBatchSampler
from .data.prefetch import on_device
from .device import DeviceError, host
from .interrupt import Interrupt
from .ops.loss import cross_entropy_sum_count
from .options import UsageError, parse, parser
from .parallel import DistributedDataParallel
from .report import Report, first_bad, params_sha256
from .tensor import Tensor


class Failed(RuntimeError):
    """Training cannot go on; the message is for the user. Raised by one rank, or by all."""

    def __init__(self, message, by_all=False):
        super().__init__(message)
        self.by_all = by_all


def read(dataset, shard):
    """The samples of a shard: [inputs, targets]."""
    try:
        return dataset.get_batch(shard.indices)
    except ValueError as error:  # an image that is damaged behind its header
        raise Failed(str(error)) from None


def loss_and_count(logits, targets):
    """Sum of the cross-entropies over all targets, and how many there are."""
    classes = logits.shape[-1]
    return cross_entropy_sum_count(logits.reshape(-1, classes), targets.reshape(-1))


def train_step(model, optimizer, batch, shard, o, step, stop=False):
    """One optimizer step on this rank's shard of a global batch.

    Returns (mean loss, whether any rank came here with `stop`).
    """
    inputs, targets = (t.array for t in batch)
    k, m = len(inputs), o.microbatches
    optimizer.zero_grad()
    totals = np.array([0.0, 0.0, stop])  # sum of losses, count of targets, ranks that want to stop
    reduction = None
    for i in range(m):
        a, b = i * k // m, (i + 1) * k // m
        last = i == m - 1
        with batch_position(step, shard.start + a), nullcontext() if last else model.no_sync():
            loss, count = loss_and_count(model(Tensor(inputs[a:b])), Tensor(targets[a:b]))
            totals[:2] += loss.item(), count
            if last:  # every rank starts this first, then the buckets: the agreed order
                reduction = model.comm.all_reduce(totals, async_op=True)
            loss.backward()
    reduction.wait()
    if not math.isfinite(totals[0]):
        raise Failed(f"loss is {totals[0]} at step {step + 1}; {first_bad(model.module)}", True)
    optimizer.step(scale=1 / max(totals[1], 1), max_norm=o.clip)
    return totals[0] / max(totals[1], 1), totals[2] > 0


def evaluate(model, dataset, batch_size):
    """(mean loss, accuracy) over a data set, each rank taking its slice of each batch."""
    comm, totals = model.comm, np.zeros(3)
    sampler = GlobalBatchSampler(len(dataset), max(batch_size, comm.size), rank=comm.rank,
                                 num_replicas=comm.size, shuffle=False)
    device = next(model.parameters()).device
    model.eval()
    with no_grad():
        for shard in sampler.shards(0):
            inputs, targets = (t.to(device) for t in read(dataset, shard))
            logits = model(inputs)
            loss, count = loss_and_count(logits, targets)
            hits = (logits.array.argmax(axis=-1) == targets.array).sum()
            totals += loss.item(), count, int(hits)
    model.train()
    comm.all_reduce(totals)
    return totals[0] / totals[1], totals[2] / totals[1]


class Job:
    """One run, on one rank: data, model and optimizer as the options `o` say, and the loop."""

    def __init__(self, o, comm, interrupt):
        self.o, self.comm, self.interrupt = o, comm, interrupt
        self.begin = time.perf_counter()
        manual_seed(o.seed)
        set_default_dtype(o.dtype)
        if o.kernels:
            set_kernels(o.kernels)
        self.folder = CheckpointFolder(o.checkpoint, o.checkpoint_keep) if o.checkpoint else None
        try:
            self.data = datasets.load(o.data, block_size=o.block_size,
                                      dtype=dtypes.dtype(o.dtype), image_size=o.image_size)
            self.device = choose_device(o.device, comm)
            module = build_model(o, self.data).to(self.device)
            # Batch normalisation needs samples on every rank: no short last batch for it.
            self.sampler = GlobalBatchSampler(
                len(self.data.train), o.batch_size, rank=comm.rank, num_replicas=comm.size,
                seed=o.seed, drop_last=any("running_mean" in k for k, _ in module.named_buffers()))
            self.total = o.steps or o.epochs * len(self.sampler)
            self.first_step, optimizer_state = self._start_from(module)
            if o.trace:
                trace.check_path(o.trace)
            self.report = Report(comm.rank, self.total, o.metrics, o.quiet, self.first_step)
        except (ValueError, OSError, DeviceError) as error:
            raise UsageError(str(error)) from None
        self.model = DistributedDataParallel(module, process_group=comm, gradient="sum",
                                             algorithm=o.program)
        self.optimizer = build_optimizer(o, self.model)
        if self.first_step:
            self.optimizer.load_named_state(module, optimizer_state)

    def _start_from(self, module):
        """(steps done, optimizer state) of what this run continues; rank 0 loads the weights.

        What rank 0 finds wrong is raised on every rank.
        """
        if not (self.folder or self.o.weights):
            return 0, {}
        state, arrays, problem = {"step": 0}, {}, None
        if self.comm.rank == 0:
            try:
                if self.o.weights:
                    module.load_state_dict(load_file(self.o.weights))
                if self.folder:
                    state, arrays = self._open_folder(module) or (state, arrays)
            except (ValueError, OSError, RuntimeError) as error:
                problem = str(error)
        problem, state = self.comm.broadcast_object((problem, state))
        if problem:
            raise UsageError(problem)
        if "random" in state:
            current().set_random_state(state["random"])
        return state["step"], self.comm.broadcast_arrays(arrays)

    def _open_folder(self, module):
        """(state, optimizer state) of the checkpoint to resume; its weights go into `module`."""
        self.folder.prepare()
        if not self.o.resume:
            if steps := self.folder.steps():
                raise UsageError(f"{self.folder.path} holds the checkpoint of step {steps[-1]}: "
                                 f"--resume goes on from it; or name another folder")
            return None
        state, weights, arrays = self.folder.load(
            warn=lambda line: print(f"minipar: {line}", file=sys.stderr))
        for name, mine in identity(self.o, self.data).items():
            theirs = state["identity"].get(name)
            if mine != theirs:
                raise UsageError(f"the checkpoint in {self.folder.path} has "
                                 f"{name.replace('_', '-')} {theirs}, not {mine}")
        module.load_state_dict(weights)
        return state, {name: t.array for name, t in arrays.items()}

    def _save(self, step):
        if self.comm.rank == 0:
            state = {"identity": identity(self.o, self.data), "world_size": self.comm.size,
                     "random": current().random_state()}
            try:
                self.folder.save(step, self.model.module.state_dict(),
                                 self.optimizer.named_state(self.model.module), state)
            except OSError as error:
                raise Failed(f"the checkpoint of step {step} could not be written: "
                             f"{error}") from None

    def run(self):
        """Train; returns the final metrics, or None if training was interrupted."""
        o, comm = self.o, self.comm
        parameters = sum(p.numel() for p in self.model.parameters())
        self.report.say(f"{o.model} ({parameters:,} parameters) on {self.data.name} "
                        f"({len(self.data.train):,} samples), {comm.size} ranks, "
                        f"{o.algorithm} all-reduce"
                        + (f", from step {self.first_step}" if self.first_step else ""))
        try:
            if not o.trace:
                return self._finish() if self._train() else None
            with trace.record(comm) as recorder:
                done = self._train()
            trace.write_chrome(o.trace, comm, recorder)
            return self._finish() if done else None
        finally:
            self.report.close()

    def _train(self):
        """Take the steps; whether all were taken."""
        o, step = self.o, self.first_step
        while step < self.total:
            epoch, done = divmod(step, len(self.sampler))
            shards = self.sampler.shards(epoch, done)
            for shard, batch in on_device(shards, partial(read, self.data.train), self.device):
                stop = self._step(shard, batch, step, epoch + 1)
                step += 1
                if self.folder and (stop or step == self.total or step % o.checkpoint_every == 0):
                    self._save(step)
                if stop and step < self.total:
                    self.report.write("interrupted", step=step)
                    self.report.say(f"interrupted after step {step}: --resume goes on from "
                                    f"{self.folder.path}")
                    return False
                if o.eval_every and step % o.eval_every == 0 and step < self.total:
                    self._evaluate(step)
                if step == self.total:
                    break
        return True

    def _step(self, shard, batch, step, epoch):
        """Take one step and report it; whether a rank was asked to stop."""
        started, waited = time.perf_counter(), self.comm.engine.waited
        rate = learning_rate(self.o, step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, stop = train_step(self.model, self.optimizer, batch(), shard, self.o, step,
                                self.interrupt.requested)
        seconds = time.perf_counter() - started
        waited = self.comm.engine.waited - waited
        speed = shard.size / seconds
        self.report.write("step", step=step + 1, epoch=epoch, loss=loss, lr=rate,
                          samples_per_s=speed, compute_s=seconds - waited, comm_s=waited,
                          grad_norm=self.optimizer.grad_norm)
        self.report.step(step + 1, epoch, loss, speed)
        return stop

    def _evaluate(self, step):
        loss, accuracy = evaluate(self.model, self.data.test, max(self.o.batch_size, 64))
        self.report.write("eval", step=step, loss=loss, accuracy=accuracy)
        return loss, accuracy

    def _finish(self):
        o, comm, data, report = self.o, self.comm, self.data, self.report
        loss, accuracy = self._evaluate(self.total)
        if o.sample and comm.rank == 0:
            start = data.encode("\n" if "\n" in data.chars else data.chars[0])[None]
            start = Tensor(start).to(self.device)
            written = self.model.module.generate(start, o.sample, top_k=20)
            report.say(data.decode(host(written.array[0])))
        end = dict(steps=self.total, loss=loss, test_accuracy=accuracy,
                   params_sha256=params_sha256(self.model.module),
                   wall_s=time.perf_counter() - self.begin,
                   world_size=comm.size, dp=comm.size, pp=1, tp=1)
        report.write("end", **end)
        report.say(f"test accuracy {accuracy:.2%}, loss {loss:.4f}, {self.total} steps in "
                   f"{end['wall_s']:.1f} s")
        return end


def run(o, comm, interrupt=None):
    """Train as the options `o` say, on every rank of `comm`; returns the final metrics."""
    return Job(o, comm, interrupt or Interrupt()).run()


def main(argv=None, interrupt=None):
    """Run the main job from command-line arguments; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        comm = world()
    except RuntimeError as error:
        if launched_rank() == 0:
            print(f"minipar: error: {error}", file=sys.stderr)
        return 1
    if {"-h", "--help"} & set(argv):
        if comm.rank == 0:
            parser().print_help()
        return 0
    try:
        o = parse(argv, comm.size)
        if (o.ranks or 1) > comm.size:
            return start_ranks(argv, o)
        interrupt = interrupt or Interrupt()
        # A loss that is not finite is reported by name; NumPy's warnings on the way say less.
        with (interrupt if o.checkpoint else nullcontext(), np.errstate(all="ignore"),
              one_blas_thread() if comm.size > 1 else nullcontext()):
            run(o, comm, interrupt)
    except KeyboardInterrupt:
        if is_launched():
            raise  # the job of an MPI launcher is ended by its hook
        print("minipar: interrupted", file=sys.stderr)
        return 130  # as a shell says it: 128 + SIGINT
    except (UsageError, Failed) as error:
        if comm.rank == 0 or not getattr(error, "by_all", True):
            print(f"minipar: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def start_ranks(argv, o):
    """Run the job on the ranks that `--ranks` asks for; returns its exit status."""
    try:
        if o.launcher == "threads":
            interrupt = Interrupt()  # signals are the process's: its ranks share one
            with interrupt if o.checkpoint else nullcontext(), one_blas_thread():
                return max(launch(rank_main, o.ranks, args=(argv, interrupt), how="threads"))
        return max(launch(rank_main, o.ranks, args=(argv,), how=o.launcher,
                          forward_signals=bool(o.checkpoint)))
    except RankFailed as error:
        print(f"minipar: error: {error}", file=sys.stderr)
        return 1


def rank_main(argv, interrupt=None):
    """The job on one of the ranks that were started for it; returns its exit status."""
    from minipar.train import main as job  # by this name also where this file is `__main__`
    try:
        return job(argv, interrupt)
    except RankFailed:
        return 1  # whoever failed has said why


def one_blas_thread():
    """BLAS with one thread a rank: the ranks already keep the cores busy."""
    if threading.current_thread() is not threading.main_thread():
        return nullcontext()  # BLAS belongs to the process: whoever started the threads has done it
    from threadpoolctl import threadpool_limits
    return threadpool_limits(1, user_api="blas")


if __name__ == "__main__":
    sys.exit(main())
