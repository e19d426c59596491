"""Proves a schedule right before anything is computed, and counts the activations that it keeps.

A schedule is right if
- every stage does the forward of every micro-batch once, and its backward once: B, or I and W;
- nothing on a rank comes before what it needs there: B and I after F, W after I, and so on;
- it runs to its end, whether sends leave at once (eager) or wait until the other rank has posted
  the receive (synchronous): messages and reductions stand in the lists as `lower.py` writes them,
  and where several ranks do something together (`schedule_graph.py`), each waits for all others.

An activation lives from its F to its B or W; as each happens once, in this order, none is used
before it is there or after it is freed. An error shows the rank x time grid with marked cells.
"""

from collections import Counter
from typing import NamedTuple

from .grid import grid, table
from .lower import sent
from .schedule import COMPUTE, Action, ScheduleError
from .schedule_graph import needs, on_mesh, row_of, schedule_graph, splits, together


class Peaks(NamedTuple):
    """The most activations that are kept at a time.

    stages: for each stage, in micro-batches. ranks: for each rank, all its stages together, where
    a micro-batch counts 1 / (stages of the rank) in each.
    """
    stages: tuple
    ranks: tuple


def verify(schedule, rows=None, mesh=None, kept=1):
    """Prove `schedule` right; returns its Peaks.

    rows: lowered lists to prove instead of `lower(schedule)`: one for each rank of the pipeline, or
          one for each rank of the mesh, which may have the schedule's actions in other orders.
    mesh: the job's Mesh, whose replicas and tp ranks take part; Mesh(pp=schedule.ranks) if None.
    kept: see `peaks`.
    Raises ScheduleError with the grid; its `rank` and `index` say where, in the schedule's own
    lists, or in `rows` if the fault is not in those; ValueError as `schedule_graph` does.
    """
    _check_places(schedule)
    _check_counts(schedule)
    _check_order(schedule)
    lists, mesh = on_mesh(schedule, rows, mesh)
    if rows is not None:
        _check_lowered(schedule, rows, mesh)
    try:
        tasks = schedule_graph(schedule, lists, mesh)
    except ScheduleError as error:
        marks = sorted(error.marks, key=lambda mark: _in_line(lists[mark[0]], mark[1]))
        raise _wrong(schedule, error, marks, rows) from None
    for synchronous in (False, True):
        _run(schedule, lists, tasks, synchronous, rows, mesh)
    return peaks(schedule, kept)


def peaks(schedule, kept=1):
    """The Peaks of a schedule that is right.

    kept: the part of a micro-batch's activations that W still needs, after I.
    """
    most_of, most_on = [0] * schedule.stages, []
    for rank, row in enumerate(schedule.actions):
        share = max(1, len(schedule.stages_of(rank)))
        flying, owed, most = Counter(), Counter(), 0
        for stage, kind, _ in row:
            flying[stage] += {"F": 1, "B": -1, "I": -1, "W": 0}[kind]
            owed[stage] += {"I": 1, "W": -1}.get(kind, 0)
            here = flying[stage] + kept * owed[stage]
            most_of[stage] = max(most_of[stage], here)
            most = max(most, sum(flying.values()) + kept * sum(owed.values()))
        most_on.append(most if share == 1 else most / share)
    return Peaks(tuple(most_of), tuple(most_on))


# ------------------------------------------------------------------ each once, in order


def _wrong(schedule, words, marks, rows=None):
    """The ScheduleError: headline, then the grid, or the table of lowered lists."""
    ranks = len(rows or schedule.actions)
    title = (f"{schedule.name}, {ranks} rank{'s' * (ranks != 1)}, "
             f"{schedule.microbatches} micro-batch{'es' * (schedule.microbatches != 1)}")
    picture = grid(schedule, marks) if rows is None else table(
        rows, [range(len(row)) for row in rows], marks)
    return ScheduleError(f"{title}: {words}\n\n{picture}", *marks[0], marks)


def _at(rank, index):
    return f"rank {rank}, action {index}"


def _check_places(schedule):
    for rank, row in enumerate(schedule.actions):
        for i, (stage, kind, m) in enumerate(row):
            words = None
            if kind not in COMPUTE:
                words = f"a schedule has {', '.join(COMPUTE)}; what else there is follows from them"
            elif not 0 <= stage < schedule.stages:
                words = f"there is no stage {stage}: stages are 0 to {schedule.stages - 1}"
            elif schedule.rank_of[stage] != rank:
                words = f"stage {stage} is on rank {schedule.rank_of[stage]}"
            elif not 0 <= m < schedule.microbatches:
                words = (f"there is no micro-batch {m}: they are 0 to "
                         f"{schedule.microbatches - 1}")
            if words:
                raise _wrong(schedule, f"{_at(rank, i)}: {row[i]}: {words}", [(rank, i)])


def _in_line(row, i):
    """Whether an action's micro-batch lies between those of its like before and after it."""
    stage, kind, m = row[i]
    before = next((a.microbatch for a in reversed(row[:i]) if a[:2] == (stage, kind)), -1)
    after = next((a.microbatch for a in row[i + 1:] if a[:2] == (stage, kind)), m + 1)
    return before < m < after


def _blame_first(row, indices):
    """Indices of a row, those first whose actions are not in line."""
    return sorted(indices, key=lambda i: _in_line(row, i) if i < len(row) else False)


def _check_counts(schedule):
    for rank, row in enumerate(schedule.actions):
        of = {(stage, m): {} for stage in schedule.stages_of(rank)
              for m in range(schedule.microbatches)}
        for i, (stage, kind, m) in enumerate(row):
            of[stage, m].setdefault(kind, []).append(i)
        missing = {key: lacks for key, found in of.items() if (lacks := _lacks(found))}
        for (stage, m), found in of.items():
            _check_twice(schedule, rank, stage, m, found, missing)
        for (stage, m), kinds in missing.items():
            found = of[stage, m]
            words = {"F": "forward", "B": "backward", "I": "I, only a W", "W": "W, only an I"}
            near = {"F": "BIW", "B": "F", "I": "W", "W": "I"}[kinds[0]]
            at = min((i for kind in near for i in found.get(kind, ())), default=len(row))
            raise _wrong(schedule, f"rank {rank}: stage {stage} has no {words[kinds[0]]} of "
                         f"micro-batch {m}", [(rank, at)])


def _lacks(found):
    """The kinds that a micro-batch of a stage lacks; of its backward, all or B."""
    if "I" in found or "W" in found:
        return [kind for kind in "FIW" if kind not in found and "B" not in found]
    return [kind for kind in "FB" if kind not in found]


def _check_twice(schedule, rank, stage, m, found, missing):
    row = schedule.actions[rank]
    for kind, indices in found.items():
        if len(indices) > 1:
            order = _blame_first(row, indices[::-1])
            also = next((f"; {Action(s, kinds[0], k)} is missing"
                         for (s, k), kinds in missing.items()), "")
            raise _wrong(schedule, f"{_at(rank, order[0])}: {row[order[0]]} for the second time"
                         f"{also}", [(rank, i) for i in order])
    if "B" in found and ("I" in found or "W" in found):
        both = [found[kind][0] for kind in "BIW" if kind in found]
        count = Counter(a.kind for a in row if a.stage == stage)
        both.sort(key=lambda i: count[row[i].kind])  # what is rare is odd
        raise _wrong(schedule, f"{_at(rank, both[0])}: {row[both[0]]} beside "
                     f"{' and '.join(str(row[i]) for i in both[1:])}: a backward is B, or I and W",
                     [(rank, i) for i in both])


def _check_order(schedule):
    for rank, row in enumerate(schedule.actions):
        place, split = {action: i for i, action in enumerate(row)}, splits([row])
        for i, action in enumerate(row):
            for need in needs(schedule, action, split):
                if need.kind in COMPUTE and place[need] > i:
                    raise _wrong(
                        schedule, f"{_at(rank, i)}: {action} comes before {need}, which it needs",
                        [(rank, k) for k in _blame_first(row, [i, place[need]])])


def _check_lowered(schedule, rows, mesh):
    """Whether `rows` are the schedule's actions, with each message and reduction once; in its
    order, unless every rank of the mesh has a row of its own."""
    for rank, row in enumerate(rows):
        holder = rank if len(rows) == schedule.ranks else mesh.coordinates(rank)["pp"]
        due, split = set(), splits([row])
        for action in schedule.actions[holder]:
            due |= {action, sent(schedule, action), *needs(schedule, action, split)}
        due |= {Action(stage, "REDUCE", 0) for stage in schedule.stages_of(holder)}
        due.discard(None)
        seen = set()
        for i, action in enumerate(row):
            if action not in due:
                raise _wrong(schedule, f"{_at(rank, i)}: {action} has no place on this rank",
                             [(rank, i)], rows)
            if action in seen:
                raise _wrong(schedule, f"{_at(rank, i)}: {action} for the second time",
                             [(rank, i), (rank, row.index(action))], rows)
            seen.add(action)
        for action in sorted(due - seen):
            users = (i for i, a in enumerate(row) if a[0] == action[0] and a[2] == action[2])
            raise _wrong(schedule, f"rank {rank}: {action} is missing",
                         [(rank, next(users, len(row)))], rows)
        order = [action for action in row if action.kind in COMPUTE]
        if len(rows) == schedule.ranks and order != list(schedule.actions[rank]):
            i = next(i for i, a in enumerate(order) if a != schedule.actions[rank][i])
            raise _wrong(schedule, f"rank {rank}: {order[i]} comes where the schedule has "
                         f"{schedule.actions[rank][i]}", [(rank, row.index(order[i]))], rows)


# ------------------------------------------------------------------ to the end


def _run(schedule, lists, tasks, synchronous, rows, mesh):
    """Run the graph; raise ScheduleError if it stops before its end."""
    of = [[] for _ in range(mesh.size)]
    for task in tasks:
        of[task.rank].append(task)
    at, begun = [0] * len(of), [False] * len(tasks)

    def missing(task):
        """A message that a task needs and that has not been sent; None if all have."""
        arriving = (tasks[tasks[d].match] for d in task.deps if tasks[d].kind == "recv")
        return next((send for send in arriving if not begun[send.id]), None)

    def waits_for(task):
        """The task of another rank that a task, which all on its rank before has been done for,
        waits for; None if it can be done."""
        if task.kind == "send":
            return tasks[task.match] if synchronous and not begun[task.match] else None
        return missing(task) or next((t for t in together(tasks, task) if not begun[t.id]), None)
    going = True
    while going:
        going = False
        for rank, own in enumerate(of):
            while at[rank] < len(own):
                task = own[at[rank]]
                begun[task.id] = missing(task) is None
                if waits_for(task) is not None:
                    break
                at[rank], going = at[rank] + 1, True
    stuck = {rank: own[at[rank]] for rank, own in enumerate(of) if at[rank] < len(own)}
    if stuck:
        raise _deadlock(schedule, lists, stuck, waits_for, synchronous, rows, mesh)


def _deadlock(schedule, lists, stuck, waits_for, synchronous, rows, mesh):
    """The ScheduleError for ranks that wait for one another in a circle."""
    rank, path = min(stuck), []
    while rank not in path:
        path.append(rank)
        rank = waits_for(stuck[rank]).rank
    circle = path[path.index(rank):]
    marks, more = [], []
    for rank in circle:
        task, other = stuck[rank], waits_for(stuck[rank])
        here, there = row_of(rank, lists, mesh), row_of(other.rank, lists, mesh)
        more.append(f"  rank {here}: {task.line} waits for {other.line} of rank {there}")
        marks += [(here, task.round), (there, other.round)]
    if rows is None:
        marks = [_computation(schedule, lists, mark) for mark in marks]
    shown = schedule.actions if rows is None else lists
    marks = sorted(dict.fromkeys(marks), key=lambda mark: mark[1] < len(shown[mark[0]]) and
                   _in_line(shown[mark[0]], mark[1]))
    names = [f"rank {row_of(rank, lists, mesh)}" for rank in circle]
    sends = "if every send waits for its receive" if synchronous else "even if sends never wait"
    return _wrong(schedule, f"deadlock, {sends}: {names[0]} waits for "
                  f"{', which waits for '.join([*names[1:], names[0]])}\n" + "\n".join(more),
                  marks, rows)


def _computation(schedule, lists, mark):
    """(rank, index in the schedule) of the computation that a place in a lowered list is about."""
    rank, at = mark
    row = lists[rank]
    if row[at].kind not in COMPUTE:
        same = {"SEND_F": "F", "RECV_F": "F"}.get(row[at].kind, "BI")
        at = next(i for i, a in enumerate(row) if a.stage == row[at].stage and a.kind in same
                  and a.microbatch == row[at].microbatch)
    return rank, schedule.actions[rank].index(row[at])
