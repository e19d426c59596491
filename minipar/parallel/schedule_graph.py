"""The task graph of a schedule: that of the collectives (`comm/graph.py`), for a training step.

Whoever checks, simulates or draws a schedule reads this. A task's `stream` is "compute" for F, B,
I and W, and "comm" for send, recv, reduce and step; `round` is its place in the lowered list, and
`line` the action's text. `chunk` is what it writes, sends or reduces, `source` what it reads:
ranges of micro-batches of these buffers, for every stage s:

    x<s>  what enters stage s           g<s>  the gradient of that
    w<s>  the gradient of its weights, of which each micro-batch adds one part

so that F of s makes x<s+1> from x<s>, I makes g<s> from g<s+1>. `deps` are the tasks of the same
rank whose results a task needs; a receive is posted at its place and waited for by what uses it.
Messages between two ranks match first in first out. What several ranks do together is a task on
each of them; their `match`es form a ring:

    reduce   of a stage's gradients: its replicas
    F, B, I  of a stage whose layers are cut: the tp ranks that have a piece of it, which exchange
             sums within the computation; W has none
    step     the end of every list: all ranks sum counts and norms, then the optimizer updates
"""

from ..comm.graph import Task
from ..comm.program import Chunk
from .lower import ENDS, lower, received
from .mesh import Mesh
from .schedule import COMPUTE, Action, ScheduleError

COMM = {"RECV_F": "recv", "RECV_B": "recv", "SEND_F": "send", "SEND_B": "send",
        "REDUCE": "reduce"}
# What an action of stage s writes and reads: (buffer, of stage s plus so many).
BUFFERS = {"F": (("x", 1), ("x", 0)), "B": (("g", 0), ("g", 1)), "I": (("g", 0), ("g", 1)),
           "W": (("w", 0), ("g", 1)), "RECV_F": (("x", 0),), "SEND_F": (("x", 1),),
           "RECV_B": (("g", 1),), "SEND_B": (("g", 0),), "REDUCE": (("w", 0),)}


def schedule_graph(schedule, rows=None, mesh=None):
    """The Tasks of a schedule, rank by rank, in the order of each list.

    rows: lowered lists, if they are not `lower(schedule)`: one for each rank of the pipeline, which
          all its copies go through, or one for each rank of the mesh.
    mesh: Mesh of the job, of which the tasks' ranks are; Mesh(pp=schedule.ranks) if None.
    Raises ScheduleError, with `rank` and `index` the place in `rows`, if a message lacks its other
    end, meets another one, or if a task needs what nothing before it makes; ValueError for rows or
    a mesh of other numbers of ranks.
    """
    rows, mesh = on_mesh(schedule, rows, mesh)
    tasks = []
    for rank in range(mesh.size):
        _append(tasks, schedule, rank, rows, mesh)
    _match(tasks, rows, mesh)
    _join(tasks, mesh)
    return tasks


def on_mesh(schedule, rows, mesh):
    """(rows, mesh) with what stands for None. Raises ValueError if they do not fit."""
    rows, mesh = lower(schedule) if rows is None else rows, mesh or Mesh(pp=schedule.ranks)
    if mesh.pp != schedule.ranks or len(rows) not in (mesh.pp, mesh.size):
        raise ValueError(f"{len(rows)} lists on a mesh of {mesh} for a schedule of "
                         f"{schedule.ranks} ranks")
    return rows, mesh


def row_of(rank, rows, mesh):
    """Which of `rows` a rank of the mesh goes through: its own, or all its copies'."""
    return rank if len(rows) == mesh.size else mesh.coordinates(rank)["pp"]


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


def _append(tasks, schedule, rank, rows, mesh):
    """Append the tasks of one rank of the mesh."""
    at, place = row_of(rank, rows, mesh), mesh.coordinates(rank)
    row, first = rows[at], len(tasks)
    split, known = splits([row]), {action: first + i for i, action in enumerate(row)}
    for i, action in enumerate(row):
        kind, other = action.kind, -1
        if kind in ENDS:
            stage = schedule.rank_of[action.stage + ENDS[kind][1]]
            other = mesh.rank(**{**place, "pp": stage})
        task = Task(first + i, rank, "comm" if kind in COMM else "compute", COMM.get(kind, kind),
                    i, *_chunks(schedule, action), other, 0, str(action))
        for need in needs(schedule, action, split):
            if need not in known:
                raise ScheduleError(f"rank {at}: {action} needs {need}, which is not there", at, i)
            if known[need] >= task.id:
                raise ScheduleError(f"rank {at}: {action} needs {need}, which comes after it", at,
                                    i, [(at, i), (at, known[need] - first)])
            task.deps.append(known[need])
        tasks.append(task)
    tasks.append(Task(first + len(row), rank, "comm", "step", len(row), None, None, -1, 0, "step",
                      deps=[known[a] for a in row if a.kind == "REDUCE"]))


def _match(tasks, rows, mesh):
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
                raise _mismatch(send, recv, ours, theirs, rows, mesh)
            send.match, recv.match = recv.id, send.id
        for left, words in ((ours[len(theirs):], "is never received"),
                            (theirs[len(ours):], "is never sent")):
            if left:
                rank = row_of(left[0].rank, rows, mesh)
                raise ScheduleError(f"rank {rank}: {left[0].line} {words}", rank, left[0].round)


def _mismatch(send, recv, ours, theirs, rows, mesh):
    """The ScheduleError for a send that meets another receive: blame the end that is too much, if
    one is; else mark the other ends of the two as well."""
    def same(tasks, other):
        return [t for t in tasks if (t.chunk.buffer, t.chunk.start)
                == (other.chunk.buffer, other.chunk.start)]
    here, there = row_of(send.rank, rows, mesh), row_of(recv.rank, rows, mesh)
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


def _join(tasks, mesh):
    """Join what ranks do together in rings."""
    rings = {}
    for task in tasks:
        place = mesh.coordinates(task.rank)
        if task.kind in ("F", "B", "I") and mesh.tp > 1:
            rings.setdefault((task.line, place["dp"]), []).append(task)
        elif task.kind == "reduce" and mesh.dp > 1:
            rings.setdefault((task.line, place["tp"]), []).append(task)
        elif task.kind == "step" and mesh.size > 1:
            rings.setdefault("step", []).append(task)
    for ring in rings.values():
        for task, other in zip(ring, ring[1:] + ring[:1]):
            task.match, task.peer = other.id, other.rank


def together(tasks, task):
    """The tasks of other ranks that a task is done together with; none of a message."""
    other = -1 if task.kind in ("send", "recv") else task.match
    while other not in (-1, task.id):
        yield tasks[other]
        other = tasks[other].match
