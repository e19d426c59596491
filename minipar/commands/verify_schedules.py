"""What `minipar verify` says about pipeline schedules."""

import traceback

from ..draw.names import ranges
from ..parallel.schedule import ScheduleError, Times
from ..parallel.verify_schedule import verify
from ..sim.schedule import simulate

CHUNKS = (1, 2, 3)  # of schedulers that take any number


def report_schedule(made, file):
    """Prove a Schedule that came from a file; print its line, or its grid. Whether it is right."""
    try:
        verify(made)
    except ScheduleError as error:
        print(f"WRONG  schedule {file}\n{error}\n")
        return False
    print(f"right  {f'schedule {file}':42} {made.ranks} ranks, {made.stages} stages, "
          f"{made.microbatches} micro-batches: {_price(made)}")
    return True


def report_scheduler(scheduler, ranks):
    """Prove a Scheduler for all numbers in `ranks`, of micro-batches p, 2p and 3p + 1 each; print
    its line, or what is wrong. Whether it is right."""
    name, right, refused, last = f"schedule {scheduler.name}", [], {}, None
    for size in ranks:
        for count in (size, 3 * size + 1, 2 * size):
            for chunks in CHUNKS if scheduler.chunks is None else (scheduler.chunks,):
                try:
                    made = scheduler(size, count, chunks)
                except ScheduleError as error:
                    refused.setdefault(f"{error}".removeprefix(f"{scheduler.name}: "), size)
                    continue
                except Exception as error:
                    frame = traceback.extract_tb(error.__traceback__)[-1]
                    print(f"WRONG  {name}\n{size} ranks, {count} micro-batches: "
                          f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})\n")
                    return False
                try:
                    verify(made)
                except ScheduleError as error:
                    print(f"WRONG  {name}\n{error}\n")
                    return False
                last = made
                right.append(size)
    if last is None:
        print(f"none   {name:42} refuses {ranges(ranks)}: {next(iter(refused))}")
        return False
    print(f"right  {name:42} ranks {ranges(sorted(set(right)))}; on {last.ranks}, of "
          f"{last.microbatches} micro-batches: {_price(last)}"
          + "".join(f"; refuses {words}" for words in list(refused)[:1]))
    return True


def _price(made):
    found = simulate(made, Times(1, 1, 1))
    return (f"bubble {found.bubble_rate:.4f} if F = B = W, a rank keeps at most "
            f"{max(found.peaks.ranks):.4g}")
