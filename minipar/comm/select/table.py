"""Which algorithm serves a collective: an ordered table, first match, never a silent substitute.

The table is data: `algorithms.json`, and before its entries those of a file of the user's
(`table_file.py` reads both). A table is agreed upon by all ranks, so that they pick alike.
"""

import difflib

from .. import algorithms  # noqa: F401  (registers them)
from ..gpu.nccl import KINDS, NCCL
from ..mpi_plan import LIBRARY
from ..program import ALGORITHMS, Program
from .table_file import shipped


class Table:
    """Entries in their order; `table_file.Entry` says what each asks for."""

    def __init__(self, entries):
        self.entries = {}  # {kind: [entry]}
        for entry in entries:
            self.entries.setdefault(entry.kind, []).append(entry)

    def find(self, kind, size, nbytes, shared=lambda: None, node=None):
        """The first entry for a collective of `nbytes` on `size` ranks; None if there is none.

        shared: returns True if the buffer lies in memory that the ranks share, False if they share
        memory but it lies elsewhere, None if they share none. node: returns how many ranks stand
        on one machine, at most; all of them, if None. Both may take long: they are asked only if
        an entry asks.
        """
        for entry in self.entries.get(kind, ()):
            if ((entry.bytes is None or nbytes <= entry.bytes)
                    and (entry.ranks is None or size <= entry.ranks)
                    and (entry.node is None or (size if node is None else node()) <= entry.node)
                    and (entry.shared is None or entry.shared is shared())):
                return entry
        return None


def select(kind, size, nbytes, algorithm="auto", table=None, shared=lambda: None, node=None):
    """The Program for a collective of `nbytes` on `size` ranks; LIBRARY for "mpi", NCCL for
    "nccl".

    algorithm: "auto" (the table's choice), a registered name, "mpi", or a Program. table, shared,
    node: what "auto" picks by, as in Table.find; the table that comes with minipar if None. Raises
    ValueError for a name that there is not, with the nearest valid ones; for a Program of another
    kind; and, with the reason, for one that cannot serve so many ranks.
    """
    source = ""
    if algorithm == "auto":
        table = Table(shipped()) if table is None else table
        entry = table.find(kind, size, nbytes, shared, node)
        if entry is None and kind in ALGORITHMS:
            raise ValueError(f"no entry of the table is for {kind} of {nbytes} bytes on {size} "
                             f"ranks: name an algorithm, {', '.join(names(kind)[1:])}")
        if entry is not None:
            algorithm, source = entry.algorithm, f"{entry.source}: "
    if algorithm in (LIBRARY.name, NCCL.name):
        return LIBRARY if algorithm == LIBRARY.name else NCCL
    program = algorithm if isinstance(algorithm, Program) else _named(kind, algorithm)
    if program.kind.name != kind:
        raise ValueError(f"{program.name} is a program for {program.kind.name}, not for {kind}")
    if reason := program.refusal(size):
        raise ValueError(source + reason)
    return program


def names(kind):
    """What `algorithm` may be for a kind, besides a Program of one's own."""
    return ["auto", *sorted(ALGORITHMS.get(kind, ())), LIBRARY.name, *[NCCL.name] * (kind in KINDS)]


def _named(kind, name):
    if kind not in ALGORITHMS:
        raise ValueError(f"no kind {kind!r}: there are {', '.join(ALGORITHMS)}")
    if name not in ALGORITHMS[kind]:
        valid = names(kind)
        near = difflib.get_close_matches(str(name), valid, n=3) or valid
        raise ValueError(f"no {kind} algorithm {name!r}: did you mean {', '.join(near)}?")
    return ALGORITHMS[kind][name]
