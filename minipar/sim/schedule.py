"""Simulates a pipeline schedule: when each rank does what, if computations and messages take given
times. Reads the task graph, and knows no schedule by name.

A rank computes in the order of its list. A computation begins when the rank is free and what it
needs is there; its message is on the other rank `COMM` after its end, and keeps no rank from
computing. Reductions take no time here.
"""

from typing import NamedTuple

from ..parallel.schedule import Action, ScheduleError, Times
from ..parallel.schedule_graph import schedule_graph
from ..parallel.verify_schedule import Peaks, peaks, verify

__all__ = ["Simulated", "Span", "Times", "simulate"]


class Span(NamedTuple):
    """When an action is done, in the unit of the Times."""
    start: object
    end: object
    action: Action


class Simulated(NamedTuple):
    """What a simulation found; times in the unit of the Times.

    spans:       for each rank its Spans, in order.
    makespan:    from the first start to the last end of all.
    cost:        the longest time from a rank's first start to its own last end.
    bubble_rate: (cost - m(F + B + W)) / cost, the part of `cost` in which a rank does not compute
                 (Qi et al. 2024); with unequal stages, on average over the ranks.
    peaks:       Peaks, the most activations kept.
    """
    spans: tuple
    makespan: object
    cost: object
    bubble_rate: float
    peaks: Peaks

    @property
    def peak_activations(self):
        """The most activations kept by each stage, in micro-batches; a list."""
        return list(self.peaks.stages)


def simulate(schedule, times, kept=1):
    """Simulate one step of a Schedule that is right; returns a Simulated.

    times: Times, whose numbers are for a whole rank: each of its v stages takes the v-th part.
    kept:  the part of a micro-batch's activations that stays from I to W (`peaks`).
    Raises ValueError for times that are not those of these stages; ScheduleError, as
    `verify` does, for a schedule that cannot run to its end.
    """
    takes = times.per_stage(schedule.rank_of)
    try:
        spans = _events(schedule, schedule_graph(schedule), takes, times.COMM)
    except ScheduleError:
        verify(schedule)  # raises, and says why
        raise
    ends = [(row[0].start, row[-1].end) for row in spans if row]
    cost = max(end - start for start, end in ends)
    makespan = max(end for _, end in ends) - min(start for start, _ in ends)
    work = sum(takes[a.stage][a.kind] for row in schedule.actions for a in row)
    idle = schedule.ranks * cost - work
    rate = idle / (schedule.ranks * cost) if cost else 0.0
    return Simulated(spans, makespan, cost, rate, peaks(schedule, kept))


def _events(schedule, tasks, takes, comm):
    """For each rank its Spans. A task is done at `ends[id]`."""
    rows = [[] for _ in range(schedule.ranks)]
    for task in tasks:
        rows[task.rank].append(task)
    actions = {str(a): a for row in schedule.actions for a in row}
    ends, at = [None] * len(tasks), [0] * len(rows)
    free, spans = [0] * len(rows), [[] for _ in rows]
    going = True
    while going:
        going = False
        for rank, row in enumerate(rows):
            while at[rank] < len(row):
                task = row[at[rank]]
                if task.stream == "compute":
                    given = [ends[tasks[d].match if tasks[d].kind == "recv" else d]
                             for d in task.deps]
                    if None in given:
                        break
                    action = actions[task.line]
                    start = max([free[rank], *given])
                    free[rank] = ends[task.id] = start + takes[action.stage][action.kind]
                    spans[rank].append(Span(start, free[rank], action))
                elif task.kind == "send":
                    ends[task.id] = ends[task.deps[0]] + comm
                at[rank], going = at[rank] + 1, True
    if any(at[rank] < len(row) for rank, row in enumerate(rows)):
        raise ScheduleError("ranks wait for one another")
    return tuple(map(tuple, spans))
