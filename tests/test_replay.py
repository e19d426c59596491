"""The order of additions that a program declares, replayed one addition after another, gives the
bits that its execution gives; so it does with codecs in between."""

import numpy as np
import pytest

from comm_cases import REDUCTIONS
from interpreter import execute, settings
from minipar.comm import CODECS, compressed, run_threads, world
from minipar.comm.graph import lower
from minipar.comm.program import ALGORITHMS

PROGRAMS = list(ALGORITHMS["all_reduce"].values())
OTHERS = [p for kind in ("reduce_scatter", "reduce") for p in ALGORITHMS[kind].values()]
COMPRESSED = [compressed(p, codec) for p in PROGRAMS if p.name != "shared"
              for codec in (CODECS["float16"], CODECS["bfloat16"])]

_sum = np.frompyfunc(lambda a, b: ("+", a, b), 2, 1)


def _coded(codec, trees):
    return np.frompyfunc(lambda tree: (codec, tree), 1, 1)(trees)


def trees(program, size, n, **options):
    """trees[rank] of the elements of x at the end, shape (n,): a leaf is (rank, element), an
    addition ("+", left, right), what passed a codec (codec, tree)."""
    state = []
    for rank in range(size):
        own = {}
        for name, length in program.trace(rank, size, n, **options).buffers.items():
            own[name] = np.empty(length, object)
            for e in range(length):
                own[name][e] = (rank, e) if name == "x" else None
        state.append(own)
    execute(lower(program, size, n, **options), state, add=_sum, coded=_coded)
    return [own["x"] for own in state]


def replayed(tree, leaves, function, known):
    """The value of a tree, additions done one after another."""
    if id(tree) not in known:
        if tree[0] == "+":
            value = function(replayed(tree[1], leaves, function, known),
                             replayed(tree[2], leaves, function, known))
        elif isinstance(tree[0], int):
            value = leaves[tree[0]][tree[1]]
        else:
            value = tree[0].round_trip(
                np.array([replayed(tree[1], leaves, function, known)]))[0]
        known[id(tree)] = tree, value  # the tree is kept, and so its id
    return known[id(tree)][1]


def given(rank, n, dtype=np.float32):
    """Values whose sum depends on the order of the additions."""
    rng = np.random.default_rng([5, rank])
    return (rng.standard_normal(n) * 2.0 ** rng.integers(-8, 9, n)).astype(dtype)


def executed(kind, program, n, op, root, topo):
    comm = world()
    if topo is not None:
        comm.topology = topo
    x = given(comm.rank, n)
    plan = comm.plan(kind, x, op, program, root)
    plan.start()
    plan.wait()
    return x


def promised_part(kind, rank, p, n, root):
    if kind == "reduce_scatter":
        return slice(rank * n // p, (rank + 1) * n // p)
    return slice(0, n if kind == "all_reduce" or rank == root else 0)


@pytest.mark.parametrize("program", PROGRAMS + OTHERS + COMPRESSED, ids=repr)
def test_a_serial_replay_of_the_declared_tree_gives_the_bits_of_the_execution(program):
    assert program.deterministic
    kind = program.kind.name
    for p in (1, 2, 3, 4, 7):
        cases = [case for case in settings(program, p, (2 * p + 3,)) if "counts" not in case[1]]
        for n, options in cases[-1:]:
            options["root"] = p // 2
            results = run_threads(executed, p, kind, program, n, "sum", options["root"],
                                  options["topo"])
            found, known = trees(program, p, n, **options), {}
            leaves = [given(rank, n) for rank in range(p)]
            for rank in range(p):
                part = promised_part(kind, rank, p, n, options["root"])
                serial = np.array([replayed(tree, leaves, REDUCTIONS["sum"], known)
                                   for tree in found[rank][part]], np.float32)
                assert serial.tobytes() == results[rank][part].tobytes(), (p, n, rank)


def test_the_replay_tells_orders_of_addition_apart():
    leaves = [np.float32([1e8]), np.float32([1]), np.float32([-1e8])]
    first = ("+", ("+", (0, 0), (1, 0)), (2, 0))
    second = ("+", ("+", (0, 0), (2, 0)), (1, 0))
    values = [replayed(tree, leaves, np.add, {}) for tree in (first, second)]
    assert values == [0, 1]
