"""From the options of the main job to its model, optimizer, trainer and learning rate."""

import math
from contextlib import nullcontext

from . import cuda, optim
from .amp import GradScaler, autocast
from .comm.topology import rank_on_host
from .device import CPU, gpu_count, resolve
from .models import CNN, GPT, MLP, GPTConfig, resnet18, resnet50
from .options import UsageError
from .parallel import (Exact, Measured, Pipelined, PipelinedZero, Replicated, SyncBatchNorm, Zero,
                       shard_model, vocab_parallel_cross_entropy)
from .parallel.hooks import compression
from .parallel.measure import block_seconds
from .parallel.partition import balanced, parameter_counts
from .parallel.slowness import Slowness
from .parallel.speeds import EVERY, Balance
from .parallel.sync import make_trainer
from .sync_options import SYNCS

# The options that shape each model: a checkpoint can be resumed with equal ones only.
SHAPE = {"mlp": ("hidden",), "cnn": (), "resnet18": (), "resnet50": (),
         "gpt": ("layers", "heads", "embedding", "block_size")}


def build_model(o, data):
    """The model that the options `o` ask for, sized for the data."""
    if (o.model == "gpt") != (data.kind == "text"):
        raise UsageError(f"{o.model} does not train on {data.kind} data ({o.data})")
    if o.model == "gpt":
        return GPT(GPTConfig(data.vocab_size, o.block_size, o.layers, o.heads, o.embedding,
                             o.dropout))
    if o.model == "mlp":
        return MLP([math.prod(data.input_shape), o.hidden, o.hidden, data.num_classes])
    if len(data.input_shape) != 3:
        raise UsageError(f"{o.model} needs images (channels, height, width), not samples of shape "
                         f"{data.input_shape}")
    if o.model == "cnn":
        return CNN(data.input_shape, data.num_classes)
    channels, height, width = data.input_shape
    make = resnet18 if o.model == "resnet18" else resnet50
    return make(data.num_classes, in_channels=channels, small_images=min(height, width) < 64)


def choose_device(name, comm):
    """The device that this rank computes on; its host's ranks share out the GPUs.

    Called by all ranks. Raises RuntimeError, in one line, where there is no GPU.
    """
    if name == "cpu":
        return CPU
    number = rank_on_host(comm)
    cuda.set_device(number % gpu_count())
    return resolve("cuda")


def build_optimizer(o, model):
    """The optimizer that the options ask for, over the parameters of `model`."""
    groups = [{"params": model.parameters()}]  # of which a stage of a pipeline may have none
    if o.optimizer == "sgd":
        return optim.SGD(groups, o.lr, momentum=o.momentum,
                         weight_decay=o.weight_decay)
    kind = optim.Adam if o.optimizer == "adam" else optim.AdamW
    return kind(groups, o.lr, weight_decay=o.weight_decay)


def stage_counts(o, model, data, comm):
    """How many blocks each stage has, as --partition says. Collective over `comm`.

    Raises ValueError, with the arithmetic, for what does not fit the model.
    """
    if isinstance(o.partition, list):
        return o.partition
    if o.partition == "parameters":
        weights = parameter_counts(model)
    else:  # rank 0 measures, for all have to agree
        size = max(1, min(o.batch_size, len(data.train)) // (o.mesh.dp * o.microbatches))
        weights = comm.broadcast_object(block_seconds(
            lambda: build_model(o, data), data.train.get_batch(range(size))[0].array)
            if comm.rank == 0 else None)
    return balanced(weights, o.pipeline.stages, o.stage_speeds)


def build_trainer(o, model, loss, comm, data):
    """The trainer for the layout that the options ask for, as slow as they want this rank.

    Collective over `comm`. Raises ValueError for a model that cannot be cut so.
    """
    slowness = Slowness(comm.engine, o.slow.get(comm.rank, 1), o.delay.get(comm.rank, 0))
    trainer = _trainer(o, model, slowness.around(loss), comm, data)
    trainer.slowness = slowness
    return trainer


def _trainer(o, model, loss, comm, data):
    def optimizer(module):
        return build_optimizer(o, module)
    precision = {"precision": lambda: autocast(o.device, o.amp) if o.amp else nullcontext(),
                 "scaler": GradScaler(enabled=o.amp == "float16", comm=comm)}
    if o.sync_batch_norm:
        SyncBatchNorm.convert_sync_batchnorm(model, o.mesh.split(comm, "dp"))
    if o.method.name not in SYNCS:
        return make_trainer(o.method, model, optimizer, loss, comm, o.mesh,
                            microbatches=o.microbatches, algorithm=o.program,
                            precision=precision["precision"])
    if o.exact:
        return Exact(model, optimizer, loss, comm, o.mesh, o.exact, algorithm=o.program)
    if o.mesh.tp > 1:
        cut = o.mesh.split(comm, "tp")
        shard_model(model, cut, sequence_parallel=o.sequence_parallel, gather_logits=False)
        if o.model == "gpt":
            def loss(logits, targets):
                rows = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
                return vocab_parallel_cross_entropy(*rows, model.config.vocab_size, cut)
    if o.sync != "ddp" and o.mesh.pp == 1 and (o.mesh.tp == 1 or o.sync == "zero2"):
        shared = o.sync == "shared"
        return Zero(model, optimizer, loss, comm, o.mesh, 1 if shared else int(o.sync[-1]),
                    microbatches=o.microbatches, algorithm=o.program, shared=shared, **precision)
    if o.gradient_stats:
        return Measured(model, optimizer, loss, comm, o.mesh, microbatches=o.microbatches,
                        algorithm=o.program, **precision)
    if o.mesh.pp * o.mesh.tp == 1:
        return Replicated(model, optimizer, loss, comm, o.mesh, microbatches=o.microbatches,
                          algorithm=o.program, hook=o.compress and compression(o.compress),
                          **precision)
    kind, more = Pipelined, {"hook": o.compress and (lambda: compression(o.compress))}
    if o.sync != "ddp":
        kind, more = PipelinedZero, {}
    return kind(model, optimizer, loss, comm, o.mesh, o.pipeline, recompute=o.recompute,
                counts=stage_counts(o, model, data, comm), algorithm=o.program,
                virtual=o.virtual_compute, **more, **precision)


def build_balance(o, comm):
    """What cuts batches by measured speed, if the options ask for it; else None."""
    if o.speeds != "auto":
        return None
    period = o.method.argument if o.method.name in ("local", "diloco") else 1
    return Balance(comm, o.mesh, o.batch_size, o.microbatches, every=-(-EVERY // period) * period)


def learning_rate(o, step, total):
    """The rate of a step (from 0): linear warm-up, then cosine decay to a tenth of the peak.

    A function of the step alone: a resumed run needs no state of a schedule.
    """
    if step < o.warmup:
        return o.lr * (step + 1) / o.warmup
    if o.lr_schedule == "constant":
        return o.lr
    progress = (step - o.warmup) / max(1, total - o.warmup)
    return o.lr * (0.55 + 0.45 * math.cos(math.pi * progress))


def identity(o, data):
    """What a checkpoint must share with the run that resumes it: {option: value}."""
    names = ("model", *SHAPE[o.model], "dtype", "amp", "optimizer", "seed", "batch_size")
    together = "ddp" if o.method.name in SYNCS else str(o.method)  # any sharding has the whole
    if o.method.name in ("local", "diloco", "gossip"):  # each rank has a state of its own
        together += f" on {o.mesh.size} ranks"
    return {**{name: getattr(o, name) for name in names}, "training samples": len(data.train),
            "sync": together, "exact": o.exact}
