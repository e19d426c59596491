"""Pipeline schedules by what a user calls them: a name, a CSV file, or FILE.py:NAME."""

import difflib
from pathlib import Path

from ..options import UsageError
from ..parallel.grid import table
from ..parallel.schedule import SCHEDULES, ScheduleError, parse
from ..parallel.verify_schedule import verify
from .programs import definitions_of


def schedule_of(name, ranks=None, microbatches=None, chunks=None, times=None, memory_limit=None,
                kept=1):
    """The Schedule called `name`, for so many ranks and micro-batches.

    name: one of SCHEDULES; a path that ends in .csv, which says itself for how many ranks and
    micro-batches it is; or FILE.py:NAME. What comes from a file is proved right first. The other
    arguments are those of a Scheduler.
    Raises UsageError for a name that is none, a file that cannot be read, numbers that cannot be,
    and a wrong schedule or text, whose grid follows the line.
    """
    if name.endswith(".csv"):
        made = read_csv(name)
        for one, more, asked, there in (
                ("rank", "ranks", ranks, made.ranks),
                ("micro-batch", "micro-batches", microbatches, made.microbatches),
                ("stage a rank", "stages a rank", chunks, made.stages / made.ranks)):
            if asked is not None and asked != there:
                raise UsageError(f"{name} has {there:g} {one if there == 1 else more}, not {asked}")
        return _proved(made)
    try:
        made = scheduler_of(name)(ranks, microbatches, chunks, times, memory_limit, kept)
    except UsageError:
        raise
    except Exception as error:
        if isinstance(error, ScheduleError):
            raise UsageError(f"{error}") from None
        raise UsageError(f"{name}: {type(error).__name__}: {error}") from None
    return _proved(made) if ".py:" in name else made


def scheduler_of(name):
    """The Scheduler called `name`: one of SCHEDULES, or FILE.py:NAME. Raises UsageError."""
    if ".py:" in name:
        path, _, name = name.rpartition(":")
        found = {scheduler.name: scheduler for scheduler in definitions_of(path)[1]}
        if name not in found:
            raise UsageError(f"no schedule {name!r} in {path}: there are "
                             f"{', '.join(found) or 'none: decorate a generator with @schedule'}")
        return found[name]
    if name not in SCHEDULES:
        near = difflib.get_close_matches(name, SCHEDULES, n=3) or SCHEDULES
        raise UsageError(f"no schedule {name!r}: did you mean {', '.join(near)}? Or a file: "
                         f"my.csv, FILE.py:NAME")
    return SCHEDULES[name]


def read_csv(path):
    """The Schedule in a CSV file, right or not. Raises UsageError if it cannot be read."""
    text = ""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        return parse(text, Path(path).name)
    except FileNotFoundError:
        raise UsageError(f"no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    except ScheduleError as error:
        raise UsageError(f"{path}: {error}{_cells(text, error.marks)}") from None


def _cells(text, marks):
    """The cells of a CSV text that is no schedule, with those that are to blame marked."""
    rows = [[cell.strip() for cell in line.split(",") if cell.strip()]
            for line in text.strip().splitlines()]
    return "\n\n" + table(rows, [range(len(row)) for row in rows], marks) if marks else ""


def _proved(made):
    try:
        verify(made)
    except ScheduleError as error:
        raise UsageError(f"{error}") from None
    return made
