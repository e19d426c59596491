"""What programs cost: counted, against the closed forms of the literature."""

import math

import pytest

from minipar.comm import collective, fence, get_reduce, put, recv, send
from minipar.comm.cost import Machine, cost, lower_bounds, predict
from minipar.comm.program import ALGORITHMS

ring = ALGORITHMS["all_reduce"]["ring"]
binomial = ALGORITHMS["broadcast"]["binomial"]


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8, 13])
def test_a_ring_costs_what_patarasuk_and_yuan_say(p):
    n = 100 * p
    c = cost(ring, p, n, itemsize=4)
    share = 4 * n * (p - 1) // p
    assert (c.rounds, c.messages, c.alphas) == (2 * (p - 1),) * 3
    assert (c.sent, c.betas, c.reduced, c.gammas) == (2 * share, 2 * share, share, share)
    assert c.total == p * 2 * share
    assert c.betas == lower_bounds("all_reduce", p, 4 * n)["betas"]


@pytest.mark.parametrize("p", [1, 2, 3, 5, 8, 16])
def test_a_binomial_broadcast_takes_ceil_lg_p_steps_of_the_whole_message(p):
    c = cost(binomial, p, 50, itemsize=8, root=p - 1)
    steps = math.ceil(math.log2(p))
    assert (c.alphas, c.betas, c.gammas) == (steps, steps * 400, 0)
    assert c.alphas == lower_bounds("broadcast", p, 400)["alphas"]


@pytest.mark.parametrize("p", [2, 3, 4, 7])
def test_a_prediction_is_the_closed_form_in_alpha_beta_and_gamma(p):
    machine, n = Machine(3e-6, 2e-10, 5e-11), 1000 * p
    share = 4 * n * (p - 1) / p
    expected = 2 * (p - 1) * machine.alpha + 2 * share * machine.beta + share * machine.gamma
    assert predict(ring, p, n, machine) == pytest.approx(expected)


def test_messages_of_a_round_from_one_rank_go_one_after_another():
    @collective("broadcast")
    def star(rank, size, x, root):
        if rank == root:
            yield [send(x, peer) for peer in range(size) if peer != root]
        else:
            yield recv(x, root)
    assert cost(star, 5, 10, itemsize=1, root=2).betas == 40


def test_a_rank_that_comes_late_delays_those_that_wait_for_it():
    @collective("broadcast")
    def chain(rank, size, x, root):
        if rank > 0:
            yield recv(x, rank - 1)
        if rank < size - 1:
            yield send(x, rank + 1)
    c = cost(chain, 6, 7, itemsize=1, root=0)
    assert (c.rounds, c.alphas, c.betas) == (2, 5, 35)


def test_one_sided_operations_cost_their_bytes_and_fences_a_latency():
    @collective("all_reduce")
    def shared(rank, size, x):
        mine, others = x.split(size)[rank], [r for r in range(size) if r != rank]
        yield fence()
        yield [get_reduce(mine, others[0])]
        yield [put(mine, others[0])]
        yield fence()
    c = cost(shared, 2, 10, itemsize=4)
    assert (c.alphas, c.betas, c.gammas, c.sent) == (2, 40, 20, 40)


@pytest.mark.parametrize("late", range(4))
def test_a_fence_waits_for_the_rank_that_comes_last(late):
    @collective("barrier")
    def one_is_late(rank, size, x):
        for _ in range(2):
            if rank == late:
                yield send(x, (rank + 1) % size)
            if rank == (late + 1) % size:
                yield recv(x, late)
        yield fence()
        yield fence()
    c = cost(one_is_late, 4, 5, itemsize=1)
    assert (c.rounds, c.alphas, c.betas) == (4, 2 + 2, 10)


def test_bounds_are_refused_for_kinds_that_have_none():
    with pytest.raises(ValueError, match="no lower bounds for 'gossip'"):
        lower_bounds("gossip", 2, 8)
