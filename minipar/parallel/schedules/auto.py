"""An automatic schedule: list scheduling with given times and a limit of memory."""

from functools import lru_cache
from heapq import heappop, heappush

from ..schedule import F, I, ScheduleError, Times, W, schedule
from .zero_bubble import postponed

# What is tried, beside the regular order of ZB-H1 and ZB-H2 for this limit; the shortest result is
# taken. SPARE: how many micro-batches a rank may have in flight beyond its share of the limit.
# GAPS: a W starts if this part of it fits before the next message that is known to come.
SPARE = (0, 1, float("inf"))
GAPS = (0, 0.25, 0.5, 1)
ACTIONS = {"F": F, "I": I, "W": W}


@schedule("auto")
def auto(rank, ranks, microbatches, times, memory_limit, kept):
    """Greedy list scheduling, after the heuristic of Qi et al. 2024, "Zero bubble pipeline
    parallelism", section 3.1: a free rank takes a gradient that has arrived, else a forward if
    memory allows, else a W, with `times` (all computations equal, messages free, if None). Where
    1F1B's order with Ws as late as memory allows is shorter, that.

    memory_limit: the activations of so many micro-batches a rank keeps at most; 2p (ZB-2p) if
    None, and p is ZB-1p. kept: the part of a micro-batch's that stays from I to W. The bubble
    follows from the times: at 1F1B's memory it is ZB-H1's, at 2p-1 ZB-H2's; with less kept, less.
    """
    limit = 2 * ranks if memory_limit is None else memory_limit
    if limit < 1:
        raise ScheduleError(f"auto: a memory limit of {limit} micro-batches: it is at least 1")
    times = times or Times(1, 1, 1)
    try:
        stages = tuple(tuple(t[kind] for kind in "FIW") for t in times.per_stage(range(ranks)))
    except ValueError as error:
        raise ScheduleError(f"auto: {error}") from None
    yield from best(microbatches, stages, times.COMM, limit, kept)[rank]


@lru_cache(maxsize=4)
def best(microbatches, stages, comm, limit, kept):
    """The rows of actions of the variant whose longest rank is the shortest. stages: (F, I, W)
    times of each."""
    p = len(stages)
    # From rank 0 to the last one ever fewer need to be in flight, and ever more Ws can wait.
    share = [limit - (limit - 1) * r / max(p - 1, 1) for r in range(p)]
    late = [int((limit - int(share[r])) / kept) if kept else microbatches for r in range(p)]
    regular = [list(postponed(r, microbatches, int(share[r]) - 1, late[r])) for r in range(p)]
    tried = [_Plan(microbatches, stages, comm, order=regular)]
    for spare in SPARE:
        tried += [_Plan(microbatches, stages, comm, limit, kept, [c + spare for c in share], gap)
                  for gap in GAPS]
    return min(tried, key=lambda plan: plan.cost).rows


class _Plan:
    """One run of the list scheduler: `rows`, and `cost`, the longest time from a rank's first
    action to its last. order: rows of actions to do as they are; else what follows is for the
    choice. cap: how many micro-batches each rank may have in flight."""

    def __init__(self, microbatches, stages, comm, limit=None, kept=1, cap=None, gap=0, order=None):
        p = len(stages)
        self.stages, self.comm, self.limit, self.kept, self.gap = stages, comm, limit, kept, gap
        self.cap, self.order = cap, order
        self.rows, self.begun, self.ended = [[] for _ in stages], [0] * p, [0] * p
        self.counts = [dict.fromkeys("FIW", 0) for _ in stages]
        # When the inputs of each stage's next forwards arrive, and of its next Is.
        self.arrived = {"F": [[] if r else [0] * microbatches for r in range(p)],
                        "I": [[] for _ in stages]}
        self.queue, self.asleep = [(0, r) for r in range(p)], [False] * p
        while self.queue:
            now, rank = heappop(self.queue)
            (self._choose if order is None else self._obey)(rank, now)
        self.cost = max(end - begin for begin, end in zip(self.begun, self.ended))

    def _obey(self, rank, now):
        """Do what the rank's order has next, when it can be done."""
        at = len(self.rows[rank])
        if at == len(self.order[rank]):
            return
        kind = self.order[rank][at].kind
        when = now if kind == "W" else self._next(rank, kind)
        if when <= now:
            self._do(rank, kind, now)
        elif when < float("inf"):
            heappush(self.queue, (when, rank))
        else:
            self.asleep[rank] = True

    def _next(self, rank, kind):
        times, done = self.arrived[kind][rank], self.counts[rank][kind]
        return times[done] if done < len(times) else float("inf")

    def _choose(self, rank, now):
        """Do a gradient, a forward or a W, or wait for what comes."""
        done = self.counts[rank]
        flying, owed = done["F"] - done["I"], done["I"] - done["W"]
        free = flying < self.cap[rank]
        room = free and flying + 1 + self.kept * owed <= self.limit
        gradient, given = self._next(rank, "I"), self._next(rank, "F")
        soon = min(gradient, given if room else float("inf"))
        if gradient <= now:
            self._do(rank, "I", now)
        elif given <= now and room:
            self._do(rank, "F", now)
        elif owed and (given <= now and free or  # memory is what is missing
                       min(gradient, given) >= now + self.gap * self.stages[rank][2]):
            self._do(rank, "W", now)
        elif soon < float("inf"):
            heappush(self.queue, (soon, rank))
        elif owed:
            self._do(rank, "W", now)
        else:
            self.asleep[rank] = True

    def _do(self, rank, kind, now):
        self.rows[rank].append(ACTIONS[kind](rank, self.counts[rank][kind]))
        if len(self.rows[rank]) == 1:
            self.begun[rank] = now
        self.counts[rank][kind] += 1
        self.ended[rank] = end = now + self.stages[rank]["FIW".index(kind)]
        heappush(self.queue, (end, rank))
        if kind == "F" and rank + 1 < len(self.stages):
            self._arrives("F", rank + 1, end + self.comm)
        elif kind == "F":
            self._arrives("I", rank, end)
        elif kind == "I" and rank > 0:
            self._arrives("I", rank - 1, end + self.comm)

    def _arrives(self, kind, rank, when):
        self.arrived[kind][rank].append(when)
        if self.asleep[rank]:
            self.asleep[rank] = False
            heappush(self.queue, (when, rank))
