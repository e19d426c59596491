"""Proves programs right before a byte is moved, for a number of ranks and a length at a time.

A program is right if, whatever the values are,
- every message is matched, nothing in a round clashes (`graph.lower` sees to both), and nothing
  waits in a circle even if every send waits for its receive;
- no element is written by one rank and touched by another in one epoch of one-sided access
  (`epochs.py`);
- no operation reads what nothing has been written to;
- every element that the kind's after table speaks of ends with exactly the promised
  contributions, each once; and what is promised to several ranks is the same tree of additions on
  all of them, but for the order of the two operands of one addition, with the same codecs in the
  same places. So all get the same bits.

The task graph is executed on fingerprints (`fingerprints.py`); what differs is worked out again
exactly, for a few elements, in `counterexample.py`.
"""

import inspect
import itertools

import numpy as np

from ..codecs import broken_promise
from ..graph import lower_traces
from ..program import ProgramError
from ..topology import Topology
from . import counterexample
from .counterexample import VerificationError
from .epochs import races
from .fingerprints import Run

__all__ = ["VerificationError", "cases", "lengths", "verify", "verify_graph", "verify_traces"]


def lengths(kind, size, **options):
    """The numbers of elements for which `verify` proves a program on `size` ranks, if not told.

    One for each rank, more such that blocks are uneven, fewer, none; rounded up to a multiple of
    `size` where the kind refuses others. Of more than 64 ranks only the first three.
    """
    found = {}
    for n in (size, 2 * size + 1, size - 1, 7 * size + 3, 1, 0)[:None if size <= 64 else 3]:
        for candidate in (n, -(-n // size) * size):
            try:
                for rank in range(size):
                    kind.buffers(rank, size, candidate, **options)
            except ValueError:
                continue
            found[candidate] = True
            break
    return list(found)


def verify(program, size, n=None, **options):
    """Prove `program` right on `size` ranks; returns None.

    n: elements; several lengths if None (see `lengths`). options: root, counts, topo, as in
    Program.trace; what is not given takes several values (see `cases`).
    Raises VerificationError, whose message is a counterexample, if the program is wrong;
    ValueError if it refuses to serve such a group.
    """
    if reason := program.refusal(size):
        raise ValueError(reason)
    for case in cases(program, size, **options):
        for m in lengths(program.kind, size, **case) if n is None else [n]:
            try:
                traces = [program.trace(rank, size, m, **case) for rank in range(size)]
            except ProgramError as error:
                raise counterexample.untraceable(program, size, m, case, error) from None
            except ValueError:
                if "counts" in case and "counts" not in options:
                    break  # it serves equal blocks only, and says so
                raise
            verify_traces(traces, program.kind, m, program.deterministic, program.name, **case)


def cases(program, size, **options):
    """The options that `verify` proves a program for, as dicts; those that are given stay.

    All roots of a rooted kind; every way to cut the ranks into levels for a program that wants a
    topology; equal blocks and uneven ones, some empty, where the kind and the program take counts.
    """
    choices = {}
    if program.kind.rooted:
        choices["root"] = range(size)
    if "topo" in program.wants:
        choices["topo"] = [Topology(levels) for levels in _factors(size)]
    if "counts" in program.wants:
        uneven = tuple(tuple((3 * r + 5 * s + r * s) % 4 for s in range(size))
                       for r in range(size))
        choices["counts"] = [uneven] if _required(program.kind, "counts") else [None, uneven]
    choices.update((name, [value]) for name, value in options.items())
    for values in itertools.product(*choices.values()):
        yield {name: value for name, value in zip(choices, values) if value is not None}


def _required(kind, name):
    """Whether the lengths of a kind's buffers cannot be told without an option."""
    parameters = inspect.signature(kind.lengths or (lambda: None)).parameters
    return name in parameters and parameters[name].default is inspect.Parameter.empty


def _factors(size):
    """The ways to write `size` as a product of numbers above 1, in every order; (1,) for 1."""
    yield size,
    for first in range(2, size // 2 + 1):
        if size % first == 0:
            yield from ((first, *rest) for rest in _factors(size // first))


def verify_traces(traces, kind, n, deterministic=True, name="program", **options):
    """Prove the traces of all ranks, in order, right for `kind` and n elements; see `verify`."""
    what = counterexample.title(kind, name, len(traces), n, options)
    try:
        tasks = lower_traces(traces)
    except ProgramError as error:
        rounds = [[list(ops) for ops in trace.rounds] for trace in traces]
        raise counterexample.refused(what, rounds, error) from None
    verify_graph(tasks, kind, len(traces), n, deterministic, name, **options)


def verify_graph(tasks, kind, size, n, deterministic=True, name="program", **options):
    """Prove the task graph of `size` ranks right for `kind` and n elements; see `verify`."""
    run = Run(tasks, kind, size, n, name, options)
    for task in {task.codec: task for task in tasks if task.codec is not None}.values():
        if promise := broken_promise(task.codec):
            raise counterexample.dishonest(run, task, promise)
    if found := list(itertools.islice(races(tasks), 10_000)):
        raise counterexample.race(run, found)
    run.execute()
    _check(run, deterministic)


def _check(run, deterministic):
    """Hold what all ranks ended with against the after table."""
    sums, places = {}, {}  # {terms: their fingerprints}, {terms: the cells they are promised to}
    wrong = []  # one cell of each broken promise: where it was broken first
    for rank in range(run.size):
        for chunk, terms in run.table(run.kind.after, rank):
            cells, terms = run.at(rank, chunk), tuple(terms)
            if terms not in sums:
                if not terms or {len(c) for _, c in terms} != {len(chunk)}:
                    raise ValueError(f"the after table of {run.kind.name} promises rank {rank} "
                                     f"{chunk} as the sum of {terms}: one or more chunks of its "
                                     f"length were expected")
                sums[terms], places[terms] = _expected(run, terms, len(chunk)), []
            places[terms].append(cells)
            no = np.flatnonzero(run.sums[cells] != sums[terms])
            if no.size:
                e = min(no, key=lambda e: run.writer[cells.start + e])
                wrong.append((cells.start + int(e), terms, int(e)))
    if wrong:
        raise counterexample.wrong_sum(run, wrong)
    if deterministic:
        for cells in _added_up_differently(run, sums, places):
            raise counterexample.different_trees(run, cells)


def _added_up_differently(run, sums, places):
    """Yield lists of cells that hold the same sum, but not all as the same tree."""
    for cells in places.values():
        for own in cells:
            for e in np.flatnonzero(run.trees[own] != run.trees[cells[0]])[:1]:
                yield [c.start + int(e) for c in cells]
    # Chunks that are not the same may promise the same sums: look for equal elements.
    expected = np.concatenate([np.empty(0, np.uint64), *sums.values()])
    at = np.concatenate([np.empty(0, int), *(np.arange(cells[0].start, cells[0].stop)
                                             for cells in places.values())])
    order = np.argsort(expected, kind="stable")
    expected, at = expected[order], at[order]
    other = (expected[1:] == expected[:-1]) & (run.trees[at[1:]] != run.trees[at[:-1]])
    for i in np.flatnonzero(other)[:1]:
        yield at[expected == expected[i]].tolist()


def _expected(run, terms, length):
    """The fingerprints that a promise comes to, shape (length,)."""
    starts = np.array([run.at(r, c).start for r, c in terms])
    if len(terms) < length:
        return sum((run.atoms[s:s + length] for s in starts), np.zeros(length, np.uint64))
    return run.atoms[starts[:, None] + np.arange(length)].sum(0)
