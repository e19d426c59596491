"""Broken programs in numbers: correct ones with one thing changed in the traces of some ranks.

A mutation takes the traces of all ranks (a list of lists of rounds, each a list of Op), a
random.Random, and the program's number of ranks; it changes the lists in place and returns the
ranks that are involved: those whose trace is changed, and the peers, before and after, of the
operations that are. It returns None if there is nothing that it could change.
"""

from minipar.comm.program import ONE_SIDED, Chunk, Trace

MESSAGES = ("send", "recv", "recv_reduce")
RECEIVES = ("recv", "recv_reduce")


def spots(traces, *kinds):
    """(rank, round, index) of all operations of these kinds (of all kinds if none is given)."""
    return [(r, k, i) for r, rounds in enumerate(traces) for k, ops in enumerate(rounds)
            for i, op in enumerate(ops) if not kinds or op.kind in kinds]


def peers(*ops):
    return {op.peer for op in ops if op.peer >= 0}


def one(*kinds):
    """Of a mutation of one operation, change(op, draw, size, length of each buffer): the whole."""
    def wrap(change):
        def mutation(traces, draw, size, lengths):
            found = spots(traces, *kinds)
            if not found:
                return None
            r, k, i = draw.choice(found)
            op = traces[r][k][i]
            new = change(op, draw, size, lengths[r])
            if new is None:
                return None
            traces[r][k][i] = new
            return {r} | peers(op, new)
        mutation.__name__ = change.__name__
        return mutation
    return wrap


def moved(chunk, draw, lengths):
    """The chunk, moved to another place in its buffer."""
    places = [start for start in range(lengths[chunk.buffer] - len(chunk) + 1)
              if start != chunk.start]
    if not places or not len(chunk):
        return None
    start = draw.choice(places)
    return Chunk(chunk.buffer, start, start + len(chunk))


@one(*MESSAGES, *ONE_SIDED)
def wrong_peer(op, draw, size, lengths):
    others = [p for p in range(size) if p != op.peer]
    return op._replace(peer=draw.choice(others)) if size > 2 else None


@one(*MESSAGES, *ONE_SIDED, "copy", "reduce")
def moved_chunk(op, draw, size, lengths):
    chunk = moved(op.chunk, draw, lengths)
    return chunk and op._replace(chunk=chunk)


@one(*ONE_SIDED)
def moved_remote(op, draw, size, lengths):
    chunk = moved(op.remote, draw, lengths)
    return chunk and op._replace(remote=chunk)


@one("copy", "reduce")
def moved_source(op, draw, size, lengths):
    chunk = moved(op.source, draw, lengths)
    return chunk and op._replace(source=chunk)


@one(*MESSAGES, "copy", "reduce")
def shorter_chunk(op, draw, size, lengths):
    if not len(op.chunk) or op.source is not None and len(op.chunk) < 2:
        return None
    short = op._replace(chunk=op.chunk[1:])
    return short if op.source is None else short._replace(source=op.source[1:])


@one("recv", "copy", "get")
def reduces_instead(op, draw, size, lengths):
    return op._replace(kind={"recv": "recv_reduce", "copy": "reduce", "get": "get_reduce"}[op.kind])


@one("recv_reduce", "reduce", "get_reduce")
def overwrites_instead(op, draw, size, lengths):
    return op._replace(kind={"recv_reduce": "recv", "reduce": "copy", "get_reduce": "get"}[op.kind])


@one("put", "get")
def other_way_round(op, draw, size, lengths):
    return op._replace(kind={"put": "get", "get": "put"}[op.kind])


@one(*MESSAGES)
def wrong_channel(op, draw, size, lengths):
    return op._replace(channel=op.channel + 1)


def swapped_chunks(traces, draw, size, lengths):
    found = spots(traces, *MESSAGES)
    pairs = [(a, b) for a in found for b in found if a < b and a[0] == b[0]
             and repr(traces[a[0]][a[1]][a[2]].chunk) != repr(traces[b[0]][b[1]][b[2]].chunk)]
    if not pairs:
        return None
    (r, k, i), (_, m, j) = draw.choice(pairs)
    a, b = traces[r][k][i], traces[r][m][j]
    traces[r][k][i], traces[r][m][j] = a._replace(chunk=b.chunk), b._replace(chunk=a.chunk)
    return {r} | peers(a, b)


def dropped_operation(traces, draw, size, lengths):
    found = spots(traces)
    if not found:
        return None
    r, k, i = draw.choice(found)
    return {r} | peers(traces[r][k].pop(i))


def doubled_operation(traces, draw, size, lengths):
    found = spots(traces)
    if not found:
        return None
    r, k, i = draw.choice(found)
    op = traces[r][k][i]
    traces[r].insert(k + 1, [op])
    return {r} | peers(op)


def _ends(traces, draw):
    """The spots of both ends of a message."""
    sends, receives = {}, {}
    for r, k, i in spots(traces, *MESSAGES):
        op = traces[r][k][i]
        key, ends = ((r, op.peer, op.channel), sends) if op.kind == "send" else (
            (op.peer, r, op.channel), receives)
        ends.setdefault(key, []).append((r, k, i))
    if not sends:
        return None
    key = draw.choice(sorted(sends))
    return draw.choice(list(zip(sends[key], receives[key])))


def dropped_message(traces, draw, size, lengths):
    ends = _ends(traces, draw)
    for r, k, i in ends or ():
        traces[r][k].pop(i)
    return ends and {r for r, _, _ in ends}


def doubled_message(traces, draw, size, lengths):
    ends = _ends(traces, draw)
    for r, k, i in ends or ():
        traces[r].insert(k + 1, [traces[r][k][i]])
    return ends and {r for r, _, _ in ends}


def late_message(traces, draw, size, lengths):
    """Both ends a round later, in a round of their own."""
    ends = _ends(traces, draw)
    for r, k, i in ends or ():
        op = traces[r][k].pop(i)
        traces[r].insert(k + 2, [op])
    return ends and {r for r, _, _ in ends}


def _a_round(traces, draw):
    found = sorted({(r, k) for r, k, _ in spots(traces)})
    return draw.choice(found) if found else (None, None)


def dropped_round(traces, draw, size, lengths):
    r, k = _a_round(traces, draw)
    return None if r is None else {r} | peers(*traces[r].pop(k))


def doubled_round(traces, draw, size, lengths):
    r, k = _a_round(traces, draw)
    if r is None:
        return None
    traces[r].insert(k, list(traces[r][k]))
    return {r} | peers(*traces[r][k])


def swapped_rounds(traces, draw, size, lengths):
    r, k = _a_round(traces, draw)
    if r is None or k + 1 == len(traces[r]):
        return None
    traces[r][k:k + 2] = traces[r][k + 1], traces[r][k]
    return {r} | peers(*traces[r][k], *traces[r][k + 1])


def chunk_of_the_next_round(traces, draw, size, lengths):
    """One rank is one round ahead with what it sends or receives."""
    found = [(r, k, i) for r, k, i in spots(traces, *MESSAGES) if k + 1 < len(traces[r])
             and len(traces[r][k + 1]) > i and traces[r][k + 1][i].kind == traces[r][k][i].kind]
    if not found:
        return None
    r, k, i = draw.choice(found)
    op = traces[r][k][i]
    traces[r][k][i] = op._replace(chunk=traces[r][k + 1][i].chunk)
    return {r} | peers(op)


def everyone_stops_early(traces, draw, size, lengths):
    last = max(map(len, traces))
    for rounds in traces:
        del rounds[last - 1:]
    return set(range(size)) if last else None


def everyone_skips_a_round(traces, draw, size, lengths):
    _, k = _a_round(traces, draw)
    for rounds in traces if k is not None else ():
        del rounds[k:k + 1]
    return set(range(size)) if k is not None else None


def everyone_sends_first(traces, draw, size, lengths):
    """Each round in two: its sends, then the rest."""
    for r, rounds in enumerate(traces):
        traces[r] = [half for ops in rounds for half in (
            [op for op in ops if op.kind == "send"], [op for op in ops if op.kind != "send"])
            if half]
    return set(range(size))


def everyone_moves_its_chunk(traces, draw, size, lengths):
    """In one round everyone sends the chunk that is one part further in the buffer."""
    _, k = _a_round(traces, draw)
    changed = False
    for r, rounds in enumerate(traces):
        for i, op in enumerate(rounds[k] if k is not None and k < len(rounds) else ()):
            if op.kind == "send":
                start = (op.chunk.start + len(op.chunk)) % lengths[r][op.chunk.buffer]
                if len(op.chunk) and start + len(op.chunk) <= lengths[r][op.chunk.buffer]:
                    rounds[k][i] = op._replace(
                        chunk=Chunk(op.chunk.buffer, start, start + len(op.chunk)))
                    changed = True
    return set(range(size)) if changed else None


def missing_fence(traces, draw, size, lengths):
    fences = spots(traces, "fence")
    if not fences:
        return None
    r, k, _ = draw.choice(fences)
    del traces[r][k]
    return {r}


def fence_missing_everywhere(traces, draw, size, lengths):
    count = len([s for s in spots(traces, "fence") if s[0] == 0])
    if not count:
        return None
    which = draw.randrange(count)
    for r in range(size):
        del traces[r][[s for s in spots(traces, "fence") if s[0] == r][which][1]]
    return set(range(size))


MUTATIONS = [wrong_peer, moved_chunk, moved_remote, moved_source, shorter_chunk, reduces_instead,
             overwrites_instead, other_way_round, wrong_channel, swapped_chunks, dropped_operation,
             doubled_operation, dropped_message, doubled_message, late_message, dropped_round,
             doubled_round, swapped_rounds, chunk_of_the_next_round, everyone_stops_early,
             everyone_skips_a_round, everyone_sends_first, everyone_moves_its_chunk, missing_fence,
             fence_missing_everywhere]


def mutant(program, size, n, mutation, draw, **options):
    """(traces, the ranks involved), or None if the mutation has nothing to change."""
    originals = [program.trace(rank, size, n, **options) for rank in range(size)]
    traces = [[list(ops) for ops in trace.rounds] for trace in originals]
    involved = mutation(traces, draw, size, [trace.buffers for trace in originals])
    if involved is None:
        return None
    return [Trace(tuple(map(tuple, rounds)), trace.buffers)
            for rounds, trace in zip(traces, originals)], involved


def wrong_root(program, size, n, draw, root):
    """One rank that takes another for the root."""
    r, other = draw.randrange(size), (root + draw.randrange(1, size)) % size
    traces = [program.trace(rank, size, n, root=other if rank == r else root)
              for rank in range(size)]
    right = program.trace(r, size, n, root=root)
    touched = peers(*(op for t in (traces[r], right) for ops in t.rounds for op in ops))
    return traces, {r} | touched
