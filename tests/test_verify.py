"""What the verifier says of broken programs, and what it lets pass."""

import inspect
import re

import numpy as np
import pytest
from verify_programs import doubling, windows

from minipar.comm import (Kind, collective, copy, fence, get, get_reduce, put, recv, recv_reduce,
                          reduce, send)
from minipar.comm.algorithms.ring import ring
from minipar.comm.graph import lower
from minipar.comm.program import ALGORITHMS, Program, ProgramError
from minipar.comm.topology import Topology
from minipar.comm.verify import VerificationError, cases, lengths, verify, verify_graph


def counterexample(program, size, *words, n=None, **options):
    """The error of a program that is wrong; all `words` are in its message."""
    with pytest.raises(VerificationError) as caught:
        verify(program, size, n, **options)
    for word in words:
        assert word in str(caught.value), f"no {word!r} in: {caught.value}"
    return caught.value


def line_of(program, text):
    """"file:number" of the line of a program's source that holds `text`."""
    source, first = inspect.getsourcelines(program.function)
    number = next(i for i, line in enumerate(source) if text in line)
    return f"{inspect.getsourcefile(program.function)}:{first + number}"


# ------------------------------------------------------------------ sums


@collective("all_reduce")
def ring_that_forgets(rank, size, x):
    chunk, right, left = x.split(size), (rank + 1) % size, (rank - 1) % size
    for s in range(size - 1):
        forgets = rank == 2 and s == 1
        into = recv if forgets else recv_reduce  # one rank, in one round
        yield send(chunk[rank - s], right), into(chunk[rank - s - 1], left)
    for s in range(size - 1):
        yield send(chunk[rank + 1 - s], right), recv(chunk[rank - s], left)


def test_the_counterexample_is_a_headline_the_operation_its_source_and_a_picture():
    error = counterexample(ring_that_forgets, 4, n=9)
    line = line_of(ring_that_forgets, "into(chunk")
    # chunk 0 of 9 elements is [0:2]; in round 1 rank 2 receives chunk 2 - 1 - 1 = 0.
    assert str(error) == f"""\
all_reduce ring_that_forgets, 4 ranks, 9 elements: rank 3 ends with x[0] without the \
contribution of rank 2
  which was overwritten by rank 2, round 1: recv of x[0:2] from rank 1
  {line}
    yield send(chunk[rank - s], right), into(chunk[rank - s - 1], left)

           round 0   round 1   round 2   round 3   round 4   round 5
  rank 0   >1 +<3    >1 +<3    >1 +<3    >1 <3     >1 <3     >1 <3
  rank 1   >2 +<0    >2 +<0    >2 +<0    >2 <0     >2 <0     >2 <0
  rank 2   >3 +<1   [>3 <1]    >3 +<1    >3 <1     >3 <1     >3 <1
  rank 3   >0 +<2    >0 +<2    >0 +<2    >0 <2     >0 <2     >0 <2
  >r send to r, <r receive from r, +<r receive and reduce"""
    assert (error.rank, error.round, error.line, repr(error.chunk)) == (2, 1, line, "x[0:2]")
    assert isinstance(error, ValueError)


@collective("all_reduce")
def ring_that_adds_twice(rank, size, x):
    chunk, right, left = x.split(size), (rank + 1) % size, (rank - 1) % size
    for s in range(size - 1):
        yield send(chunk[rank - s], right), recv_reduce(chunk[rank - s - 1], left)
    for s in range(size - 1):
        yield send(chunk[rank + 1 - s], right), recv_reduce(chunk[rank - s], left)


def test_a_contribution_that_is_there_twice_is_named_with_the_addition_that_doubled_it():
    error = counterexample(ring_that_adds_twice, 3, "with the contribution", "twice",
                           "first wrong after", "recv_reduce of x")
    assert error.line == line_of(ring_that_adds_twice, "chunk[rank - s], left")
    assert error.round == 2


@collective("all_gather")
def gathers_into_the_wrong_place(rank, size, x):
    block = x.split(size)
    for step in range(1, size):
        to, of = (rank + step) % size, (rank - step) % size
        place = block[of + 1] if (rank, of) == (0, 2) else block[of]
        yield send(block[rank], to), recv(place, of)


def test_what_does_not_belong_is_named_with_its_element_and_what_brought_it():
    error = counterexample(gathers_into_the_wrong_place, 5, "holding rank 2's x[4]",
                           "which does not belong there", n=10)
    assert (error.rank, error.round) == (0, 2)
    assert "rank 0 ends with x[6]" in str(error)


@collective("broadcast")
def skips_the_last_rank(rank, size, x, root):
    if rank == root:
        yield [send(x, peer) for peer in range(size - 1) if peer != root]
    elif rank < size - 1:
        yield recv(x, root)


def test_all_roots_are_tried_and_what_is_never_written_is_said():
    error = counterexample(skips_the_last_rank, 3,
                           "root 0: rank 2 ends with x[0] to which nothing is written")
    assert error.rank == 2 and error.round is None
    counterexample(skips_the_last_rank, 3, "root 1", root=1)
    verify(skips_the_last_rank, 3, root=2)


@collective("reduce_scatter")
def leaves_its_own_at_home(rank, size, x):
    part, right = x.split(size), (rank + 1) % size
    if size > 1:
        yield send(part[right], right), recv_reduce(part[rank], (rank - 1) % size)


def test_a_contribution_that_never_left_its_rank_is_said_to_be_there():
    verify(leaves_its_own_at_home, 2)
    error = counterexample(leaves_its_own_at_home, 3, "without the contribution of rank",
                           "never left it")
    whose = int(re.search("contribution of rank (\\d)", str(error))[1])
    assert error.rank == whose


@collective("all_reduce")
def wrong_when_blocks_are_empty(rank, size, x):
    if len(x) >= size:
        yield from ring(rank, size, x)


@collective("all_reduce")
def wrong_when_blocks_are_uneven(rank, size, x):
    m = len(x) // size
    chunk, right, left = [x[i * m:(i + 1) * m] for i in range(size)], (rank + 1) % size, rank - 1
    for s in range(2 * size - 2):
        into = recv_reduce if s < size - 1 else recv
        yield send(chunk[(rank - s) % size], right), into(chunk[(rank - s - 1) % size], left % size)


def test_lengths_are_tried_at_which_blocks_are_empty_and_uneven():
    kind = ring.kind
    assert set(lengths(kind, 5)) == {0, 1, 4, 5, 11, 38} and lengths(kind, 5)[0] == 5
    assert set(lengths(ALGORITHMS["all_to_all"]["pairwise"].kind, 5)) == {0, 5, 15, 40}
    counterexample(wrong_when_blocks_are_empty, 4, "4 ranks, 3 elements: rank")
    for n in (0, 4, 8):
        verify(wrong_when_blocks_are_uneven, 4, n)
    counterexample(wrong_when_blocks_are_uneven, 4, "4 ranks, 9 elements: rank")


def test_of_many_ranks_the_picture_shows_those_around_the_mark():
    error = counterexample(ring_that_forgets, 40, n=40)
    picture = str(error).split("\n\n")[1]
    assert [int(r) for r in re.findall(r"^  rank (\d+)", picture, re.M)] == list(range(7))
    assert [int(k) for k in re.findall(r"round (\d+)", picture)] == [0, 1, 2, 3, 4]
    assert picture.count("[") == 1 and "(of 40 ranks and 78 rounds)" in picture
    assert max(map(len, str(error).splitlines())) < 200


# ------------------------------------------------------------------ reads of nothing


@collective("all_reduce")
def reduces_scratch(rank, size, x, scratch):
    there = scratch(len(x))
    yield reduce(there, x)


@collective("all_reduce")
def reduces_into_scratch(rank, size, x, scratch):
    there = scratch(len(x))
    yield send(x, (rank + 1) % size), recv_reduce(there, (rank - 1) % size)


@collective("all_gather")
def sends_before_it_receives(rank, size, x):
    block, right, left = x.split(size), (rank + 1) % size, (rank - 1) % size
    for s in range(size - 1):
        mine = rank - s + (rank == 1 and s == 0)
        yield send(block[mine], right), recv(block[rank - s - 1], left)


def test_a_read_of_what_nothing_was_written_to_is_an_error_at_the_operation_that_reads():
    error = counterexample(reduces_scratch, 2, "reduce of scratch0[0:2] into x[0:2] reads "
                           "scratch0[0], to which nothing has been written", n=2)
    assert error.line == line_of(reduces_scratch, "yield") and error.round == 0
    counterexample(reduces_into_scratch, 3, "recv_reduce of scratch0[0:3] from rank", n=3)
    error = counterexample(sends_before_it_receives, 4, "rank 1, round 0: send of x[2:3] to rank 2 "
                           "reads x[2], to which nothing has been written", n=4)
    assert (error.rank, error.round) == (1, 0)


# ------------------------------------------------------------------ trees


def naive(deterministic):
    def everyone_to_everyone(rank, size, x, scratch):
        others = [r for r in range(size) if r != rank]
        landing = {r: scratch(len(x)) for r in others}
        yield [send(x, r) for r in others] + [recv(landing[r], r) for r in others]
        for r in others:
            yield reduce(landing[r], x)
    return Program(ring.kind, everyone_to_everyone, deterministic=deterministic)


def test_ranks_that_add_in_different_orders_are_rejected_unless_that_is_claimed():
    verify(naive(True), 2)  # a + b is b + a
    error = counterexample(naive(True), 4, "adds up x[0] in another order than rank", n=4)
    assert "rank 2: (((r2 + r0) + r1) + r3)" in str(error) or (
        "rank 3: (((r3 + r0) + r1) + r2)" in str(error))
    assert error.round == 3 and error.line == line_of(naive(True), "reduce(landing")
    verify(naive(False), 4)


def test_nondeterministic_programs_must_still_add_the_right_things():
    program = Program(ring_that_forgets.kind, ring_that_forgets.function, deterministic=False)
    counterexample(program, 4, "without the contribution of rank 2")


@collective("all_reduce")
def one_adds_otherwise(rank, size, x, scratch):
    """Rank 1 of 4 adds (own + 3) + (...) where the others' pairs are (0 + 1) + (2 + 3)."""
    pairs, landing = [rank ^ 1, rank ^ 2, rank ^ 3], [scratch(len(x)) for _ in range(3)]
    yield ([send(x, peer) for peer in pairs]
           + [recv(place, peer) for place, peer in zip(landing, pairs)])
    if rank == 1:
        yield reduce(landing[1], x)
        yield reduce(landing[0], landing[2])
    else:
        yield reduce(landing[0], x)
        yield reduce(landing[1], landing[2])
    yield reduce(landing[2], x)


def test_the_rank_that_adds_in_an_order_of_its_own_is_blamed():
    error = counterexample(one_adds_otherwise, 4, "rank 1 adds up x[0] in another order", n=1)
    assert error.rank == 1
    assert "rank 1: ((r1 + r3) + (r2 + r0))" in str(error)
    assert "rank 0: ((r0 + r1) + (r3 + r2))" in str(error)


# ------------------------------------------------------------------ waits


@collective("all_reduce")
def everyone_sends_first(rank, size, x, scratch):
    landing = scratch(len(x))
    yield send(x, (rank + 1) % size)
    yield recv(landing, (rank - 1) % size)


def test_a_circle_of_waits_is_printed_with_the_line_of_each_rank():
    error = counterexample(everyone_sends_first, 3, "deadlock: rank 0 waits for rank 1, which "
                           "waits for rank 2, which waits for rank 0", n=3)
    sends, receives = (line_of(everyone_sends_first, f"yield {kind}") for kind in ("send", "recv"))
    for rank in range(3):
        right = (rank + 1) % 3
        assert (f"  rank {rank}, round 0: send of x[0:3] to rank {right} ({sends})\n"
                f"    waits for rank {right} to come to round 1: recv of scratch0[0:3] from rank "
                f"{rank} ({receives})\n") in str(error)
    assert str(error).count("[>") == 3
    assert (error.rank, error.round, error.line) == (0, 0, sends)


def test_a_long_circle_is_cut_short():
    error = counterexample(everyone_sends_first, 30, "through 30 ranks back to rank 0", n=1)
    assert len(str(error).splitlines()) < 40


@collective("barrier")
def one_waits_before_the_fence(rank, size, x):
    if rank == 1:
        yield recv(x[0:0], 0)
    yield fence()
    if rank == 0:
        yield send(x[0:0], 1)


def test_fences_take_part_in_circles_of_waits():
    error = counterexample(one_waits_before_the_fence, 3, "deadlock", "fence", "recv of x[0:0]")
    assert "rank 0 waits for rank 1, which waits for rank 0" in str(error)


# ------------------------------------------------------------------ epochs


@collective("all_reduce")
def gets_what_others_write(rank, size, x):
    yield fence()
    for k in range(1, size):
        yield get_reduce(x, (rank + k) % size)
    yield fence()


def without_fence(which):
    """The program `windows` without one of its three fences."""
    def broken(rank, size, x):
        fences = 0
        for ops in windows(rank, size, x):
            is_fence = getattr(ops, "kind", None) == "fence"
            if not is_fence or fences != which:
                yield ops
            fences += is_fence
    return Program(windows.kind, broken)


def test_an_element_that_one_rank_writes_and_another_touches_in_an_epoch_is_a_race():
    error = counterexample(gets_what_others_write, 3, "in the same epoch as rank",
                           "no fence stands between them", n=3)
    assert str(error).count("[+get") == 2  # both are marked
    assert error.line == line_of(gets_what_others_write, "get_reduce")
    counterexample(without_fence(1), 3, "in the same epoch")


def test_one_sided_access_stands_between_two_fences():
    verify(windows, 3)
    for which in (0, 2):
        counterexample(without_fence(which), 3, "does not stand between two fences")


def racing(*rounds_of_rank_1):
    """Rank 0 puts into rank 1's x[0:1], which does this in the same epoch."""
    def program(rank, size, x, scratch):
        landing = scratch(1)
        yield fence()
        if rank == 0:
            yield put(x[0:1], 1)
            yield [send(x[1:2], 1)]
        if rank == 1:
            yield [recv(x[1:2], 0)]
            yield from ([op(x, landing)] for op in rounds_of_rank_1)
        yield fence()
    return Program(Kind("tells", lambda rank, size, x: [x], lambda rank, size, x: [
        (x[0:2], [(0, x[0:2])])] if rank == 1 else [], reduces=True), program)


@pytest.mark.parametrize("touches", [
    lambda x, t: copy(x[0:1], t), lambda x, t: copy(x[2:3], x[0:1]),
    lambda x, t: reduce(x[2:3], x[0:1]), lambda x, t: put(x[0:1], 0, x[2:3]),
    lambda x, t: get(x[0:1], 0, x[2:3])], ids=["read", "write", "reduce", "put", "get"])
def test_what_the_owner_of_the_memory_does_counts(touches):
    verify(racing(), 2, 3)
    verify(racing(lambda x, t: copy(x[2:3], t)), 2, 3)
    with pytest.raises(VerificationError) as caught:
        verify(racing(touches), 2, 3)
    assert "in the same epoch" in str(caught.value)


@collective("all_reduce")
def reduces_and_puts(rank, size, x):
    """One rank alone touches a part of everyone's memory: its rounds follow one another."""
    part = x.split(size)[rank]
    yield fence()
    for k in range(1, size):
        yield get_reduce(part, (rank + k) % size)
    yield [put(part, peer) for peer in range(size) if peer != rank]
    yield fence()


def test_the_rounds_of_one_rank_are_ordered_within_an_epoch():
    verify(reduces_and_puts, 5)
    tasks = lower(reduces_and_puts, 3, 6)
    puts = [task for task in tasks if task.kind == "put"]
    gets = {(task.rank, task.peer): task.id for task in tasks if task.kind == "get_reduce"}
    assert puts and all(gets[put.rank, put.peer] in put.deps for put in puts)


@collective("all_gather")
def puts_twice_in_a_round(rank, size, x):
    yield fence()
    yield put(x[0:1], (rank + 1) % size, x[1:2]), put(x[2:3], (rank + 1) % size, x[1:2])
    yield fence()


def test_two_puts_of_a_round_into_one_place_clash():
    counterexample(puts_twice_in_a_round, 2, "touch the same elements", "rank 1's x[1:2]", n=4)


@collective("barrier")
def rank_2_has_a_fence_too_many(rank, size, x):
    yield fence()
    if rank == 2:
        yield fence()


def test_the_rank_that_passes_another_number_of_fences_is_named():
    error = counterexample(rank_2_has_a_fence_too_many, 4, "rank 2 passes 2")
    assert error.rank == 2


# ------------------------------------------------------------------ what it is told


def test_kinds_of_ones_own_are_held_to_their_tables():
    # Each rank gets its left neighbour's x in y.
    kind = Kind("shift", before=lambda rank, size, x, y: [x],
                after=lambda rank, size, x, y: [(y, [((rank - 1) % size, x)])],
                lengths=lambda rank, size, n: {"x": n, "y": n})

    @collective(kind)
    def shift(rank, size, x, y):
        if size == 1:
            yield copy(x, y)
        else:
            yield send(x, (rank + 1) % size), recv(y, (rank - 1) % size)

    @collective(kind)
    def shift_back(rank, size, x, y):
        yield send(x, (rank - 1) % size), recv(y, (rank + 1) % size)
    for size in range(1, 6):
        verify(shift, size)
    verify(shift_back, 2)
    counterexample(shift_back, 3, "rank 0 ends with y[0] holding rank 1's x[0]", n=1)


def test_a_table_that_promises_chunks_of_different_lengths_is_refused():
    kind = Kind("odd", before=lambda rank, size, x: [x],
                after=lambda rank, size, x: [(x[0:2], [(0, x[0:1])])])
    with pytest.raises(ValueError, match="the after table of odd promises rank 0 x"):
        verify(collective(kind)(lambda rank, size, x: iter(())), 2, 4)


def test_topologies_and_counts_are_tried_too():
    levels = [case["topo"].levels for case in cases(ALGORITHMS["all_reduce"]["hierarchical"], 8)]
    assert sorted(levels) == [(2, 2, 2), (2, 4), (4, 2), (8,)]
    uneven = [case.get("counts") for case in cases(ALGORITHMS["all_to_all"]["pairwise"], 3)]
    assert uneven[0] is None and 0 in np.array(uneven[1]) and len(set(uneven[1])) == 3
    vector = Kind("vector", lambda rank, size, x: [], lambda rank, size, x: [],
                  lengths=lambda rank, size, n, counts: {"x": counts[rank][0]})
    needs = Program(vector, lambda rank, size, x, counts: iter(()))
    assert [len(case["counts"]) for case in cases(needs, 3)] == [3]
    given = {"topo": Topology((2, 3))}
    assert list(cases(ALGORITHMS["all_reduce"]["hierarchical"], 6, **given)) == [given]


def test_a_group_that_the_program_refuses_is_a_value_error_and_no_counterexample():
    with pytest.raises(ValueError, match="2.k ranks, not 3") as caught:
        verify(doubling, 3)
    assert not isinstance(caught.value, VerificationError)
    with pytest.raises(ValueError, match="topology 2 = 2 != 5 ranks") as caught:
        verify(ALGORITHMS["all_reduce"]["hierarchical"], 5, topo=Topology((2,)))
    assert not isinstance(caught.value, VerificationError)


@collective("all_reduce")
def to_nobody(rank, size, x):
    yield ()
    yield send(x, size)


def test_what_is_no_operation_of_the_group_is_a_counterexample_with_its_line():
    error = counterexample(to_nobody, 2, "rank 0, round 1: send: there is no peer 2 among 2 ranks",
                           "yield send(x, size)")
    assert (error.rank, error.round, error.line) == (0, 1, line_of(to_nobody, "send"))
    with pytest.raises(ProgramError) as caught:
        to_nobody.trace(0, 2, 5)
    assert (caught.value.rank, caught.value.round) == (0, 1)


def test_a_task_graph_alone_is_verified_too():
    tasks = lower(ring, 5, 11)
    verify_graph(tasks, ring.kind, 5, 11)
    for task in tasks:
        if task.kind == "recv_reduce":
            task.kind = "recv"
            break
    with pytest.raises(VerificationError) as caught:
        verify_graph(tasks, ring.kind, 5, 11, name="ring")
    assert caught.value.rank == task.rank and caught.value.round == task.round


def test_a_thousand_ranks_are_proved_and_a_fault_among_hundreds_is_found():
    verify(doubling, 1024, 3)

    def one_forgets(rank, size, x, scratch):
        for number, ops in enumerate(doubling(rank, size, x, scratch=scratch)):
            yield copy(ops.source, ops.chunk) if (rank, number) == (200, 7) else ops
    error = counterexample(Program(ring.kind, one_forgets), 256, n=3)
    assert (error.rank, error.round) == (200, 7)
    assert len(str(error)) < 3000
