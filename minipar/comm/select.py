"""Which algorithm serves a collective: an ordered table, first match, never a silent substitute."""

import difflib

from . import algorithms  # noqa: F401  (registers them)
from .mpi_plan import LIBRARY
from .nccl import KINDS, NCCL
from .program import ALGORITHMS, Program

KIB = 1024

# (kind, largest group or None, largest message in bytes or None, algorithm). Few rounds while a
# message takes no longer than a round, few bytes above that. Measured over MPICH on one machine
# with 2 ranks, time / the ring's: recursive doubling 0.72 at 64 B, 0.67 at 16 KiB, 0.86 at 64 KiB,
# 1.05 at 256 KiB, 1.4 at 1 MiB; Rabenseifner's is never slower than the ring with 2^k ranks, and
# others send up to twice as much.
TABLE = [
    ("all_reduce", 2, 128 * KIB, "recursive_doubling"),
    ("all_reduce", None, 32 * KIB, "recursive_doubling"),
    ("all_reduce", None, 512 * KIB, "rabenseifner"),
    ("all_reduce", None, None, "ring"),
    ("reduce_scatter", None, 512 * KIB, "recursive_halving"),
    ("reduce_scatter", None, None, "ring"),
    ("all_gather", None, 512 * KIB, "bruck"),
    ("all_gather", None, None, "ring"),
    ("broadcast", 3, None, "binomial"),
    ("broadcast", None, 64 * KIB, "binomial"),
    ("broadcast", None, None, "scatter_all_gather"),
    ("reduce", 3, None, "binomial"),
    ("reduce", None, 32 * KIB, "binomial"),
    ("reduce", None, None, "rabenseifner"),
    ("gather", None, 64 * KIB, "binomial"),
    ("gather", None, None, "linear"),
    ("scatter", None, 64 * KIB, "binomial"),
    ("scatter", None, None, "linear"),
    ("all_to_all", None, 4 * KIB, "bruck"),
    ("all_to_all", None, None, "pairwise"),
    ("barrier", None, None, "dissemination"),
]


# Where ranks share memory, the program `shared` comes first: {kind: (least bytes; most bytes of a
# buffer that is elsewhere, and would be copied there and back)}. Measured as above, in shared
# memory: 0.4 of MPI's time at 16 KiB, 0.16 from 256 KiB; with the copies 0.5 at 1 MiB, 1.1 at 16.
SHARED = {"all_reduce": (8 * KIB, 1024 * KIB), "reduce_scatter": (8 * KIB, 1024 * KIB),
          "all_gather": (8 * KIB, 1024 * KIB), "broadcast": (8 * KIB, 1024 * KIB)}


def select(kind, size, nbytes, algorithm="auto", shared=None):
    """The Program for a collective of `nbytes` on `size` ranks; LIBRARY for "mpi", NCCL for
    "nccl".

    algorithm: "auto" (the tables), a registered name, "mpi", or a Program. shared: whether the
    buffer lies in memory that the ranks share; None if they share none. Raises ValueError for a
    name that there is not, with the nearest valid ones; for a Program of another kind; and, with
    the reason, for one that cannot serve so many ranks.
    """
    if algorithm == "auto" and shared is not None and kind in SHARED:
        least, most = SHARED[kind]
        if nbytes >= least and (shared or nbytes <= most):
            return ALGORITHMS[kind]["shared"]
    if algorithm == "auto":
        algorithm = next((name for of, ranks, limit, name in TABLE
                          if of == kind and (ranks is None or size <= ranks)
                          and (limit is None or nbytes <= limit)), "auto")
    if algorithm in (LIBRARY.name, NCCL.name):
        return LIBRARY if algorithm == LIBRARY.name else NCCL
    program = algorithm if isinstance(algorithm, Program) else _named(kind, algorithm)
    if program.kind.name != kind:
        raise ValueError(f"{program.name} is a program for {program.kind.name}, not for {kind}")
    if reason := program.refusal(size):
        raise ValueError(reason)
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
