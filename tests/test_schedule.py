"""Schedules and meshes: text in and out, arithmetic, and what is refused."""

import pytest

from minipar.parallel.lower import lower, peer
from minipar.parallel.mesh import Mesh
from minipar.parallel.schedule import SCHEDULES, Action, ScheduleError, parse


def test_ranks_and_coordinates_are_one_to_one():
    mesh = Mesh(dp=2, pp=3, tp=4)
    seen = [mesh.coordinates(rank) for rank in range(24)]
    assert len({tuple(c.items()) for c in seen}) == 24
    assert [mesh.rank(**c) for c in seen] == list(range(24))
    assert mesh.group(0, "tp") == [0, 1, 2, 3]
    assert mesh.group(0, "dp") == [0, 4]
    assert mesh.group(5, "pp") == [5, 13, 21]
    assert mesh.group(7, "pp", "tp") == [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23]


@pytest.mark.parametrize("asked, words", [
    (dict(size=4, dp=3), "world size 4 != dp 3 x pp 1 x tp 1 = 3"),
    (dict(size=4, pp=3), "world size 4 != dp x pp 3 x tp 1: 4 is no multiple of 3"),
    (dict(size=4, pp=2, tp=2, dp=2), "world size 4 != dp 2 x pp 2 x tp 2 = 8"),
])
def test_a_mesh_that_is_not_the_world_is_refused_with_the_arithmetic(asked, words):
    with pytest.raises(ValueError, match=f"^{words}$"):
        Mesh.of(**asked)


def test_what_is_left_is_data_parallel():
    assert Mesh.of(8, pp=2, tp=2) == Mesh(dp=2, pp=2, tp=2)


def test_1f1b_is_the_published_order():
    made = SCHEDULES["1f1b"](4, 4)
    assert str(made).splitlines() == [
        "0F0,0F1,0F2,0F3,0B0,0B1,0B2,0B3",
        "1F0,1F1,1F2,1B0,1F3,1B1,1B2,1B3",
        "2F0,2F1,2B0,2F2,2B1,2F3,2B2,2B3",
        "3F0,3B0,3F1,3B1,3F2,3B2,3F3,3B3"]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("ranks, microbatches", [(1, 1), (2, 4), (4, 8)])
def test_a_schedule_is_its_text(name, ranks, microbatches):
    made = SCHEDULES[name](ranks, microbatches)
    assert parse(str(made), name) == made


@pytest.mark.parametrize("text, words", [
    ("0F0,0X0", "line 1, cell 2: no action '0X0': an action is like 0F2, a stage, one of F, B, "
                "I, W, and a micro-batch"),
    ("0F0\n0B0", "line 2, cell 1: 0B0: stage 0 is on rank 0 already"),
    ("0F0,2B0", "stages go from 0 to 2, but stage 1 has no action"),
    (" , \n", "a schedule has at least one action"),
])
def test_what_is_no_schedule_is_refused_by_its_place(text, words):
    with pytest.raises(ScheduleError) as caught:
        parse(text)
    assert str(caught.value) == words


def test_a_schedule_of_no_micro_batches_is_refused():
    with pytest.raises(ScheduleError, match="gpipe: 2 ranks, 0 micro-batches, 1 chunks"):
        SCHEDULES["gpipe"](2, 0)
    with pytest.raises(ScheduleError, match="gpipe has 1 chunk a rank, not 2"):
        SCHEDULES["gpipe"](2, 4, chunks=2)


def test_lowering_posts_receives_ahead_and_sends_at_once():
    rows = lower(SCHEDULES["1f1b"](2, 2))
    assert " ".join(map(str, rows[0])) == (
        "0F0 0SEND_F0 0RECV_B0 0F1 0SEND_F1 0RECV_B1 0B0 0B1 0REDUCE0")
    assert " ".join(map(str, rows[1])) == (
        "1RECV_F0 1F0 1RECV_F1 1B0 1SEND_B0 1F1 1B1 1SEND_B1 1REDUCE0")


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_message_has_two_ends(name):
    made = SCHEDULES[name](3, 6)
    rows = lower(made)
    messages = {(rank, a) for rank, row in enumerate(rows) for a in row
                if a.kind[:4] in ("SEND", "RECV")}
    boundaries = sum(a != b for a, b in zip(made.rank_of, made.rank_of[1:]))
    assert len(messages) == 2 * 2 * boundaries * 6  # ends x ways x boundaries x micro-batches
    for rank, action in messages:
        there, other = peer(made, action)
        assert (there, other) in messages and peer(made, other) == (rank, action)


def test_an_action_reads_as_it_prints():
    assert Action.parse(" 12W3 ") == Action(12, "W", 3)
    assert str(Action(0, "SEND_F", 2)) == "0SEND_F2"
