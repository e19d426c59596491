"""Commands that run on ranks: those of an MPI launcher, or ranks that they start themselves."""

import argparse
import sys

from ..comm import RankFailed, launch, world
from ..comm.world import is_launched, launched_rank
from ..options import LAUNCHERS, UsageError


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are UsageErrors."""

    def error(self, message):
        raise UsageError(message)


def whole(text):
    """A whole number from 1 on."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def add_options(parser):
    """Add --ranks and --launcher."""
    parser.add_argument("--ranks", "-n", type=whole, metavar="N",
                        help="start N ranks here, without mpirun")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="processes",
                        help="what --ranks starts: processes (default), threads, or mpi")


def launcher_of(comm):
    """What the ranks of `comm` are: "mpi", "processes" or "threads"; "base" if there is one."""
    return type(comm.transport).__module__.rsplit(".", 1)[1]


def run(main, argv, parser, job, needs_ranks=lambda o: True):
    """Parse `argv` and run job(o, comm) on the ranks of this job, or on those that the options
    --ranks and --launcher ask for; returns the exit status.

    main: the command's main(argv), which the ranks that are started call. needs_ranks: whether
    options ask for something that the ranks of --ranks must do. What the options and the job
    refuse, by UsageError or ValueError, is told by rank 0 in one line.
    """
    try:
        comm = world()
    except RuntimeError as error:
        if launched_rank() == 0:
            print(f"minipar: error: {error}", file=sys.stderr)
        return 1
    if {"-h", "--help"} & set(argv):
        if comm.rank == 0:
            parser.print_help()
        return 0
    try:
        o = parser.parse_args(argv)
        if not needs_ranks(o):
            return job(o, comm)
        if (o.ranks or 1) > 1 and comm.size == 1 and not is_launched():
            return max(launch(_on_rank, o.ranks, args=(main, argv), how=o.launcher))
        if o.ranks and o.ranks != comm.size:
            raise UsageError(f"world size {comm.size} != ranks {o.ranks}")
        return job(o, comm)
    except (UsageError, ValueError, TypeError) as error:
        if comm.rank == 0:
            print(f"minipar: error: {error}", file=sys.stderr)
        return 2
    except RankFailed as error:
        if comm.size > 1:
            raise
        print(f"minipar: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if is_launched():
            raise  # the job of an MPI launcher is ended by its hook
        print("minipar: interrupted", file=sys.stderr)
        return 130


def _on_rank(main, argv):
    return main(argv)
