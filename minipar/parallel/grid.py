"""The grid of a schedule, as text: a row for each rank, a column for each unit of time.

Every action takes one unit and begins when what it needs is done. Broken schedules have a grid
too: where nothing can go on, the rank that has done least goes on regardless.
"""

from ..comm.verify.counterexample import near

NEAR_RANKS, NEAR_TIMES, WIDTH = 3, 6, 100  # how much of a large grid is shown around a mark


def starts(schedule):
    """For each rank the times at which its actions begin, in units; a list of lists."""
    rows = schedule.actions
    known, ended = {action for row in rows for action in row}, {}
    times, free = [[] for _ in rows], [0] * len(rows)

    def go(rank, force=False):
        if len(times[rank]) == len(rows[rank]):
            return False
        action = rows[rank][len(times[rank])]
        waits = [need for need in inputs(schedule, action) if need in known]
        if not force and not all(need in ended for need in waits):
            return False
        begin = max([free[rank], *(ended.get(need, 0) for need in waits)])
        times[rank].append(begin)
        free[rank] = begin + 1
        ended.setdefault(action, begin + 1)
        return True
    while True:
        if any([go(rank) for rank in range(len(rows))]):
            continue
        left = [rank for rank in range(len(rows)) if len(times[rank]) < len(rows[rank])]
        if not left:
            return times
        go(min(left, key=free.__getitem__), force=True)


def inputs(schedule, action):
    """The computations of any rank that an action may wait for; of B and I, whichever there is."""
    stage, kind, m = action
    if kind == "W":
        return [action._replace(kind="I")]
    if kind == "F":
        return [action._replace(stage=stage - 1)] * (stage > 0)
    later = [action._replace(stage=stage + 1, kind=k) for k in "BI"]
    return [action._replace(kind="F"), *later * (stage + 1 < schedule.stages)]


def grid(schedule, marks=()):
    """The grid as text.

    marks: (rank, index of an action): the first one stands in brackets, further ones in
    parentheses; an index beyond the last is the end of the rank's list. Of a large grid only what
    is near the first mark is shown; all of it if there is none.
    """
    return table(schedule.actions, starts(schedule), marks, "time")


def table(rows, columns, marks=(), word="action"):
    """The same for lists of actions that stand in given columns."""
    last = 1 + max((column for row in columns for column in row), default=0)
    cells = {(rank, at): f" {action} " for rank, row in enumerate(rows)
             for action, at in zip(row, columns[rank])}
    places = []
    for number, (rank, index) in enumerate(marks):
        at = columns[rank][index] if index < len(rows[rank]) else 1 + max(columns[rank], default=-1)
        text, places = cells.get((rank, at), "   ")[1:-1], places + [(rank, at)]
        if number == 0 or (rank, at) != places[0]:
            cells[rank, at] = f"({text})" if number else f"[{text}]"
        last = max(last, at + 1)
    if not places:
        return _text(cells, range(len(rows)), range(last), word)
    rank, at = places[0]
    ranks = near(rank, NEAR_RANKS, len(rows))
    for distance in range(NEAR_TIMES, 0, -1):
        times = near(at, distance, last)
        text = _text(cells, ranks, times, word)
        if max(map(len, text.splitlines())) <= WIDTH:
            break
    if len(ranks) < len(rows) or len(times) < last:
        text += f"\n  (of {len(rows)} ranks and {word}s 0 to {last - 1})"
    return text


def _text(cells, ranks, times, word):
    """The cells of some ranks and times as lines."""
    lines = [[word, *(f" {t} " for t in times)],
             *([f"rank {r}", *(cells.get((r, t), "") for t in times)] for r in ranks)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  " + " ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip()
                     for line in lines)
