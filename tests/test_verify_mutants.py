"""Hundreds of broken programs: the verifier rejects every one, and blames the right rank.

The oracle is the interpreter of `interpreter.py`, which shares nothing with the verifier but the
task graph. A mutant is wrong if it cannot be lowered, if its ranks wait for ever, if a sum is not
as promised in any of some random orders of execution, or if ranks add up in different orders.
What it finds right is not counted as broken; the verifier may reject it only for what cannot be
seen in one execution: an access that no fence orders, or a read of what was never written.

Right, of a rank to blame, are the ranks whose trace was changed and the peers, before and after,
of the operations that were changed.
"""

import random
import re
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
from interpreter import execute, initial, promised, tree
from mutants import MUTATIONS, mutant, wrong_root
from verify_programs import PROGRAMS

from minipar.comm.graph import lower_traces
from minipar.comm.verify import VerificationError, cases, verify, verify_traces


def comes_to_an_end(tasks, size):
    """Whether ranks that go round by round, with sends that wait, all come to their last."""
    rounds = [[[] for _ in range(max([t.round for t in tasks if t.rank == r], default=-1) + 1)]
              for r in range(size)]
    for task in tasks:
        rounds[task.rank][task.round].append(task)
    at = [0] * size
    while True:
        started = {t.id for r in range(size) for ops in rounds[r][:at[r] + 1] for t in ops}

        def complete(task):
            if task.kind != "fence":
                return task.match < 0 or task.match in started
            return all(t.id in started for t in tasks
                       if t.kind == "fence" and t.epoch == task.epoch)
        after = [k + (k < len(rounds[r]) and all(map(complete, rounds[r][k])))
                 for r, k in enumerate(at)]
        if after == at:
            return all(k == len(rounds[r]) for r, k in enumerate(at))
        at = after


def what_is_wrong(kind, traces, size, n, options):
    """What the oracle finds wrong, in a word; None if nothing."""
    try:
        tasks = lower_traces(traces)
    except ValueError:
        return "refused"
    if not comes_to_an_end(tasks, size):
        return "deadlock"
    program = SimpleNamespace(kind=kind, trace=lambda rank, *_, **__: traces[rank])
    for seed in range(2):
        state = initial(program, size, n, **options)
        execute(tasks, state, random.Random(seed))
        for rank, chunk, expected in promised(kind, size, n, **options):
            if (state[rank][chunk.buffer][chunk.start:chunk.stop] != expected).any():
                return "sum"
    state, trees = initial(program, size, n, **options), {}
    execute(tasks, state, random.Random(0), tree)
    for rank, chunk, expected in promised(kind, size, n, **options):
        found = state[rank][chunk.buffer][chunk.start:chunk.stop]
        for e in range(len(chunk)):
            if trees.setdefault(expected[e], found[e]) != found[e]:
                return "tree"
    return None


def named(error):
    """The ranks that a counterexample names before its picture."""
    text = str(error).split("\n\n")[0]
    return {int(rank) for rank in re.findall(r"\brank (\d+)", text)}


@lru_cache(maxsize=None)
def outcomes(program):
    """Of many mutants: (what, the oracle's word, the verifier's error or None, ranks involved)."""
    size = 7 if program.refusal(7) is None else 8
    n = 2 * size + 1 if program.kind.name != "all_to_all" else 2 * size
    options, out = [c for c in cases(program, size) if "counts" not in c], []
    for number, mutation in enumerate(MUTATIONS + [wrong_root] * program.kind.rooted):
        draw = random.Random(number)
        given = draw.choice(options)
        if mutation is wrong_root:
            made = wrong_root(program, size, n, draw, **given)
        else:
            made = mutant(program, size, n, mutation, draw, **given)
        if made is None:
            continue
        traces, involved = made
        try:
            verify_traces(traces, program.kind, n, True, program.name, **given)
            error = None
        except VerificationError as found:
            error = found
        out.append((f"{mutation.__name__} of {program} on {size}",
                    what_is_wrong(program.kind, traces, size, n, given), error, involved))
    return out


@pytest.mark.parametrize("program", PROGRAMS, ids=repr)
def test_no_correct_program_is_rejected(program):
    for size in range(1, 7):
        if program.refusal(size) is None:
            verify(program, size)


@pytest.mark.parametrize("program", PROGRAMS, ids=repr)
def test_every_broken_program_is_rejected(program):
    for what, wrong, error, _ in outcomes(program):
        assert wrong is None or error is not None, f"{what}: {wrong}"


@pytest.mark.parametrize("program", PROGRAMS, ids=repr)
def test_what_happens_to_be_right_is_rejected_only_for_what_one_execution_cannot_show(program):
    for what, wrong, error, _ in outcomes(program):
        if wrong is None and error is not None:
            assert re.search("in the same epoch|two fences|nothing has been written",
                             str(error)), f"{what}: {error}"


@pytest.mark.parametrize("program", PROGRAMS, ids=repr)
def test_every_counterexample_names_a_rank_that_is_involved(program):
    for what, wrong, error, involved in outcomes(program):
        if wrong is not None:
            assert named(error) & involved, f"{what}, {involved}: {error}"


def test_there_are_hundreds_of_mutants_of_every_sort_and_the_blame_is_rarely_beside_the_mark():
    broken = [o for program in PROGRAMS for o in outcomes(program) if o[1] is not None]
    assert len(broken) >= 300
    assert {wrong for _, wrong, _, _ in broken} == {"refused", "deadlock", "sum", "tree"}
    assert {what.split(" of ")[0] for what, *_ in broken} == {
        m.__name__ for m in [*MUTATIONS, wrong_root]}
    # Where at most 3 of the 7 or 8 ranks are involved, so that a guess would mostly miss.
    few = [o for o in broken if len(o[3]) <= 3]
    hits = [error.rank in involved for _, _, error, involved in few]
    assert len(few) >= 150 and np.mean(hits) >= 0.98, (len(few), np.mean(hits))


def test_the_mutations_leave_the_traces_of_the_program_as_they_were():
    program = PROGRAMS[0]
    before = [repr(program.trace(rank, 4, 9)) for rank in range(4)]
    for mutation in MUTATIONS:
        mutant(program, 4, 9, mutation, random.Random(1))
    assert [repr(program.trace(rank, 4, 9)) for rank in range(4)] == before
