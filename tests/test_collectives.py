"""Collectives, messages, groups and plans between ranks that are threads."""

import threading
import time

import numpy as np
import pytest

import comm_cases
from minipar.comm import RankFailed, run_threads, world

# Pairs of (ranks, dtypes): every number of ranks and every dtype, not their product.
GRID = [(1, comm_cases.DTYPES), (2, (np.float64, np.float16, np.int32)),
        (3, (np.float32, np.uint8)), (4, (np.float64, np.int64)), (5, (np.float16, np.int32)),
        (6, (np.float32,)), (7, (np.uint8, np.float64)), (8, (np.float16, np.int64))]


def on_threads(case, size, *args, **options):
    return run_threads(lambda: case(world(), *args), size, **options)


@pytest.mark.parametrize("size, dtypes", GRID)
def test_an_all_reduce_of_exact_values_is_exact_and_touches_no_guard(size, dtypes):
    on_threads(comm_cases.all_reduce, size, dtypes)


@pytest.mark.parametrize("size, dtypes", GRID)
def test_the_other_collectives_put_every_block_in_its_place(size, dtypes):
    on_threads(comm_cases.reduce_scatter_gather_broadcast, size, dtypes)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("case", comm_cases.CASES[2:], ids=lambda case: case.__name__)
def test_the_cases_that_every_transport_must_pass_hold_on_threads(case, size):
    on_threads(case, size)


@pytest.mark.parametrize("case", [comm_cases.collectives_in_flight, comm_cases.messages,
                                  comm_cases.a_kept_plan_meets_no_later_one])
def test_the_same_holds_when_sends_complete_before_they_are_received(case):
    on_threads(case, 3, eager_bytes=10**6)


# ------------------------------------------------------------------ failures


@pytest.mark.parametrize("size, culprit", [(1, 0), (2, 1), (4, 0), (4, 2)])
def test_an_exception_on_one_rank_ends_the_job_with_it_within_a_second(size, culprit):
    def rank_main():
        comm, x = world(), np.zeros(100)
        for step in range(10**9):
            if comm.rank == culprit and step == 5:
                raise KeyError("this one")
            comm.all_reduce(x)
    begin = time.monotonic()
    with pytest.raises(KeyError, match="this one"):
        run_threads(rank_main, size)
    assert time.monotonic() - begin < 1


def test_the_ranks_that_wait_for_a_failed_rank_are_told_which():
    told = []

    def rank_main():
        comm = world()
        if comm.rank == 1:
            raise OSError("gone")
        try:
            comm.barrier()
        except RankFailed as error:
            told.append(str(error))
            raise
    with pytest.raises(OSError, match="gone"):
        run_threads(rank_main, 3)
    deadline = time.monotonic() + 1
    while len(told) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert told == ["rank 1 failed"] * 2


@pytest.mark.parametrize("early", [0, 1])
def test_a_rank_that_nobody_answers_gives_a_timeout_and_its_thread_ends(early):
    def rank_main():
        if world().rank != early:
            world().barrier()
    with pytest.raises(TimeoutError, match="1 of 2 ranks"):
        run_threads(rank_main, 2, timeout=0.2)
    deadline = time.monotonic() + 1
    while any(t.name.startswith("rank ") for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("lengths", [(3, 5), (5, 3)])
def test_ends_of_a_message_of_different_length_are_refused_with_their_bytes(lengths):
    def rank_main():
        comm = world()
        if comm.rank == 0:
            comm.send(np.zeros(lengths[0]), 1)
        else:
            comm.recv(np.zeros(lengths[1]), 0)
    with pytest.raises(ValueError, match=f"{lengths[0] * 8} bytes.*{lengths[1] * 8} bytes"):
        run_threads(rank_main, 2)


def test_ranks_that_reduce_arrays_of_different_length_are_refused_with_their_bytes():
    with pytest.raises(ValueError, match=r"message of \d+ bytes meets a receive of \d+ bytes"):
        run_threads(lambda: world().all_reduce(np.zeros(10 + 10 * world().rank)), 2)


def test_results_come_back_in_the_order_of_ranks_and_arguments_go_to_all():
    assert run_threads(lambda a, b: (world().rank, a, b), 5, "x", 2) == [
        (rank, "x", 2) for rank in range(5)]


def test_a_process_without_a_launcher_is_a_world_of_one():
    comm = world()
    assert (comm.rank, comm.size) == (0, 1)
    for case in comm_cases.CASES:
        case(comm)


def test_a_rank_that_returns_early_ends_those_that_wait_for_it():
    def job():
        c = world()
        if c.rank != 1:
            c.barrier()
    begin = time.monotonic()
    with pytest.raises(RankFailed, match="rank 1, which has left the job|rank . failed"):
        run_threads(job, 3, timeout=30)
    assert time.monotonic() - begin < 20
