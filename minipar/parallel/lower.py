"""From a schedule to what each rank does in order, messages and reductions included.

The runtime executes these lists; `verify_schedule.py` and the simulator read the task graph that
is made of the same. A receive is posted one computation ahead of its use, so that its message is
on the way while the rank computes; a send follows the computation at once. The gradients of a
stage are reduced as soon as its last backward (or W) is done.
"""

from .schedule import Action


def lower(schedule):
    """For each rank a tuple of Actions: `schedule`'s, with those of ADDED between them."""
    return tuple(_lower_rank(schedule, rank) for rank in range(schedule.ranks))


def received(schedule, action):
    """The Action that receives what a computation needs from another rank; None if none does."""
    stage, kind, m = action
    here = schedule.rank_of[stage]
    if kind == "F" and stage > 0 and schedule.rank_of[stage - 1] != here:
        return Action(stage, "RECV_F", m)
    if kind in "BI" and stage + 1 < schedule.stages and schedule.rank_of[stage + 1] != here:
        return Action(stage, "RECV_B", m)
    return None


def sent(schedule, action):
    """The Action that sends what a computation made to another rank; None if none does."""
    stage, kind, m = action
    here = schedule.rank_of[stage]
    if kind == "F" and stage + 1 < schedule.stages and schedule.rank_of[stage + 1] != here:
        return Action(stage, "SEND_F", m)
    if kind in "BI" and stage > 0 and schedule.rank_of[stage - 1] != here:
        return Action(stage, "SEND_B", m)
    return None


def peer(schedule, action):
    """(rank, Action there) of the other end of a message."""
    stage, kind, m = action
    other = stage + 1 if kind in ("SEND_F", "RECV_B") else stage - 1
    way = kind.replace("SEND", "RECV") if kind.startswith("SEND") else kind.replace("RECV", "SEND")
    return schedule.rank_of[other], Action(other, way, m)


def _lower_rank(schedule, rank):
    actions, out = schedule.actions[rank], []
    last = {a.stage: i for i, a in enumerate(actions) if a.kind in "BW"}
    needs = [received(schedule, action) for action in actions]
    out += needs[:1]
    for i, action in enumerate(actions):
        out += [needs[i + 1] if i + 1 < len(actions) else None, action, sent(schedule, action)]
        if last.get(action.stage) == i:
            out.append(Action(action.stage, "REDUCE", 0))
    return tuple(action for action in out if action is not None)
