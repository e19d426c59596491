"""`minipar draw PROGRAM -n N`: a picture of a collective, in the terminal or as a file."""

import argparse
import difflib
import shutil
import sys
import traceback

from ..comm.kinds import KINDS
from ..comm.topology import Topology
from ..draw import VIEWS, draw
from ..draw.svg import THEMES
from ..options import UsageError
from . import draw_schedule
from .programs import built_in, programs_of


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UsageError(message)


def _whole(text, least):
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
    return int(text)


def _levels(text):
    """"4x2" as a Topology."""
    return Topology(tuple(_whole(part, 1) for part in text.split("x")))


def _parser():
    p = _Parser(prog="minipar draw", allow_abbrev=False, description=__doc__.split(": ")[1],
                epilog="A pipeline schedule is drawn by its name, or from my.csv: see minipar draw "
                       "zb-h1 --help. Exit status: 0 drawn; 2 it cannot be.")
    p.add_argument("program", metavar="PROGRAM",
                   help="an algorithm's name, as in minipar verify, or FILE.py[:NAME] of your own")
    p.add_argument("-n", "--ranks", type=lambda text: _whole(text, 1), default=4, metavar="N",
                   help="number of ranks (default 4)")
    p.add_argument("--kind", metavar="KIND",
                   help="where several kinds have an algorithm of this name (default all_reduce)")
    p.add_argument("--elements", type=lambda text: _whole(text, 0), metavar="N",
                   help="of the buffer (default: as few as make all chunks equally long)")
    p.add_argument("--root", type=lambda text: _whole(text, 0), metavar="RANK",
                   help="of a broadcast, reduce, gather or scatter (default 0)")
    p.add_argument("--topology", type=_levels, metavar="4x2",
                   help="ranks a node x nodes, for hierarchical and its like (default: the levels "
                        "nearest to a square)")
    p.add_argument("--view", choices=VIEWS, default="space-time",
                   help="who sends what when, or what every rank has of each chunk after each "
                        "round (default space-time)")
    p.add_argument("--output", metavar="FILE", help="write .svg, .png (needs matplotlib), .html (a "
                   "page with both views, a slider and the source) or .txt; without it, text is "
                   "printed")
    p.add_argument("--theme", choices=THEMES, help="ground of the picture (default: auto for .svg, "
                   "as the reader's system has it; light for .png)")
    p.add_argument("--width", type=lambda text: _whole(text, 20), metavar="N",
                   help="letters in a line of text (default: the terminal's, or 100)")
    return p


def _program(o):
    """The Program that the options ask for."""
    path, colon, name = o.program.rpartition(":") if ".py:" in o.program else (o.program, "", "")
    if path.endswith(".py"):
        programs, where = programs_of(path), path
        name = name or (programs[0].name if len(programs) == 1 else "")
        if not name:
            raise UsageError(f"{path} has {', '.join(p.name for p in programs)}: say which with "
                             f"{path}:NAME")
    else:
        programs, where, name = built_in(), "minipar", path
    if o.kind is not None:
        kinds = {p.kind.name for p in programs} | set(KINDS)
        if o.kind not in kinds:
            raise UsageError(f"no kind {o.kind!r}: there are {', '.join(sorted(kinds))}")
        programs = [p for p in programs if p.kind.name == o.kind]
    found = [p for p in programs if p.name == name]
    if not found:
        names = list(dict.fromkeys(p.name for p in programs))
        near = difflib.get_close_matches(name, names, n=3)
        of = f" of kind {o.kind}" if o.kind else ""
        raise UsageError(f"no program {name!r}{of} in {where}: " + (
            f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(names)}"))
    kinds = [p.kind.name for p in found]
    if len(found) > 1 and "all_reduce" not in kinds:
        raise UsageError(f"{name} is a program of {', '.join(kinds)}: say which with --kind")
    return found[kinds.index("all_reduce") if len(found) > 1 else 0]


def _draw(o):
    program = _program(o)
    options = {"root": o.root, "topo": o.topology}
    if o.root is not None and not program.kind.rooted:
        raise UsageError(f"--root: {program.kind.name} has no root")
    if o.root is not None and o.root >= o.ranks:
        raise UsageError(f"--root {o.root}: there are ranks 0 to {o.ranks - 1}")
    if o.topology is not None and "topo" not in program.wants:
        raise UsageError(f"--topology: {program.name} wants none")
    width = o.width or shutil.get_terminal_size((100, 24)).columns
    try:
        return draw(program, o.ranks, o.elements, path=o.output, view=o.view, theme=o.theme,
                    width=width, **options)
    except (ValueError, TypeError):
        raise
    except Exception as error:  # of the program itself
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(f"{program.name} fails: {type(error).__name__}: {error} "
                         f"({frame.filename}:{frame.lineno})") from None


def main(argv):
    """Run the command; returns the exit status."""
    if draw_schedule.is_about_schedules(argv):
        return draw_schedule.main(argv)
    try:
        picture = _draw(_parser().parse_args(argv))
    except (UsageError, ValueError, TypeError) as error:
        print(f"minipar: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if picture is not None:
        print(picture)
    return 0
