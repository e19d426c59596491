"""`minipar verify [FILE]`: prove the programs and pipeline schedules of a file, or minipar's own,
right or wrong."""

import argparse
import difflib
import sys
import traceback

from ..comm.cost import cost
from ..comm.program import RANKS as RESTRICTIONS
from ..comm.verify import VerificationError, cases, verify
from ..draw.names import ranges
from ..options import UsageError
from ..parallel.schedule import SCHEDULES
from .programs import built_in, definitions_of
from .schedules import read_csv
from .verify_schedules import report_schedule, report_scheduler

RANKS = (*range(1, 10), 16, 17)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UsageError(message)


def _ranks(text):
    """"2,3,8" or "1-9,16" as a list."""
    found = []
    for part in text.split(","):
        ends = part.split("-")
        if len(ends) > 2 or not all(end.isdecimal() and int(end) for end in ends):
            raise argparse.ArgumentTypeError(f"{text!r} is not numbers of ranks: 2,3,8 or 1-9,16")
        found += range(int(ends[0]), int(ends[-1]) + 1)
    return sorted(set(found))


def _parser():
    p = _Parser(prog="minipar verify", allow_abbrev=False, description=" ".join(
        __doc__.split(": ")[1].split()),
                epilog="Exit status: 0 all are right; 1 one is wrong (its counterexample is "
                       "printed); 2 the file cannot be read, or holds nothing to prove.")
    p.add_argument("file", nargs="?", metavar="FILE",
                   help="a file of your own: FILE.py, with @collective or @schedule in it, or a "
                   "schedule as .csv; without it all that comes with minipar")
    p.add_argument("--all", action="store_true", help="these too, beside what is in FILE")
    p.add_argument("--ranks", type=_ranks, default=RANKS, metavar="2,3,8",
                   help="numbers of ranks to prove them for (default 1-9,16,17)")
    p.add_argument("--algorithm", metavar="NAME", help="only what has this name")
    return p


def _chosen(o):
    """(programs, schedulers) that the options `o` ask for."""
    programs, schedulers = definitions_of(o.file) if o.file else ([], [])
    if o.file and not programs and not schedulers:
        raise UsageError(f"there is no program in {o.file}: decorate a generator with @collective, "
                         f"or with @schedule")
    if o.all or not o.file:
        programs = programs + [p for p in built_in() if p not in programs]
        schedulers = schedulers + [s for s in SCHEDULES.values() if s not in schedulers]
    if o.algorithm is None:
        return programs, schedulers
    names = sorted({p.name for p in programs + schedulers})
    if o.algorithm not in names:
        near = difflib.get_close_matches(o.algorithm, names, n=3) or names
        raise UsageError(f"no program {o.algorithm!r}: did you mean {', '.join(near)}?")
    return ([p for p in programs if p.name == o.algorithm],
            [s for s in schedulers if s.name == o.algorithm])


def _report(program, ranks):
    """Verify one program; print its line, or its counterexample. Returns whether it is right: so
    it is too where it declares that it serves none of these numbers of ranks."""
    name, right, refused = f"{program.kind.name} {program.name}", [], {}  # {why: sizes}
    for size in ranks:
        try:
            verify(program, size)
            right.append(size)
        except VerificationError as error:
            print(f"WRONG  {name}\n{error}\n")
            return False
        except ValueError as error:
            why = f"serves {RESTRICTIONS[program.ranks][1]} ranks" if program.refusal(
                size) else f"{error}"
            refused.setdefault(why, []).append(size)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            print(f"WRONG  {name}\n{size} ranks: {type(error).__name__}: {error} "
                  f"({frame.filename}:{frame.lineno})\n")
            return False
    skipped = "; ".join(f"refuses {ranges(sizes)}: {why}" for why, sizes in refused.items())
    if not right:
        print(f"none   {name:42} {skipped}")
        return all(map(program.refusal, ranks))  # else it may be wrong, in a way that looks like it
    p, n = right[-1], 64 * right[-1]
    took = cost(program, p, n, **next(cases(program, p)))
    print(f"right  {name:42} ranks {ranges(right)}; on {p}: {took.rounds} "
          f"round{'s' * (took.rounds != 1)}, a rank sends at most {took.sent / (4 * n):.4g} n"
          f"{'; ' if skipped else ''}{skipped}")
    return True


def main(argv):
    """Run the command; returns the exit status."""
    try:
        o = _parser().parse_args(argv)
        if o.file and o.file.endswith(".csv"):
            return 0 if report_schedule(read_csv(o.file), o.file) else 1
        programs, schedulers = _chosen(o)
    except UsageError as error:
        print(f"minipar: error: {error}", file=sys.stderr)
        return 2
    results = [_report(program, o.ranks) for program in programs]
    results += [report_scheduler(scheduler, o.ranks) for scheduler in schedulers]
    return 0 if all(results) else 1
