"""The task graph of a schedule: that of the collectives (`comm/graph.py`), for a training step.

Whoever checks, simulates or draws a schedule reads this. A task's `stream` is "compute" for F, B,
I and W, and "comm" for send, recv and reduce; `round` is its place in the lowered list, and `line`
the action's text. `chunk` is what it writes, sends or reduces, `source` what it reads: ranges of
micro-batches of these buffers, for every stage s:

    x<s>  what enters stage s           g<s>  the gradient of that
    w<s>  the gradient of its weights, of which each micro-batch adds one part

so that F of s makes x<s+1> from x<s>, I makes g<s> from g<s+1>. `deps` are the tasks of the same
rank whose results a task needs; a receive is posted at its place and waited for by what uses it.
Messages between two ranks match first in first out.
"""

from ..comm.graph import Task
from ..comm.program import Chunk
from .lower import ENDS, lower, received
from .schedule import COMPUTE, Action, ScheduleError

COMM = {"RECV_F": "recv", "RECV_B": "recv", "SEND_F": "send", "SEND_B": "send",
        "REDUCE": "reduce"}
# What an action of stage s writes and reads: (buffer, of stage s plus so many).
BUFFERS = {"F": (("x", 1), ("x", 0)), "B": (("g", 0), ("g", 1)), "I": (("g", 0), ("g", 1)),
           "W": (("w", 0), ("g", 1)), "RECV_F": (("x", 0),), "SEND_F": (("x", 1),),
           "RECV_B": (("g", 1),), "SEND_B": (("g", 0),), "REDUCE": (("w", 0),)}


def schedule_graph(schedule, rows=None, replicas=1):
    """The Tasks of a schedule, rank by rank, in the order of each list.

    rows:     lowered lists, if they are not `lower(schedule)`.
    replicas: data-parallel copies, all with the same lists; rank r of copy c is r * replicas + c,
              as in a Mesh. The reductions of a stage, one on each copy, match in a ring.
    Raises ScheduleError, with `index` the place in the lowered list, if a message lacks its other
    end, meets another one, or if a task needs what nothing before it makes.
    """
    rows = lower(schedule) if rows is None else rows
    tasks = []
    for rank, row in enumerate(rows):
        for copy in range(replicas):
            _append(tasks, schedule, rank, row, copy, replicas)
    _match(tasks, replicas)
    _join_reductions(tasks, replicas)
    return tasks


def needs(schedule, action, split):
    """The Actions of the same rank whose results an action uses, as a list.

    split: (stage, micro-batch) of all backwards that are split into I and W.
    """
    stage, kind, m = action
    whole = (stage, m) not in split
    if kind == "W":
        return [Action(stage, "I", m)]
    if kind == "SEND_F":
        return [Action(stage, "F", m)]
    if kind == "SEND_B":
        return [Action(stage, "B" if whole else "I", m)]
    if kind == "REDUCE":
        return [Action(stage, "W" if (stage, k) in split else "B", k)
                for k in range(schedule.microbatches)]
    if kind not in COMPUTE:
        return []
    found = [] if kind == "F" else [Action(stage, "F", m)]
    message = received(schedule, action)
    if message is not None:
        found.append(message)
    elif kind == "F" and stage > 0:
        found.append(Action(stage - 1, "F", m))
    elif kind != "F" and stage + 1 < schedule.stages:
        found.append(Action(stage + 1, "I" if (stage + 1, m) in split else "B", m))
    return found


def splits(rows):
    """(stage, micro-batch) of all backwards that are split into I and W."""
    return {(a.stage, a.microbatch) for row in rows for a in row if a.kind == "I"}


def _chunks(schedule, action):
    """(chunk, source) of an action."""
    stage, kind, m = action
    start, stop = (0, schedule.microbatches) if kind == "REDUCE" else (m, m + 1)
    chunks = [Chunk(f"{name}{stage + more}", start, stop) for name, more in BUFFERS[kind]]
    return (*chunks, None)[:2]


def _append(tasks, schedule, rank, row, copy, replicas):
    split, place = splits([row]), {action: len(tasks) + i for i, action in enumerate(row)}
    for i, action in enumerate(row):
        kind, other = action.kind, -1
        if kind in ENDS:
            other = schedule.rank_of[action.stage + ENDS[kind][1]]
        task = Task(len(tasks), rank * replicas + copy, "comm" if kind in COMM else "compute",
                    COMM.get(kind, kind), i, *_chunks(schedule, action),
                    other if other < 0 else other * replicas + copy, 0, str(action))
        for need in needs(schedule, action, split):
            if need not in place:
                raise ScheduleError(f"rank {rank}: {action} needs {need}, which is not there",
                                    rank, i)
            if place[need] >= task.id:
                raise ScheduleError(f"rank {rank}: {action} needs {need}, which comes after it",
                                    rank, i, [(rank, i), (rank, i + place[need] - task.id)])
            task.deps.append(place[need])
        tasks.append(task)


def _match(tasks, replicas):
    """Join the ends of every message, first in first out per (source, destination)."""
    sends, recvs = {}, {}
    for task in tasks:
        if task.kind == "send":
            sends.setdefault((task.rank, task.peer), []).append(task)
        elif task.kind == "recv":
            recvs.setdefault((task.peer, task.rank), []).append(task)
    for pair in sorted({*sends, *recvs}):
        ours, theirs = sends.get(pair, []), recvs.get(pair, [])
        for send, recv in zip(ours, theirs):
            if (send.chunk.buffer, send.chunk.start) != (recv.chunk.buffer, recv.chunk.start):
                raise _mismatch(send, recv, ours, theirs, replicas)
            send.match, recv.match = recv.id, send.id
        for left, words in ((ours[len(theirs):], "is never received"),
                            (theirs[len(ours):], "is never sent")):
            if left:
                raise ScheduleError(f"rank {left[0].rank // replicas}: {left[0].line} {words}",
                                    left[0].rank // replicas, left[0].round)


def _mismatch(send, recv, ours, theirs, replicas):
    """The ScheduleError for a send that meets another receive: blame the end that is too much, if
    one is; else mark the other ends of the two as well."""
    def same(tasks, other):
        return [t for t in tasks if (t.chunk.buffer, t.chunk.start)
                == (other.chunk.buffer, other.chunk.start)]
    here, there = send.rank // replicas, recv.rank // replicas
    marks = [(there, recv.round), (here, send.round)]
    if len(same(ours, send)) > len(same(theirs, send)):
        words, marks = f"rank {here}: {send.line} is never received", marks[::-1]
    elif len(same(theirs, recv)) > len(same(ours, recv)):
        words = f"rank {there}: {recv.line} is never sent"
    else:
        words = (f"rank {there}: {recv.line} is posted where rank {here} sends {send.line}: "
                 f"messages between two ranks arrive in the order in which they are sent")
        marks += [(here, t.round) for t in same(ours, recv)]
        marks += [(there, t.round) for t in same(theirs, send)]
    return ScheduleError(words, *marks[0], marks)


def _join_reductions(tasks, replicas):
    """Join the reductions of one stage on all copies in a ring."""
    if replicas == 1:
        return
    of_stage = {}
    for task in tasks:
        if task.kind == "reduce":
            of_stage.setdefault(task.line, []).append(task)
    for ring in of_stage.values():
        for task, other in zip(ring, ring[1:] + ring[:1]):
            task.match, task.peer = other.id, other.rank
