"""The main job's options: parsing, defaults, and refusals that show the arithmetic."""

import argparse
import difflib
import os
from pathlib import Path

from .comm.codecs import CODECS
from .comm.compose import compressed
from .comm.engine import PROGRESS
from .comm.program import ALGORITHMS
from .comm.select import names
from .comm.world import is_launched
from .context import KERNELS
from .dtypes import dtype
from .execution.threads import get_num_threads
from .parallel.mesh import Mesh
from .parallel.schedule import SCHEDULES
from .pipeline_options import add_pipeline_options, check_pipeline_options
from .speed_options import add_speed_options, check_speeds
from .sync_options import (add_sync_options, check_compress, check_exact, check_gradient_stats,
                           check_method, check_sharding)

MODELS = ("mlp", "cnn", "resnet18", "resnet50", "gpt")
OPTIMIZERS = ("sgd", "adam", "adamw")
DTYPES = ("float32", "float64")
AMP = ("float16", "bfloat16")
LAUNCHERS = ("processes", "threads", "mpi")

# What a model trains with if nothing else is asked for: (data, batch size, epochs, lr).
DEFAULTS = {"mlp": ("digits", 64, 15, 3e-3), "cnn": ("digits", 64, 10, 3e-3),
            "resnet18": ("fashion", 64, 1, 1e-3), "resnet50": ("fashion", 64, 1, 1e-3),
            "gpt": ("plays", 16, 2, 3e-3)}


DEVICES = ("cpu", "cuda")


class UsageError(ValueError):
    """Something was asked for that cannot be: one line, exit status 2."""


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UsageError(message)


def _one_of(names):
    def check(value):
        if value not in names:
            near = difflib.get_close_matches(value, names, n=3) or names
            raise argparse.ArgumentTypeError(f"no {value!r}: did you mean {', '.join(near)}?")
        return value
    return check


def _number(kind, low, high=float("inf"), strict=False):
    def check(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not (value > low if strict else value >= low) or value > high:
            bounds = f"{'>' if strict else '>='} {low}" + (
                f" and <= {high}" if high < float("inf") else "")
            raise argparse.ArgumentTypeError(f"{text} is not {bounds}")
        return value
    return check


def parser():
    """The argument parser of the main job."""
    count, positive = _number(int, 1), _number(float, 0, strict=True)
    p = _Parser(prog="python -m minipar.train", allow_abbrev=False, description=
                "Train a model on all ranks of the job. Start it alone, or with mpirun -n N.")
    add = p.add_argument
    add("--model", type=_one_of(MODELS), default="mlp", help=", ".join(MODELS))
    add("--data", help="digits, fashion, plays; a file: .npz with x and y, .csv, .txt; a folder of "
        "IDX files, or of images in a folder for each class")
    add("--image-size", type=count, default=64, metavar="PIXELS",
        help="height and width of the images in a folder (default 64)")
    length = p.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=count, help="passes over the training set")
    length.add_argument("--steps", type=count, help="optimizer steps")
    add("--batch-size", type=count, metavar="GLOBAL", help="samples a step, over all ranks")
    add("--microbatches", type=count, metavar="M", help="cut each replica's share into M and "
        "accumulate the gradients (default 1; 2 for each stage of a pipeline)")
    add("--lr", type=positive, help="peak learning rate")
    add("--lr-schedule", type=_one_of(("cosine", "constant")), default="cosine",
        help="after the warm-up: cosine decay to a tenth (default), or constant")
    add("--warmup", type=_number(int, 0), default=10, metavar="STEPS",
        help="steps of linear warm-up (default 10)")
    add("--optimizer", type=_one_of(OPTIMIZERS), default="adamw",
        help="adamw (default), adam or sgd")
    add("--momentum", type=_number(float, 0, 1), default=0.9, help="of sgd (default 0.9)")
    add("--weight-decay", type=_number(float, 0), default=0.01, help="default 0.01")
    add("--clip", type=positive, metavar="NORM", help="clip the global gradient norm")
    add("--seed", type=_number(int, 0), default=0)
    add("--dtype", type=_one_of(DTYPES), default="float32", help="float32 (default) or float64")
    add("--amp", type=_one_of(AMP), help="mixed precision: products in float16, with a scaled "
        "loss, or in bfloat16; parameters stay float32")
    add("--hidden", type=count, default=256, help="features of the mlp's two hidden layers")
    add("--layers", type=count, default=4, help="blocks of the gpt")
    add("--heads", type=count, default=4, help="attention heads of the gpt")
    add("--embedding", type=count, default=128, help="features of the gpt")
    add("--block-size", type=count, default=64, help="tokens in a sample of the gpt")
    add("--dropout", type=_number(float, 0, 1), default=0.0, help="of the gpt")
    add("--sample", type=count, metavar="N", help="print N characters that the gpt writes")
    add("--weights", metavar="FILE", help="start from the weights in a .safetensors file")
    add("--checkpoint", metavar="DIR", help="write the training state there, now and then, at "
        "the end, and at Ctrl-C or SIGTERM")
    add("--checkpoint-every", type=count, default=100, metavar="STEPS", help="default 100")
    add("--checkpoint-keep", type=count, default=3, metavar="K",
        help="keep the last K checkpoints (default 3)")
    add("--resume", action="store_true", help="go on from the last checkpoint in DIR")
    add("--ranks", type=count, metavar="N", help="start N ranks here, without mpirun")
    add("--launcher", type=_one_of(LAUNCHERS), default="processes",
        help="what --ranks starts: processes (default), threads, or mpi")
    add("--dp", type=count, metavar="N", help="replicas of the model: what --pp and --tp leave, "
        "if given")
    add("--pp", type=count, default=1, metavar="N", help="cut the model by layers over N ranks")
    add("--tp", type=count, default=1, metavar="N", help="cut every layer over N ranks: attention "
        "heads, features, vocabulary (gpt, mlp)")
    add("--sequence-parallel", action="store_true",
        help="with --tp, norms and dropouts of the gpt work on pieces of the sequence")
    add("--schedule", metavar="NAME | FILE", help="of the pipeline (default 1f1b): "
        + ", ".join(SCHEDULES) + "; or one of yours, proved first: my.csv, FILE.py:NAME")
    add("--chunks", type=count, metavar="V", help="stages a rank, for schedules that have them")
    add("--recompute", action="store_true",
        help="stages keep their input alone, and run forward again in backward")
    add_pipeline_options(add)
    add("--algorithm", default="ring", metavar="NAME | FILE.py:NAME", help="all-reduce: one of "
        + ", ".join(names("all_reduce")) + "; or a program in a file of yours, proved first")
    add("--codec", type=_one_of(tuple(CODECS)), help="send the all-reduce's messages encoded: "
        + ", ".join(CODECS))
    add("--progress", type=_one_of(PROGRESS), help="reductions go on while backward computes by "
        "hooks in it (default), or by a thread beside it; also MINIPAR_PROGRESS")
    add("--algorithm-table", metavar="FILE.json", help="what auto selects by, before minipar's own "
        "table (default: $MINIPAR_ALGORITHMS); minipar tune writes one")
    add_sync_options(add, count)
    add_speed_options(add)
    add("--eval-every", type=count, metavar="STEPS", help="also evaluate every so many steps")
    add("--device", type=_one_of(DEVICES), default="cpu", help="cpu (default), or cuda: rank r "
        "computes on GPU r of its host, counted round")
    add("--kernels", type=_one_of(KERNELS), help="how operations that have a kernel run: "
        "compiled for this CPU (default), NumPy's reference, or emulated thread by thread")
    add("--metrics", metavar="FILE.jsonl", help="write one JSON object a line")
    add("--trace", metavar="FILE", help="record every message, forward, backward and wait of "
        "all ranks, for Perfetto or chrome://tracing")
    add("--quiet", action="store_true", help="print nothing but errors")
    return p


def _users_program(path, name, world_size):
    """The all-reduce of that name in a file, if it is right for so many ranks."""
    from .commands.programs import programs_of  # which knows the errors of this file
    from .comm.verify import VerificationError, verify
    found = {p.name: p for p in programs_of(path) if p.kind.name == "all_reduce"}
    if name not in found:
        raise UsageError(f"argument --algorithm: no all_reduce program {name!r} in {path}: there "
                         f"are {', '.join(found) or 'none'}")
    if reason := found[name].refusal(world_size):
        raise UsageError(f"argument --algorithm: {reason}")
    try:
        verify(found[name], world_size)
    except VerificationError as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"argument --algorithm: {name} is wrong: {first} (the whole story: "
                         f"minipar verify {path} --ranks {world_size})") from None
    return found[name]


def _encoded(program, o, world_size):
    """A program (or the name of one) with its messages encoded, if it is right so."""
    from .comm.verify import verify
    program = ALGORITHMS["all_reduce"].get(program, program)
    if isinstance(program, str):
        raise UsageError(f"argument --codec: {program} is not one algorithm of messages: name "
                         f"one, --algorithm ring")
    program = compressed(program, CODECS[o.codec])
    try:
        verify(program, world_size)
    except ValueError as error:
        raise UsageError(f"argument --codec: {str(error).splitlines()[0]}") from None
    return program


def _check_algorithm(o, replicas):
    """Set `o.program`, what the replicas reduce with: a name, or a Program of the user's."""
    o.program = o.algorithm
    if ".py:" in o.algorithm:
        o.program = _users_program(*o.algorithm.rsplit(":", 1), replicas)
        return
    valid = names("all_reduce")
    if o.algorithm not in valid:
        near = difflib.get_close_matches(o.algorithm, valid, n=3) or valid
        raise UsageError(f"argument --algorithm: no {o.algorithm!r}: "
                         f"did you mean {', '.join(near)}?")
    program = ALGORITHMS["all_reduce"].get(o.algorithm)
    if program is not None and (reason := program.refusal(replicas)):
        raise UsageError(f"argument --algorithm: {reason}")
    if o.algorithm == "nccl" and o.device != "cuda":
        raise UsageError("argument --algorithm: nccl is for GPUs: --device cuda")
    if o.algorithm == "mpi" and not is_launched() and not (o.ranks and o.launcher == "mpi"):
        raise UsageError("argument --algorithm: mpi is the MPI library's own: start with mpirun, "
                         "or with --launcher mpi")


def _check_layout(o, world_size):
    """Set `o.mesh`, and `o.pipeline`, the Schedule of a model that is cut (else None)."""
    try:
        o.mesh = Mesh.of(world_size, o.dp, o.pp, o.tp)
    except ValueError as error:
        raise UsageError(str(error)) from None
    o.pipeline, asked = None, o.microbatches
    o.microbatches = asked or (2 * o.pp if o.pp > 1 else 1)
    if o.pp > 1:
        from .commands.schedules import schedule_of  # which knows the errors of this file
        o.schedule = o.schedule or "1f1b"
        m = asked if o.schedule.endswith(".csv") else o.microbatches  # a file says how many
        o.pipeline = schedule_of(o.schedule, o.pp, m, o.chunks, o.virtual_compute)
        o.microbatches = o.pipeline.microbatches
    elif o.tp > 1:
        o.pipeline = SCHEDULES["1f1b"](1, o.microbatches)  # of one stage
    try:
        check_pipeline_options(o)
    except ValueError as error:
        raise UsageError(str(error)) from None
    dp = o.mesh.dp
    shares = f"{dp} {'rank' if dp == world_size else 'replica'}{'s' * (dp != 1)}"
    if o.batch_size < dp:
        raise UsageError(f"global batch {o.batch_size} < {shares}")
    if o.batch_size < dp * o.microbatches:
        raise UsageError(f"global batch {o.batch_size} < {shares} x {o.microbatches} micro-batches "
                         f"= {dp * o.microbatches}")
    if o.sequence_parallel and (o.tp == 1 or o.model != "gpt"):
        raise UsageError("--sequence-parallel is for a gpt with --tp, not "
                         + (f"{o.model}" if o.model != "gpt" else "--tp 1"))


def parse(argv, world_size):
    """The options in `argv`, completed and checked against the number of ranks.

    Raises UsageError with one line for what cannot be; SystemExit(0) for --help.
    """
    o = parser().parse_args(argv)
    chosen = os.environ.get("MINIPAR_KERNELS")
    if chosen and chosen not in KERNELS:
        raise UsageError(f"MINIPAR_KERNELS: no {chosen!r}: there are {', '.join(KERNELS)}")
    try:
        get_num_threads()
    except ValueError as error:
        raise UsageError(str(error)) from None
    data, batch, epochs, lr = DEFAULTS[o.model]
    o.data = o.data or data
    o.batch_size = o.batch_size or batch
    o.lr = o.lr or lr
    if o.epochs is None and o.steps is None:
        o.epochs = epochs
    if o.ranks and world_size == 1 and not is_launched():
        world_size = o.ranks  # these ranks are still to be started
    if o.ranks and o.ranks != world_size:
        raise UsageError(f"world size {world_size} != ranks {o.ranks}")
    try:
        _check_layout(o, check_method(o, world_size))
        check_sharding(o)
        _check_algorithm(o, o.mesh.dp)
        check_compress(o)
        check_exact(o, world_size)
        check_speeds(o, world_size)
        check_gradient_stats(o)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if o.codec:
        o.program = _encoded(o.program, o, world_size)
    if o.metrics and not Path(o.metrics).resolve().parent.is_dir():
        raise UsageError(f"--metrics {o.metrics}: there is no folder "
                         f"{Path(o.metrics).resolve().parent}")
    if o.metrics and Path(o.metrics).is_dir():
        raise UsageError(f"--metrics {o.metrics} is a folder")
    if o.resume and not o.checkpoint:
        raise UsageError("--resume goes on from the folder that --checkpoint names")
    if o.resume and o.weights:
        raise UsageError("--resume and --weights both say what to start from")
    if o.checkpoint and Path(o.checkpoint).exists() and not Path(o.checkpoint).is_dir():
        raise UsageError(f"--checkpoint {o.checkpoint} is a file, not a folder")
    if o.amp and o.dtype != "float32":
        raise UsageError(f"--amp {o.amp} is mixed with float32, not with --dtype {o.dtype}")
    try:
        dtype(o.amp or "float32")
    except TypeError as error:
        raise UsageError(f"argument --amp: {error}") from None
    if o.sample and o.model != "gpt":
        raise UsageError(f"--sample is for gpt, not {o.model}")
    return o
