"""The verifier with every rank of a mesh: replicas that reduce together, and tensor-parallel ranks
that exchange sums within F, B and I. Whether a mutant is broken is said by brute force
(schedule_interpreter.py)."""

import random

import pytest
from schedule_interpreter import runs_lowered

from minipar.parallel.lower import lower
from minipar.parallel.mesh import Mesh
from minipar.parallel.schedule import SCHEDULES, Action, ScheduleError
from minipar.parallel.schedule_graph import schedule_graph
from minipar.parallel.verify_schedule import peaks, verify


def on(mesh, choose):
    """A list for each rank of a mesh: choose({"dp", "pp", "tp"}) of lists of the pipeline."""
    places = [mesh.coordinates(rank) for rank in range(mesh.size)]
    return tuple(choose(place)[place["pp"]] for place in places)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ranks_of_a_mesh_that_do_the_same_run_to_their_end(name):
    one, mesh = SCHEDULES[name](2, 4), Mesh(dp=2, pp=2, tp=2)
    assert verify(one, on(mesh, lambda place: lower(one)), mesh) == peaks(one)


def test_replicas_may_take_other_orders_and_tensor_parallel_ranks_may_not():
    one, other = SCHEDULES["gpipe"](2, 2), SCHEDULES["1f1b"](2, 2)
    mesh = Mesh(dp=2, pp=2)
    verify(one, on(mesh, lambda place: lower(other if place["dp"] else one)), mesh)
    mesh = Mesh(pp=2, tp=2)
    with pytest.raises(ScheduleError) as caught:
        verify(one, on(mesh, lambda place: lower(other if place["tp"] else one)), mesh)
    assert ("gpipe, 4 ranks, 2 micro-batches: deadlock, even if sends never wait: rank 2 waits for "
            "rank 3, which waits for rank 2\n  rank 2: 1F1 waits for 1F1 of rank 3\n"
            "  rank 3: 1B0 waits for 1B0 of rank 2\n") in str(caught.value)
    assert "[1F1]" in str(caught.value) and caught.value.rank in (2, 3)


def test_weight_gradients_of_tensor_parallel_ranks_need_not_keep_step():
    one, mesh = SCHEDULES["zb-h1"](1, 2), Mesh(tp=2)
    row, late = list(lower(one)[0]), Action(0, "W", 0)
    row.remove(late)
    row.insert(row.index(Action(0, "REDUCE", 0)), late)
    assert row != list(lower(one)[0])
    verify(one, (*lower(one), tuple(row)), mesh)


@pytest.mark.parametrize("mesh", [Mesh(dp=2), Mesh(dp=3), Mesh(dp=3, tp=2)], ids=str)
def test_replicas_that_reduce_buckets_in_other_orders_wait_for_each_other(mesh):
    one = SCHEDULES["zb-v"](1, 2)
    row = lower(one)[0]
    here = [i for i, action in enumerate(row) if action.kind == "REDUCE"]
    moved = (*row[:here[0]], *row[here[0] + 1:])
    with pytest.raises(ScheduleError, match="deadlock") as caught:
        verify(one, (*[row] * (mesh.size - 1), (*moved, row[here[0]])), mesh)
    text = str(caught.value)
    assert f"waits for {row[here[0]]} of rank" in text and "REDUCE" in text.split("\n\n")[1]
    later = (*moved[:here[1] - 1], row[here[0]], *moved[here[1] - 1:])  # but before the other one
    verify(one, (*[row] * (mesh.size - 1), later), mesh)


def test_a_reduction_inside_a_step_of_tensor_parallel_ranks_has_one_place():
    """One rank reduces before a backward of the other stage, the others after it: the replica of
    the first cannot come to its own reduction, for its tp rank waits for the first's backward."""
    one, mesh = SCHEDULES["gpipe"](1, 2)._replace(rank_of=(0, 0)), Mesh(dp=2, tp=2)
    actions = [(0, "F", 0), (0, "F", 1), (1, "F", 0), (1, "F", 1), (1, "B", 0), (1, "B", 1),
               (0, "B", 0), (0, "B", 1)]
    one = one._replace(actions=(tuple(Action(*a) for a in actions),))
    early = lower(one)[0]
    i = early.index(Action(1, "REDUCE", 0))
    late = (*early[:i], early[i + 1], early[i], *early[i + 2:])
    verify(one, (early, early, late, late), mesh)
    with pytest.raises(ScheduleError, match="deadlock, even if sends never wait"):
        verify(one, (early, late, late, early), mesh)


def test_the_step_comes_after_every_reduction_and_joins_all_ranks():
    mesh = Mesh(dp=2, pp=2, tp=2)
    tasks = schedule_graph(SCHEDULES["1f1b"](2, 2), None, mesh)
    steps = [task for task in tasks if task.kind == "step"]
    assert [task.rank for task in steps] == list(range(8))
    assert {tasks[d].kind for task in steps for d in task.deps} == {"reduce"}
    seen, task = [], steps[0]
    while task.id not in seen:
        seen.append(task.id)
        task = tasks[task.match]
    assert sorted(seen) == [task.id for task in steps]


@pytest.mark.parametrize("lists, mesh, words", [
    (2, Mesh(pp=3), "2 lists on a mesh of dp 1 x pp 3 x tp 1 for a schedule of 2 ranks"),
    (3, Mesh(pp=2, dp=2), "3 lists on a mesh of dp 2 x pp 2 x tp 1 for a schedule of 2 ranks"),
    (3, None, "3 lists on a mesh of dp 1 x pp 2 x tp 1 for a schedule of 2 ranks")])
def test_lists_and_meshes_of_other_numbers_are_refused(lists, mesh, words):
    one = SCHEDULES["1f1b"](2, 2)
    for prove in verify, schedule_graph:
        with pytest.raises(ValueError, match=f"^{words}$"):
            prove(one, (lower(one) * 2)[:lists], mesh)


def mutate(rng, row):
    """Another order of a list: two neighbours, or any two, exchanged, or one action moved."""
    row, i = list(row), rng.randrange(1, len(row))
    how = rng.choice(["nudged", "nudged", "swapped", "moved"])
    j = i - 1 if how == "nudged" else rng.randrange(len(row))
    if how == "moved":
        row.insert(j, row.pop(i))
    else:
        row[i], row[j] = row[j], row[i]
    return tuple(row)


def renamed(rng, schedule):
    """The same schedule with its micro-batches in another order."""
    order = rng.sample(range(schedule.microbatches), schedule.microbatches)
    return schedule._replace(actions=tuple(
        tuple(a._replace(microbatch=order[a.microbatch]) for a in row)
        for row in schedule.actions))


@pytest.mark.parametrize("mesh", [Mesh(2, 2, 2), Mesh(1, 2, 3), Mesh(3, 2, 1)], ids=str)
def test_mutants_of_a_rank_or_of_a_whole_copy_are_rejected_and_right_ones_are_not(mesh):
    rng, verdicts, deadlocks = random.Random(5), [], 0
    for name in ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-v", "breadth-first"):
        one = SCHEDULES[name](2, 4)
        right = on(mesh, lambda place: lower(one))
        for mutant in range(30):
            rank = rng.randrange(mesh.size)
            if mutant % 3:
                rows = (*right[:rank], mutate(rng, right[rank]), *right[rank + 1:])
            else:
                copy, other = mesh.group(rank, "pp"), lower(renamed(rng, one))
                rows = tuple(other[copy.index(r)] if r in copy else right[r]
                             for r in range(mesh.size))
            runs = all(runs_lowered(rows, one.rank_of, 4, synchronous, mesh.dp, mesh.tp)
                       for synchronous in (False, True))
            verdicts.append(runs)
            if runs:
                verify(one, rows, mesh)
                continue
            with pytest.raises(ScheduleError) as caught:
                verify(one, rows, mesh)
            assert (caught.value.rank, caught.value.index) == caught.value.marks[0]
            deadlocks += "deadlock" in str(caught.value)
    assert verdicts.count(True) >= 30 and verdicts.count(False) >= 60
    assert deadlocks >= (40 if mesh.tp > 1 else 1)  # orders of micro-batches matter within tp alone
