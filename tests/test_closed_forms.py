"""Closed forms of costs, each held against what is counted in the program's task graph."""

from math import isqrt

import pytest

from minipar.comm import Topology
from minipar.comm.cost.closed_forms import FORMS, LEGEND
from minipar.comm.cost import cost
from minipar.comm.program import ALGORITHMS

RANKS = (2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16)


def counted(key, p, n, itemsize, levels=None):
    kind, name = key
    topology = Topology(tuple(levels or (p,)))
    return cost(ALGORITHMS[kind][name], p, n, itemsize=itemsize, topo=topology)


def serves(key, p):
    return (ALGORITHMS[key[0]][key[1]].refusal(p) is None
            and FORMS[key].values(p, 4 * p) is not None)


@pytest.mark.parametrize("key", FORMS, ids="-".join)
def test_a_form_is_what_is_counted_where_blocks_are_equal(key):
    for p in filter(lambda p: serves(key, p), RANKS):
        even = p << p.bit_length()  # divides into p, into the 2^k below it, and into halves
        for n in (0 if key[0] == "barrier" else even, 3 * even, 40 * even):
            told, found = FORMS[key].values(p, 4 * n), counted(key, p, n, 4)
            if key[1] == "chain":  # in segments of about n/k
                slack = 4 * found.alphas
            else:
                slack = 0
            assert (found.rounds, found.alphas) == (told["rounds"], told["alphas"]), (p, n)
            assert abs(found.betas - told["betas"]) <= slack, (p, n)
            assert abs(found.gammas - told["gammas"]) <= slack, (p, n)


@pytest.mark.parametrize("key", [k for k in FORMS if k[0] not in ("all_to_all", "barrier")],
                         ids="-".join)
def test_where_blocks_are_not_equal_it_is_so_within_an_element_a_step(key):
    for p in filter(lambda p: serves(key, p), RANKS):
        for n in (1000 * p + 1, 1000 * p + p - 1):
            told, found = FORMS[key].values(p, 8 * n, itemsize=8), counted(key, p, n, 8)
            assert (found.rounds, found.alphas) == (told["rounds"], told["alphas"]), (p, n)
            steps = max(found.alphas, found.messages) + p
            assert abs(found.betas - told["betas"]) <= 8 * steps, (p, n)
            assert abs(found.gammas - told["gammas"]) <= 8 * steps, (p, n)


@pytest.mark.parametrize("kind", ["all_reduce", "reduce_scatter"])
def test_a_form_counts_the_blocks_that_shared_memory_is_worked_through_in(kind):
    for p, n in ((2, 300_000), (3, 98_304), (3, 98_305), (4, 2**20)):
        assert counted((kind, "shared"), p, n, 4).rounds == FORMS[kind, "shared"].values(
            p, 4 * n)["rounds"], (p, n)


@pytest.mark.parametrize("levels", [(2, 2), (4, 2), (2, 3, 2)])
def test_a_form_follows_the_levels_of_a_topology(levels):
    p = 1
    for level in levels:
        p *= level
    key, n = ("all_reduce", "hierarchical"), 60 * p
    told, found = FORMS[key].values(p, 4 * n, levels=levels), counted(key, p, n, 4, levels)
    assert (found.rounds, found.alphas, found.betas, found.gammas) == tuple(told.values())


def test_a_chain_has_the_segments_that_its_form_says():
    for p, n in ((3, 4096), (4, 100_000), (6, 10**6)):
        k = max(1, isqrt((p - 2) * n // 4096))
        found = counted(("broadcast", "chain"), p, n, 4)
        assert (found.rounds, found.alphas) == (k + 1, p - 2 + k)


def test_forms_are_printed_as_people_write_them():
    assert FORMS["all_reduce", "ring"].text() == (
        "2(p-1) alpha + 2n(p-1)/p beta + n(p-1)/p gamma")
    assert FORMS["broadcast", "binomial"].text() == "L alpha + Ln beta"
    assert FORMS["barrier", "dissemination"].text() == "L alpha"
    assert FORMS["reduce_scatter", "recursive_halving"].text().endswith("(for 2^k ranks)")
    assert FORMS["all_reduce", "recursive_doubling"].text() == (
        "(K+2f) alpha + (K+2f)n beta + (K+f)n gamma")
    assert FORMS["all_reduce", "recursive_doubling"].legend() == [LEGEND["K"], LEGEND["f"]]


def test_there_is_no_form_for_one_rank_or_for_ranks_that_it_is_not_for():
    assert FORMS["all_reduce", "ring"].values(1, 100) is None
    assert FORMS["reduce", "rabenseifner"].values(6, 100) is None
    assert FORMS["reduce", "rabenseifner"].values(8, 96)["betas"] == 2 * 96 * 7 / 8


def test_every_form_is_of_an_algorithm_that_there_is():
    assert all(name in ALGORITHMS[kind] for kind, name in FORMS)
