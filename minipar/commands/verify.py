"""`minipar verify [FILE.py]`: prove the programs of a file, or those of minipar, right or wrong."""

import argparse
import difflib
import sys
import traceback

from ..comm.cost import cost
from ..comm.program import RANKS as RESTRICTIONS
from ..comm.verify import VerificationError, cases, verify
from ..options import UsageError
from .programs import built_in, programs_of

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
    p = _Parser(prog="minipar verify", allow_abbrev=False, description=__doc__.split(": ")[1],
                epilog="Exit status: 0 all are right; 1 one is wrong (its counterexample is "
                       "printed); 2 the file cannot be read, or holds no program.")
    p.add_argument("file", nargs="?", metavar="FILE.py",
                   help="a file of your own; without it the algorithms that come with minipar")
    p.add_argument("--all", action="store_true", help="these too, beside those of FILE.py")
    p.add_argument("--ranks", type=_ranks, default=RANKS, metavar="2,3,8",
                   help="numbers of ranks to prove them for (default 1-9,16,17)")
    p.add_argument("--algorithm", metavar="NAME", help="only programs of this name")
    return p


def _chosen(o):
    """The programs that the options `o` ask for."""
    programs = programs_of(o.file) if o.file else []
    if o.all or not o.file:
        programs = programs + [p for p in built_in() if p not in programs]
    if o.algorithm is None:
        return programs
    names = sorted({p.name for p in programs})
    if o.algorithm not in names:
        near = difflib.get_close_matches(o.algorithm, names, n=3) or names
        raise UsageError(f"no program {o.algorithm!r}: did you mean {', '.join(near)}?")
    return [p for p in programs if p.name == o.algorithm]


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
    skipped = "; ".join(f"refuses {_listed(sizes)}: {why}" for why, sizes in refused.items())
    if not right:
        print(f"none   {name:42} {skipped}")
        return all(map(program.refusal, ranks))  # else it may be wrong, in a way that looks like it
    p, n = right[-1], 64 * right[-1]
    took = cost(program, p, n, **next(cases(program, p)))
    print(f"right  {name:42} ranks {_listed(right)}; on {p}: {took.rounds} "
          f"round{'s' * (took.rounds != 1)}, a rank sends at most {took.sent / (4 * n):.4g} n"
          f"{'; ' if skipped else ''}{skipped}")
    return True


def _listed(numbers):
    """[1, 2, 3, 8] as "1-3,8"."""
    runs = []
    for k in numbers:
        if runs and k == runs[-1][1] + 1:
            runs[-1][1] = k
        else:
            runs.append([k, k])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def main(argv):
    """Run the command; returns the exit status."""
    try:
        o = _parser().parse_args(argv)
        programs = _chosen(o)
    except UsageError as error:
        print(f"minipar: error: {error}", file=sys.stderr)
        return 2
    results = [_report(program, o.ranks) for program in programs]
    return 0 if all(results) else 1
