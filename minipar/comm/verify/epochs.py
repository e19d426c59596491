"""One-sided access: in one epoch, between two fences, nothing is ordered but each rank's rounds.

What one rank puts or gets must not touch an element that another rank writes in the same epoch,
nor may it write one that another reads: who comes first is not known. Accesses of the owner of
the memory count, its sends and receives included. Nothing is one-sided before the first fence
(the peer may not have begun) nor after the last (nothing says when it is complete).
"""

from ..graph import READS, WRITES
from ..program import ONE_SIDED


def races(tasks):
    """Yield (task, other or None, rank, buffer, element) for everything that is not ordered.

    task is one-sided; `other`, of another rank, touches the same element of a buffer of `rank` in
    the same epoch. It is None if the task does not stand between two fences.
    """
    one_sided = [task for task in tasks if task.kind in ONE_SIDED]
    fences = sum(task.kind == "fence" and task.rank == 0 for task in tasks)
    for task in one_sided:
        if not 0 < task.epoch < fences:
            yield task, None, task.peer, task.remote.buffer, task.remote.start
    touched = {(task.epoch, task.peer, task.remote.buffer) for task in one_sided}
    accesses = {key: [] for key in touched}
    for task in tasks:
        for key, chunk, writes in _accesses(task):
            if key in touched and len(chunk):
                accesses[key].append((chunk.start, chunk.stop, task.id, writes))
    for (_, rank, buffer), found in accesses.items():
        found.sort()
        for i, (_, stop, one, writes) in enumerate(found):
            for start, _, other, also in found[i + 1:]:
                if start >= stop:
                    break
                if (writes or also) and tasks[one].rank != tasks[other].rank:
                    pair = sorted((tasks[one], tasks[other]), key=lambda task: task.rank == rank)
                    yield *pair, rank, buffer, start


def _accesses(task):
    """((epoch, rank, buffer), chunk, whether it is written) of all that a task touches."""
    if task.kind in READS or task.kind in WRITES:
        yield (task.epoch, task.rank, task.chunk.buffer), task.chunk, task.kind in WRITES
    if task.source is not None:
        yield (task.epoch, task.rank, task.source.buffer), task.source, False
    if task.remote is not None:
        yield (task.epoch, task.peer, task.remote.buffer), task.remote, task.kind == "put"
