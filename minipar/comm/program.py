"""Collective algorithms as programs: one generator per algorithm, one rank's point of view.

    @collective("all_reduce")
    def ring(rank, size, x):
        chunk, right, left = x.split(size), (rank + 1) % size, (rank - 1) % size
        for s in range(size - 1):
            yield send(chunk[rank - s], right), recv_reduce(chunk[rank - s - 1], left)
        ...

Each `yield` is one round: its operations progress together, sends read what stood before the
round. A program moves no byte. It is traced into rounds (`Program.rounds`), which `plan.py` runs
over a transport and `graph.py` lowers to a task graph for whoever wants to look at it.

Matching is first-in-first-out per (source, destination, channel): the k-th send from a to b on a
channel meets the k-th receive at b from a on it.
"""

import inspect
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Callable, NamedTuple


class Chunk:
    """Elements [start, stop) of a named logical buffer. Knows no memory."""

    __slots__ = ("buffer", "start", "stop")

    def __init__(self, buffer, start, stop):
        self.buffer, self.start, self.stop = buffer, start, stop

    def __len__(self):
        return self.stop - self.start

    def split(self, parts):
        """`parts` nearly equal chunks; part i is [i n // parts, (i + 1) n // parts). Lazy."""
        return Split(self, parts)

    def __getitem__(self, index):
        """A sub-range by slice, in elements of this chunk."""
        start, stop, step = index.indices(len(self))
        if step != 1:
            raise ValueError("a chunk is contiguous: slices have step 1")
        return Chunk(self.buffer, self.start + start, self.start + max(start, stop))

    def __repr__(self):
        return f"{self.buffer}[{self.start}:{self.stop}]"


class Split:
    """The parts of a chunk, made when asked for: naming 65,536 of them costs nothing.

    Indices count from either end, and modulo the number of parts: `chunk[rank - s]` on a ring.
    """

    __slots__ = ("chunk", "parts")

    def __init__(self, chunk, parts):
        self.chunk, self.parts = chunk, parts

    def __len__(self):
        return self.parts

    def __getitem__(self, index):
        i, n, start = index % self.parts, len(self.chunk), self.chunk.start
        return Chunk(self.chunk.buffer, start + i * n // self.parts,
                     start + (i + 1) * n // self.parts)

    def __iter__(self):
        return (self[i] for i in range(self.parts))


class Op(NamedTuple):
    """One operation of a round. `peer` is a rank of the group; `line` says where it was written.

    kind:  "send", "recv", "recv_reduce" (receive and reduce into chunk), "copy" and "reduce"
           (local: source into chunk).
    """
    kind: str
    chunk: Chunk
    peer: int = -1
    channel: int = 0
    source: Chunk | None = None
    line: str = ""


CHANNELS = 16  # that the messages of one program may use: each is a tag of its own


def _here():
    frame = sys._getframe(2)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def send(chunk, peer, channel=0):
    """Send `chunk` to rank `peer`."""
    return Op("send", chunk, peer, channel, None, _here())


def recv(chunk, peer, channel=0):
    """Receive into `chunk` from rank `peer`."""
    return Op("recv", chunk, peer, channel, None, _here())


def recv_reduce(chunk, peer, channel=0):
    """Receive from rank `peer` and reduce what comes into `chunk`."""
    return Op("recv_reduce", chunk, peer, channel, None, _here())


def copy(source, destination):
    """Copy within the rank, between chunks of equal length."""
    return Op("copy", destination, -1, 0, source, _here())


def reduce(source, destination):
    """Reduce `source` into `destination` within the rank."""
    return Op("reduce", destination, -1, 0, source, _here())


@dataclass(frozen=True)
class Kind:
    """What a collective promises, stated per block: the buffer x in `size` nearly equal blocks.

    before, after: (rank, block, size, root) -> the frozenset of ranks whose contributions this
    rank's block holds, or None where its content does not matter.
    """
    name: str
    before: Callable
    after: Callable
    reduces: bool = False
    rooted: bool = False


def _own(rank, block, size, root):
    return frozenset([rank])


def _all(rank, block, size, root):
    return frozenset(range(size))


KINDS = {kind.name: kind for kind in (
    Kind("all_reduce", _own, _all, reduces=True),
    Kind("reduce_scatter", _own, lambda rank, block, size, root:
         frozenset(range(size)) if block == rank else None, reduces=True),
    Kind("all_gather", lambda rank, block, size, root:
         frozenset([rank]) if block == rank else None,
         lambda rank, block, size, root: frozenset([block])),
    Kind("broadcast", lambda rank, block, size, root:
         frozenset([root]) if rank == root else None,
         lambda rank, block, size, root: frozenset([root]), rooted=True),
    Kind("barrier", lambda rank, block, size, root: None,
         lambda rank, block, size, root: None),
)}


class Program:
    """A collective algorithm. Calling it gives the generator, so that programs compose by
    `yield from`; `rounds` traces it for one rank."""

    def __init__(self, kind, function):
        self.kind, self.function = kind, function
        self.name, self.__doc__ = function.__name__, function.__doc__
        self._wants_root = "root" in inspect.signature(function).parameters

    def __call__(self, rank, size, x, **options):
        return self.function(rank, size, x, **options)

    def __repr__(self):
        return f"<{self.kind.name} {self.name}>"

    @lru_cache(maxsize=1024)
    def rounds(self, rank, size, n, root=0):
        """The rounds of `rank` in a group of `size` for n elements: a tuple of tuples of Op.

        Raises TypeError, ValueError naming rank, round and source line for what is not an
        operation of this group.
        """
        options = {"root": root} if self._wants_root else {}
        generator, rounds = self(rank, size, Chunk("x", 0, n), **options), []
        for ops in generator:
            where = f"rank {rank}, round {len(rounds)}"
            ops = tuple(ops) if isinstance(ops, (tuple, list)) and type(ops) is not Op else (ops,)
            for op in ops:
                if not isinstance(op, Op):
                    raise TypeError(f"{where}: {self.name} yielded {op!r}, which is not an "
                                    f"operation ({_line(generator)})")
                problem = self._problem(op, rank, size, n)
                if problem is not None:
                    raise ValueError(f"{where}: {problem} ({op.line})")
            rounds.append(ops)
        return tuple(rounds)

    def _problem(self, op, rank, size, n):
        """What is wrong with an operation of `rank`, in words; None if nothing is."""
        if op.source is None and not (0 <= op.peer < size and op.peer != rank):
            return f"{op.kind}: there is no peer {op.peer} among {size} ranks"
        if not 0 <= op.channel < CHANNELS:
            return f"channel {op.channel} is not in [0, {CHANNELS})"
        if op.source is not None and len(op.source) != len(op.chunk):
            return f"{op.kind} of {op.source} into {op.chunk}"
        if op.kind in ("recv_reduce", "reduce") and not self.kind.reduces:
            return f"{op.kind} in {self.kind.name}, which reduces nothing"
        for chunk in (op.chunk, op.source):
            if chunk is not None and not 0 <= chunk.start <= chunk.stop <= n:
                return f"{chunk} of a buffer of {n} elements"
        return None


def _line(generator):
    """Where a suspended generator stands: the line of its `yield`, inside any `yield from`."""
    while getattr(generator.gi_yieldfrom, "gi_frame", None) is not None:
        generator = generator.gi_yieldfrom
    return f"{generator.gi_code.co_filename}:{generator.gi_frame.f_lineno}"


ALGORITHMS = {name: {} for name in KINDS}  # {kind: {algorithm name: Program}}


def collective(kind):
    """Declare a generator `f(rank, size, x)` as a program of `kind` (see KINDS)."""
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r}: there are {', '.join(KINDS)}")
    return lambda function: Program(KINDS[kind], function)


def register(program):
    """Offer a program by its name to `algorithm="name"`; returns it."""
    ALGORITHMS[program.kind.name][program.name] = program
    return program
