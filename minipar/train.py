"""The main job: train a model with data parallelism over all ranks.

    python -m minipar.train                       one rank, no MPI needed
    mpirun -n 4 python -m minipar.train           four ranks, the same result

Every rank holds the whole model and takes a slice of each global batch. Losses are sums: the
gradients and the count are reduced over the ranks and divided once, in the optimizer's step, so
the result does not depend on how the batch was cut. Exit status: 0 done, 1 failed, 2 asked for
something that cannot be.
"""

import hashlib
import io
import math
import sys
import time
from contextlib import nullcontext, redirect_stdout

import numpy as np

from . import data as datasets
from . import dtypes, optim
from .comm import world
from .comm.world import launched_rank
from .context import batch_position, manual_seed, no_grad, set_default_dtype
from .data import GlobalBatchSampler
from .models import CNN, GPT, MLP, GPTConfig
from .ops.loss import cross_entropy_sum_count
from .options import UsageError, parse
from .parallel import DistributedDataParallel
from .report import Report
from .tensor import Tensor


class Diverged(RuntimeError):
    """The loss is not a finite number any more."""


def build_model(o, data):
    """The model that the options `o` ask for, sized for the data."""
    if (o.model == "gpt") != (data.kind == "text"):
        raise UsageError(f"{o.model} does not train on {data.kind} data ({o.data})")
    if o.model == "gpt":
        return GPT(GPTConfig(data.vocab_size, o.block_size, o.layers, o.heads, o.embedding,
                             o.dropout))
    if o.model == "cnn":
        if len(data.input_shape) != 3:
            raise UsageError(f"cnn needs images (channels, height, width), not samples of shape "
                             f"{data.input_shape}")
        return CNN(data.input_shape, data.num_classes)
    return MLP([math.prod(data.input_shape), o.hidden, o.hidden, data.num_classes])


def build_optimizer(o, model):
    if o.optimizer == "sgd":
        return optim.SGD(model.parameters(), o.lr, momentum=o.momentum,
                         weight_decay=o.weight_decay)
    return optim.AdamW(model.parameters(), o.lr, weight_decay=o.weight_decay)


def learning_rate(o, step, total):
    """The rate of a step (from 0): linear warm-up, then cosine decay to a tenth of the peak."""
    if step < o.warmup:
        return o.lr * (step + 1) / o.warmup
    if o.lr_schedule == "constant":
        return o.lr
    progress = (step - o.warmup) / max(1, total - o.warmup)
    return o.lr * (0.55 + 0.45 * math.cos(math.pi * progress))


def loss_and_count(logits, targets):
    """Sum of the cross-entropies over all targets, and how many there are."""
    classes = logits.shape[-1]
    return cross_entropy_sum_count(logits.reshape(-1, classes), targets.reshape(-1))


def train_step(model, optimizer, batch, shard, o, step):
    """One optimizer step on this rank's shard of a global batch; returns the mean loss."""
    inputs, targets = (t.array for t in batch)
    k, m = len(inputs), o.microbatches
    optimizer.zero_grad()
    totals = np.zeros(2)  # sum of losses, count of targets
    reduction = None
    for i in range(m):
        a, b = i * k // m, (i + 1) * k // m
        last = i == m - 1
        with batch_position(step, shard.start + a), nullcontext() if last else model.no_sync():
            loss, count = loss_and_count(model(Tensor(inputs[a:b])), Tensor(targets[a:b]))
            totals += loss.item(), count
            if last:  # every rank starts this first, then the buckets: the agreed order
                reduction = model.comm.all_reduce(totals, async_op=True)
            loss.backward()
    reduction.wait()
    if not math.isfinite(totals[0]):
        raise Diverged(f"loss is {totals[0]} at step {step + 1}; {first_bad(model.module)}")
    optimizer.step(scale=1 / max(totals[1], 1), max_norm=o.clip)
    return totals[0] / max(totals[1], 1)


def first_bad(module):
    """Which parameter is not finite; else which gradient."""
    for what in ("parameter", "gradient of"):
        for name, p in module.named_parameters():
            tensor = p if what == "parameter" else p.grad
            if tensor is not None and not np.isfinite(tensor.array).all():
                return f"first bad: {what} {name}"
    return "all parameters and gradients are finite"


def evaluate(model, dataset, batch_size):
    """(mean loss, accuracy) over a data set, each rank taking its slice of each batch."""
    comm, totals = model.comm, np.zeros(3)
    sampler = GlobalBatchSampler(len(dataset), max(batch_size, comm.size), rank=comm.rank,
                                 num_replicas=comm.size, shuffle=False)
    model.eval()
    with no_grad():
        for shard in sampler.shards(0):
            inputs, targets = dataset.get_batch(shard.indices)
            logits = model(inputs)
            loss, count = loss_and_count(logits, targets)
            hits = (logits.array.argmax(axis=-1) == targets.array).sum()
            totals += loss.item(), count, hits
    model.train()
    comm.all_reduce(totals)
    return totals[0] / totals[1], totals[2] / totals[1]


def params_sha256(module):
    """A hash of all parameters in name order: equal for every layout that holds equal ones."""
    digest = hashlib.sha256()
    for name, p in sorted(module.named_parameters()):
        digest.update(f"{name} {p.dtype.name} {p.shape}\n".encode())
        digest.update(np.ascontiguousarray(p.array).tobytes())
    return digest.hexdigest()


def run(o, comm):
    """Train as the options `o` say, on every rank of `comm`; returns the final metrics."""
    manual_seed(o.seed)
    set_default_dtype(o.dtype)
    begin = time.perf_counter()
    try:
        data = datasets.load(o.data, block_size=o.block_size, dtype=dtypes.dtype(o.dtype))
        sampler = GlobalBatchSampler(len(data.train), o.batch_size, rank=comm.rank,
                                     num_replicas=comm.size, seed=o.seed)
        model = build_model(o, data)
        total = o.steps or o.epochs * len(sampler)
        report = Report(comm.rank, total, o.metrics, o.quiet)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from None
    model = DistributedDataParallel(model, process_group=comm, gradient="sum",
                                    algorithm=o.algorithm)
    optimizer = build_optimizer(o, model)
    parameters = sum(p.numel() for p in model.parameters())
    report.say(f"{o.model} ({parameters:,} parameters) on {data.name} "
               f"({len(data.train):,} samples), {comm.size} ranks, {o.algorithm} all-reduce")
    try:
        return _loop(o, comm, data, sampler, model, optimizer, report, total, begin)
    finally:
        report.close()


def _loop(o, comm, data, sampler, model, optimizer, report, total, begin):
    step = epoch = 0
    loss = math.nan
    while step < total:
        epoch += 1
        for shard in sampler.shards(epoch - 1):
            started, waited = time.perf_counter(), comm.engine.waited
            rate = learning_rate(o, step, total)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = train_step(model, optimizer, data.train.get_batch(shard.indices), shard, o,
                              step)
            step += 1
            seconds, waited = time.perf_counter() - started, comm.engine.waited - waited
            speed = shard.size / seconds
            report.write("step", step=step, epoch=epoch, loss=loss, lr=rate,
                         samples_per_s=speed, compute_s=seconds - waited, comm_s=waited,
                         grad_norm=optimizer.grad_norm)
            report.step(step, epoch, loss, speed)
            if o.eval_every and step % o.eval_every == 0 and step < total:
                _evaluate(model, data, o, report, step)
            if step == total:
                break
    test_loss, accuracy = _evaluate(model, data, o, report, step)
    if o.sample and comm.rank == 0:
        start = Tensor(data.encode("\n" if "\n" in data.chars else data.chars[0])[None])
        report.say(data.decode(model.module.generate(start, o.sample, top_k=20).array[0]))
    end = dict(steps=step, loss=test_loss, test_accuracy=accuracy,
               params_sha256=params_sha256(model.module), wall_s=time.perf_counter() - begin,
               world_size=comm.size, dp=comm.size, pp=1, tp=1)
    report.write("end", **end)
    report.say(f"test accuracy {accuracy:.2%}, loss {test_loss:.4f}, {step} steps in "
               f"{end['wall_s']:.1f} s")
    return end


def _evaluate(model, data, o, report, step):
    loss, accuracy = evaluate(model, data.test, max(o.batch_size, 64))
    report.write("eval", step=step, loss=loss, accuracy=accuracy)
    return loss, accuracy


def main(argv=None):
    """Run the main job from command-line arguments; returns the exit status."""
    try:
        comm = world()
    except RuntimeError as error:
        if launched_rank() == 0:
            print(f"minipar: error: {error}", file=sys.stderr)
        return 1
    try:
        with nullcontext() if comm.rank == 0 else redirect_stdout(io.StringIO()):  # one --help
            o = parse(argv, comm.size)
        # A loss that is not finite is reported by name; NumPy's warnings on the way say less.
        with (one_blas_thread() if comm.size > 1 else nullcontext(),
              np.errstate(all="ignore")):
            run(o, comm)
    except (UsageError, Diverged) as error:
        if comm.rank == 0:
            print(f"minipar: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def one_blas_thread():
    """BLAS with one thread a rank: the ranks already keep the cores busy."""
    from threadpoolctl import threadpool_limits
    return threadpool_limits(1, user_api="blas")


if __name__ == "__main__":
    sys.exit(main())
