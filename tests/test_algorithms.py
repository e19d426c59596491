"""The algorithms: what they cost, that their results are equal on all ranks, and that they run."""

import itertools

import numpy as np
import pytest

import algorithm_cases
import comm_cases
from interpreter import execute, initial, promised, sent, settings, steps, tree
from launch import mpirun
from minipar import Tensor, nn
from minipar.comm import Topology, collective, launch, run_threads, world
from minipar.comm.algorithms import pipelined
from minipar.comm.graph import lower
from minipar.comm.program import ALGORITHMS
from minipar.context import current
from minipar.parallel import DistributedDataParallel

SIZES = (*range(1, 10), 16, 17)
PROGRAMS = [program for table in ALGORITHMS.values() for program in table.values()]


def ceil_lg(p):
    return next(k for k in range(99) if 2 ** k >= p)


def floor_lg(p):
    return next(k for k in range(99) if 2 ** (k + 1) > p)


# ------------------------------------------------------------------ costs


def folded(inside, more=2):
    """The rounds of a method for 2^k ranks, when others are folded first."""
    return lambda p: inside(p) if 2 ** floor_lg(p) == p else inside(2 ** floor_lg(p)) + more


def torus(p):
    rows = max(r for r in range(1, p + 1) if p % r == 0 and r * r <= p)
    return 2 * (p // rows - 1) + 2 * (rows - 1)


# {kind: {name: (rounds of p ranks, elements of n that the busiest rank of p = 2^k sends, whether
# this holds for every p)}}. Messages of one round go at the same time.
COSTS = {
    "all_reduce": {
        "naive": (lambda p: 2 * (p - 1), lambda p, n: n * (p - 1), True),
        "ring": (lambda p: 2 * (p - 1), lambda p, n: 2 * n * (p - 1) // p, True),
        "recursive_doubling": (folded(floor_lg), lambda p, n: n * floor_lg(p), False),
        "rabenseifner": (folded(lambda p: 2 * floor_lg(p)),
                         lambda p, n: 2 * n * (p - 1) // p, False),
        "swing": (lambda p: 2 * floor_lg(p), lambda p, n: 2 * n * (p - 1) // p, True),
        "binomial_reduce_broadcast": (lambda p: 2 * ceil_lg(p), lambda p, n: n * ceil_lg(p), True),
        "torus_2d": (torus, lambda p, n: 2 * n * (p - 1) // p, True),
        "all_gather_reduce": (lambda p: min(p - 1, 1), lambda p, n: n * (p - 1), True),
        "reduce_scatter_all_gather": (lambda p: 2 * min(p - 1, 1),
                                      lambda p, n: 2 * n * (p - 1) // p, True),
    },
    "reduce_scatter": {
        "ring": (lambda p: p - 1, lambda p, n: n * (p - 1) // p, True),
        "pairwise": (lambda p: p - 1, lambda p, n: n * (p - 1) // p, True),
        "recursive_halving": (folded(floor_lg), lambda p, n: n * (p - 1) // p, False),
    },
    "all_gather": {
        "ring": (lambda p: p - 1, lambda p, n: n * (p - 1) // p, True),
        "recursive_doubling": (floor_lg, lambda p, n: n * (p - 1) // p, True),
        "bruck": (ceil_lg, lambda p, n: n * (p - 1) // p, True),
        "neighbour_exchange": (lambda p: p // 2, lambda p, n: n * (p - 1) // p, True),
    },
    "reduce_scatter_into": {
        "pairwise": (lambda p: p - 1, lambda p, n: n * (p - 1) // p, True),
    },
    "all_gather_into": {
        "ring": (lambda p: p - 1, lambda p, n: n * (p - 1) // p, True),
    },
    "broadcast": {
        "binomial": (ceil_lg, lambda p, n: n * ceil_lg(p), True),
        "scatter_all_gather": (lambda p: ceil_lg(p) + p - 1, lambda p, n: 2 * n * (p - 1) // p,
                               True),
    },
    "reduce": {
        "binomial": (ceil_lg, lambda p, n: n if p > 1 else 0, True),
        "rabenseifner": (folded(lambda p: 2 * floor_lg(p), 1),
                         lambda p, n: n * (p - 1) // p + n // 2 if p > 1 else 0, False),
    },
    "gather": {
        "binomial": (ceil_lg, lambda p, n: n // 2 if p > 1 else 0, False),
        "linear": (lambda p: min(p - 1, 1), lambda p, n: n // p if p > 1 else 0, True),
    },
    "scatter": {
        "binomial": (ceil_lg, lambda p, n: n * (p - 1) // p, True),
        "linear": (lambda p: min(p - 1, 1), lambda p, n: n * (p - 1) // p, True),
    },
    "all_to_all": {
        "pairwise": (lambda p: p - 1, lambda p, n: n * (p - 1) // p, True),
        "bruck": (ceil_lg, lambda p, n: n // 2 * floor_lg(p), False),
    },
    "barrier": {"dissemination": (ceil_lg, lambda p, n: 0, True)},
}
ELSEWHERE = {"hierarchical", "double_binary_tree", "chain", "shared"}  # have tests of their own
COSTED = [(kind, name) for kind, table in COSTS.items() for name in table]


@pytest.mark.parametrize("kind, name", COSTED)
def test_an_algorithm_takes_the_rounds_and_sends_the_elements_of_its_closed_form(kind, name):
    rounds, elements, every_p = COSTS[kind][name]
    program = ALGORITHMS[kind][name]
    for p in (*SIZES, 32):
        if program.refusal(p) is not None:
            continue
        n, options = 4 * p, {"root": p // 2}
        assert steps(program, p, n, **options) == rounds(p), p
        if every_p or 2 ** floor_lg(p) == p:
            assert max(sent(program, p, n, **options)) == elements(p, n), p


def test_every_algorithm_that_is_registered_has_a_cost_that_is_tested():
    for kind, table in ALGORITHMS.items():
        assert set(COSTS[kind]) == set(table) - ELSEWHERE
    assert {name for table in ALGORITHMS.values() for name in table} > ELSEWHERE


@pytest.mark.parametrize("p", [3, 5, 6, 7, 9, 17])
def test_folding_costs_at_most_two_vectors_more(p):
    n, inner = 16 * p, 2 ** floor_lg(p)
    for name in ("rabenseifner", "recursive_doubling"):
        program = ALGORITHMS["all_reduce"][name]
        assert max(sent(program, p, n)) <= max(sent(program, inner, n)) + n
    assert max(sent(ALGORITHMS["reduce_scatter"]["recursive_halving"], p, n)) <= 2 * n


@pytest.mark.parametrize("levels", [(4,), (2, 2), (4, 2), (2, 4), (1, 5), (3, 2), (2, 2, 2),
                                    (2, 3, 4)])
def test_a_hierarchy_sends_little_between_its_outer_groups(levels):
    program, topo = ALGORITHMS["all_reduce"]["hierarchical"], Topology(levels)
    p = int(np.prod(levels))
    n = 12 * p
    assert steps(program, p, n, topo=topo) == sum(2 * (level - 1) for level in levels)
    assert sent(program, p, n, topo=topo) == [2 * n * (p - 1) // p] * p
    inner, outer = levels[0], p // levels[0]
    for rank in range(p):
        leaving = sum(len(op.chunk) for ops in program.trace(rank, p, n, topo=topo).rounds
                      for op in ops if op.kind == "send" and op.peer // inner != rank // inner)
        assert leaving == 2 * n * (outer - 1) // (inner * outer)


@pytest.mark.parametrize("topo, words", [
    (None, "needs a topology"), (Topology((2, 2)), "2 x 2 = 4 != 6 ranks"),
    (Topology(()), "!= 6 ranks")])
def test_a_hierarchy_without_a_topology_that_fits_is_refused(topo, words):
    with pytest.raises(ValueError, match=words):
        lower(ALGORITHMS["all_reduce"]["hierarchical"], 6, 60, topo=topo)


def test_a_topology_has_coordinates_from_the_inside_out():
    topo = Topology((2, 3))
    assert [topo.coordinates(rank) for rank in range(6)] == [
        (0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize("names, expected", [
    ("aabb", Topology((2, 2))), ("aaaa", Topology((4, 1))), ("abcd", Topology((1, 4))),
    ("abab", "host by host: they are on hosts 0, 1, 0, 1"), ("aaab", "hosts have 3, 1 ranks")])
def test_a_topology_is_found_by_the_names_of_hosts_when_an_algorithm_asks(
        names, expected, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: names[world().rank])

    def job():
        x = np.full(6, world().rank + 1.0)
        if isinstance(expected, str):
            with pytest.raises(ValueError, match=expected):
                world().all_reduce(x, algorithm="hierarchical")
        else:
            world().all_reduce(x, algorithm="hierarchical")
            assert (x == 10).all() and world().topology == expected
            world().topology = Topology([2, 2])  # of the user's choice
            world().all_reduce(x, algorithm="hierarchical")
            assert (x == 40).all()
    run_threads(job, 4)


def in_segments(kind, function, k):
    """The program that cuts x into k segments, whatever its length."""
    def cut(rank, size, x, root=0):
        return function(rank, size, x, k, root)
    return collective(kind, name=f"{function.__name__} of {k}")(cut)


def chain(rank, size, x, k, root):
    return pipelined.chain_of(rank, size, x.split(k), root)


def two_trees(rank, size, x, k, root):
    return pipelined.double_tree_of(rank, size, [half.split(k) for half in x.split(2)])


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_segments_follow_one_another_along_chains_and_trees(k):
    for kind, function in (("broadcast", chain), ("all_reduce", two_trees)):
        program = in_segments(kind, function, k)
        for p in SIZES:
            n, root = 2 * k * 3, p - 1
            tasks = lower(program, p, n, root=root)
            state = initial(program, p, n, root=root)
            assert len(execute(tasks, state)) == len(tasks)
            for rank, chunk, expected in promised(program.kind, p, n, root=root):
                assert (state[rank][chunk.buffer][chunk.start:chunk.stop] == expected).all()
            took, most = steps(program, p, n, root=root), max(sent(program, p, n, root=root))
            if kind == "broadcast":
                assert took == (p - 2 + k if p > 1 else 0) and most == (n if p > 1 else 0)
            else:
                assert took <= (3 * ceil_lg(p) + k - 1 if p > 1 else 0) and most <= 2 * n
                assert p == 1 or took > k


@pytest.mark.parametrize("p", range(2, 34))
def test_a_rank_is_within_one_of_the_two_trees_and_a_leaf_of_the_other(p):
    place = [[r, p - 1 - r if p % 2 == 0 else (r - 1) % p] for r in range(p)]
    for r in range(p):
        for q in pipelined.children(r, p):
            assert pipelined.parent(q, p) == r
    assert sum(len(pipelined.children(r, p)) for r in range(p)) == p - 1
    within = [sum(bool(pipelined.children(q, p)) for q in places) for places in place]
    assert max(within[1:]) == 1 or p == 2
    assert within[0] <= 1 + p % 2


# ------------------------------------------------------------------ what they compute


@pytest.mark.parametrize("program", ALGORITHMS["all_reduce"].values(), ids=repr)
def test_every_rank_gets_the_same_tree_of_additions(program):
    for p in SIZES:
        for n, options in settings(program, p, (0, 1, 33)):
            state = initial(program, p, n, **options)
            execute(lower(program, p, n, **options), state, add=tree)
            for rank in range(1, p):
                assert (state[rank]["x"] == state[0]["x"]).all(), (p, n, rank)


@pytest.mark.parametrize("program", PROGRAMS, ids=repr)
@pytest.mark.parametrize("p", [16, 17])
def test_16_and_17_ranks_compute_what_is_promised(program, p):
    cases = list(settings(program, p, (p + 5,)))
    for n, options in cases[-1:] + cases[:len(cases) // 2 + 1:max(1, len(cases) // 3)]:
        state = initial(program, p, n, **options)
        execute(lower(program, p, n, **options), state)
        for rank, chunk, expected in promised(program.kind, p, n, **options):
            assert (state[rank][chunk.buffer][chunk.start:chunk.stop] == expected).all()


def test_the_cover_has_every_pair_of_ranks_length_type_and_reduction():
    rows = [(p, i, dtype, op) for p in range(1, 10)
            for i, (_, dtype, op) in enumerate(algorithm_cases.cover(p))]
    values = [set(column) for column in zip(*rows)]
    assert [len(v) for v in values] == [9, 6, 6, 4]
    for a, b in itertools.combinations(range(4), 2):
        assert {(row[a], row[b]) for row in rows} == set(itertools.product(values[a], values[b]))


@pytest.mark.parametrize("p", range(1, 10))
def test_every_algorithm_runs_on_threads_and_touches_no_guard(p):
    run_threads(lambda: algorithm_cases.all_algorithms(world()), p)


@pytest.mark.parametrize("p", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("case", algorithm_cases.CASES[1:], ids=lambda case: case.__name__)
def test_the_further_cases_hold_on_threads(case, p):
    run_threads(lambda: case(world()), p)


@pytest.mark.parametrize("p", [1, pytest.param(2, marks=pytest.mark.slow), 3, 4])
def test_every_algorithm_and_every_case_holds_over_mpi(p):
    done = mpirun(p, "-c", MPI_PROGRAM, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


MPI_PROGRAM = """
import algorithm_cases
from minipar.comm import world
for case in algorithm_cases.CASES:
    case(world())
    world().barrier()
# Kept to the end: an operation that nobody waits for.
x = algorithm_cases.values(world().rank, world().size, 1000, float)
world().plan("all_reduce", x, algorithm="mpi").start()
"""


def every_case():
    for case in algorithm_cases.CASES:
        case(world())


def test_every_algorithm_and_every_case_holds_between_processes():
    launch(every_case, 3, timeout=120)


@pytest.mark.parametrize("p", [3, 4])
def test_gradients_are_reduced_by_any_algorithm_and_are_the_same_bits_on_all_ranks(p):
    def job(algorithm):
        current().manual_seed(1)
        layer = nn.Linear(31, 17)
        model = DistributedDataParallel(layer, gradient="sum", algorithm=algorithm)
        x = np.random.default_rng(world().rank).normal(size=(5, 31)).astype(np.float32)
        (model(Tensor(x)) * 0.5).sum().backward()
        return [q.grad.numpy().copy() for q in layer.parameters()], x
    for name, program in ALGORITHMS["all_reduce"].items():
        if program.refusal(p) is None:
            ranks = run_threads(job, p, name)
            weight = sum(0.5 * x.sum(0, dtype=np.float64) for _, x in ranks)
            assert np.allclose(ranks[0][0][0], weight, rtol=1e-4, atol=1e-5), name
            for gradients, _ in ranks[1:]:
                for a, b in zip(gradients, ranks[0][0], strict=True):
                    assert a.tobytes() == b.tobytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("p", range(1, 18))
def test_the_full_grid_holds_on_threads(p):
    cases = [(n, dtype, op) for n in comm_cases.sizes(p) for dtype in comm_cases.DTYPES
             for op in comm_cases.REDUCTIONS]
    run_threads(lambda: algorithm_cases.all_algorithms(world(), cases), p, timeout=1200)


def test_the_table_names_algorithms_that_serve_any_number_of_ranks():
    for p in SIZES:
        algorithm_cases.tables_name_what_there_is(p)
