"""`minipar draw SCHEDULE --stages P --microbatches M`: grids of pipeline schedules, simulated."""

import argparse
import shutil
import sys

from ..draw import Span, Timeline, draw_schedule
from ..draw.svg import THEMES
from ..options import UsageError
from ..parallel.schedule import SCHEDULES
from ..sim.schedule import simulate
from .recorded import recorded
from .schedule_options import add_schedule_options, schedules


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UsageError(message)


def is_about_schedules(argv):
    """Whether the arguments of `minipar draw` name schedules, and no collective."""
    names = next((word for word in argv if not word.startswith("-")), "").split(",")
    options = {word.split("=")[0] for word in argv}
    return bool(options & {"--stages", "--microbatches"}) or all(
        name in SCHEDULES or name.endswith(".csv") for name in names)


def _parser():
    p = _Parser(prog="minipar draw", allow_abbrev=False, description=__doc__.split(": ")[1],
                epilog="Exit status: 0 drawn; 2 it cannot be.")
    p.add_argument("schedule", metavar="SCHEDULE,...", help="names, as zb-h1, and files of your "
                   "own: my.csv, FILE.py:NAME; several below each other with one time axis")
    add_schedule_options(p)
    p.add_argument("--recorded", metavar="RUN.json", help="below it the last step of a run with "
                   "this schedule: the file of its --trace; --times are then milliseconds")
    p.add_argument("--output", metavar="FILE", help="write .svg, .png (needs matplotlib) or .txt; "
                   "without it, text is printed")
    p.add_argument("--theme", choices=THEMES, help="ground of the picture (default: auto for .svg, "
                   "as the reader's system has it; light for .png)")
    p.add_argument("--width", type=int, metavar="N",
                   help="letters in a line of text (default: the terminal's, or 100)")
    return p


def timeline(name, made, found):
    """The Timeline of a Schedule and what its simulation found."""
    chunk = {stage: i for rank in range(made.ranks)
             for i, stage in enumerate(made.stages_of(rank))}
    spans = [Span(rank, float(start), float(end), a.kind, a.microbatch, chunk[a.stage])
             for rank, row in enumerate(found.spans) for start, end, a in row]
    return Timeline(name, made.ranks, spans, float(found.bubble_rate),
                    tuple(f"rank {rank}" for rank in range(made.ranks)))


def main(argv):
    """Run the command; returns the exit status."""
    try:
        o = _parser().parse_args(argv)
        listed = schedules(o, o.schedule)
        lines = [timeline(name, made, simulate(made, o.times, o.kept))
                 for name, made in listed]
        if o.recorded:
            if len(listed) > 1:
                raise UsageError("--recorded is of one schedule, not of " + o.schedule)
            lines.append(recorded(o.recorded, *listed[0]))
        width = max(20, o.width or shutil.get_terminal_size((100, 24)).columns)
        picture = draw_schedule(lines, o.output, width, o.theme)
    except ValueError as error:
        print(f"minipar: error: {error}", file=sys.stderr)
        return 2
    if picture is not None:
        print(picture)
    return 0
