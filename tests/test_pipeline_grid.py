"""Every schedule, cut and number of micro-batches: the training is that of one process."""

import itertools

import pytest
from launch import ROOT, mpirun
from pipeline_cases import MODELS, check, grid

from minipar.parallel.schedule import SCHEDULES

SMALL = ("mlp", "own", "gpt")


def pairwise(cases):
    """A part of `cases`, tuples, in which every pair of values that any of them has occurs."""
    def pairs(case):
        return set(itertools.combinations(enumerate(case), 2))
    cases = [(case, pairs(case)) for case in cases]
    left, chosen = set().union(*(found for _, found in cases)), []
    while left:
        case, found = max(cases, key=lambda c: len(c[1] & left))
        left -= found
        chosen.append(case)
    return chosen


def shape(case):
    """The same case with micro-batches as one of three kinds, which pairs are made of."""
    model, name, p, m, dp, tp = case
    return model, name, p, "p" if m == p else "2p" if m == 2 * p else "3p+1", dp, tp


COVER = pairwise([shape(case) for case in grid(SMALL)])


@pytest.mark.parametrize("model, name, p, m, dp, tp", COVER)
def test_every_pair_of_choices_trains_what_one_process_trains(model, name, p, m, dp, tp):
    check(model, SCHEDULES[name](p, {"p": p, "2p": 2 * p, "3p+1": 3 * p + 1}[m]), dp, tp)


@pytest.mark.parametrize("name", ["1f1b", "zb-h1", "interleaved"])
def test_recomputed_stages_train_the_same_and_count_running_statistics_once(name):
    check("own", SCHEDULES[name](2, 4), 2, recompute=True)
    check("gpt", SCHEDULES[name](2, 4), 1, recompute=True)
    check("gpt", SCHEDULES[name](2, 4), 1, tp=2, recompute=True)


def test_resnet18_trains_in_a_pipeline_of_replicas():
    check("resnet18", SCHEDULES["zb-h1"](2, 2), 2, steps=3)  # the grid below takes 5


@pytest.mark.slow
@pytest.mark.parametrize("model, name, p, m, dp, tp", list(grid(MODELS)))
def test_the_whole_grid_trains_what_one_process_trains(model, name, p, m, dp, tp):
    check(model, SCHEDULES[name](p, m), dp, tp)


def test_processes_of_mpi_train_what_one_process_trains():
    done = mpirun(4, ROOT / "tests" / "mpi_programs" / "pipelines.py", timeout=120)
    assert done.returncode == 0, done.stderr
