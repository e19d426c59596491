"""The cost model's parameters: fitted to times that a known machine has made, and kept in files.

The oracle is a machine of known prices; no time is measured here.
"""

from itertools import product

import numpy as np
import pytest

from minipar.comm import Topology, collective, copy, recv, recv_reduce, send
from minipar.comm.cost import machine as machines
from minipar.comm.cost import predict
from minipar.comm.cost.fit import Sample, Tally, errors, fit, nonnegative_least_squares
from minipar.comm.cost.machine import (Machine, from_json, nearest_machine, read_machine,
                                       write_machine)
from minipar.comm.cost.probes import MESSAGES, ONE_SIDED, PROBE
from minipar.comm.program import ALGORITHMS

KIB = 1024
FAR = Machine(9e-6, 3e-10, 2e-10, run=4e-6, round=1e-6, call=7e-7, copy=8e-11, access=1.2e-10,
              get_reduce=2.5e-10, fence=5e-6, cores=2)
NEAR = Machine(3e-6, 1e-10, 5e-11, run=4e-6, round=1e-6, call=7e-7, copy=4e-11, access=6e-11,
               get_reduce=1e-10, fence=5e-6, cores=2, cache=256 * KIB, far=FAR)
GUESS = Machine(1e-6, 1e-9, 1e-9)


def samples(p, sizes, noise=0.0):
    """What NEAR would take for probes and algorithms, with a relative noise."""
    topo, rng = Topology((p,)), np.random.default_rng([p, len(sizes)])
    programs = [*MESSAGES, *ONE_SIDED] + [
        program for kind in ("all_reduce", "all_gather") for program in ALGORITHMS[kind].values()
        if program.refusal(p) is None]
    return [Sample(program, p, n, predict(program, p, n, NEAR, topo=topo)
                   * np.exp(noise * rng.normal()), topo=topo)
            for program in programs for n in sizes]


@pytest.mark.parametrize("p", [2, 3, 4])
def test_the_prices_of_a_known_machine_are_found_again(p):
    found = fit(samples(p, (16, 4096, 2**14, 2**17, 2**19)), GUESS, 2, (256 * KIB,))
    for (limit, got), (_, true) in zip(found.levels(), NEAR.levels()):
        for name in machines.PRICES:
            assert getattr(got, name) == pytest.approx(getattr(true, name), rel=1e-6), (limit, name)
    assert errors(samples(p, (64, 1000, 30_000)), found).max() < 1e-6


def test_times_with_noise_predict_sizes_that_were_not_seen():
    found = fit(samples(4, (16, 256, 4096, 2**14, 2**17), 0.1), GUESS, 2, (256 * KIB,))
    assert np.median(errors(samples(4, (64, 1000, 30_000, 2**16)), found)) < 0.05


def test_a_price_that_nothing_depends_on_is_that_of_the_nearest_sizes_or_of_the_start():
    some = [s for s in samples(2, (16, 4096)) if s.program in MESSAGES]
    found = fit(some, Machine(1, 1, 1, access=7e-9, get_reduce=8e-9, fence=9e-6), 2, (256 * KIB,))
    assert found.far.beta == found.beta == pytest.approx(NEAR.beta)
    assert (found.access, found.get_reduce, found.fence) == (7e-9, 8e-9, 9e-6)


def test_there_is_no_fit_to_nothing():
    with pytest.raises(ValueError, match="no samples"):
        fit([], GUESS, 2)


@pytest.mark.parametrize("seed", range(8))
def test_least_squares_without_negative_numbers_find_the_best_of_all_supports(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(12, 4)) * [1, 1e-6, 1e3, 1], rng.normal(size=12)
    best = np.linalg.norm(b)
    for support in product([False, True], repeat=4):
        if any(support):
            x = np.linalg.lstsq(a[:, np.array(support)], b, rcond=None)[0]
            if (x >= 0).all():
                best = min(best, np.linalg.norm(a[:, np.array(support)] @ x - b))
    x = nonnegative_least_squares(a, b)
    assert (x >= 0).all() and np.linalg.norm(a @ x - b) == pytest.approx(best, rel=1e-9)


def test_tallies_add_and_compare_by_their_seconds():
    a, b = Tally(2.0, np.array([1.0, 0.0])), Tally(3.0, np.array([0.0, 1.0]))
    total = max(a, b, 0.0) * 2 + a / 4 + 0.0 + sum([a])
    assert total.seconds == 8.5 and total.counts.tolist() == [1.25, 2.0]
    assert max(0.0, a) is a and not a > 2.5 and a < b


# ------------------------------------------------------------------ the model that is fitted


def test_each_price_is_charged_where_it_belongs():
    @collective(PROBE)
    def program(rank, size, x, scratch):
        room = scratch(len(x))
        yield send(x, 1 - rank), recv(room, 1 - rank)
        yield copy(x, room)
        yield send(x, 1 - rank), recv_reduce(room, 1 - rank)
    m = Machine(1e-6, 1e-9, 3e-9, run=5e-6, round=7e-6, call=11e-6, copy=13e-9)
    n, nbytes = 100, 400
    expected = (5e-6 + 3 * 7e-6 + 2 * (1e-6 + 1e-9 * nbytes) + 11e-6 + 13e-9 * nbytes
                + 11e-6 + 3e-9 * nbytes)
    assert predict(program, 2, n, m) == pytest.approx(expected)


def test_ranks_that_share_cores_take_as_long_as_all_their_work():
    ring, binomial = ALGORITHMS["all_reduce"]["ring"], ALGORITHMS["broadcast"]["binomial"]
    alone = Machine(1e-6, 1e-9, 1e-9)
    for cores, times in ((1, 4), (2, 2), (4, 1), (8, 1)):
        shared = Machine(1e-6, 1e-9, 1e-9, cores=cores)
        assert predict(ring, 4, 4000, shared) == pytest.approx(
            times * predict(ring, 4, 4000, alone))
    # 3 messages, of which 2 are at the same time: 2 cores have 1.5 messages of work each.
    for cores, messages in ((1, 3), (2, 2), (4, 2)):
        shared = Machine(1e-6, 0, 0, cores=cores)
        assert predict(binomial, 4, 10, shared, root=0) == pytest.approx(messages * 1e-6)


def test_a_buffer_that_leaves_the_cache_has_other_prices():
    ring = ALGORITHMS["all_reduce"]["ring"]
    both = Machine(1e-6, 1e-9, 1e-9, cache=400, far=Machine(2e-6, 5e-9, 5e-9))
    assert predict(ring, 2, 100, both) == predict(ring, 2, 100, Machine(1e-6, 1e-9, 1e-9))
    assert predict(ring, 2, 101, both) == predict(ring, 2, 101, Machine(2e-6, 5e-9, 5e-9))
    assert [limit for limit, _ in both.levels()] == [400, None]


# ------------------------------------------------------------------ files


def test_a_machine_in_a_file_is_the_same_machine(tmp_path):
    path = tmp_path / "folder" / "m.json"
    write_machine(path, NEAR, ranks=4)
    machine, content = read_machine(path)
    assert machine == NEAR and content["ranks"] == 4 and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content, words", [
    (3, "no object"), ({"alpha": 1, "beta": 1}, "gamma, too"),
    ({"alpha": 1, "beta": 1, "gamma": 1, "delta": 1}, "no 'delta'"),
    ({"alpha": -1, "beta": 1, "gamma": 1}, "alpha is -1"),
    ({"alpha": "1", "beta": 1, "gamma": 1}, "alpha is '1'"),
    ({"alpha": float("nan"), "beta": 1, "gamma": 1}, "alpha is nan"),
    ({"alpha": 1, "beta": 1, "gamma": 1, "cores": 0}, "at least 1 core"),
    ({"alpha": 1, "beta": 1, "gamma": 1, "cores": 1.5}, "cores is 1.5"),
    ({"alpha": 1, "beta": 1, "gamma": 1, "cache": 5}, "go together"),
    ({"alpha": 1, "beta": 1, "gamma": 1, "cache": 5, "far": {"alpha": 1}}, "beta, too")])
def test_what_is_no_machine_is_refused_naming_file_and_field(content, words):
    with pytest.raises(ValueError, match="^m.json") as error:
        from_json(content, "m.json")
    assert words in str(error.value)


def test_what_is_no_file_of_a_machine_is_refused(tmp_path):
    (tmp_path / "a").write_text("{")
    (tmp_path / "b").write_text("{}")
    for name, words in (("a", "not JSON"), ("b", "holds no machine"), ("c", "cannot be read")):
        with pytest.raises(ValueError, match=words):
            read_machine(tmp_path / name)


def test_the_fit_for_most_nearly_as_many_ranks_is_taken_and_what_cannot_be_read_left_aside(
        tmp_path, monkeypatch):
    monkeypatch.setenv("MINIPAR_CACHE", str(tmp_path))
    shipped, path = nearest_machine(4)
    assert path == machines.SHIPPED and shipped == read_machine(path)[0]
    for launcher, ranks in (("processes", 2), ("processes", 8), ("mpi", 2), ("threads", 4)):
        write_machine(machines.fitted_path(launcher, ranks), Machine(ranks, 0, 0))
    (tmp_path / "machine-mpi-4.json").write_text("{")
    assert nearest_machine(4)[1].name == "machine-threads-4.json"
    assert nearest_machine(3)[1].name == "machine-mpi-2.json"  # of two as near, by launcher
    assert nearest_machine(2)[1].name == "machine-mpi-2.json"
    assert nearest_machine(9, "processes")[0].alpha == 8
    assert nearest_machine(4, "mpi")[1].name == "machine-mpi-2.json"
