"""What a collective costs: counted from its task graph, and priced by a machine's parameters.

The model is the one that the papers use (Thakur, Rabenseifner & Gropp 2005): a message of m bytes
takes alpha + beta m, reducing m bytes takes gamma m, a rank sends and receives at the same time,
and several messages that it sends in one round go one after another. A round of a rank ends when
its messages and reductions are done, and a message starts when both ends have come to it. One-
sided operations move their bytes like messages without alpha; a fence costs alpha. What a codec
encodes counts as encoded; encoding and decoding take no time.

A measured machine (`machine.py`) charges more than these three, and its ranks may have to share
cores: then no run ends before the cores have done the work of all ranks, to which each end of a
message adds half of it (Brent 1974: the longest path, or all work over the cores).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from ..graph import lower
from .machine import Machine


@dataclass(frozen=True)
class Cost:
    """What a program costs on p ranks for n elements of `itemsize` bytes.

    rounds:      of the rank that has most; those without communication do not count.
    messages:    sent by the rank that sends most; one-sided operations count.
    sent:        bytes moved by the rank that moves most.
    reduced:     bytes reduced by the rank that reduces most.
    total:       bytes moved by all ranks together.
    alphas, betas, gammas: of the critical path: messages, bytes moved, bytes reduced, each on the
                 path that is longest in it alone. The predicted time is at most the sum of all.
    """
    rounds: int
    messages: int
    sent: int
    reduced: int
    total: int
    alphas: int
    betas: int
    gammas: int


MOVES = ("send", "put", "get", "get_reduce")  # the end of a transfer that is counted
REDUCES = ("recv_reduce", "reduce", "get_reduce")
LOCAL = ("copy", "reduce")  # no communication


def cost(program, p, n, itemsize=4, **options):
    """The Cost of `program` on p ranks for n elements. options: root, counts, topo."""
    tasks = lower(program, p, n, **options)
    per_rank = {"messages": [0] * p, "sent": [0] * p, "reduced": [0] * p}
    rounds = [set() for _ in range(p)]
    for task in tasks:
        if task.kind not in LOCAL:
            rounds[task.rank].add(task.round)
        if task.kind in MOVES:
            per_rank["messages"][task.rank] += 1
            per_rank["sent"][task.rank] += task.nbytes(itemsize)
        if task.kind in REDUCES:
            per_rank["reduced"][task.rank] += len(task.chunk) * itemsize
    path = [_finish(tasks, p, itemsize, Machine(*unit).at(0))
            for unit in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    return Cost(max(map(len, rounds)),
                max(per_rank["messages"]), max(per_rank["sent"]), max(per_rank["reduced"]),
                sum(per_rank["sent"]), *(round(x) for x in path))


def predict(program, p, n, machine, itemsize=4, **options):
    """The seconds that `program` takes by the model."""
    tasks, machine = _lowered(program, p, n, tuple(sorted(options.items()))), machine.at(
        n * itemsize)
    path = machine.run + _finish(tasks, p, itemsize, machine)
    if machine.cores is None or machine.cores >= p:
        return path
    rounds = len({(task.rank, task.round) for task in tasks})
    work = sum((_work(task, itemsize, machine) for task in tasks),
               machine.run * p + machine.round * rounds)
    return max(path, work / machine.cores)


@lru_cache(maxsize=256)
def _lowered(program, p, n, options):
    return lower(program, p, n, **dict(options))


def _finish(tasks, p, itemsize, machine):
    """When the last rank is done: every rank's rounds in order, messages as both ends come."""
    rounds = {}
    for task in tasks:
        rounds.setdefault((task.rank, task.round), []).append(task)
    last = [max((r for rank, r in rounds if rank == me), default=-1) for me in range(p)]
    began = {(rank, 0): 0.0 for rank in range(p)}
    waiting, ready = {}, [(rank, 0) for rank in range(p) if last[rank] >= 0]
    ends = [0.0] * p
    while ready:
        rank, number = ready.pop()
        here = rounds.get((rank, number), ())
        needed = {(t.rank, t.round) for task in here for t in _others(task, tasks)}
        missing = next((other for other in needed if other not in began), None)
        if missing is not None:
            waiting.setdefault(missing, []).append((rank, number))
            continue
        end = _end_of_round(here, began[rank, number], tasks, began, itemsize, machine)
        ends[rank] = end
        if number < last[rank]:
            began[rank, number + 1] = end
            ready.append((rank, number + 1))
            ready += waiting.pop((rank, number + 1), ())
    return max(ends, default=0.0)


def _others(task, tasks):
    """The tasks without which one does not end: a message's other end, a fence on other ranks."""
    found = [task]
    while found[-1].match >= 0 and tasks[found[-1].match] is not task:
        found.append(tasks[found[-1].match])
    return found[1:]


def _end_of_round(here, start, tasks, began, itemsize, machine):
    sending = receiving = start
    after = machine.round
    for task in here:
        nbytes = len(task.chunk) * itemsize
        if task.kind in ("send", "recv", "recv_reduce"):
            other = began[tasks[task.match].rank, tasks[task.match].round]
            price = machine.alpha + machine.beta * task.nbytes(itemsize)
            if task.kind == "send":
                sending = max(sending, other) + price
            else:
                receiving = max(receiving, other) + price
        elif task.kind == "fence":
            everyone = [start, *(began[t.rank, t.round] for t in _others(task, tasks))]
            sending = max(everyone) + machine.fence
        after += _local(task, nbytes, machine)
    return max(sending, receiving) + after


def _local(task, nbytes, machine):
    """What an operation takes of its own rank's time alone; messages go on meanwhile."""
    if task.kind in ("recv_reduce", "reduce"):
        return machine.call + machine.gamma * nbytes
    if task.kind == "get_reduce":
        return machine.call + machine.get_reduce * nbytes
    if task.kind in MOVES[1:]:
        return machine.call + machine.access * nbytes
    return machine.call + machine.copy * nbytes if task.kind == "copy" else 0.0


def _work(task, itemsize, machine):
    """What an operation takes of a core's time: of a message, each end has half."""
    if task.kind == "fence":
        return machine.fence
    local = _local(task, len(task.chunk) * itemsize, machine)
    if task.kind in ("send", "recv", "recv_reduce"):
        local += (machine.alpha + machine.beta * task.nbytes(itemsize)) / 2
    return local


def lower_bounds(kind, p, nbytes):
    """{"alphas", "betas", "gammas"} that no algorithm of point-to-point messages goes below.

    For one port in each direction (Chan, Heimlich, Purkayastha & van de Geijn 2007, table 1);
    each bound alone can be met, not always all at once. Raises ValueError for other kinds.
    """
    steps = math.ceil(math.log2(p)) if p > 1 else 0
    share = (p - 1) / p * nbytes
    table = {"all_reduce": (steps, 2 * share, share), "reduce_scatter": (steps, share, share),
             "all_gather": (steps, share, 0), "broadcast": (steps, nbytes if p > 1 else 0, 0),
             "reduce": (steps, nbytes if p > 1 else 0, share), "gather": (steps, share, 0),
             "scatter": (steps, share, 0), "all_to_all": (steps, share, 0),
             "barrier": (steps, 0, 0)}
    table |= {f"{name}_into": table[name] for name in ("reduce_scatter", "all_gather")}
    if kind not in table:
        raise ValueError(f"no lower bounds for {kind!r}: there are {', '.join(table)}")
    return dict(zip(("alphas", "betas", "gammas"), table[kind]))
