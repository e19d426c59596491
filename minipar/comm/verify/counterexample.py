"""Why a program is wrong, in words: what is not as promised, the operation that is to blame, its
source line, and a picture of what the ranks around it do.

`verifier.py` finds that something is wrong, by fingerprints. Here the few elements in question are
worked out again with exact values, which say what is missing, what is there twice and what does
not belong, and where that came about (`history.py`, `blame.py`).
"""

import linecache
from collections import Counter

import numpy as np

from ..program import ProgramError
from .blame import blame
from .history import History, expression

NEAR_RANKS, NEAR_ROUNDS, WIDTH = 3, 2, 22  # how much of a large picture is shown
CIRCLE = 8  # and of a long circle of waits
CANDIDATES = 32  # broken promises that are looked at


class VerificationError(ProgramError):
    """A program that is wrong. The message is the counterexample; its first line the headline.

    rank, round, line ("file:number"), chunk: of the operation to blame, or None.
    """


def title(kind, name, size, n, options):
    """The program and the group that a counterexample is for."""
    given = "".join(f", {key} {value}" if len(str(value)) < 30 else f", with {key}"
                    for key, value in options.items())
    return (f"{kind.name} {name}, {size} rank{'s' * (size != 1)}, {n} element{'s' * (n != 1)}"
            f"{given}")


def describe(op):
    """An operation in words."""
    words = f"{op.kind} of {op.chunk}"
    encoded = "" if op.codec is None else f", as {op.codec.name}"
    if op.kind == "fence":
        return "fence"
    if op.source is not None:
        return f"{op.kind} of {op.source} into {op.chunk}{encoded}"
    if op.kind == "put":
        return f"put of {op.chunk} at {op.remote} of rank {op.peer}"
    if op.remote is not None:
        return f"{op.kind} of {op.remote} of rank {op.peer} into {op.chunk}"
    return f"{words} {'to' if op.kind == 'send' else 'from'} rank {op.peer}{encoded}"


# ------------------------------------------------------------------ what can be wrong


def _error(what, words, rounds, at, more=(), also=()):
    """The VerificationError: headline, further lines, source line, picture with marked cells.

    at: a Task or ProgramError: who, when, where. also: other (rank, round) to mark.
    """
    lines = [f"{what}: {words}", *(f"  {m}" for m in more)]
    if at.line is not None:
        lines += [f"  {at.line}", f"    {source_text(at.line)}"]
    if rounds and at.round is not None:
        lines += ["", picture(rounds, [(at.rank, at.round), *also])]
    return VerificationError("\n".join(lines), at.rank, at.round, at.line, at.chunk)


def _does(task):
    return f"rank {task.rank}, round {task.round}: {describe(task)}"


def untraceable(program, size, n, options, error):
    """What is no operation of this group (see Program.trace)."""
    return _error(title(program.kind, program.name, size, n, options), error, [], error)


def refused(what, rounds, error):
    """What `graph.lower` refuses."""
    return _error(what, error, rounds, error)


def race(run, races):
    """Accesses of one epoch that nothing orders (see epochs.py): blame what has most of them."""
    count = Counter(task.id for first, second, *_ in races for task in (first, second) if task)
    found = max(races, key=lambda race: max(count[task.id] for task in race[:2] if task))
    task, other, rank, buffer, element = found
    if other is None:
        return _error(run.what, f"{_does(task)} does not stand between two fences", run.rounds,
                      task)
    if count[other.id] > count[task.id]:
        task, other = other, task
    return _error(run.what, f"{_does(task)} touches {buffer}[{element}] of rank {rank} in the same "
                  f"epoch as {_does(other)}", run.rounds, task,
                  [f"no fence stands between them, and one writes; the other: {other.line}"],
                  [(other.rank, other.round)])


def unwritten(run, task, cells):
    """An operation that reads what nothing was written to."""
    rank, buffer, element = run.name(cells.start + int(np.argmin(run.trees[cells] != 0)))
    there = "" if rank == task.rank else f" of rank {rank}"
    return _error(run.what, f"{_does(task)} reads {buffer}[{element}]{there}, to which nothing has "
                  f"been written", run.rounds, task)


def deadlock(run, position, started):
    """Ranks that wait for one another in a circle, though no message lacks its other end."""
    def waiting(rank):
        """(the operation that a rank waits in, the one that it waits for)."""
        for task in run.rounds[rank][position[rank]]:
            other = run.tasks[task.match] if task.match >= 0 else task
            while started[other.id] and other is not task:
                other = run.tasks[other.match]  # the next of a ring of fences
            if other is not task:
                return task, other
        return None
    stuck = {rank: found for rank in range(run.size)
             if position[rank] < len(run.rounds[rank]) and (found := waiting(rank))}
    path, rank = [], min(stuck)
    while rank not in path:
        path.append(rank)
        rank = stuck[rank][1].rank
    circle = path[path.index(rank):]
    more = []
    for rank in circle[:CIRCLE]:
        task, other = stuck[rank]
        more += [f"{_does(task)} ({task.line})", f"  waits for rank {other.rank} to come to round "
                 f"{other.round}: {describe(other)} ({other.line})"]
    ranks = ", which waits for ".join(f"rank {r}" for r in [*circle[1:CIRCLE], circle[0]])
    if len(circle) > CIRCLE:
        ranks = f"rank {circle[1]}, and so on through {len(circle)} ranks back to rank {circle[0]}"
    return _error(run.what, f"deadlock: rank {circle[0]} waits for {ranks}", run.rounds,
                  stuck[circle[0]][0], more, [(r, position[r]) for r in circle[1:]])


def wrong_sum(run, wrong):
    """Promises that are not kept. wrong: (cell, terms, which element of them) of some."""
    wrong = sorted(wrong, key=lambda w: run.writer[w[0]])[:CANDIDATES]  # nearest to the cause
    history = History(run, [cell for cell, _, _ in wrong])

    def promised(terms, e):
        return Counter(run.at(r, c).start + e for r, c in terms)

    def elsewhere(atom):
        whose, buffer, element = run.name(atom)
        return [run.at(rank, chunk).start + element - c.start
                for rank in range(run.size) for chunk, terms in run.table(run.kind.after, rank)
                for r, c in terms
                if (r, c.buffer) == (whose, buffer) and c.start <= element < c.stop]
    rounds = [run.steps[w].task.round if w >= 0 else -1 for w in (run.writer[c] for c, *_ in wrong)]
    # One that went wrong rounds before the others stands for them, whatever explains theirs.
    alone = wrong[0] if len(wrong) == 1 or rounds[0] < rounds[1] else None
    # What does not belong somewhere is seen where it comes in; what is missing, only later.
    wrong.sort(key=lambda w: not history.value(w[0]) - promised(*w[1:]))
    if history.value(wrong[0][0]) - promised(*wrong[0][1:]):
        alone = wrong[0]
    found = None
    for cell, terms, e in wrong:
        this = blame(history, cell, promised(terms, e), elsewhere)
        sure = this.sure or (cell, terms, e) == alone
        if found is None or sure:
            found, (rank, buffer, element) = this, run.name(cell)
        if sure:
            break
    words = f"rank {rank} ends with {buffer}[{element}] {found.words}"
    if found.task is None:
        return _error(run.what, f"{words}{found.why}", run.rounds, ProgramError("", found.rank))
    return _error(run.what, words, run.rounds, found.task, [f"{found.why} {_does(found.task)}"])


def different_trees(run, cells):
    """Cells that hold the same sum, added up in different orders: blame the one that most differ
    from."""
    trees = [int(run.trees[cell]) for cell in cells]
    count = Counter(trees)
    coded = np.zeros(run.cells, bool) if run.seals is None else run.seals != 0
    cell = min(zip(cells, trees), key=lambda pair: (count[pair[1]], coded[pair[0]]))[0]
    other = next(c for c, tree in zip(cells, trees)
                 if tree == max((t for t in trees if t != int(run.trees[cell])), key=count.get))
    (rank, buffer, element), (second, *_) = run.name(cell), run.name(other)
    history = History(run, [cell, other])
    last = history.last(cell) or history.last(other)  # what was there from the start nobody wrote
    return _error(
        run.what, f"rank {rank} {_differs(run, f'{buffer}[{element}]', second)} "
        f"(deterministic=False allows it)", run.rounds, last.task,
        [f"rank {rank}: {expression(history, cell)}",
         f"rank {second}: {expression(history, other)}"])


def _differs(run, what, other):
    if run.seals is None:
        return f"adds up {what} in another order than rank {other}"
    return (f"does not end with the bits of {what} that rank {other} has: a codec or an order "
            f"differs")


def dishonest(run, task, promise):
    """A codec that does not do what it promises (see codecs.py)."""
    return _error(run.what, f"{_does(task)}: codec {task.codec.name}: {promise}", run.rounds, task)


# ------------------------------------------------------------------ the picture


SYMBOLS = {"send": ">{}", "recv": "<{}", "recv_reduce": "+<{}", "copy": "=", "reduce": "+=",
           "put": "put>{}", "get": "get<{}", "get_reduce": "+get<{}", "fence": "fence"}
LEGEND = {"send": ">r send to r", "recv": "<r receive from r",
          "recv_reduce": "+<r receive and reduce", "copy": "= copy", "reduce": "+= reduce",
          "put": "put>r into r's memory", "get": "get<r from r's memory",
          "get_reduce": "+get<r from there, and reduce"}


def rounds_of(tasks, size):
    """rounds[rank][number], a list of the tasks of that round."""
    rounds = [[] for _ in range(size)]
    for task in tasks:
        own = rounds[task.rank]
        while len(own) <= task.round:
            own.append([])
        own[task.round].append(task)
    return rounds


def source_text(line):
    """The text of a source line "file:number", stripped."""
    path, number = line.rsplit(":", 1)
    return linecache.getline(path, int(number)).strip() or "(source not found)"


def picture(rounds, marked):
    """A table, a row a rank, a column a round; marked cells (rank, round) stand in brackets.

    Of many ranks and rounds only what is near the first marked cell is shown.
    """
    rank, number = marked[0]
    size, last = len(rounds), max(map(len, rounds))
    ranks = near(rank, NEAR_RANKS, size)
    columns = near(number, NEAR_ROUNDS, last)

    def cell(r, k):
        ops = rounds[r][k] if k < len(rounds[r]) else []
        text = " ".join(SYMBOLS[op.kind].format(op.peer) for op in ops)
        text = text if len(text) <= WIDTH else text[:WIDTH - 3] + "..."
        return f"[{text}]" if (r, k) in marked else f" {text} "
    table = [["", *(f" round {k}" for k in columns)],
             *([f"rank {r}", *(cell(r, k) for k in columns)] for r in ranks)]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = ["  " + "  ".join(text.ljust(w) for text, w in zip(row, widths)).rstrip()
             for row in table]
    if len(ranks) < size or len(columns) < last:
        lines.append(f"  (of {size} ranks and {last} rounds)")
    kinds = {op.kind for r in ranks for k in columns if k < len(rounds[r]) for op in rounds[r][k]}
    legend = ", ".join(words for kind, words in LEGEND.items() if kind in kinds)
    return "\n".join(lines + [f"  {legend}"] * bool(legend))


def near(at, distance, size):
    """The indices within `distance` of `at`: all of them if they are not many more."""
    width = 2 * distance + 1
    if size <= width + 2:
        return range(size)
    start = min(max(0, at - distance), size - width)
    return range(start, start + width)
