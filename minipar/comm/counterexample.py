"""Why a program is wrong, in words: what is not as promised, the operation that is to blame, its
source line, and a picture of what the ranks around it do.

`verify.py` finds that something is wrong, by fingerprints. Here the few elements in question are
worked out again with exact values, which say what is missing, what is there twice and what does
not belong, and where that came about (`history.py`).
"""

import linecache

import numpy as np

from .history import History, blame, expression
from .program import ProgramError

NEAR_RANKS, NEAR_ROUNDS, WIDTH = 3, 2, 22  # how much of a large picture is shown


class VerificationError(ProgramError):
    """A program that is wrong. The message is the counterexample; its first line the headline.

    rank, round, line ("file:number"), chunk: of the operation to blame, or None.
    """


def title(kind, name, size, n, options):
    """The program and the group that a counterexample is for."""
    given = "".join(f", {key} {value}" for key, value in options.items())
    return f"{kind.name} {name}, {size} rank{'s' * (size != 1)}, {n} elements{given}"


def describe(op):
    """An operation in words."""
    words = f"{op.kind} of {op.chunk}"
    if op.kind == "fence":
        return "fence"
    if op.source is not None:
        return f"{op.kind} of {op.source} into {op.chunk}"
    if op.kind == "put":
        return f"put of {op.chunk} at {op.remote} of rank {op.peer}"
    if op.remote is not None:
        return f"{op.kind} of {op.remote} of rank {op.peer} into {op.chunk}"
    return f"{words} {'to' if op.kind == 'send' else 'from'} rank {op.peer}"


def _place(task):
    return f"rank {task.rank}, round {task.round}: {describe(task)} ({task.line})"


# ------------------------------------------------------------------ what can be wrong


def _error(what, words, rounds, rank, number, line, chunk, more=(), also=()):
    """The VerificationError: headline, further lines, source line, picture with marked cells."""
    lines = [f"{what}: {words}", *(f"  {m}" for m in more)]
    if line is not None:
        lines += [f"  {line}", f"    {source_text(line)}"]
    if rounds and number is not None:
        lines += ["", picture(rounds, [(rank, number), *also])]
    return VerificationError("\n".join(lines), rank, number, line, chunk)


def untraceable(program, size, n, options, error):
    """What is no operation of this group (see Program.trace)."""
    what = title(program.kind, program.name, size, n, options)
    return _error(what, error, [], error.rank, error.round, error.line, error.chunk)


def refused(what, rounds, error):
    """What `graph.lower` refuses."""
    return _error(what, error, rounds, error.rank, error.round, error.line, error.chunk)


def race(run, task, other, rank, buffer, element):
    """Accesses of one epoch that nothing puts in an order."""
    where = f"{buffer}[{element}] of rank {rank}"
    if other is None:
        return _task_error(run, task, f"rank {task.rank}, round {task.round}: {describe(task)} "
                           f"does not stand between two fences")
    return _task_error(
        run, task, f"rank {task.rank}, round {task.round}: {describe(task)} touches {where} in the "
        f"same epoch as rank {other.rank}, round {other.round}: {describe(other)}",
        [f"no fence stands between them and one writes; the other: {other.line}"],
        [(other.rank, other.round)])


def unwritten(run, task, cells):
    """An operation that reads what nothing was written to."""
    cell = cells.start + int(np.argmin(run.trees[cells] != 0))
    rank, buffer, element = run.name(cell)
    there = "" if rank == task.rank else f" of rank {rank}"
    return _task_error(run, task, f"rank {task.rank}, round {task.round}: {describe(task)} reads "
                       f"{buffer}[{element}]{there}, to which nothing has been written")


def _task_error(run, task, words, more=(), also=()):
    return _error(run.what, words, run.rounds, task.rank, task.round, task.line, task.chunk, more,
                  also)


def deadlock(run, position, started):
    """Ranks that wait for one another in a circle, though no message lacks its other end."""
    def waiting(rank):
        """(the operation that a rank waits in, the rank that it waits for)."""
        for task in run.rounds[rank][position[rank]]:
            other = task
            while other.match >= 0 and started[other.id]:
                other = run.tasks[other.match]
                if other is task:
                    break
            if not started[other.id]:
                return task, other
        return None, None
    path, rank = [], next(r for r in range(run.size) if waiting(r)[0] is not None)
    while rank not in path:
        path.append(rank)
        rank = waiting(rank)[1].rank
    circle = path[path.index(rank):]
    first = waiting(circle[0])[0]
    more = []
    for rank in circle:
        task, other = waiting(rank)
        more.append(f"{_place(task)}")
        more.append(f"  waits for rank {other.rank} to come to round {other.round}: "
                    f"{describe(other)} ({other.line})")
    ranks = " waits for ".join(f"rank {r}" for r in [*circle, circle[0]])
    return _task_error(run, first, f"deadlock: {ranks}", more,
                       [(r, position[r]) for r in circle[1:]])


def wrong_sum(run, wrong):
    """Promises that are not kept. wrong: (cell, terms, which element of them) of some."""
    first = min(run.writer[cell] for cell, _, _ in wrong)
    cell, terms, e = next(w for w in wrong if run.writer[w[0]] == first)
    promised = [run.at(r, c).start + e for r, c in terms]
    history = History(run, [cell])
    found = blame(history, cell, promised)
    rank, buffer, element = run.name(cell)
    words = f"rank {rank} ends with {buffer}[{element}] {found.words}"
    if found.task is None:
        return _error(run.what, words, run.rounds, rank, None, None, None)
    return _task_error(run, found.task, words, [f"{found.how} {_place(found.task)}"])


def different_trees(run, cell, other):
    """Two cells that hold the same sum, added up in different orders."""
    (rank, buffer, element), (second, _, there) = run.name(cell), run.name(other)
    history = History(run, [cell, other])
    task = history.last(cell).task
    return _task_error(
        run, task, f"rank {rank} adds up {buffer}[{element}] in another order than rank {second} "
        f"(deterministic=False allows it)",
        [f"rank {rank}: {expression(history, cell)}", f"rank {second}: {expression(history, other)}"])


# ------------------------------------------------------------------ the picture


SYMBOLS = {"send": ">{}", "recv": "<{}", "recv_reduce": "+<{}", "copy": "=", "reduce": "+=",
           "put": "put>{}", "get": "get<{}", "get_reduce": "+get<{}", "fence": "fence"}
LEGEND = {"send": ">r send to r", "recv": "<r receive from r",
          "recv_reduce": "+<r receive and reduce", "copy": "= copy", "reduce": "+= reduce"}


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
    ranks = _near(rank, NEAR_RANKS, size)
    columns = _near(number, NEAR_ROUNDS, last)

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


def _near(at, distance, size):
    """The indices within `distance` of `at`: all of them if they are not many more."""
    width = 2 * distance + 1
    if size <= width + 2:
        return range(size)
    start = min(max(0, at - distance), size - width)
    return range(start, start + width)
