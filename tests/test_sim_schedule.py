"""The simulator of pipeline schedules, against the tables of the papers and sums done by hand."""

import pytest

from minipar.parallel.schedule import SCHEDULES, ScheduleError, Times, parse
from minipar.sim.schedule import simulate

# Qi et al. 2024, "Zero bubble pipeline parallelism", tables 5 and 9: (ranks, micro-batches, times
# in milliseconds, {schedule: bubble rate}).
SMALL = (8, 24, Times(18.522, 18.086, 9.337, 0.601),
         {"1f1b": .2431, "zb-h1": .1585, "zb-h2": .1083})
LARGE = (32, 256, Times(10.402, 10.248, 7.698, 0.460),
         {"1f1b": .1352, "zb-h1": .0594, "zb-h2": .0257})


@pytest.mark.parametrize("ranks, count, times, rates", [
    pytest.param(*SMALL, id="1.5B"), pytest.param(*LARGE, id="28.3B", marks=pytest.mark.slow)])
def test_bubble_rates_are_the_published_ones_to_four_decimals(ranks, count, times, rates):
    for name, rate in rates.items():
        assert round(simulate(SCHEDULES[name](ranks, count), times).bubble_rate, 4) == rate


def test_the_published_rates_of_interleaving_and_of_an_automatic_schedule_are_near():
    ranks, count, times, _ = SMALL
    assert abs(simulate(SCHEDULES["interleaved"](8, 24, 3), times).bubble_rate - .1055) < .004
    kept = 0.37  # of this model's activations, 32 of 34 + 5 x 24 x 1024 / 2304 (their table 1)
    auto = SCHEDULES["auto"](ranks, count, times=times, memory_limit=2 * ranks, kept=kept)
    found = simulate(auto, times, kept)
    assert abs(found.bubble_rate - .0433) < .0005 and max(found.peaks.ranks) <= 2 * ranks


@pytest.mark.slow
def test_they_are_near_for_the_large_model_too():
    ranks, count, times, _ = LARGE
    assert abs(simulate(SCHEDULES["interleaved"](32, 256, 2), times).bubble_rate - .0624) < .002
    auto = SCHEDULES["auto"](ranks, count, times=times, kept=0.4)
    assert abs(simulate(auto, times, 0.4).bubble_rate - .0018) < .002


def spans(found):
    return [[(span.start, span.end, str(span.action)) for span in row] for row in found.spans]


def test_a_computation_begins_when_its_rank_is_free_and_its_message_is_there():
    found = simulate(parse("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1"), Times(2, 3, 1, 0.5))
    assert spans(found) == [[(0, 2, "0F0"), (2, 4, "0F1"), (9, 13, "0B0"), (15, 19, "0B1")],
                            [(2.5, 4.5, "1F0"), (4.5, 8.5, "1B0"), (8.5, 10.5, "1F1"),
                             (10.5, 14.5, "1B1")]]
    assert (found.makespan, found.cost) == (19, 19)
    assert found.bubble_rate == (19 - 2 * 6) / 19
    assert found.peak_activations == [2, 1]


def test_a_gradient_leaves_before_w_and_stages_of_one_rank_need_no_message():
    one = parse("0F0,1F0,1I0,0I0,1W0,0W0")
    assert spans(simulate(one, Times(2, 2, 2, 100)))[0][-1] == (5, 6, "0W0")
    one = parse("0F0,0I0,0W0\n1F0,1I0,1W0")
    assert spans(simulate(one, Times(1, 1, 5, 2)))[0][1] == (7, 8, "0I0")


def test_times_of_single_stages_need_not_be_equal():
    one = SCHEDULES["1f1b"](2, 2)
    found = simulate(one, Times((1, 3), (1, 3), (1, 3)))
    assert spans(found)[1] == [(1, 4, "1F0"), (4, 10, "1B0"), (10, 13, "1F1"), (13, 19, "1B1")]
    assert found.cost == 21 and found.bubble_rate == pytest.approx(1 - (6 + 18) / 2 / 21)


def test_numbers_are_for_a_rank_and_lists_for_each_of_its_stages():
    one = SCHEDULES["interleaved"](2, 2, 2)
    assert simulate(one, Times(4, 4, 2)) == simulate(one, Times((2,) * 4, (2,) * 4, (1,) * 4))


def test_stages_share_the_time_of_their_own_rank():
    one = parse("0F0,2F0,2B0,0B0\n1F0,1B0")
    assert simulate(one, Times(4, 4, 2)) == simulate(one, Times((2, 4, 2), (2, 4, 2), (1, 2, 1)))


def test_the_cost_is_that_of_the_longest_rank_and_not_the_makespan():
    found = simulate(SCHEDULES["zb-h2"](4, 8), Times(1, 1, 1))
    assert (found.cost, found.makespan, found.bubble_rate) == (24, 27, 0)


def test_computations_that_take_no_time_are_simulated():
    found = simulate(SCHEDULES["zb-v"](3, 6), Times(0, 0, 0, 0))
    assert found.makespan == 0 and found.bubble_rate == 0


@pytest.mark.parametrize("times, words", [
    (Times((1, 1, 1), 1, 1), "3 times F for 2 stages"), (Times(1, 1, (1,)), "1 times W for 2 st"),
    (Times(1, -1, 1), "times are not negative"), (Times(1, 1, 1, -1), "times are not negative")])
def test_times_that_cannot_be_are_refused(times, words):
    with pytest.raises(ValueError, match=words):
        simulate(SCHEDULES["gpipe"](2, 3), times)


@pytest.mark.parametrize("text, words", [
    ("0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1", "deadlock"),
    ("0F0,0B0\n1B0", "rank 1: stage 1 has no forward of micro-batch 0")])
def test_a_schedule_that_cannot_run_to_its_end_is_refused_with_its_grid(text, words):
    with pytest.raises(ScheduleError, match=words) as caught:
        simulate(parse(text), Times(1, 1, 1))
    assert "\n  rank 1 " in str(caught.value)
