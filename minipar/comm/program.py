"""Collective algorithms as programs: one generator per algorithm, one rank's point of view.

    @collective("all_reduce")
    def ring(rank, size, x):
        chunk, right, left = x.split(size), (rank + 1) % size, (rank - 1) % size
        for s in range(size - 1):
            yield send(chunk[rank - s], right), recv_reduce(chunk[rank - s - 1], left)
        ...

Each `yield` is one round: its operations progress together, sends read what stood before the
round. A program moves no byte. It is traced into rounds (`Program.trace`), which `plan.py` runs
over a transport and `graph.py` lowers to a task graph for whoever wants to look at it.

Matching is first-in-first-out per (source, destination, channel): the k-th send from a to b on a
channel meets the k-th receive at b from a on it. One-sided operations (`put`, `get`, `get_reduce`)
touch a peer's memory between two `fence`s, which all ranks pass together. Programs compose by
`yield from`; see also `compose.py`. What a collective promises is said in `kinds.py`.
"""

import inspect
import sys
from functools import lru_cache
from typing import NamedTuple

from .kinds import KINDS


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

    def cut(self, sizes):
        """Consecutive chunks of these sizes, from the start of this one."""
        out, at = [], self.start
        for size in sizes:
            out.append(Chunk(self.buffer, at, at + size))
            at += size
        return out

    def blocks(self, size):
        """Consecutive chunks of `size` elements; the last one may be shorter."""
        return [Chunk(self.buffer, at, min(at + size, self.stop))
                for at in range(self.start, self.stop, size)]

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

    kind:   "send", "recv", "recv_reduce" (receive and reduce into chunk); "copy" and "reduce"
            (local: source into chunk); "put" (chunk into the peer's `remote`), "get" (from there
            into chunk), "get_reduce" (reduce from there into chunk); "fence".
    """
    kind: str
    chunk: Chunk
    peer: int = -1
    channel: int = 0
    source: Chunk | None = None
    remote: Chunk | None = None
    line: str = ""


ONE_SIDED = ("put", "get", "get_reduce")
REDUCING = ("recv_reduce", "reduce", "get_reduce")
CHANNELS = 16  # that the messages of one program may use: each is a tag of its own


def _here():
    frame = sys._getframe(2)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def send(chunk, peer, channel=0):
    """Send `chunk` to rank `peer`."""
    return Op("send", chunk, peer, channel, line=_here())


def recv(chunk, peer, channel=0):
    """Receive into `chunk` from rank `peer`."""
    return Op("recv", chunk, peer, channel, line=_here())


def recv_reduce(chunk, peer, channel=0):
    """Receive from rank `peer` and reduce what comes into `chunk`."""
    return Op("recv_reduce", chunk, peer, channel, line=_here())


def copy(source, destination):
    """Copy within the rank, between chunks of equal length."""
    return Op("copy", destination, source=source, line=_here())


def reduce(source, destination):
    """Reduce `source` into `destination` within the rank."""
    return Op("reduce", destination, source=source, line=_here())


def put(chunk, peer, remote=None):
    """Write `chunk` into rank `peer`'s memory, at `remote` there; at the same place if None."""
    return Op("put", chunk, peer, remote=chunk if remote is None else remote, line=_here())


def get(chunk, peer, remote=None):
    """Read into `chunk` from rank `peer`'s memory, at `remote` there; the same place if None."""
    return Op("get", chunk, peer, remote=chunk if remote is None else remote, line=_here())


def get_reduce(chunk, peer, remote=None):
    """Reduce into `chunk` what stands in rank `peer`'s memory, at `remote` or the same place."""
    return Op("get_reduce", chunk, peer, remote=chunk if remote is None else remote, line=_here())


def fence():
    """Wait until all ranks are here: what was put is there, and what is to be got may change."""
    return Op("fence", Chunk("x", 0, 0), line=_here())


class ProgramError(ValueError):
    """What is wrong with a program: of which `rank` (from 0), `round` (from 0), source `line`
    ("file:number") and `chunk`; None where it is not one of them that is to blame."""

    def __init__(self, words, rank=None, round=None, line=None, chunk=None):
        super().__init__(words)
        self.rank, self.round, self.line, self.chunk = rank, round, line, chunk


class Trace(NamedTuple):
    """A program for one rank: `rounds`, a tuple of tuples of Op, and {buffer: its length}."""
    rounds: tuple
    buffers: dict

    @property
    def one_sided(self):
        """Whether it touches memory of peers, which not every transport can give."""
        return any(op.kind in ONE_SIDED or op.kind == "fence"
                   for ops in self.rounds for op in ops)


# Restrictions that a program may declare: {name: (test of the number of ranks, in words)}.
RANKS = {"power_of_two": (lambda p: p & (p - 1) == 0, "2^k"),
         "even": (lambda p: p % 2 == 0 or p == 1, "an even number of")}

class Program:
    """A collective algorithm. Calling it gives the generator, so that programs compose by
    `yield from`; `trace` runs it for one rank.

    kind:          what it promises.
    function:      f(rank, size, <the kind's buffers by name>), with `root`, `counts`, `topo` and
                   `scratch` (call it with a length for a buffer of that many elements) as further
                   parameters if it wants them.
    ranks:         the restriction of its number of ranks: a key of RANKS, or None.
    deterministic: whether all ranks get the same bits: the same tree of additions.
    name:          what `algorithm=` calls it, one of its kind; the function's if None.
    """

    def __init__(self, kind, function, ranks=None, deterministic=True, name=None):
        if ranks is not None and ranks not in RANKS:
            raise ValueError(f"no restriction {ranks!r}: there are {', '.join(RANKS)}")
        self.kind, self.function, self.ranks = kind, function, ranks
        self.deterministic = deterministic
        self.name, self.__doc__ = name or function.__name__, function.__doc__
        self.wants = set(inspect.signature(function).parameters)  # of the options

    def __call__(self, rank, size, *buffers, **options):
        return self.function(rank, size, *buffers,
                             **{k: v for k, v in options.items() if k in self.wants})

    def __repr__(self):
        return f"<{self.kind.name} {self.name}>"

    def refusal(self, size):
        """Why the program cannot serve `size` ranks, in words; None if it can."""
        if self.ranks is None or RANKS[self.ranks][0](size):
            return None
        return f"{self.name} serves {RANKS[self.ranks][1]} ranks, not {size}"

    @lru_cache(maxsize=1024)
    def trace(self, rank, size, n, **options):
        """The Trace of `rank` in a group of `size` for n elements.

        options: root, counts (a tuple of tuples), topo; those that the program does not want are
        left aside. Raises ValueError if the program cannot serve the group; TypeError and
        ProgramError, naming rank, round and source line, for what is no operation of this group.
        """
        if reason := self.refusal(size):
            raise ValueError(reason)
        lengths = dict(self.kind.buffers(rank, size, n, **options))
        buffers = {name: Chunk(name, 0, length) for name, length in lengths.items()}

        def scratch(length):
            name = f"scratch{len(lengths) - len(buffers)}"
            lengths[name] = length
            return Chunk(name, 0, length)
        generator, rounds = self(rank, size, **buffers, **options, scratch=scratch), []
        for ops in generator or ():
            where = f"rank {rank}, round {len(rounds)}"
            ops = operations(ops)
            for op in ops:
                if not isinstance(op, Op):
                    raise TypeError(f"{where}: {self.name} yielded {op!r}, which is not an "
                                    f"operation ({_line(generator)})")
                problem = self._problem(op, rank, size, lengths)
                if problem is not None:
                    raise ProgramError(f"{where}: {problem} ({op.line})", rank, len(rounds),
                                       op.line, op.chunk)
            rounds.append(ops)
        return Trace(tuple(rounds), lengths)

    def _problem(self, op, rank, size, lengths):
        """What is wrong with an operation of `rank`, in words; None if nothing is."""
        if op.kind == "fence":
            return None
        if op.source is None and not (0 <= op.peer < size and op.peer != rank):
            return f"{op.kind}: there is no peer {op.peer} among {size} ranks"
        if not 0 <= op.channel < CHANNELS:
            return f"channel {op.channel} is not in [0, {CHANNELS})"
        if op.source is not None and len(op.source) != len(op.chunk):
            return f"{op.kind} of {op.source} into {op.chunk}"
        if op.remote is not None and len(op.remote) != len(op.chunk):
            return f"{op.kind} of {op.chunk} and {op.remote} of rank {op.peer}"
        if op.remote is not None and op.remote.buffer in self.kind.own:
            return f"{op.kind} at {op.remote} of rank {op.peer}, which is that rank's own"
        written = op.remote if op.kind == "put" else op.chunk if op.kind != "send" else None
        if written is not None and written.buffer in self.kind.kept:
            return f"{op.kind} into {written}, which {self.kind.name} leaves as it is"
        if op.kind in REDUCING and not self.kind.reduces:
            return f"{op.kind} in {self.kind.name}, which reduces nothing"
        for chunk in (op.chunk, op.source):
            if chunk is None:
                continue
            if chunk.buffer not in lengths:
                return f"there is no buffer {chunk.buffer}: there are {', '.join(lengths)}"
            if not 0 <= chunk.start <= chunk.stop <= lengths[chunk.buffer]:
                return f"{chunk} of a buffer of {lengths[chunk.buffer]} elements"
        return None


def operations(ops):
    """What a program has yielded as a tuple: one operation stands for a round of one."""
    return tuple(ops) if isinstance(ops, (tuple, list)) and type(ops) is not Op else (ops,)


def _line(generator):
    """Where a suspended generator stands: the line of its `yield`, inside any `yield from`."""
    while getattr(generator.gi_yieldfrom, "gi_frame", None) is not None:
        generator = generator.gi_yieldfrom
    return f"{generator.gi_code.co_filename}:{generator.gi_frame.f_lineno}"


ALGORITHMS = {name: {} for name in KINDS}  # {kind: {algorithm name: Program}}


def collective(kind, *, ranks=None, deterministic=True, name=None):
    """Declare a generator as a program of `kind`: a name of KINDS, or a Kind of one's own.

    ranks, deterministic: see Program. name: the function's, if None; names differ within a kind.
    """
    if isinstance(kind, str):
        if kind not in KINDS:
            raise ValueError(f"no kind {kind!r}: there are {', '.join(KINDS)}")
        kind = KINDS[kind]
    return lambda function: Program(kind, function, ranks, deterministic, name)


def register(program):
    """Offer a program by its name to `algorithm="name"`; returns it."""
    ALGORITHMS.setdefault(program.kind.name, {})[program.name] = program
    return program
