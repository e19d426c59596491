"""The task graph that programs lower to: what happens on every rank, and what waits for what.

Whoever checks, prices, simulates or draws an algorithm reads this and nothing else; no byte is
moved here. Dependencies follow from what each operation reads and writes: an operation waits for
the last writer of what it reads (or reduces into), and for the readers of what it overwrites.
"""

from bisect import bisect_left
from dataclasses import dataclass, field


@dataclass(slots=True)
class Task:
    """One operation on one rank.

    id: position in the graph.      rank: who does it.     stream: what it occupies ("comm").
    kind: as in program.Op.         round: the yield it came from, from 0.
    chunk, source: ranges in elements.   peer, channel: for messages; -1 if local.
    deps: ids of tasks of the same rank that must be complete before this one starts.
    match: id of the other end of the message; -1 if local.
    """
    id: int
    rank: int
    stream: str
    kind: str
    round: int
    chunk: object
    source: object
    peer: int
    channel: int
    line: str
    deps: list = field(default_factory=list)
    match: int = -1


class GraphError(ValueError):
    """A program that cannot be lowered; the message names rank, round and source line."""


def lower(program, size, n, root=0):
    """The tasks of `program` on `size` ranks for a buffer of n elements, as a list.

    Raises GraphError if an operation of a round overwrites what another of it uses, or if a
    message has no other end or one of another length.
    """
    tasks = []
    for rank in range(size):
        rounds = program.rounds(rank, size, n, root)
        _lower_rank(tasks, rank, rounds)
    _match(tasks)
    return tasks


def _accesses(op):
    """(chunk, reads, writes) of an operation."""
    yield op.chunk, op.kind in ("send", "recv_reduce", "reduce"), op.kind != "send"
    if op.source is not None:
        yield op.source, True, False


def _lower_rank(tasks, rank, rounds):
    """Append one rank's tasks with their dependencies."""
    history = _History({c for ops in rounds for op in ops for c in (op.chunk, op.source)
                        if c is not None})
    for number, ops in enumerate(rounds):
        batch = []
        for op in ops:
            task = Task(len(tasks), rank, "comm", op.kind, number, op.chunk, op.source,
                        op.peer, op.channel, op.line)
            deps = set()
            for chunk, reads, writes in _accesses(op):
                deps |= history.before(chunk, reads, writes)
            task.deps = sorted(deps)
            tasks.append(task)
            batch.append(task)
        for task, op in zip(batch, ops):
            for chunk, reads, writes in _accesses(op):
                clash = history.note(task, chunk, reads, writes, number, tasks)
                if clash is not None:
                    raise GraphError(
                        f"rank {rank}, round {number}: {task.kind} of {chunk} ({task.line}) and "
                        f"{clash.kind} of {clash.chunk} ({clash.line}) touch the same elements, "
                        f"and one of them writes")


class _History:
    """Last writer and later readers of every piece of each buffer of one rank."""

    def __init__(self, chunks):
        self.cuts, self.writer, self.readers = {}, {}, {}
        for name in {c.buffer for c in chunks}:
            cuts = sorted({b for c in chunks if c.buffer == name for b in (c.start, c.stop)})
            self.cuts[name] = cuts
            self.writer[name] = [None] * len(cuts)
            self.readers[name] = [[] for _ in cuts]

    def _pieces(self, chunk):
        cuts = self.cuts[chunk.buffer]
        return range(bisect_left(cuts, chunk.start), bisect_left(cuts, chunk.stop))

    def before(self, chunk, reads, writes):
        """Ids of the tasks that an access waits for."""
        deps = set()
        for i in self._pieces(chunk):
            if self.writer[chunk.buffer][i] is not None:
                deps.add(self.writer[chunk.buffer][i])
            if writes:
                deps.update(self.readers[chunk.buffer][i])
        return deps

    def note(self, task, chunk, reads, writes, number, tasks):
        """Remember an access; returns a task of the same round that it clashes with, if any."""
        for i in self._pieces(chunk):
            writer, readers = self.writer[chunk.buffer][i], self.readers[chunk.buffer][i]
            others = ([writer] if writer is not None else []) + (readers if writes else [])
            for other in others:
                if other != task.id and tasks[other].round == number:
                    return tasks[other]
            if writes:
                self.writer[chunk.buffer][i] = task.id
                readers.clear()
            if reads and not writes:
                readers.append(task.id)
        return None


def _match(tasks):
    """Join the ends of every message, first in first out per (source, destination, channel)."""
    waiting = {}
    for task in tasks:
        if task.kind == "send":
            waiting.setdefault((task.rank, task.peer, task.channel), []).append(task)
    taken = dict.fromkeys(waiting, 0)
    for task in tasks:
        if task.kind not in ("recv", "recv_reduce"):
            continue
        key = (task.peer, task.rank, task.channel)
        sends, k = waiting.get(key, []), taken.get(key, 0)
        if k == len(sends):
            raise GraphError(f"rank {task.rank}, round {task.round}: nothing is sent to this "
                             f"{task.kind} from rank {task.peer} ({task.line})")
        other = sends[k]
        taken[key] = k + 1
        if len(other.chunk) != len(task.chunk):
            raise GraphError(f"rank {task.rank}, round {task.round}: {task.kind} of {task.chunk} "
                             f"({task.line}) meets send of {other.chunk} ({other.line})")
        task.match, other.match = other.id, task.id
    for (source, target, _), sends in waiting.items():
        k = taken[(source, target, _)]
        if k < len(sends):
            raise GraphError(f"rank {source}, round {sends[k].round}: rank {target} never "
                             f"receives this send ({sends[k].line})")
