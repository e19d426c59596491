"""The published schedules: their orders, memory and bubbles as the papers state them."""

from fractions import Fraction
from types import SimpleNamespace

import pytest

from minipar.parallel.schedule import SCHEDULES, ScheduleError, Times
from minipar.parallel.verify_schedule import peaks
from minipar.sim.schedule import simulate

GRID = [(1, 3), (2, 4), (3, 9), (5, 15)]


def make(name, ranks, microbatches, chunks=None, **options):
    return SCHEDULES[name](ranks, microbatches, chunks, **options)


# ------------------------------------------------------------------ orders


def test_zb_h1_is_1f1b_with_ws_ever_later():
    assert str(make("zb-h1", 3, 4)).splitlines() == [
        "0F0,0F1,0F2,0I0,0W0,0F3,0I1,0W1,0I2,0W2,0I3,0W3",
        "1F0,1F1,1I0,1F2,1I1,1W0,1F3,1I2,1W1,1I3,1W2,1W3",
        "2F0,2I0,2F1,2I1,2F2,2I2,2W0,2F3,2I3,2W1,2W2,2W3"]


def test_breadth_first_takes_all_micro_batches_through_a_chunk_at_a_time():
    assert str(make("breadth-first", 2, 3)).splitlines() == [
        "0F0,0F1,0F2,2F0,2F1,2F2,2B0,2B1,2B2,0B0,0B1,0B2",
        "1F0,1F1,1F2,3F0,3F1,3F2,3B0,3B1,3B2,1B0,1B1,1B2"]


def pytorch(name, ranks, microbatches, chunks):
    """The rows of the same schedule as PyTorch's pipelining makes them."""
    module = pytest.importorskip("torch.distributed.pipelining.schedules")
    kind = getattr(module, name)
    if not hasattr(kind, "_calculate_single_rank_operations"):
        pytest.skip(f"this PyTorch makes {name} in another way")
    fake = SimpleNamespace(
        pp_group_size=ranks, _n_microbatches=microbatches, n_local_stages=chunks,
        num_stages=ranks * chunks, microbatches_per_round=ranks)
    rows = [kind._calculate_single_rank_operations(fake, rank) for rank in range(ranks)]
    return [[str(part) for action in row if action
             for part in getattr(action, "sub_actions", None) or [action]] for row in rows]


@pytest.mark.peer
@pytest.mark.parametrize("ours, theirs, chunks", [
    ("interleaved", "ScheduleInterleaved1F1B", 2), ("interleaved", "ScheduleInterleaved1F1B", 3),
    ("zb-v", "ScheduleZBVZeroBubble", 2), ("dualpipev", "ScheduleDualPipeV", 2)])
@pytest.mark.parametrize("ranks, count", [(2, 4), (4, 8), (4, 16), (3, 9)])
def test_orders_are_those_of_pytorch(ours, theirs, chunks, ranks, count):
    rows = [list(map(str, row)) for row in make(ours, ranks, count, chunks).actions]
    assert rows == pytorch(theirs, ranks, count, chunks)


def test_micro_batches_that_do_not_fit_are_refused_with_the_arithmetic():
    words = "interleaved: 7 micro-batches are no multiple of 2 ranks"
    with pytest.raises(ScheduleError, match=f"^{words}$"):
        make("interleaved", 2, 7)


@pytest.mark.parametrize("name, options, words", [
    ("zb-v", dict(chunks=3), "zb-v has 2 chunks a rank, not 3"),
    ("1f1b", dict(memory_limit=3), "1f1b takes no memory limit: auto does"),
    ("auto", dict(memory_limit=0), "auto: a memory limit of 0 micro-batches: it is at least 1"),
    ("auto", dict(times=Times((1, 2), 1, 1)), "auto: 2 times F for 4 stages"),
    ("auto", dict(times=Times(1, -1, 1)), "auto: times are not negative"),
])
def test_options_that_cannot_be_are_refused(name, options, words):
    with pytest.raises(ScheduleError, match=f"^{words}$"):
        make(name, 4, 8, **options)


# ------------------------------------------------------------------ memory


MEMORY = {  # activations of stage s, at most, as the papers have it
    "sequential": lambda s, p, m: 1,
    "gpipe": lambda s, p, m: m,
    "1f1b": lambda s, p, m: min(p - s, m),
    "zb-h1": lambda s, p, m: min(p, m),
    "zb-h2": lambda s, p, m: min(2 * p - 1, m),
}


@pytest.mark.parametrize("name", MEMORY)
@pytest.mark.parametrize("ranks, count", [*GRID, (4, 3), (8, 4)])
def test_peak_activations_are_the_published_formulas(name, ranks, count):
    found = peaks(make(name, ranks, count))
    assert found.stages == found.ranks == tuple(
        MEMORY[name](s, ranks, count) for s in range(ranks))


@pytest.mark.parametrize("ranks, count", GRID[1:])
def test_peak_activations_of_schedules_with_chunks_are_the_published_formulas(ranks, count):
    p = ranks
    for v in (2, 3):
        assert peaks(make("interleaved", p, count, v)).ranks == tuple(
            min(2 * (p - 1 - r) + (v - 1) * p + 1, count * v) / v for r in range(p))
        assert peaks(make("breadth-first", p, count, v)).ranks == (count,) * p
    assert peaks(make("zb-v", p, count)).ranks == (p,) * p
    assert peaks(make("dualpipev", p, count)).ranks == (min(p + 0.5, count),) * p


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 12])
def test_the_automatic_schedule_keeps_to_its_memory_limit(limit):
    assert max(peaks(make("auto", 4, 12, memory_limit=limit)).ranks) == limit
    times = Times(3.5, 2, 1.5, 0.25)
    one = make("auto", 4, 12, times=times, memory_limit=limit, kept=0.5)
    assert max(peaks(one, kept=0.5).ranks) <= limit


# ------------------------------------------------------------------ bubbles


def bubble(name, ranks, microbatches, times, chunks=None):
    """Idle time of the rank that takes longest."""
    found = simulate(make(name, ranks, microbatches, chunks), times)
    return found.cost - microbatches * sum(times[:3])


@pytest.mark.parametrize("ranks, count", [*GRID, (5, 2)])
def test_the_bubble_of_gpipe_and_1f1b_is_exactly_that_of_the_closed_form(ranks, count):
    for name in ("gpipe", "1f1b"):
        for one in (Fraction(1), Fraction(1, 3), Fraction(7, 5)):
            rate = simulate(make(name, ranks, count), Times(one, one, one)).bubble_rate
            assert rate == Fraction(ranks - 1, count + ranks - 1)


@pytest.mark.parametrize("times", [Times(2, 2, 2), Times(8, 8, 5)])
@pytest.mark.parametrize("ranks, count", GRID)
def test_bubbles_are_the_published_sizes(ranks, count, times):
    f, b, w, _ = times
    p = ranks - 1
    assert bubble("sequential", ranks, count, times) == p * count * (f + b + w)
    assert bubble("gpipe", ranks, count, times) == p * (f + b + w)
    assert bubble("1f1b", ranks, count, times) == p * (f + b + w)
    assert bubble("zb-h1", ranks, count, times) == p * (f + b - w)
    for v in (2, 4):
        assert bubble("interleaved", ranks, count, times, v) == p * (f + b + w) / v
        assert bubble("breadth-first", ranks, count, times, v) == p * (f + b + w) / v
    if count >= 2 * ranks:
        assert bubble("zb-h2", ranks, count, times) == p * (f + b - 2 * w)
        assert bubble("zb-v", ranks, count, times) == p * (f + b - 2 * w) / 2
        assert bubble("dualpipev", ranks, count, times) == p * (f + b - w) / 2


def test_the_automatic_schedule_is_as_short_as_the_handmade_ones_of_its_memory():
    for times in (Times(2, 2, 2), Times(6, 5, 4), Times(18.522, 18.086, 9.337, 0.601)):
        for p, m in ((2, 6), (4, 12), (8, 24)):
            for name, limit in (("zb-h1", p), ("zb-h2", 2 * p - 1)):
                own = simulate(make("auto", p, m, times=times, memory_limit=limit), times).cost
                assert own <= simulate(make(name, p, m), times).cost + 1e-9
