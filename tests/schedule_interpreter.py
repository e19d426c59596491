"""Runs pipeline schedules by brute force, to say whether they are right: an oracle for the verifier
that shares no code with it. Ranks take turns; values are names that the actions compute with."""


def runs(rows, rank_of, microbatches):
    """Whether lists of computations run to their end and leave each gradient computed once.
    Messages are always there as soon as the other rank has computed them."""
    last, done, at = len(rank_of) - 1, set(), [0] * len(rows)

    def can(stage, kind, m):
        backward = {(stage, "B", m), (stage, "I", m)}
        if kind == "F":
            return stage == 0 or (stage - 1, "F", m) in done
        if kind == "W":
            return (stage, "I", m) in done
        return (stage, "F", m) in done and not backward & done and (
            stage == last or {(stage + 1, "B", m), (stage + 1, "I", m)} & done)

    while True:
        moved = False
        for rank, row in enumerate(rows):
            while at[rank] < len(row):
                stage, kind, m = action = tuple(row[at[rank]])
                if not (0 <= stage <= last and rank_of[stage] == rank and 0 <= m < microbatches):
                    return False
                if action in done:
                    return False
                if not can(stage, kind, m):
                    break
                done.add(action)
                at[rank], moved = at[rank] + 1, True
        if not moved:
            break
    wanted = [{(stage, kind, m) for kind in kinds} for stage in range(last + 1)
              for m in range(microbatches) for kinds in [
                  "FIW" if (stage, "I", m) in done or (stage, "W", m) in done else "FB"]]
    return at == [len(row) for row in rows] and done == set().union(*wanted)


def runs_lowered(rows, rank_of, microbatches, synchronous, dp=1, tp=1):
    """The same for lists with messages and reductions. Channels are first in first out; a receive
    takes its place in the channel where it is posted. synchronous: a send waits for that.
    dp, tp: rank (pp * dp + i) * tp + j is replica i's, tensor-parallel piece j's: replicas wait for
    each other in a reduction, pieces in F, B and I."""
    ranks, last, copies, arrived = len(rows), len(rank_of) - 1, dp * tp, {}
    sent = {(a, b): [] for a in range(ranks) for b in range(ranks)}
    posted = {key: [] for key in sent}
    memory, at, sums = [set() for _ in rows], [0] * ranks, {}

    def holds(rank, value):
        if value in memory[rank]:
            return True
        for key, wanted in posted.items():
            if key[1] == rank and value in wanted:
                place = wanted.index(value)
                if len(sent[key]) > place and sent[key][place] == value:
                    memory[rank].add(value)
                    return True
        return False

    def all_are_there(rank, *what):
        """A rank has come so far; whether the others that it does this with have as well."""
        piece, count = (rank % tp, dp) if what[1] == "REDUCE" else (rank // tp, tp)
        arrived.setdefault((what, piece), set()).add(rank)
        return len(arrived[what, piece]) == count

    def step(rank, stage, kind, m):
        """Do it if it can be done; None if it never can."""
        if kind in ("RECV_F", "RECV_B"):
            other = rank_of[stage + (1 if kind == "RECV_B" else -1)] * copies + rank % copies
            value = ("x", stage, m) if kind == "RECV_F" else ("g", stage + 1, m)
            posted[other, rank].append(value)
        elif kind in ("SEND_F", "SEND_B"):
            other = rank_of[stage + (1 if kind == "SEND_F" else -1)] * copies + rank % copies
            value = ("x", stage + 1, m) if kind == "SEND_F" else ("g", stage, m)
            if value not in memory[rank]:
                return None
            if synchronous and len(posted[rank, other]) <= len(sent[rank, other]):
                return False
            sent[rank, other].append(value)
        elif kind == "REDUCE":
            if sums.get((rank, stage), set()) != set(range(microbatches)):
                return None
            if not all_are_there(rank, stage, kind):
                return False
            sums[rank, stage] = "reduced"
        elif kind == "W":
            if ("i", stage, m) not in memory[rank]:
                return None
            sums.setdefault((rank, stage), set()).add(m)
        else:
            value = ("x", stage, m) if kind == "F" else ("g", stage + 1, m)
            given = kind == "F" and stage == 0 or kind != "F" and stage == last
            if kind != "F" and ("f", stage, m) not in memory[rank]:
                return None
            if not given and not holds(rank, value):
                return False
            if not all_are_there(rank, stage, kind, m):
                return False
            memory[rank] |= {("x", stage + 1, m), ("f", stage, m)} if kind == "F" else {
                ("g", stage, m), ("i", stage, m)}
            if kind == "B":
                sums.setdefault((rank, stage), set()).add(m)
        return True

    while True:
        moved = False
        for rank, row in enumerate(rows):
            while at[rank] < len(row):
                did = step(rank, *row[at[rank]])
                if did is None:
                    return False
                if not did:
                    break
                at[rank], moved = at[rank] + 1, True
        if not moved:
            return (at == [len(row) for row in rows]
                    and all(sums.get((owner * copies + i, stage)) == "reduced"
                            for stage, owner in enumerate(rank_of) for i in range(copies))
                    and all(sent[key] == posted[key] for key in sent))
