"""Which operation made a sum wrong. One cannot know, for it is not known what was meant; these are
the rules that find the operation that was changed, or the other end of its message, in all but a
few of the broken programs of the tests.
"""

from collections import namedtuple

from .history import History, journey

SAMPLE = 16  # of many places or contributions, so many are looked at

# What is wrong with a cell, in words; the rank and (or None) the task to blame, why it is, and
# whether there is no other explanation that is as good.
Blame = namedtuple("Blame", "words rank task why sure", defaults=[False])


def blame(history, cell, promised, elsewhere):
    """Why a cell of a History does not hold the sum of what other cells held before.

    promised: these cells, a Counter. elsewhere: a function of a cell: where its contribution is
    promised to be, a list of cells.
    """
    run, got = history.run, history.value(cell)
    if not got:
        return Blame("to which nothing is written", run.name(cell)[0], None, "")
    extra, missing = got - promised, promised - got
    if extra:
        return _does_not_belong(run, history, cell, promised, extra, elsewhere)
    words = f"without {_names(run, missing, cell)}"
    atom = min(missing)
    places = [place for place in elsewhere(atom) if place != cell][:SAMPLE]
    there = History(run, places)
    others = any(there.value(place)[atom] for place in places)
    found = _overwritten(history, cell, missing) or not others and _late(history, cell, missing)
    if found:
        return Blame(words, found[0].rank, *found, sure=True)
    if others:
        last = history.last(cell)
        return Blame(words, run.name(cell)[0], last and last.task,
                     "which others have; what is there was written by" if last else
                     ", which others have")
    return Blame(words, *_came_no_further(run, missing))


def _does_not_belong(run, history, cell, promised, extra, elsewhere):
    """Blame the first addition that can be no part of the sum; or where a copy went astray."""
    got, twice = history.value(cell), {c for c in extra if c in promised}
    if twice:
        times = max(got[c] for c in twice)
        words = (f"with {_names(run, twice, cell)} "
                 f"{'twice' if times == 2 else f'{times} times'}")
    else:
        words = f"holding {_names(run, extra, cell)}, which does not belong there"
    cone = history.cone(cell)
    for event in cone:
        mixed = {c in promised for c in event.new} == {True, False}
        if event.reduces and (mixed or any(event.new[c] > promised[c] > 0 for c in event.new)):
            return Blame(words, event.task.rank, event.task, "first wrong after", True)
    if not cone:
        return Blame(words, run.name(cell)[0], None, "")
    places = elsewhere(min(extra))[:SAMPLE]
    right = History(run, places)
    known = {(e.task.id, e.cell) for place in places if place != cell for e in right.cone(place)}
    astray = [event for event in cone if (event.task.id, event.cell) not in known]
    task = (astray or cone[-1:])[0].task
    return Blame(words, task.rank, task, "brought there by")


def _overwritten(history, cell, missing):
    """(task, why) of what overwrote a missing contribution on its way to the cell."""
    for event in history.cone(cell):
        lost = set() if event.reduces else {c for c in event.old - event.new if c in missing}
        lost -= history.kept(event) if lost else lost
        if lost:
            for late in history.later(event, event.origin):
                if not lost.isdisjoint(late.new - late.old):
                    return late.task, "which came too late, by"
            return event.task, "which was overwritten by"
    return None


def _late(history, cell, missing):
    """(task, why) of what brought a missing contribution to where it had been read already."""
    for event in history.cone(cell):
        for late in history.later(event, event.origin)[:1]:
            if (late.new - late.old) & missing:
                return late.task, "which came too late, by"
    return None


def _came_no_further(run, missing):
    """(rank, task, why) of the last place where a missing contribution was."""
    journeys = {atom: journey(run, atom) for atom in sorted(missing)[:SAMPLE]}
    atom = min(journeys, key=lambda atom: len(journeys[atom]))
    whose = run.name(atom)[0]
    came = [step.task for step, _, comes in journeys[atom] if comes]
    if came:
        return came[-1].rank, came[-1], f"that of rank {whose} came no further than by"
    for step, _, _ in journeys[atom]:
        return step.task.rank, step.task, f"that of rank {whose} never left it, overwritten by"
    return whose, None, f"; that of rank {whose} never left it"


def _names(run, cells, of):
    """Whose contributions these are; with the element if it is not that of cell `of`."""
    _, buffer, element = run.name(of)
    places = [run.name(c) for c in sorted(cells)]
    if all((b, e) == (buffer, element) for _, b, e in places):
        ranks = [str(rank) for rank, _, _ in places]
        return (f"the contribution{'s' * (len(ranks) > 1)} of rank{'s' * (len(ranks) > 1)} "
                f"{_some(ranks)}")
    return _some([f"rank {rank}'s {b}[{e}]" for rank, b, e in places])


def _some(words, most=8):
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
