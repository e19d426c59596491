"""Executes the task graph of a program with no transport, and says what the kind promised.

It knows nothing of plans: whatever the graph's dependencies allow happens, in an order drawn at
random. What an element holds is a number that stands for it (a fingerprint): each rank's own
element starts with a random one of 64 bits. With `union` as the reduction, fingerprints add up
modulo 2^64, so that two elements are equal if they hold the same multiset of contributions; with
`tree` they are hashed at each addition, so that they are equal if the additions were the same
tree, but for the order of the two operands of one addition. (Different ones collide with a
probability of 2^-64.)
"""

import random

import numpy as np

from minipar.comm.kinds import ask
from minipar.comm.program import Chunk
from minipar.comm.topology import Topology

UNKNOWN = np.uint64(0x9E3779B97F4A7C15)  # of what no table speaks of


def union(a, b):
    """The reduction that tells multisets of contributions from each other."""
    return a + b


def tree(a, b):
    """The reduction that tells trees of additions from each other: a mix of a + b (splitmix64)."""
    z = a + b + UNKNOWN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def execute(tasks, state, draw=None, add=union, coded=None):
    """Run the task graph on state[rank][buffer], arrays of fingerprints, in place.

    draw: a random.Random for the order. coded: (codec, array) -> what comes out of a codec.
    Returns the order of ids. AssertionError if nothing can happen before all has happened.
    """
    draw = draw or random.Random(0)
    left, after = {task.id: len(task.deps) for task in tasks}, [[] for _ in tasks]
    events = _events(tasks)
    for task in tasks:
        for i in task.deps:
            after[i].append(task.id)
    ready = [e for e in {id(e): e for e in events}.values() if not any(left[i] for i in e)]
    order = []
    while ready:
        i = draw.randrange(len(ready))
        ready[i], ready[-1] = ready[-1], ready[i]
        event = ready.pop()
        _happen([tasks[i] for i in event], tasks, state, add, coded)
        order += event
        for i in event:
            del left[i]
        for i in event:
            for j in after[i]:
                left[j] -= 1
                if not left[j] and not any(left[k] for k in events[j]):
                    ready.append(events[j])
    assert not left, f"the graph never gets to {[tasks[i] for i in left]}"
    return order


def _events(tasks):
    """For each task the ids of those that happen together: a message's ends, a ring of fences."""
    events = [None] * len(tasks)
    for task in tasks:
        if events[task.id] is None:
            ids, i = [task.id], task.match
            while i not in (-1, task.id):
                ids.append(i)
                i = tasks[i].match
            for i in ids:
                events[i] = ids
    return events


def _happen(event, tasks, state, add, coded):
    task = event[0]
    if task.kind == "fence":
        return
    if task.kind == "send":
        task = tasks[task.match]

    def at(rank, chunk):
        return state[rank][chunk.buffer][chunk.start:chunk.stop]
    here = at(task.rank, task.chunk)
    if task.kind == "put":
        at(task.peer, task.remote)[:] = here
        return
    if task.match >= 0:
        arriving = at(tasks[task.match].rank, tasks[task.match].chunk)
    elif task.remote is not None:
        arriving = at(task.peer, task.remote)
    else:
        arriving = at(task.rank, task.source)
    assert here.shape == arriving.shape
    if task.codec is not None:
        arriving = coded(task.codec, arriving)
    here[:] = add(here, arriving) if task.kind.endswith("reduce") else arriving


def settings(program, size, lengths=(0, 1, 100)):
    """(n, options) that `program` is to be tried with on `size` ranks; none if it refuses them.

    lengths: besides size - 1 and size. Every root; every topology that the ranks can have; counts
    of many kinds; only lengths that divide into blocks where the kind wants those.
    """
    if program.refusal(size) is not None:
        return
    for n in sorted({*lengths, size - 1, size}):
        if program.kind.name == "all_to_all" and n % size:
            n *= size
        for root in range(size) if program.kind.rooted else [0]:
            for topo in topologies(size) if "topo" in program.wants else [None]:
                yield n, {"root": root, "topo": topo}
    if program.name in COUNTED:
        for seed in range(3):
            yield 0, {"counts": tuple(tuple(row) for row in np.random.default_rng(
                [seed, size]).integers(0, 4 - seed, (size, size)).tolist())}


COUNTED = ("pairwise",)  # the all-to-alls that take counts


def topologies(size):
    """All topologies of one, two and three levels of `size` ranks."""
    for a in range(1, size + 1):
        if size % a == 0:
            yield Topology((a, size // a))
            yield from (Topology((a, b, size // a // b)) for b in range(2, size // a)
                        if size // a % b == 0)
    yield Topology((size,))


def _chunks(kind, rank, size, n, options):
    return {name: Chunk(name, 0, length)
            for name, length in kind.buffers(rank, size, n, **options).items()}


def _fingerprints(rank, buffer, n):
    return np.random.default_rng([rank, *buffer.encode()]).integers(2**64, size=n, dtype=np.uint64)


def initial(program, size, n, **options):
    """state[rank][buffer] before: a rank's own elements where the kind says so, else UNKNOWN."""
    state = []
    for rank in range(size):
        lengths = program.trace(rank, size, n, **options).buffers
        state.append({name: np.full(m, UNKNOWN) for name, m in lengths.items()})
        chunks = _chunks(program.kind, rank, size, n, options)
        for chunk in ask(program.kind.before, rank, size, **chunks, **options):
            own = _fingerprints(rank, chunk.buffer, lengths[chunk.buffer])
            state[rank][chunk.buffer][chunk.start:chunk.stop] = own[chunk.start:chunk.stop]
    return state


def promised(kind, size, n, **options):
    """(rank, chunk, its fingerprints under `union`) of all that the after table speaks of."""
    for rank in range(size):
        chunks = _chunks(kind, rank, size, n, options)
        for chunk, terms in ask(kind.after, rank, size, **chunks, **options):
            total = np.zeros(len(chunk), np.uint64)
            for r, c in terms:
                length = kind.buffers(r, size, n, **options)[c.buffer]
                total += _fingerprints(r, c.buffer, length)[c.start:c.stop]
            yield rank, chunk, total


def steps(program, size, n, **options):
    """How many messages follow one another, if each takes as long as any: alpha's factor.

    A rank's rounds follow one another, as a plan runs them; a round of messages ends one step
    after all ends of its messages are there. Local work takes no time. AssertionError if ranks
    wait for one another for ever, as they would with sends that wait for their receives.
    """
    from minipar.comm.graph import lower
    tasks = lower(program, size, n, **options)
    rounds = {}
    for task in tasks:
        rounds.setdefault((task.rank, task.round), []).append(task)
    at, clock = [0] * size, [0] * size
    last = [max((k for r, k in rounds if r == rank), default=-1) + 1 for rank in range(size)]
    started = {}  # of tasks: when
    while any(a < b for a, b in zip(at, last)):
        moved = False
        for rank in range(size):
            while at[rank] < last[rank]:
                batch = rounds.get((rank, at[rank]), [])
                started.update((task.id, clock[rank]) for task in batch)
                messages = [task for task in batch if task.match >= 0 and task.kind != "fence"]
                if any(task.match not in started for task in messages):
                    break
                ended = [max(clock[rank], started[task.match]) + 1 for task in messages]
                clock[rank] = max([clock[rank], *ended])
                at[rank], moved = at[rank] + 1, True
        assert moved, f"ranks wait for one another for ever, in rounds {at}"
    return max(clock)


def sent(program, size, n, **options):
    """How many elements each rank sends, a list: beta's factor is the largest."""
    return [sum(len(op.chunk) for ops in program.trace(rank, size, n, **options).rounds
                for op in ops if op.kind == "send") for rank in range(size)]
