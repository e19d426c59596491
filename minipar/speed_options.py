"""The main job's options for machines that are not equally fast, and for making them so."""

import argparse

from .data.shares import apportion
from .pipeline_options import speeds

# Ranks of these methods never meet, so they cannot agree on measured speeds.
_NEVER_MEET = ("gossip", "adpsgd", "ssp", "ps:async")


def add_speed_options(add):
    """Declare them. add: `add_argument` of the job's parser."""
    add("--speeds", type=_speeds_or_auto, metavar="1,1,0.5,1 | auto", help="how fast each replica "
        "is: the global batch is cut in proportion, the gradient stays its mean; auto measures, "
        "and adjusts the shares as training goes")
    add("--slow", type=_by_rank("FACTOR", 1, "1 or more times as long"), action="extend",
        metavar="RANK:FACTOR", default=[], help="that rank sleeps so that it takes FACTOR times as "
        "long to compute, to study stragglers; several: 1:2,3:1.5, or the option again")
    add("--delay", type=_by_rank("MS", 0, "0 or more milliseconds"), action="extend",
        metavar="RANK:MS", default=[], help="that rank sleeps MS milliseconds in each step")


def _speeds_or_auto(text):
    return text if text == "auto" else speeds(text)


def _by_rank(name, low, words):
    """The type of "RANK:NUMBER,...": a list of (rank, number)."""
    def check(text):
        found = []
        for part in text.split(","):
            rank, colon, number = part.partition(":")
            try:
                value = float(number)
            except ValueError:
                value = float("nan")
            if not rank.isdecimal() or not low <= value < float("inf"):
                raise argparse.ArgumentTypeError(f"{part!r} is not RANK:{name}, a rank and {words}")
            found.append((int(rank), value))
        return found
    return check


def _each_once(option, pairs, world_size):
    ranks = [rank for rank, _ in pairs]
    for rank in ranks:
        if rank >= world_size:
            raise ValueError(f"argument --{option}: rank {rank} >= world size {world_size}")
        if ranks.count(rank) > 1:
            raise ValueError(f"argument --{option}: rank {rank} has {ranks.count(rank)} values")
    return dict(pairs)


def check_speeds(o, world_size):
    """Set `o.shares`, samples of each replica (None: equal ones); make `o.slow` {rank: factor},
    `o.delay` {rank: seconds}. `o.mesh` is known. Raises ValueError, in one line.
    """
    o.slow = _each_once("slow", o.slow, world_size)
    o.delay = {r: 1e-3 * ms for r, ms in _each_once("delay", o.delay, world_size).items()}
    o.shares = None
    if o.speeds is None:
        return
    if o.virtual_compute:
        raise ValueError("--virtual-compute takes as long for any share: not with --speeds")
    if o.exact:
        raise ValueError(f"--exact {o.exact} has a rank compute whole virtual shards, as many as "
                         f"any other: not with --speeds")
    if o.speeds == "auto":
        if {o.method.name, str(o.method)} & set(_NEVER_MEET):
            raise ValueError(f"--speeds auto is agreed where all ranks meet, which --sync {o.sync} "
                             f"never makes them do: give the speeds, as --speeds 1,0.5")
        return
    dp, count = o.mesh.dp, len(o.speeds)
    if count != dp:
        raise ValueError(f"argument --speeds: {count} speeds != {dp} replicas "
                         f"({_arithmetic(o, world_size)})")
    shares = apportion(o.batch_size, o.speeds)
    for replica, share in enumerate(shares):
        if share < o.microbatches:
            raise ValueError(
                f"argument --speeds: replica {replica} gets {o.batch_size} x "
                f"{o.speeds[replica]:g} / {sum(o.speeds):g} = {share} samples of a global batch "
                f"< {o.microbatches} micro-batch" + "es" * (o.microbatches > 1))
    o.shares = shares if len(set(o.speeds)) > 1 else None


def _arithmetic(o, world_size):
    servers = f" - {o.method.servers} servers" if o.method.servers else ""
    cut = "".join(f" / {axis} {getattr(o, axis)}" for axis in ("pp", "tp") if getattr(o, axis) > 1)
    return f"{world_size} ranks{servers}{cut}"
