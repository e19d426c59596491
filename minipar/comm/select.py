"""Which algorithm serves a collective: an ordered table, first match, never a silent substitute."""

import difflib

from . import algorithms  # noqa: F401  (registers them)
from .library import LIBRARY
from .program import ALGORITHMS, Program

# (kind, largest group or None, largest message in bytes or None, algorithm)
TABLE = [
    ("all_reduce", None, 8 * 1024, "recursive_doubling"),
    ("all_reduce", None, 64 * 1024, "rabenseifner"),
    ("all_reduce", None, None, "ring"),
    ("reduce_scatter", None, 64 * 1024, "recursive_halving"),
    ("reduce_scatter", None, None, "ring"),
    ("all_gather", None, 64 * 1024, "bruck"),
    ("all_gather", None, None, "ring"),
    ("broadcast", None, 64 * 1024, "binomial"),
    ("broadcast", None, None, "scatter_all_gather"),
    ("reduce", None, 64 * 1024, "binomial"),
    ("reduce", None, None, "rabenseifner"),
    ("gather", None, None, "binomial"),
    ("scatter", None, None, "binomial"),
    ("all_to_all", None, 1024, "bruck"),
    ("all_to_all", None, None, "pairwise"),
    ("barrier", None, None, "dissemination"),
]


def select(kind, size, nbytes, algorithm="auto"):
    """The Program for a collective of `nbytes` on `size` ranks; LIBRARY for "mpi".

    algorithm: "auto" (the table), a registered name, "mpi", or a Program. Raises ValueError for a
    name that there is not, with the nearest valid ones; for a Program of another kind; and, with
    the reason, for one that cannot serve so many ranks.
    """
    if algorithm == "auto":
        algorithm = next((name for of, ranks, limit, name in TABLE
                          if of == kind and (ranks is None or size <= ranks)
                          and (limit is None or nbytes <= limit)), "auto")
    if algorithm == LIBRARY.name:
        return LIBRARY
    program = algorithm if isinstance(algorithm, Program) else _named(kind, algorithm)
    if program.kind.name != kind:
        raise ValueError(f"{program.name} is a program for {program.kind.name}, not for {kind}")
    if reason := program.refusal(size):
        raise ValueError(reason)
    return program


def names(kind):
    """What `algorithm` may be for a kind, besides a Program of one's own."""
    return ["auto", *sorted(ALGORITHMS.get(kind, ())), LIBRARY.name]


def _named(kind, name):
    if kind not in ALGORITHMS:
        raise ValueError(f"no kind {kind!r}: there are {', '.join(ALGORITHMS)}")
    if name not in ALGORITHMS[kind]:
        valid = names(kind)
        near = difflib.get_close_matches(str(name), valid, n=3) or valid
        raise ValueError(f"no {kind} algorithm {name!r}: did you mean {', '.join(near)}?")
    return ALGORITHMS[kind][name]
