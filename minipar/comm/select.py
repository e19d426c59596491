"""Which algorithm serves a collective: an ordered table, first match, never a silent substitute."""

import difflib

from . import algorithms  # noqa: F401  (registers them)
from .program import ALGORITHMS, Program

# (kind, largest group or None, largest message in bytes or None, algorithm)
TABLE = [
    ("all_reduce", None, None, "ring"),
    ("reduce_scatter", None, None, "ring"),
    ("all_gather", None, None, "ring"),
    ("broadcast", None, None, "binomial"),
    ("barrier", None, None, "dissemination"),
]


def select(kind, size, nbytes, algorithm="auto"):
    """The Program for a collective of `nbytes` on `size` ranks.

    algorithm: "auto" (the table), a registered name, or a Program. Raises ValueError, with the
    nearest valid names, for a name that there is not, and for a Program of another kind.
    """
    if isinstance(algorithm, Program):
        if algorithm.kind.name != kind:
            raise ValueError(f"{algorithm.name} is a program for {algorithm.kind.name}, "
                             f"not for {kind}")
        return algorithm
    if algorithm == "auto":
        for row_kind, ranks, limit, name in TABLE:
            if row_kind == kind and (ranks is None or size <= ranks) and (
                    limit is None or nbytes <= limit):
                return ALGORITHMS[kind][name]
    if algorithm not in ALGORITHMS[kind]:
        names = sorted(ALGORITHMS[kind])
        near = difflib.get_close_matches(str(algorithm), names, n=3) or names
        raise ValueError(f"no {kind} algorithm {algorithm!r}: did you mean {', '.join(near)}?")
    return ALGORITHMS[kind][algorithm]
