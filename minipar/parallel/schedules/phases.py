"""Schedules as tables of phases: for those with two chunks a rank, placed in a V."""

from ..schedule import B, F, I, W

KINDS = {"F": F, "B": B, "I": I}


def passes(rank, ranks, microbatches, phases):
    """Actions of a rank that holds the chunks 0, stage r, and 1, stage 2p-1-r.

    phases: (times, passes), in order: (3, "F0 I1 W1") is three times a forward of chunk 0, an
    input gradient of chunk 1 and the oldest W that chunk 1 owes; "W" is the oldest W of all. Each
    pass takes its chunk's next micro-batch. Those from `microbatches` on are left out: a table
    that needs more of them than there are is made for more.
    """
    stages, following, owed = (rank, 2 * ranks - 1 - rank), {}, []
    for times, words in phases:
        for word in words.split() * times:
            kind, chunks = word[0], map(int, word[1:] or "01")
            if kind == "W":
                own = [stages[chunk] for chunk in chunks]
                stage, m = next(entry for entry in owed if entry[0] in own)
                owed.remove((stage, m))
                action = W(stage, m)
            else:
                stage = stages[next(chunks)]
                counter = stage, kind == "F"
                m = following[counter] = following.get(counter, -1) + 1
                action = KINDS[kind](stage, m)
                if kind == "I":
                    owed.append((stage, m))
            if m < microbatches:
                yield action
