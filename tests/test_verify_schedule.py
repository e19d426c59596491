"""The verifier of pipeline schedules: all published ones pass, what is broken is found where it is
broken. Whether a mutant is broken is said by brute force (schedule_interpreter.py)."""

import random
import re

import pytest
from schedule_interpreter import runs, runs_lowered

from minipar.parallel.lower import lower
from minipar.parallel.mesh import Mesh
from minipar.parallel.schedule import ADDED, SCHEDULES, Action, Schedule, ScheduleError, parse
from minipar.parallel.verify_schedule import peaks, verify

MUTATED = [("gpipe", 3, 4, None), ("1f1b", 4, 6, None), ("interleaved", 2, 4, 2),
           ("breadth-first", 2, 3, 2), ("zb-h1", 3, 6, None), ("zb-h2", 3, 6, None),
           ("zb-v", 2, 5, None), ("zb-v", 3, 6, None), ("dualpipev", 3, 7, None),
           ("auto", 3, 5, None)]


def made(name, ranks, microbatches, chunks=None):
    return SCHEDULES[name](ranks, microbatches, chunks)


@pytest.mark.parametrize("name", SCHEDULES)
def test_published_schedules_are_right_for_all_numbers_of_ranks_and_micro_batches(name):
    for ranks in range(1, 6):
        for count in (1, ranks, 2 * ranks, 3 * ranks + 1):
            for chunks in (1, 2, 3) if SCHEDULES[name].chunks is None else (None,):
                if name == "interleaved" and count % ranks:
                    continue
                one = made(name, ranks, count, chunks)
                verify(one)
                assert runs(one.actions, one.rank_of, count)
                for synchronous in (False, True):
                    assert runs_lowered(lower(one), one.rank_of, count, synchronous), (ranks, count)


def random_schedule(rng):
    """A right schedule in random order: stages on any ranks, some backwards split."""
    ranks, count = rng.randint(1, 4), rng.randint(1, 5)
    owner = [*range(ranks), *(rng.randrange(ranks) for _ in range(rng.randint(0, 4)))]
    rng.shuffle(owner)
    left = {(stage, kind, m) for stage in range(len(owner)) for m in range(count)
            for kind in rng.choice(["FB", "FIW"])}
    rows, last = [[] for _ in range(ranks)], len(owner) - 1

    def gone(stage, kinds, m):
        return not any((stage, kind, m) in left for kind in kinds)

    def ready(action):
        stage, kind, m = action
        if kind == "F":
            return stage == 0 or gone(stage - 1, "F", m)
        if kind == "W":
            return gone(stage, "FI", m)
        return gone(stage, "F", m) and (stage == last or gone(stage + 1, "FBI", m))
    while left:
        action = rng.choice(sorted(filter(ready, left)))
        left.remove(action)
        rows[owner[action[0]]].append(Action(*action))
    return Schedule("random", tuple(map(tuple, rows)), count, tuple(owner))


def test_whatever_order_runs_with_sends_at_once_is_lowered_to_one_that_runs_with_sends_that_wait():
    rng, early = random.Random(8), 0
    for _ in range(150):
        one = random_schedule(rng)
        lists = lower(one)
        verify(one)
        verify(one, lists, Mesh(dp=2, pp=one.ranks, tp=2))
        for synchronous in (False, True):
            assert runs_lowered(lists, one.rank_of, one.microbatches, synchronous), str(one)
        early += any(row[i].kind.startswith("RECV") and row[i + 1].kind.startswith("SEND")
                     for row in lists for i in range(len(row) - 1))
    assert early > 20  # receives that had to be posted before their time


@pytest.mark.parametrize("name", SCHEDULES)
def test_replicas_that_reduce_together_run_to_their_end(name):
    assert verify(made(name, 3, 6), mesh=Mesh(dp=2, pp=3, tp=2)) == peaks(made(name, 3, 6))


@pytest.mark.parametrize("text, rank, index, words", [
    ("0F0,0B0\n1F0,1B0,0W0", 1, 2, "line 2, cell 3: 0W0: stage 0 is on rank 0 already"),
    ("0F0,0F1,0B0\n1F0,1F1,1B0,1B1", 0, 1, "rank 0: stage 0 has no backward of micro-batch 1"),
    ("0F0,0B0,0B1\n1F0,1F1,1B0,1B1", 0, 2, "rank 0: stage 0 has no forward of micro-batch 1"),
    ("0F0,0I0", 0, 1, "rank 0: stage 0 has no W, only an I of micro-batch 0"),
    ("0F0,0W0", 0, 1, "rank 0: stage 0 has no I, only a W of micro-batch 0"),
    ("0F1,0B1", 0, 2, "rank 0: stage 0 has no forward of micro-batch 0"),
    ("0F0,0B0,0F0", 0, 2, "rank 0, action 2: 0F0 for the second time"),
    ("0F0,0F1,0F1,0B0,0B1,0B2", 0, 2, "rank 0, action 2: 0F1 for the second time; 0F2 is missing"),
    ("0F0,0B0,0W0", 0, 1, "rank 0, action 1: 0B0 beside 0W0: a backward is B, or I and W"),
    ("0B0,0F0", 0, 0, "rank 0, action 0: 0B0 comes before 0F0, which it needs"),
    ("0F0,0W0,0I0", 0, 1, "rank 0, action 1: 0W0 comes before 0I0, which it needs"),
    ("1F0,0F0,1B0,0B0", 0, 0, "rank 0, action 0: 1F0 comes before 0F0, which it needs"),
])
def test_a_wrong_schedule_is_refused_in_words_with_rank_and_place(text, rank, index, words):
    with pytest.raises(ScheduleError, match=re.escape(words)) as caught:
        verify(parse(text))
    assert (caught.value.rank, caught.value.index) == (rank, index)


def test_the_message_shows_the_grid_with_the_cell_marked():
    with pytest.raises(ScheduleError) as caught:
        verify(parse("0F0,0F1,0B0,0B1\n1F0,1B0,1B1,1F1", "mine"))
    assert str(caught.value) == """\
mine, 2 ranks, 2 micro-batches: rank 1, action 2: 1B1 comes before 1F1, which it needs

  time    0     1     2     3     4
  rank 0  0F0   0F1         0B0   0B1
  rank 1        1F0   1B0  [1B1] (1F1)"""


def test_of_a_large_grid_what_is_near_the_cell_is_shown():
    broken = made("1f1b", 16, 40)
    rows = [list(row) for row in broken.actions]
    rows[9].remove(Action(9, "B", 20))
    with pytest.raises(ScheduleError) as caught:
        verify(broken._replace(actions=rows))
    text = str(caught.value)
    assert "[9F20]" in text and "rank 6" in text and "rank 12" in text and "rank 5" not in text
    assert "(of 16 ranks and times 0 to " in text and max(map(len, text.splitlines())) <= 100


def test_ranks_that_wait_for_each_other_are_a_deadlock_that_names_them():
    with pytest.raises(ScheduleError) as caught:
        verify(parse("0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1"))
    text = str(caught.value)
    assert ("deadlock, even if sends never wait: rank 0 waits for rank 1, which waits for rank 0\n"
            "  rank 0: 0B0 waits for 1SEND_B0 of rank 1\n"
            "  rank 1: 1F1 waits for 0SEND_F1 of rank 0\n") in text
    assert "(0F1)" in text and "(1B0)" in text


def lowered(text):
    """Lists of lowered actions from text such as "0F0 0SEND_F0; 1RECV_F0 1F0"."""
    pattern = re.compile(r"(\d+)([A-Z_]+)(\d+)")
    return tuple(tuple(Action(int(s), kind, int(m)) for s, kind, m in pattern.findall(row))
                 for row in text.split(";"))


def test_sends_that_wait_for_receives_posted_too_late_are_a_deadlock():
    one = made("1f1b", 2, 2)
    text = ("0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0RECV_B1 0B0 0B1 0REDUCE0;"
            "1RECV_F0 1F0 1B0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1 1REDUCE0")
    with pytest.raises(ScheduleError) as caught:
        verify(one, lowered(text))
    assert ("deadlock, if every send waits for its receive: rank 0 waits for rank 1, which waits "
            "for rank 0\n  rank 0: 0SEND_F1 waits for 1RECV_F1 of rank 1\n"
            "  rank 1: 1SEND_B0 waits for 0RECV_B0 of rank 0\n") in str(caught.value)
    assert "[0SEND_F1]" in str(caught.value)
    verify(one, lower(one))


@pytest.mark.parametrize("old, new, words", [
    ("0SEND_F1 ", "", "rank 0: 0SEND_F1 is missing"),
    ("1RECV_F1 ", "", "rank 1: 1RECV_F1 is missing"),
    ("1REDUCE0", "", "rank 1: 1REDUCE0 is missing"),
    ("0SEND_F1 ", "0SEND_F0 ", "rank 0, action 4: 0SEND_F0 for the second time"),
    ("0SEND_F0 ", "0SEND_F0 0SEND_B0 ", "rank 0, action 2: 0SEND_B0 has no place on this rank"),
    ("0F0 0SEND_F0", "0SEND_F0 0F0", "0SEND_F0 needs 0F0, which comes after it"),
    ("1B1 1SEND_B1 1REDUCE0", "1REDUCE0 1B1 1SEND_B1", "1REDUCE0 needs 1B1, which comes after it"),
    ("1RECV_F0 1F0 1RECV_F1", "1RECV_F1 1RECV_F0 1F0", "1RECV_F1 is posted where rank 0 sends "
     "0SEND_F0: messages between two ranks arrive in the order in which they are sent"),
    ("0F0 0SEND_F0 0RECV_B0 0F1", "0F1 0RECV_B0 0F0 0SEND_F0", "0F1 comes where the schedule has "
     "0F0"),
])
def test_wrong_messages_are_refused(old, new, words):
    text = ("0F0 0SEND_F0 0RECV_B0 0F1 0SEND_F1 0RECV_B1 0B0 0B1 0REDUCE0;"
            "1RECV_F0 1F0 1RECV_F1 1B0 1SEND_B0 1F1 1B1 1SEND_B1 1REDUCE0")
    assert lowered(text) == lower(made("1f1b", 2, 2)) and old in text
    with pytest.raises(ScheduleError, match=re.escape(words)):
        verify(made("1f1b", 2, 2), lowered(text.replace(old, new)))


# ------------------------------------------------------------------ mutants


def mutate(rng, how, row, schedule, choose=lambda action: True):
    """(mutated row, the cells that changed) or None; `choose` says what may be changed."""
    row = list(row)
    places = [i for i, action in enumerate(row) if choose(action)]
    i = rng.choice(places)
    if how == "dropped":
        row.pop(i)
        return row, set()
    if how == "doubled":
        j = rng.randrange(len(row) + 1)
        row.insert(j, row[i])
        return row, {j}
    if how in ("swapped", "nudged"):
        j = rng.choice(places) if how == "swapped" else max(0, i - 1)
        row[i], row[j] = row[j], row[i]
        return row, {i, j}
    if how == "moved":
        action, j = row.pop(i), rng.randrange(len(row))
        row.insert(j, action)
        return row, {j}
    field = {"stage": "stage", "micro-batch": "microbatch"}.get(how, "kind")
    limit = {"stage": schedule.stages, "microbatch": schedule.microbatches}.get(field)
    values = list("FBIW") if limit is None else range(-1, limit + 1)
    row[i] = row[i]._replace(**{field: rng.choice([v for v in values
                                                   if v != getattr(row[i], field)])})
    return row, {i}


def judge(schedule, rank, before, cells, right, prove):
    """"right" or "wrong", as `right` says; fails if `prove` says other or blames another cell."""
    if right:
        prove()
        return "right"
    with pytest.raises(ScheduleError) as caught:
        prove()
    error, here = caught.value, {index for r, index in caught.value.marks if r == rank}
    assert (error.rank, error.index) == error.marks[0]
    assert "[" in str(error).split("\n\n")[1]
    assert here & cells if cells else error.rank == rank, f"{before}\n{error}"
    return "blamed" if not cells or error.rank == rank and error.index in cells else "marked"


def test_mutants_of_schedules_are_rejected_with_their_cell_and_right_ones_are_not():
    rng, verdicts = random.Random(6), []
    for name, ranks, count, chunks in MUTATED:
        one = made(name, ranks, count, chunks)
        for how in ("dropped", "doubled", "swapped", "moved", "stage", "micro-batch", "kind") * 8:
            rank = rng.randrange(ranks)
            row, cells = mutate(rng, how, one.actions[rank], one)
            rows = [*one.actions[:rank], tuple(row), *one.actions[rank + 1:]]
            broken = one._replace(actions=tuple(rows))
            verdict = judge(broken, rank, how, cells, runs(rows, one.rank_of, count),
                            lambda: verify(broken))
            verdicts.append(verdict)
            if verdict == "right":
                assert runs_lowered(lower(broken), one.rank_of, count, True)
            elif how == "dropped":
                gone = next(a for a, b in zip(one.actions[rank], [*row, None]) if a != b)
                with pytest.raises(ScheduleError) as caught:
                    verify(broken)
                at = row[caught.value.index] if caught.value.index < len(row) else gone
                assert (at.stage, at.microbatch) == (gone.stage, gone.microbatch)
    assert verdicts.count("blamed") + verdicts.count("marked") >= 400
    assert verdicts.count("right") >= 40  # so the oracle is no constant
    assert verdicts.count("blamed") >= 5 * verdicts.count("marked")


def test_mutants_of_lowered_lists_are_rejected_and_right_ones_are_not():
    rng, verdicts = random.Random(7), []
    for name, ranks, count, chunks in MUTATED:
        one = made(name, ranks, count, chunks)
        lists = lower(one)
        for how in ("dropped", "doubled", "swapped", "moved", "nudged", "micro-batch") * 8:
            rank = rng.randrange(ranks)
            row, cells = mutate(rng, how, lists[rank], one, lambda a: a.kind in ADDED)
            rows = (*lists[:rank], tuple(row), *lists[rank + 1:])
            right = all(runs_lowered(rows, one.rank_of, count, s) for s in (False, True))
            if how == "micro-batch" and next(iter(row[i] for i in cells)).kind == "REDUCE":
                right = False  # it has none
            verdicts.append(judge(one, rank, how, cells, right, lambda: verify(one, rows)))
    assert verdicts.count("blamed") + verdicts.count("marked") >= 200
    assert verdicts.count("right") >= 20
