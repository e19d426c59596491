"""A recorded run as a grid: the actions in the file that `--trace` wrote, for `minipar draw`."""

import json
import re

from ..draw import Span, Timeline
from ..options import UsageError
from ..parallel.schedule import COMPUTE

_COMPUTES = re.compile(rf"\d+[{''.join(COMPUTE)}]\d+")


def recorded(path, name, made):
    """The Timeline, in milliseconds, of the last step of a run with a Schedule.

    path: a file of `--trace`. An action begins when its wait for others is over; of replicas the
    first is shown. Raises UsageError for what is no such file, or of another schedule.
    """
    try:
        with open(path, encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
        bars = [(e["cat"], e["name"], e["pid"], e["ts"], e["ts"] + e["dur"])
                for e in events if e["ph"] == "X" and e["cat"] in ("action", "wait")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no trace of a run: {type(error).__name__}: {error}") from None
    found = {}  # {action's name: (rank, begin, end)}: of the lowest rank, the last one
    for category, word, rank, begin, end in sorted(bars, key=lambda bar: (-bar[2], bar[3])):
        if category == "action":
            found[word] = rank, begin, end
    waits = [bar[2:] for bar in bars if bar[0] == "wait"]
    spans, work = [], 0
    for place, row in enumerate(made.actions):
        for action in row:
            if str(action) not in found:
                raise UsageError(f"{path} has no action {action}: it is of another schedule than "
                                 f"{name} on {made.ranks} ranks, {made.microbatches} "
                                 f"micro-batches")
            rank, begin, end = found[str(action)]
            begin = max([begin, *(e for r, b, e in waits if r == rank and begin <= b and e <= end)])
            chunk = made.stages_of(place).index(action.stage)
            spans.append((place, begin / 1e3, end / 1e3, action.kind, action.microbatch, chunk))
            work += (end - begin) / 1e3
    known = {str(action) for row in made.actions for action in row}
    extra = [word for word in found if word not in known and _COMPUTES.fullmatch(word)]
    if extra:
        raise UsageError(f"{path} has action {extra[0]}, which {name} has not")
    origin = min(span[1] for span in spans)
    cost = max(max(s[2] for s in spans if s[0] == place) - min(s[1] for s in spans if s[0] == place)
               for place in range(made.ranks))
    return Timeline(f"{name}, recorded", made.ranks,
                    [Span(p, b - origin, e - origin, *rest) for p, b, e, *rest in spans],
                    1 - work / made.ranks / cost,
                    tuple(f"rank {rank}" for rank in range(made.ranks)))
