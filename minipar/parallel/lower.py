"""From a schedule to what each rank does in order, messages and reductions included.

The runtime executes these lists; the verifier and the simulator read the task graph that is made
of the same (`schedule_graph.py`). A send follows its computation at once; the gradients of a stage
are reduced as soon as its last backward (or W) is done. Receives are posted in the order in which
the other rank sends, so that a message needs no name, and

- one computation ahead of their use, so that the message is on its way while the rank computes;
- earlier where ranks would wait in a circle if every send waited for its receive. To find out
  where that is, the lists are walked through with such sends.
"""

from collections import deque

from .schedule import Action

# The other end of each kind of message: (kind, how many stages further it is).
ENDS = {"SEND_F": ("RECV_F", 1), "RECV_F": ("SEND_F", -1),
        "SEND_B": ("RECV_B", -1), "RECV_B": ("SEND_B", 1)}


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
    kind, further = ENDS[action.kind]
    stage = action.stage + further
    return schedule.rank_of[stage], Action(stage, kind, action.microbatch)


def lower(schedule):
    """For each rank a tuple of Actions: `schedule`'s, with those of ADDED between them.

    A schedule in which ranks wait for one another whatever is posted is lowered all the same;
    `verify_schedule.py` says what is wrong with it.
    """
    return _Lowering(schedule).run()


class _Lowering:
    """All ranks walk through their lists together; a send waits until its receive is posted."""

    def __init__(self, schedule):
        self.schedule, self.out = schedule, [[] for _ in range(schedule.ranks)]
        self.posted, self.begun = set(), set()  # receives, sends
        self.expected = [{} for _ in self.out]  # [rank][other rank]: receives, in its order
        for row in schedule.actions:
            for message in filter(None, (sent(schedule, action) for action in row)):
                there, end = peer(schedule, message)
                source = schedule.rank_of[message.stage]
                self.expected[there].setdefault(source, deque()).append(end)

    def run(self):
        walks = [self._walk(rank) for rank in range(self.schedule.ranks)]
        waits = [next(walk, None) for walk in walks]  # for what; None: at the end
        while any(waits):
            stuck = True
            for rank, walk in enumerate(walks):
                while waits[rank] and self._is_there(waits[rank]):
                    waits[rank], stuck = next(walk, None), False
            if stuck and not self._post_in_a_circle(waits):
                rank = next(rank for rank, wait in enumerate(waits) if wait)
                waits[rank] = next(walks[rank], None)
        return tuple(map(tuple, self.out))

    def _walk(self, rank):
        """Write one rank's list, and yield each message before it waits for it."""
        actions, out = self.schedule.actions[rank], self.out[rank]
        last = {a.stage: i for i, a in enumerate(actions) if a.kind in "BW"}
        needs = [received(self.schedule, action) for action in actions] + [None]
        self._post(rank, needs[0])
        for i, action in enumerate(actions):
            self._post(rank, needs[i + 1])
            if needs[i]:
                yield needs[i]
            out.append(action)
            if message := sent(self.schedule, action):
                out.append(message)
                self.begun.add(message)
                yield message
            if last.get(action.stage) == i:
                out.append(Action(action.stage, "REDUCE", 0))

    def _post(self, rank, receive):
        """Post a receive, and before it those of what the same rank sends before."""
        if receive is None or receive in self.posted:
            return
        queue = self.expected[rank].get(peer(self.schedule, receive)[0], ())
        before = [queue.popleft() for _ in range(queue.index(receive))] if receive in queue else []
        if receive in queue:
            queue.popleft()
        for message in [*before, receive]:
            self.posted.add(message)
            self.out[rank].append(message)

    def _is_there(self, message):
        stage, kind, m = message
        end, further = ENDS[kind]
        return (stage + further, end, m) in (self.posted if kind[0] == "S" else self.begun)

    def _post_in_a_circle(self, waits):
        """Of ranks that wait in a circle, let one post what another wants to send; whether one
        can."""
        rank, path = next(rank for rank, wait in enumerate(waits) if wait), []
        while rank not in path:
            path.append(rank)
            if waits[rank] is None:
                return False
            rank = peer(self.schedule, waits[rank])[0]
        for sender in path[path.index(rank):]:
            if waits[sender].kind.startswith("SEND"):
                rank, receive = peer(self.schedule, waits[sender])
                out, waiting = self.out[rank], waits[rank].kind.startswith("SEND")
                own = [out.pop()] if waiting else []  # a send is the last of the list so far
                self._post(rank, receive)
                out += own
                return True
        return False
