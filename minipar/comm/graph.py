"""The task graph that programs lower to: what happens on every rank, and what waits for what.

Whoever checks, prices, simulates or draws an algorithm reads this and nothing else; no byte is
moved here. Dependencies follow from what each operation reads and writes: an operation waits for
the last writer of what it reads (or reduces into), and for the readers of what it overwrites. One-
sided operations are ordered by fences: the k-th fence of every rank is one event, which waits for
all that stands before it on any rank.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

from .codecs import encoded_nbytes
from .program import Chunk, ProgramError


@dataclass(slots=True)
class Task:
    """One operation on one rank.

    id: position in the graph.      rank: who does it.     stream: what it occupies ("comm").
    kind: as in program.Op.         round: the yield it came from, from 0.
    chunk, source: ranges in elements.   peer, channel: for messages; -1 if local.
    remote: range of the peer's memory that a one-sided operation touches.
    epoch: how many fences stand before it.
    codec: how what it sends, receives or copies is encoded; None if it is not.
    deps: ids of tasks of the same rank that must be complete before this one starts.
    match: id of the other end of the message; -1 if local. Of a fence: of the next rank's, so
           that those of one event form a ring.
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
    remote: object = None
    epoch: int = 0
    deps: list = field(default_factory=list)
    match: int = -1
    codec: object = None

    def nbytes(self, itemsize):
        """The bytes that the task moves, if elements have `itemsize`."""
        return encoded_nbytes(self.chunk, self.codec, itemsize)


class GraphError(ProgramError):
    """A program that cannot be lowered; the message names rank, round and source line."""


def _wrong(task, words):
    return GraphError(f"rank {task.rank}, round {task.round}: {words}", task.rank, task.round,
                      task.line, task.chunk)


def lower(program, size, n, **options):
    """The tasks of `program` on `size` ranks for a buffer of n elements, as a list.

    options: root, counts, topo, as in Program.trace. Errors: see lower_traces.
    """
    return lower_traces([program.trace(rank, size, n, **options) for rank in range(size)])


def lower_traces(traces):
    """The tasks of a program of which `traces` are the ranks' traces, in order, as a list.

    Raises GraphError if an operation of a round overwrites what another of it uses, if a message
    has no other end or one of another length or codec, if a one-sided operation leaves its peer's
    buffer, or if ranks differ in their number of fences.
    """
    tasks = []
    for rank, trace in enumerate(traces):
        _lower_rank(tasks, rank, trace.rounds)
    _match(tasks)
    _fences(tasks, len(traces))
    for task in tasks:
        if task.remote is not None:
            length = traces[task.peer].buffers.get(task.remote.buffer, 0)
            if not 0 <= task.remote.start <= task.remote.stop <= length:
                raise _wrong(task, f"{task.kind} at {task.remote} of rank {task.peer}, which "
                                   f"has {length} elements there ({task.line})")
    return tasks


WRITES = ("recv", "recv_reduce", "copy", "reduce", "get", "get_reduce")  # into their chunk
READS = ("send", "recv_reduce", "reduce", "put", "get_reduce")  # their chunk


def _accesses(op):
    """(chunk, reads, writes) of an operation. Of a peer's memory the buffer is "rank 1's x": what
    one rank does there in several rounds is ordered too."""
    yield op.chunk, op.kind in READS, op.kind in WRITES
    if op.source is not None:
        yield op.source, True, False
    if op.remote is not None:
        there = Chunk(f"rank {op.peer}'s {op.remote.buffer}", op.remote.start, op.remote.stop)
        yield there, op.kind != "put", op.kind == "put"


def _lower_rank(tasks, rank, rounds):
    """Append one rank's tasks with their dependencies."""
    history = _History([chunk for ops in rounds for op in ops for chunk, *_ in _accesses(op)])
    epoch, since, fence = 0, [], None
    for number, ops in enumerate(rounds):
        batch = []
        for op in ops:
            task = Task(len(tasks), rank, "comm", op.kind, number, op.chunk, op.source,
                        op.peer, op.channel, op.line, op.remote, epoch, codec=op.codec)
            deps = set() if fence is None else {fence}
            for chunk, reads, writes in _accesses(op):
                deps |= history.before(chunk, reads, writes)
            if op.kind == "fence":
                deps |= set(since)
            task.deps = sorted(deps)
            tasks.append(task)
            batch.append(task)
        for task, op in zip(batch, ops):
            for chunk, reads, writes in _accesses(op):
                clash = history.note(task, chunk, reads, writes, number, tasks)
                if clash is not None:
                    raise _wrong(
                        task, f"{task.kind} of {chunk} ({task.line}) and {clash.kind} of "
                              f"{clash.chunk} ({clash.line}) touch the same elements, and one of "
                              f"them writes")
        since += [task.id for task in batch]
        fences = [task for task in batch if task.kind == "fence"]
        if fences and len(batch) > 1:
            raise _wrong(fences[0], f"a fence stands alone in its round ({fences[0].line})")
        if fences:
            epoch, since, fence = epoch + 1, [], fences[0].id


def _fences(tasks, size):
    """Join the k-th fence of every rank in a ring."""
    by_rank = [[] for _ in range(size)]
    for task in tasks:
        if task.kind == "fence":
            by_rank[task.rank].append(task)
    counts = [len(fences) for fences in by_rank]
    if len(set(counts)) > 1:
        odd = min(range(size), key=lambda rank: counts.count(counts[rank]))
        raise GraphError(f"ranks pass different numbers of fences: rank {odd} passes {counts[odd]} "
                         f"of {', '.join(map(str, counts))}", odd)
    for event in zip(*by_rank):
        for task, other in zip(event, event[1:] + event[:1]):
            task.match = other.id


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
            raise _wrong(task, f"nothing is sent to this {task.kind} from rank {task.peer} "
                               f"({task.line})")
        other = sends[k]
        taken[key] = k + 1
        if len(other.chunk) != len(task.chunk):
            raise _wrong(task, f"{task.kind} of {task.chunk} ({task.line}) meets send of "
                               f"{other.chunk} of rank {other.rank} ({other.line})")
        if other.codec != task.codec:
            raise _wrong(task, f"{task.kind} of {task.chunk} as {_name(task.codec)} ({task.line}) "
                               f"meets send of {other.chunk} of rank {other.rank} as "
                               f"{_name(other.codec)} ({other.line})")
        task.match, other.match = other.id, task.id
    for (source, target, _), sends in waiting.items():
        k = taken[(source, target, _)]
        if k < len(sends):
            raise _wrong(sends[k], f"rank {target} never receives this send ({sends[k].line})")


def _name(codec):
    return "it is" if codec is None else codec.name
