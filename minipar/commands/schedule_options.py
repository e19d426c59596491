"""Options of the commands that are about pipeline schedules: which, how large, how long."""

import argparse

from ..options import UsageError
from ..parallel.schedule import Times
from .schedules import schedule_of, scheduler_of


def add_schedule_options(p):
    """Add the options that `schedules` reads to a parser."""
    p.add_argument("--stages", type=_count, metavar="P", help="ranks of the pipeline")
    p.add_argument("--microbatches", type=_count, metavar="M", help="micro-batches of a step")
    p.add_argument("--times", type=times, default=Times(1, 1, 1, 0), metavar="F,B,W,COMM",
                   help="time of a forward, an input gradient and a weight gradient of a whole "
                   "rank, and of a message (default 1,1,1,0); or 1:2:1,... for unequal stages")
    p.add_argument("--chunks", type=_count, metavar="V", help="stages a rank, for the schedules "
                   "that take any number (default 2)")
    p.add_argument("--memory-limit", type=_count, metavar="K", help="micro-batches whose "
                   "activations a rank may keep, for auto (default 2P)")
    p.add_argument("--kept", type=_part, default=1, metavar="PART", help="the part of a "
                   "micro-batch's activations that stays until W (default 1)")


def schedules(o, names):
    """[(name, Schedule)] of "a,b,...": names, my.csv, FILE.py:NAME. Raises UsageError.

    Of several, each gets the options that it takes; one alone has to take all that are given.
    """
    names = names.split(",")
    return [(name, _made(o, name, len(names) == 1)) for name in names]


def _made(o, name, alone):
    if name.endswith(".csv"):
        return schedule_of(name, o.stages, o.microbatches, o.chunks if alone else None)
    for option in ("stages", "microbatches"):
        if getattr(o, option) is None:
            raise UsageError(f"{name} is for any number of {option}: give --{option}")
    scheduler = scheduler_of(name)
    chunks = o.chunks if alone or scheduler.chunks is None else None
    limit = o.memory_limit if alone or "memory_limit" in scheduler.wants else None
    return schedule_of(name, o.stages, o.microbatches, chunks, o.times, limit, o.kept)


def times(text):
    """"F,B,W,COMM" as Times; each of the first three is a number, or one for each stage: 1:2:1."""
    try:
        parts = [[_number(t) for t in part.split(":")] for part in text.split(",")]
    except ValueError:
        parts = []
    if len(parts) not in (3, 4) or len(parts) == 4 and len(parts[3]) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not F,B,W or F,B,W,COMM: times, of "
                                         f"which the first three may be one for each stage, as "
                                         f"1:2:1")
    return Times(*(part[0] if len(part) == 1 else tuple(part) for part in parts))


def _number(text):
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return int(value) if value == int(value) else value


def _count(text):
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def _part(text):
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
