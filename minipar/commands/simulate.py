"""`minipar simulate schedule`: what pipeline schedules would cost, side by side."""

import argparse
import json
import sys

from ..options import UsageError
from ..parallel.schedule import ScheduleError, Times
from ..sim.schedule import simulate
from .schedules import schedule_of, scheduler_of


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UsageError(message)


def _times(text):
    """"F,B,W,COMM" as Times; each of the first three is a number, or one for each stage: 1:2:1."""
    try:
        parts = [[_number(t) for t in part.split(":")] for part in text.split(",")]
    except ValueError:
        parts = []
    if len(parts) not in (3, 4) or len(parts[-1]) > 1 and len(parts) == 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not F,B,W,COMM: four times, of which the "
                                         f"first three may be one for each stage, as 1:2:1")
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


def _parser():
    p = _Parser(prog="minipar simulate", allow_abbrev=False, description=__doc__.split(": ")[1],
                epilog="bubble: (cost - m(F+B+W)) / cost, where cost is the longest time from a "
                       "rank's first action to its last. Exit status: 0; 2 for what cannot be.")
    p.add_argument("what", choices=["schedule"], help="what is simulated")
    p.add_argument("--schedule", required=True, metavar="A,B,...", help="names, as zb-h1, and "
                   "files of your own: my.csv, FILE.py:NAME")
    p.add_argument("--stages", type=_count, metavar="P", help="ranks of the pipeline")
    p.add_argument("--microbatches", type=_count, metavar="M", help="micro-batches of a step")
    p.add_argument("--times", type=_times, default=Times(1, 1, 1, 0), metavar="F,B,W,COMM",
                   help="time of a forward, an input gradient and a weight gradient of a whole "
                   "rank, and of a message (default 1,1,1,0); or 1:2:1,... for unequal stages")
    p.add_argument("--chunks", type=_count, metavar="V", help="stages a rank, for the schedules "
                   "that take any number (default 2)")
    p.add_argument("--memory-limit", type=_count, metavar="K", help="micro-batches whose "
                   "activations a rank may keep, for auto (default 2P)")
    p.add_argument("--kept", type=_part, default=1, metavar="PART", help="the part of a "
                   "micro-batch's activations that stays until W (default 1)")
    p.add_argument("--json", action="store_true", help="print an object; a list of several")
    return p


def _made(o, name):
    """The Schedule of one of the names; options that it does not take are not for it."""
    if name.endswith(".csv"):
        return schedule_of(name, o.stages, o.microbatches)
    for option in ("stages", "microbatches"):
        if getattr(o, option) is None:
            raise UsageError(f"{name} is for any number of {option}: give --{option}")
    alone, scheduler = "," not in o.schedule, None if ".py:" in name else scheduler_of(name)
    chunks = o.chunks if alone or scheduler is None or scheduler.chunks is None else None
    limit = o.memory_limit if alone or scheduler and "memory_limit" in scheduler.wants else None
    return schedule_of(name, o.stages, o.microbatches, chunks, o.times, limit, o.kept)


def _row(o, name):
    made = _made(o, name)
    try:
        found = simulate(made, o.times, o.kept)
    except ScheduleError:
        raise
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None
    return {"schedule": name, "ranks": made.ranks, "stages": made.stages,
            "microbatches": made.microbatches, "bubble_rate": found.bubble_rate,
            "cost": found.cost, "makespan": found.makespan,
            "peak_activations": found.peak_activations,
            "peak_activations_of_ranks": list(found.peaks.ranks)}


def _print(rows):
    width = max(8, *(len(row["schedule"]) for row in rows))
    print(f"{'schedule':{width}}  {'ranks':>5}  {'micro-batches':>13}  {'bubble':>7}  {'cost':>9}  "
          f"{'makespan':>9}  {'kept by a rank':>14}")
    for row in rows:
        print(f"{row['schedule']:{width}}  {row['ranks']:5}  {row['microbatches']:13}  "
              f"{row['bubble_rate']:7.4f}  {row['cost']:9.6g}  {row['makespan']:9.6g}  "
              f"{max(row['peak_activations_of_ranks']):14.4g}")


def main(argv):
    """Run the command; returns the exit status."""
    try:
        o = _parser().parse_args(argv)
        rows = [_row(o, name) for name in o.schedule.split(",")]
    except (UsageError, ScheduleError) as error:
        print(f"minipar: error: {error}", file=sys.stderr)
        return 2
    if o.json:
        print(json.dumps(rows[0] if len(rows) == 1 else rows))
    else:
        _print(rows)
    return 0
