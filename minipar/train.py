"""The main job: train a model on all ranks.

    python -m minipar.train                       one rank, no MPI needed
    python -m minipar.train --ranks 4             four ranks, started here, the same result
    mpirun -n 4 python -m minipar.train           four ranks by MPI, the same result

Every rank holds the whole model and takes a slice of each global batch, or holds some (--pp) of
its layers, a part (--tp) of each, or slices (--sync) of what all would hold. Losses are sums: the
gradients and the count are reduced over the ranks and divided once, in the optimizer's step, so
the result does not depend on how the work was cut. Exit status: 0 done, or interrupted with a
checkpoint written; 1 failed; 2 asked for something that cannot be.
"""

import sys
import time
from contextlib import nullcontext
from functools import partial

import numpy as np

from . import data as datasets
from . import dtypes, trace
from .build import (build_balance, build_model, build_trainer, choose_device, identity,
                    learning_rate)
from .checkpoint import CheckpointFolder, load_file
from .comm import world
from .comm.world import is_launched, launched_rank
from .context import current, manual_seed, set_default_dtype, set_kernels
from .data import GlobalBatchSampler
from .data.prefetch import on_device
from .device import DeviceError
from .evaluation import Failed, evaluate, loss_and_count, params_sha256, read
from .interrupt import Interrupt
from .options import UsageError, parse, parser
from .parallel import Diverged
from .parallel.residuals import PREFIX
from .report import Report
from .start import one_blas_thread, start_ranks
from .sync_options import SYNCS
from .tensor import Tensor


class Job:
    """One run, on one rank: data and trainer as the options `o` say, and the loop."""

    def __init__(self, o, comm, interrupt):
        self.o, self.comm, self.interrupt = o, comm, interrupt
        self.begin, self.bubbles = time.perf_counter(), []
        manual_seed(o.seed)
        set_default_dtype(o.dtype)
        if o.kernels:
            set_kernels(o.kernels)
        self.folder = CheckpointFolder(o.checkpoint, o.checkpoint_keep) if o.checkpoint else None
        try:
            comm.read_table(o.algorithm_table)
            self.data = datasets.load(o.data, block_size=o.block_size,
                                      dtype=dtypes.dtype(o.dtype), image_size=o.image_size)
            self.device = choose_device(o.device, comm)
            module = build_model(o, self.data).to(self.device)
            self.parameters = sum(p.numel() for p in module.parameters())
            # Batch normalisation needs samples on every rank: no short last batch for it.
            replica, replicas = o.mesh.share(comm.rank)
            self.sampler = GlobalBatchSampler(
                len(self.data.train), o.batch_size, rank=replica, num_replicas=replicas,
                seed=o.seed, virtual_shards=o.exact, shares=o.shares,
                drop_last=any("running_mean" in k for k, _ in module.named_buffers()))
            self.total = o.steps or o.epochs * len(self.sampler)
            self.first_step, weights, state = self._start_from(module)
            if o.trace:
                trace.check_path(o.trace)
            comm.progress = o.progress or comm.progress
            self.report = Report(comm.rank, self.total, o.metrics, o.quiet, self.first_step)
            self.trainer = build_trainer(o, module, loss_and_count, comm, self.data)
            self.balance = build_balance(o, comm)
        except (ValueError, OSError, DeviceError) as error:
            raise UsageError(str(error)) from None
        self.trainer.load(weights, state)
        if self.scaler_state:
            self.trainer.scaler.load_state_dict(self.scaler_state)

    def _start_from(self, module):
        """(steps done, weights, optimizer state) of what this run continues, the latter two on
        rank 0, which loads them. What it finds wrong is raised on every rank.
        """
        if not (self.folder or self.o.weights):
            self.scaler_state = None
            return 0, {}, {}
        state, weights, arrays, problem = {"step": 0}, {}, {}, None
        if self.comm.rank == 0:
            try:
                if self.o.weights:
                    weights = load_file(self.o.weights)
                if self.folder:
                    state, weights, arrays = self._open_folder() or (state, weights, arrays)
                if weights:
                    module.check_state_dict(weights)
            except (ValueError, OSError, RuntimeError) as error:
                problem = str(error)
        problem, state = self.comm.broadcast_object((problem, state))
        if problem:
            raise UsageError(problem)
        if "random" in state:
            current().set_random_state(state["random"])
        weights, arrays = ({k: t.array for k, t in d.items()} for d in (weights, arrays))
        self.scaler_state = state.get("scaler")
        return state["step"], weights, arrays

    def _open_folder(self):
        """(state, weights, optimizer state) of the checkpoint to resume, if one is to be."""
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
        if (theirs := state.get("compress")) != self.o.compress:
            rest = {name: a for name, a in arrays.items() if not name.startswith(PREFIX)}
            if len(rest) < len(arrays):
                print(f"minipar: the checkpoint is of --compress {theirs}: what that owed is "
                      f"dropped", file=sys.stderr)
            arrays = rest
        return state, weights, arrays

    def _save(self, step):
        weights, arrays = self.trainer.state()
        if self.comm.rank == 0:
            state = {"identity": identity(self.o, self.data), "world_size": self.comm.size,
                     "compress": self.o.compress,
                     "random": current().random_state(), "scaler": self.trainer.scaler.state_dict()}
            try:
                self.folder.save(step, weights, arrays, state)
            except OSError as error:
                raise Failed(f"the checkpoint of step {step} could not be written: "
                             f"{error}") from None

    def run(self):
        """Train; returns the final metrics, or None if training was interrupted."""
        o, comm = self.o, self.comm
        schedule = f", {o.schedule}, {' + '.join(map(str, self.trainer.counts))} blocks" if (
            o.mesh.pp > 1) else ""
        ranks = f"{comm.size} rank{'s' * (comm.size > 1)}"
        layout = f" ({o.mesh}{schedule})" if o.mesh.pp * o.mesh.tp > 1 else ""
        exact = f", exact over {o.exact} virtual shards" if o.exact else ""
        reduction = (f"gradients by {o.compress}" if o.compress else
                     f"{o.algorithm} all-reduce{exact}" if o.sync == "ddp" else
                     f"{o.algorithm} messages of {o.sync}" if o.sync in SYNCS else o.sync)
        self.report.say(f"{o.model} ({self.parameters:,} parameters) on {self.data.name} "
                        f"({len(self.data.train):,} samples), {ranks}{layout}, "
                        + reduction + (f" as {o.codec}" if o.codec else "")
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
        """Train; whether all steps were taken."""
        done = self._take_steps()
        self.trainer.finish()
        return done

    def _take_steps(self):
        """Take the steps; whether all were taken."""
        o, step, self.aside = self.o, self.first_step, self.comm.bytes_sent
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
        for group in self.trainer.optimizer.param_groups:
            group["lr"] = rate
        with self.trainer.slowness:
            loss, stop = self.trainer.step(batch(), shard, step, self.interrupt.requested,
                                           self.o.clip)
        if self.o.virtual_compute:
            loss = None  # nothing was computed
        seconds = time.perf_counter() - started
        waited = self.comm.engine.waited - waited
        speed, facts = shard.size / seconds, self.trainer.facts()
        if self.balance:
            self.sampler.shares = self.balance.after(step, seconds - waited, len(shard.indices))
        self.bubbles.append(facts.get("bubble_rate"))
        self.report.write("step", step=step + 1, epoch=epoch, loss=loss, lr=rate,
                          samples_per_s=speed, compute_s=seconds - waited, comm_s=waited,
                          overlap=self.trainer.overlap, staleness=self.trainer.staleness,
                          shares=shard.shares,
                          **{"grad_norm": self.trainer.optimizer.grad_norm, **facts})
        self.report.step(step + 1, epoch, loss, speed)
        return stop

    def _evaluate(self, step):
        """(loss, accuracy, bytes that all ranks have sent to train so far, None if unknown)."""
        self.trainer.settle()
        before = self.comm.bytes_sent
        loss, accuracy = evaluate(self.trainer, self.data.test, max(self.o.batch_size, 64))
        sent = np.array(before - self.aside, np.float64)
        self.comm.all_reduce(sent)
        sent = None if np.isnan(sent) else int(sent)
        self.report.write("eval", step=step, loss=loss, accuracy=accuracy, bytes_sent=sent)
        self.aside += self.comm.bytes_sent - before  # evaluation is no training
        return loss, accuracy, sent

    def _finish(self):
        o, comm, report = self.o, self.comm, self.report
        if o.virtual_compute:
            return self._finish_virtual()
        loss, accuracy, sent = self._evaluate(self.total)
        if o.sample:
            self._write_sample()
        parameters = self.trainer.parameters()
        digest = params_sha256(parameters) if parameters else None
        digest = digest if self.trainer.everywhere else comm.broadcast_object(digest)
        memory = self.trainer.memory()
        held = comm.all_gather(np.array([sum(memory.values())])).reshape(-1).tolist()
        end = dict(steps=self.total, loss=loss, test_accuracy=accuracy, params_sha256=digest,
                   wall_s=time.perf_counter() - self.begin, world_size=comm.size,
                   dp=o.mesh.dp, pp=o.mesh.pp, tp=o.mesh.tp, sync=str(o.method),
                   servers=o.method.servers or None, exact=o.exact, algorithms=comm.chosen,
                   memory=memory, memory_of_ranks=held, bytes_sent=sent)
        report.write("end", **end)
        report.say(f"test accuracy {accuracy:.2%}, loss {loss:.4f}, {self.total} steps in "
                   f"{end['wall_s']:.1f} s")
        return end

    def _finish_virtual(self):
        """The first step, in which the stages learn their shapes, counts only if it is alone."""
        o, mesh = self.o, self.o.mesh
        end = dict(steps=self.total, bubble_rate=float(np.median(self.bubbles[1:] or self.bubbles)),
                   predicted_bubble_rate=float(o.predicted), world_size=self.comm.size,
                   wall_s=time.perf_counter() - self.begin, dp=mesh.dp, pp=mesh.pp, tp=mesh.tp)
        self.report.write("end", **end)
        self.report.say(f"{o.schedule}: bubble {end['bubble_rate']:.4f}, predicted "
                        f"{o.predicted:.4f}, {self.total} steps in {end['wall_s']:.1f} s")
        return end

    def _write_sample(self):
        """Characters that the trained model writes; rank 0 puts it together for that."""
        weights, _ = self.trainer.state()
        if self.comm.rank == 0:
            data, model = self.data, build_model(self.o, self.data)
            model.load_state_dict(weights)
            start = Tensor(data.encode("\n" if "\n" in data.chars else data.chars[0])[None])
            written = model.generate(start, self.o.sample, top_k=20)
            self.report.say(data.decode(written.array[0]))


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
              one_blas_thread() if comm.size > 1 or o.exact else nullcontext()):
            run(o, comm, interrupt)
    except KeyboardInterrupt:
        if is_launched():
            raise  # the job of an MPI launcher is ended by its hook
        print("minipar: interrupted", file=sys.stderr)
        return 130  # as a shell says it: 128 + SIGINT
    except (UsageError, Failed, Diverged) as error:
        if comm.rank == 0 or isinstance(error, Failed) or getattr(error, "alone", False):
            print(f"minipar: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
