"""The main job's options for what replicas keep, and what they exchange."""

from .comm.select import names
from .parallel.hooks import COMPRESSIONS, compression
from .parallel.sync.method import parse_method

SYNCS = ("ddp", "zero1", "zero2", "zero3", "shared")
MOST_VIRTUAL_SHARDS = 1 << 16  # a step asks each of them whether it has samples
NORMALISED = ("resnet18", "resnet50")  # the models with batch normalisation


def add_sync_options(add, count):
    """Declare them. add: `add_argument` of the job's parser; count: the type of a number >= 1."""
    add("--compress", metavar="NAME[:ARG]", help="exchange compressed gradients: "
        + ", ".join(COMPRESSIONS) + "; topk:0.01 is the part that is sent, powersgd:4 the rank. "
        "What is lost is owed to the next step, but for fp16 and bf16, which round")
    add("--gradient-stats", action="store_true", help="--metrics also gets the gradient's norm, "
        "the variance of the ranks' gradients, and their mean cosine with what all apply")
    add("--sync", default="ddp", metavar="METHOD", help="what replicas keep and exchange: ddp "
        "all-reduces gradients (default); zero1, zero2, zero3 keep a slice each of the optimizer's "
        "state, of gradients too, of parameters too; shared: as zero1, and the ranks of one "
        "machine have one copy of the parameters (zero1 with --pp and --tp, too, zero2 with --tp); "
        "local:H or diloco:H average every H steps; delayed: gradients one step late; gossip:ring "
        "(torus, exponential, complete, or edges: 0-1,1-2); adpsgd:ring, gossip that waits for "
        "nobody; ps, ps:async, ssp:S: parameter servers")
    add("--sync-batch-norm", action="store_true", help="batch normalisation over the samples of "
        "all replicas, not of each (resnet18, resnet50)")
    add("--servers", type=count, metavar="K", help="the last K ranks are parameter servers "
        "(default 1, with --sync ps, ps:async and ssp)")
    add("--exact", type=count, nargs="?", const=16, metavar="V", help="the same bits on any number "
        "of ranks and by any all-reduce: each batch is cut into V virtual shards (default 16), "
        "computed alone and summed exactly. Another V gives other bits")


def check_method(o, world_size):
    """Set `o.method`; returns how many ranks train. Raises ValueError, in one line."""
    try:
        o.method = parse_method(o.sync, world_size, o.servers)
    except ValueError as error:
        raise ValueError(f"argument --sync: {error}") from None
    if o.sync_batch_norm and o.model not in NORMALISED:
        raise ValueError(f"--sync-batch-norm: {o.model} has no batch normalisation")
    if o.method.name in SYNCS:
        return world_size
    if o.sync_batch_norm:
        raise ValueError(f"--sync-batch-norm is for ranks that compute each step together: not "
                         f"with --sync {o.sync}")
    for axis in ("pp", "tp"):
        if getattr(o, axis) > 1:
            raise ValueError(f"--sync {o.sync} keeps whole replicas together: not with "
                             f"--{axis} {getattr(o, axis)}")
    if o.method.name == "adpsgd" and o.checkpoint:
        raise ValueError("--checkpoint needs ranks that agree on a step to write, or to stop: not "
                         "with --sync " + o.sync)
    if o.amp == "float16":
        raise ValueError(f"--amp float16 scales a loss that all ranks reduce in each step: not "
                         f"with --sync {o.sync}")
    if o.clip and str(o.method) != "ps" and o.method.servers:
        raise ValueError(f"--clip needs all gradients of a step together: not with --sync "
                         f"{o.sync}")
    if o.codec:
        raise ValueError(f"--codec is for gradients that an all-reduce sums: not with --sync "
                         f"{o.sync}")
    return world_size - o.method.servers


def check_compress(o):
    """Refuse a compression that there is not, or that cannot be together with other options.

    Raises ValueError, in one line.
    """
    if not o.compress:
        return
    try:
        state, _ = compression(o.compress)
    except ValueError as error:
        raise ValueError(f"argument --compress: {error}") from None
    if o.device != "cpu":
        raise ValueError(f"--compress {o.compress} is for gradients in the CPU's memory: not with "
                         f"--device {o.device}")
    if o.sync != "ddp":
        raise ValueError(f"--compress {o.compress} is for --sync ddp, not for {o.sync}")
    if o.codec:
        raise ValueError(f"--compress {o.compress} and --codec {o.codec} both encode gradients")
    if o.algorithm != "ring":
        raise ValueError(f"--compress {o.compress} has its own collectives: --algorithm "
                         f"{o.algorithm} would not serve")
    if state is not None and o.amp == "float16":
        raise ValueError(f"--compress {o.compress} owes each step what the last one lost, and "
                         f"--amp float16 scales steps differently: --amp bfloat16 does not")


def check_gradient_stats(o):
    """They are of whole gradients, which are summed. Raises ValueError, in one line."""
    if not o.gradient_stats:
        return
    other = [f"--{name} {value}" for name, value, usual in (
        ("pp", o.pp, 1), ("tp", o.tp, 1), ("sync", o.sync, "ddp"), ("compress", o.compress, None),
        ("exact", o.exact, None), ("device", o.device, "cpu")) if value != usual]
    if o.amp == "float16":
        other.append("--amp float16, which scales them")
    if other:
        raise ValueError(f"--gradient-stats is of gradients that replicas of a model sum on the "
                         f"CPU: not with {other[0]}")


def check_sharding(o):
    """What is sharded, if something is, goes together with the rest. Raises ValueError."""
    if o.sync != "ddp" and o.device != "cpu":
        raise ValueError(f"--sync {o.sync} is for the CPU's memory: not with --device {o.device}")
    if o.sync == "ddp" or o.sync not in SYNCS:
        return
    if o.mesh.dp < o.mesh.size and o.sync != "zero1" and (o.sync != "zero2" or o.pp > 1):
        raise ValueError(f"--sync {o.sync} is for whole models, not for {o.mesh}: zero1 cuts the "
                         f"optimizer's state among the replicas of what a rank holds, too"
                         + ", and with --tp alone zero2 their gradients")
    if o.sync == "zero2" and o.tp > 1 and o.recompute:
        raise ValueError("--recompute is for stages: not with --sync zero2")
    if o.codec:
        raise ValueError(f"--codec {o.codec} encodes an all-reduce, which --sync {o.sync} has not")
    both = [name for name in names("reduce_scatter") if name in names("all_gather")]
    if o.algorithm not in both:
        raise ValueError(f"argument --algorithm: --sync {o.sync} has reduce-scatter and "
                         f"all-gather: there are {', '.join(both)} of both")


def check_exact(o, world_size):
    """Refuse what cannot be together with exact sums. Raises ValueError, in one line."""
    if not o.exact:
        return
    why = {
        "pp": o.pp > 1 and "is for replicas of whole models",
        "tp": o.tp > 1 and "is for replicas of whole models",
        "sync": o.sync != "ddp" and "sums all gradients in every step",
        "compress": o.compress and "sums gradients as they are",
        "codec": o.codec and "sums integers, which stay whole",
        "amp": o.amp and "is for float32 and float64",
        "device": o.device != "cpu" and "is for the CPU, where each rank computes alike",
        "microbatches": o.microbatches > 1 and f"cuts each batch into {o.exact} virtual shards "
                                               f"already"}
    for option, reason in why.items():
        if reason:
            raise ValueError(f"--exact {reason}: not with --{option} {getattr(o, option)}")
    if world_size > o.exact:
        raise ValueError(f"world size {world_size} > {o.exact} virtual shards of --exact: each "
                         f"rank computes at least one (--exact {world_size} has other bits)")
    if o.exact > MOST_VIRTUAL_SHARDS:
        raise ValueError(f"--exact {o.exact} > {MOST_VIRTUAL_SHARDS} virtual shards")
