"""Pipeline schedules: lists of actions, one list a rank, which print and parse as text.

An action is written `3F5`: stage 3, forward, micro-batch 5. Its kinds:

    F  forward                                   I  gradient of the input alone
    B  whole backward (I and W as one)           W  gradient of the weights, some time after I

A schedule says in which order a rank computes, and nothing else. Messages and the reduction of
gradients follow from it (`lower.py`); the verifier, the simulator, the drawer and the runtime take
any schedule, and know none by name. One is a generator, from the point of view of one rank; those
that come with minipar are in `schedules/`:

    @schedule("gpipe")
    def gpipe(rank, ranks, microbatches):
        for m in range(microbatches):
            yield F(rank, m)
        for m in range(microbatches):
            yield B(rank, m)

With v chunks a rank there are v x ranks stages; `placement` says which rank holds which.
"""

import inspect
import re
from typing import NamedTuple

COMPUTE = ("F", "B", "I", "W")
ADDED = ("RECV_F", "SEND_F", "RECV_B", "SEND_B", "REDUCE")  # by lowering
_ACTION = re.compile(rf"(\d+)({'|'.join(COMPUTE)})(\d+)")


class ScheduleError(ValueError):
    """What is wrong with a schedule: at `rank`, at position `index` of its list, if known.

    marks: (rank, index) of all actions that have a part in it, the one to blame first.
    """

    def __init__(self, words, rank=None, index=None, marks=()):
        super().__init__(words)
        self.rank, self.index = rank, index
        self.marks = list(marks) or ([] if index is None else [(rank, index)])


class Action(NamedTuple):
    """What a stage does for a micro-batch; both from 0. kind: of COMPUTE, or of ADDED.

    RECV_F, SEND_F: receive the stage's input, send its output. RECV_B, SEND_B: receive the
    gradient of its output, send that of its input. REDUCE: sum the gradients of its weights over
    the data-parallel ranks; the micro-batch is then 0.
    """
    stage: int
    kind: str
    microbatch: int

    def __str__(self):
        return f"{self.stage}{self.kind}{self.microbatch}"

    @classmethod
    def parse(cls, text):
        """The action that `text` stands for. Raises ScheduleError for other text."""
        match = _ACTION.fullmatch(text.strip())
        if match is None:
            raise ScheduleError(f"no action {text.strip()!r}: an action is like 0F2, a stage, "
                                f"one of {', '.join(COMPUTE)}, and a micro-batch")
        return cls(int(match[1]), match[2], int(match[3]))


def F(stage, microbatch):
    """Forward."""
    return Action(stage, "F", microbatch)


def B(stage, microbatch):
    """Whole backward: gradients of the input and of the weights."""
    return Action(stage, "B", microbatch)


def I(stage, microbatch):  # noqa: E743  (the letter of the papers)
    """Gradient of the stage's input alone."""
    return Action(stage, "I", microbatch)


def W(stage, microbatch):
    """Gradient of the stage's weights, after its I."""
    return Action(stage, "W", microbatch)


# Where stages live: {name: rank of a stage, given stage and number of ranks}.
PLACEMENTS = {
    "loop": lambda stage, ranks: stage % ranks,  # 0 1 2 3 0 1 2 3
    "v": lambda stage, ranks: min(stage % (2 * ranks), 2 * ranks - 1 - stage % (2 * ranks)),
}


class Schedule(NamedTuple):
    """What every rank does in one step.

    name:         what a person calls it.
    actions:      for each rank a tuple of Actions.
    microbatches: how many there are.
    rank_of:      for each stage the rank that holds it.
    """
    name: str
    actions: tuple
    microbatches: int
    rank_of: tuple

    @property
    def ranks(self):
        return len(self.actions)

    @property
    def stages(self):
        return len(self.rank_of)

    @property
    def splits_backward(self):
        """Whether weight gradients are postponed: whether there is any I."""
        return any(a.kind == "I" for row in self.actions for a in row)

    def stages_of(self, rank):
        """The stages that a rank holds, in order."""
        return [stage for stage, owner in enumerate(self.rank_of) if owner == rank]

    def __str__(self):
        """CSV: a line for each rank, its actions in order."""
        return "\n".join(",".join(map(str, row)) for row in self.actions) + "\n"


def parse(text, name="schedule"):
    """The Schedule of CSV: a line for each rank, actions in order; empty cells are left out.

    A stage lives on the rank whose line has its actions. Raises ScheduleError, naming line and
    cell, for what is no action, for a stage on two ranks, and for a text without actions. Whether
    the schedule is right is `verify_schedule`'s question.
    """
    rows, owner = [], {}
    for rank, line in enumerate(text.strip().splitlines()):
        row = []
        for cell, word in enumerate(line.split(",")):
            if not word.strip():
                continue
            try:
                action = Action.parse(word)
            except ScheduleError as error:
                raise ScheduleError(f"line {rank + 1}, cell {cell + 1}: {error}", rank,
                                    len(row)) from None
            if owner.setdefault(action.stage, rank) != rank:
                raise ScheduleError(f"line {rank + 1}, cell {cell + 1}: {action}: stage "
                                    f"{action.stage} is on rank {owner[action.stage]} already",
                                    rank, len(row))
            row.append(action)
        rows.append(tuple(row))
    if not owner:
        raise ScheduleError("a schedule has at least one action")
    missing = [stage for stage in range(max(owner)) if stage not in owner]
    if missing:
        raise ScheduleError(f"stages go from 0 to {max(owner)}, but stage {missing[0]} has no "
                            f"action")
    count = 1 + max(action.microbatch for row in rows for action in row)
    return Schedule(name, tuple(rows), count, tuple(owner[s] for s in range(len(owner))))


class Times(NamedTuple):
    """How long computations and messages take, in any unit of time.

    F:    a forward. B: the gradient of the input, which is action I; W: the gradient of the
          weights. Action B, the whole backward, takes B + W. A number is the time of all stages
          of a rank together, which share it equally; a sequence has the time of each stage.
    COMM: from the end of a computation until another rank has its result. Nothing within a rank.
    """
    F: object
    B: object
    W: object
    COMM: object = 0

    def scaled(self, factor):
        """These times `factor` times as long."""
        return Times(*([t * factor for t in value] if isinstance(value, (list, tuple))
                       else value * factor for value in self))

    def per_stage(self, rank_of):
        """For each stage {kind of action: its time}, given the rank of each stage. Raises
        ValueError for a sequence of another length, or times that are negative."""
        beside = [sum(other == rank for other in rank_of) for rank in rank_of]
        columns = []
        for name, value in zip("FBW", self):
            if not isinstance(value, (list, tuple)):
                value = [value if count == 1 else value / count for count in beside]
            if len(value) != len(rank_of):
                raise ValueError(f"{len(value)} times {name} for {len(rank_of)} stages")
            columns.append(value)
        if min(self.COMM, *map(min, columns)) < 0:
            raise ValueError("times are not negative")
        return [{"F": f, "B": b + w, "I": b, "W": w} for f, b, w in zip(*columns)]


class Scheduler:
    """A way to make schedules for any number of ranks and micro-batches.

    function:  f(rank, ranks, microbatches), with further parameters of Scheduler.__call__ if it
               wants them; yields Actions.
    placement: a key of PLACEMENTS. chunks: stages a rank: None for any number (`chunks` is then
               given), else that number. problem: (ranks, microbatches, chunks) -> why it cannot
               be, in words, or None.
    """

    def __init__(self, name, function, placement="loop", chunks=1, problem=None):
        if placement not in PLACEMENTS:
            raise ValueError(f"no placement {placement!r}: there are {', '.join(PLACEMENTS)}")
        self.name, self.function, self.placement = name, function, placement
        self.chunks, self.problem, self.__doc__ = chunks, problem, function.__doc__
        self.wants = set(inspect.signature(function).parameters)

    def __call__(self, ranks, microbatches, chunks=None, times=None, memory_limit=None, kept=1):
        """The Schedule. Raises ScheduleError, with the arithmetic, for what cannot be.

        chunks:       stages a rank; the scheduler's own, or 2, if None.
        times:        Times that a scheduler may plan with; most do not look at them.
        memory_limit: how many micro-batches' activations a rank may keep; for those that can.
        kept:         the part of a micro-batch's activations that stays from I to W, 0 to 1.
        """
        chunks = chunks or self.chunks or 2
        if min(ranks, microbatches, chunks) < 1:
            raise ScheduleError(f"{self.name}: {ranks} ranks, {microbatches} micro-batches, "
                                f"{chunks} chunks: each is at least 1")
        if self.chunks is not None and chunks != self.chunks:
            raise ScheduleError(f"{self.name} has {self.chunks} chunk{'s' * (self.chunks != 1)} a "
                                f"rank, not {chunks}")
        if memory_limit is not None and "memory_limit" not in self.wants:
            raise ScheduleError(f"{self.name} takes no memory limit: auto does")
        if self.problem is not None and (words := self.problem(ranks, microbatches, chunks)):
            raise ScheduleError(f"{self.name}: {words}")
        options = {"chunks": chunks, "times": times, "memory_limit": memory_limit,
                   "kept": kept}
        options = {k: v for k, v in options.items() if k in self.wants}
        rows = tuple(tuple(self.function(rank, ranks, microbatches, **options))
                     for rank in range(ranks))
        for rank, row in enumerate(rows):
            for thing in row:
                if not isinstance(thing, Action):
                    raise TypeError(f"{self.name}: rank {rank} yields {thing!r}, which is no "
                                    f"Action")
        place = PLACEMENTS[self.placement]
        return Schedule(self.name, rows, microbatches,
                        tuple(place(stage, ranks) for stage in range(chunks * ranks)))


SCHEDULES = {}


def schedule(name, *, placement="loop", chunks=1, problem=None):
    """Declare a generator as a way to make schedules, and offer it by its name."""
    def declare(function):
        SCHEDULES[name] = Scheduler(name, function, placement, chunks, problem)
        return SCHEDULES[name]
    return declare
