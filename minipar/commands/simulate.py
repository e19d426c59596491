"""`minipar simulate schedule`: what pipeline schedules would cost, side by side."""

import argparse
import json
import sys

from ..options import UsageError
from ..parallel.schedule import ScheduleError
from ..sim.schedule import simulate
from .schedule_options import add_schedule_options, schedules


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UsageError(message)


def _parser():
    p = _Parser(prog="minipar simulate", allow_abbrev=False, description=__doc__.split(": ")[1],
                epilog="bubble: (cost - m(F+B+W)) / cost, where cost is the longest time from a "
                       "rank's first action to its last. Exit status: 0; 2 for what cannot be.")
    p.add_argument("what", choices=["schedule"], help="what is simulated")
    p.add_argument("--schedule", required=True, metavar="A,B,...", help="names, as zb-h1, and "
                   "files of your own: my.csv, FILE.py:NAME")
    add_schedule_options(p)
    p.add_argument("--json", action="store_true", help="print an object; a list of several")
    return p


def _row(o, name, made):
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
        rows = [_row(o, name, made) for name, made in schedules(o, o.schedule)]
    except (UsageError, ScheduleError) as error:
        print(f"minipar: error: {error}", file=sys.stderr)
        return 2
    if o.json:
        print(json.dumps(rows[0] if len(rows) == 1 else rows))
    else:
        _print(rows)
    return 0
