"""Programs and their task graph, with no transport: what they compute, what they cost, and that
broken ones are refused where they are written."""

import inspect
import random
import re
from pathlib import Path

import pytest

from interpreter import execute, initial, promised, settings
from minipar.comm import collective, copy, recv, recv_reduce, reduce, send
from minipar.comm.graph import lower
from minipar.comm.program import ALGORITHMS, Chunk

PROGRAMS = [program for table in ALGORITHMS.values() for program in table.values()]
SIZES = range(1, 10)


@pytest.mark.parametrize("program", PROGRAMS, ids=repr)
def test_every_element_ends_with_each_promised_contribution_exactly_once(program):
    draw, kind = random.Random(1), program.kind
    for size in SIZES:
        for n, options in settings(program, size):
            tasks = lower(program, size, n, **options)
            assert [task.id for task in tasks] == list(range(len(tasks)))
            state = initial(program, size, n, **options)
            order = execute(tasks, state, draw)
            assert sorted(order) == list(range(len(tasks)))
            for rank, chunk, expected in promised(kind, size, n, **options):
                found = state[rank][chunk.buffer][chunk.start:chunk.stop]
                assert (found == expected).all(), (size, n, options, rank, chunk)


@pytest.mark.parametrize("program", PROGRAMS, ids=repr)
def test_a_task_depends_only_on_earlier_rounds_of_its_own_rank(program):
    for size in SIZES:
        for n, options in list(settings(program, size))[-1:]:
            tasks = lower(program, size, n, **options)
            for task in tasks:
                for other in (tasks[i] for i in task.deps):
                    assert other.rank == task.rank and other.round < task.round
                if task.match >= 0 and task.kind != "fence":
                    other = tasks[task.match]
                    assert other.match == task.id and other.rank == task.peer
                    assert {task.kind == "send", other.kind == "send"} == {True, False}


def counted(program, size, n, root=0):
    """(rounds, elements sent by each rank) of a program."""
    tasks = lower(program, size, n, root=root)
    sent = [0] * size
    for task in tasks:
        if task.kind == "send":
            sent[task.rank] += len(task.chunk)
    return max((task.round for task in tasks), default=-1) + 1, sent


def ceil_lg(p):
    rounds = 0
    while 2 ** rounds < p:
        rounds += 1
    return rounds


@pytest.mark.parametrize("p", SIZES)
def test_the_rings_take_the_rounds_and_elements_of_the_closed_forms(p):
    n = 12 * p
    assert counted(ALGORITHMS["all_reduce"]["ring"], p, n) == (
        2 * (p - 1), [2 * n * (p - 1) // p] * p)
    for kind in ("reduce_scatter", "all_gather"):
        assert counted(ALGORITHMS[kind]["ring"], p, n) == (p - 1, [n * (p - 1) // p] * p)


@pytest.mark.parametrize("p", SIZES)
def test_the_binomial_tree_takes_ceil_lg_rounds_and_sends_to_each_rank_once(p):
    for root in range(p):
        rounds, sent = counted(ALGORITHMS["broadcast"]["binomial"], p, 10, root)
        assert rounds == ceil_lg(p) and sum(sent) == 10 * (p - 1)


@pytest.mark.parametrize("p", SIZES)
def test_in_a_barrier_every_rank_hears_from_all_in_ceil_lg_rounds(p):
    for program in ALGORITHMS["barrier"].values():
        rounds = [program.trace(rank, p, 0).rounds for rank in range(p)]
        assert {len(r) for r in rounds} == {ceil_lg(p)}
        heard = [{rank} for rank in range(p)]
        for k in range(ceil_lg(p)):
            said = [set(h) for h in heard]
            for rank in range(p):
                for op in rounds[rank][k]:
                    if op.kind == "recv":
                        assert any(o.kind == "send" and o.peer == rank for o in rounds[op.peer][k])
                        heard[rank] |= said[op.peer]
        assert all(h == set(range(p)) for h in heard)


# ------------------------------------------------------------------ broken programs


@collective("all_reduce")
def to_a_rank_that_there_is_not(rank, size, x):
    yield send(x[0:1], rank + 1), recv(x[1:2], (rank - 1) % size)


@collective("all_reduce")
def to_itself(rank, size, x):
    yield send(x, rank)


@collective("all_reduce")
def to_the_wrong_neighbour(rank, size, x):
    yield send(x[0:1], (rank + 1) % size), recv(x[1:2], (rank + 1) % size)


@collective("broadcast")
def without_the_receive(rank, size, x):
    if rank == 0:
        yield send(x, 1)


@collective("broadcast")
def without_the_send(rank, size, x):
    if rank == 1:
        yield recv(x, 0)


@collective("all_reduce")
def sends_what_it_receives(rank, size, x):
    yield send(x, (rank + 1) % size), recv_reduce(x, (rank - 1) % size)


@collective("all_reduce")
def copies_what_it_sends(rank, size, x):
    yield (send(x[0:2], (rank + 1) % size), recv(x[2:4], (rank - 1) % size),
           copy(x[4:6], x[1:3]))


@collective("all_reduce")
def of_different_lengths(rank, size, x):
    yield send(x[0:2], (rank + 1) % size), recv(x[4:7], (rank - 1) % size)


@collective("all_reduce")
def copies_between_different_lengths(rank, size, x):
    yield copy(x[0:2], x[4:7])


@collective("broadcast")
def reduces_in_a_broadcast(rank, size, x):
    if rank == 0:
        yield send(x, 1)
    if rank == 1:
        yield recv_reduce(x, 0)


@collective("all_gather")
def reduces_locally_in_a_gather(rank, size, x):
    yield reduce(x[0:1], x[1:2])


@collective("all_reduce")
def outside_the_buffer(rank, size, x):
    beyond = Chunk("x", 5, len(x) + 1)
    yield send(beyond, (rank + 1) % size), recv(x[0:6], (rank - 1) % size)


@collective("all_reduce")
def yields_a_number(rank, size, x):
    yield 3


@collective("all_reduce")
def yields_nothing(rank, size, x):
    yield from yields_a_number_and_an_operation(rank, size, x)


def yields_a_number_and_an_operation(rank, size, x):
    yield copy(x[0:1], x[1:2])
    yield copy(x[0:1], x[1:2]), None


@collective("all_reduce")
def on_a_channel_that_there_is_not(rank, size, x):
    yield send(x[0:1], (rank + 1) % size, 16), recv(x[1:2], (rank - 1) % size, 16)


BROKEN = {
    to_a_rank_that_there_is_not: "no peer 3",
    to_itself: "no peer 0",
    to_the_wrong_neighbour: "nothing is sent",
    without_the_receive: "rank 1 never receives",
    without_the_send: "nothing is sent",
    sends_what_it_receives: "same elements",
    copies_what_it_sends: "same elements",
    of_different_lengths: r"x\[4:7\].*x\[0:2\]",
    copies_between_different_lengths: r"x\[0:2\].*x\[4:7\]",
    reduces_in_a_broadcast: "recv_reduce in broadcast",
    reduces_locally_in_a_gather: "reduce in all_gather",
    outside_the_buffer: r"x\[5:9\].*8 elements",
    yields_a_number: "3.*not an operation",
    yields_nothing: "round 1.*None.*not an operation",
    on_a_channel_that_there_is_not: "channel 16",
}


@pytest.mark.parametrize("program", BROKEN, ids=lambda program: program.name)
def test_a_broken_program_is_refused_with_rank_round_and_source_line(program):
    with pytest.raises((ValueError, TypeError), match=BROKEN[program]) as caught:
        lower(program, 3, 8)
    message = str(caught.value)
    assert re.search(r"rank \d, round \d", message), message
    lines = [int(n) for n in re.findall(rf"{re.escape(Path(__file__).name)}:(\d+)", message)]
    function = program.function
    if program is yields_nothing:
        function = yields_a_number_and_an_operation
    source, first = inspect.getsourcelines(function)
    assert lines and all(first < line < first + len(source) for line in lines), message


def test_a_kind_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="no kind 'allreduce': there are all_reduce"):
        collective("allreduce")


def test_the_parts_of_a_chunk_are_its_elements_in_order_and_indices_wrap():
    x = Chunk("x", 3, 13)
    for parts in (1, 3, 10, 15):
        split = x.split(parts)
        assert [e for part in split for e in range(part.start, part.stop)] == list(range(3, 13))
        assert {len(part) for part in split} <= {10 // parts, 10 // parts + 1}
        assert repr(split[-1]) == repr(split[parts - 1]) and repr(split[parts]) == repr(split[0])
    assert repr(x[2:5]) == "x[5:8]" and len(x[8:2]) == 0
    with pytest.raises(ValueError, match="step 1"):
        x[::2]
