"""`minipar report strategies`: layouts dp x pp x tp and schedules on this machine."""

from importlib import import_module

from ...options import UsageError
from ...parallel.mesh import Mesh
from ...parallel.schedule import SCHEDULES, ScheduleError, Times
from ...sim.schedule import simulate
from ..ranks import whole
from ..schedules import schedule_of, scheduler_of
from .runs import train
from .table import amount

ABOUT = "every layout dp x pp x tp of so many ranks, and which one to take on this machine"
EPILOG = ("Short runs: samples/s is the median over the steps after the first tenth. waiting: the "
          "part of a step in which rank 0 waited for messages. memory: parameters, gradients "
          "and the optimizer's state of the rank that holds most. Of pipelines: bubble, the part "
          "of a step in which a rank has nothing to compute, measured with sleeps in place of "
          "arithmetic (F = B = W), so that it does not depend on the cores, and as simulated; "
          "kept, the most micro-batches of activations on a rank.")
OWN = ("--dp", "--pp", "--tp", "--schedule", "--sync", "--servers", "--compress")
COLUMNS = (("layout", "layout", ""), ("schedule", "schedule", ""),
           ("samples_per_s", "samples/s", ",.0f"), ("communication", "waiting", ".0%"),
           ("memory", "memory", amount), ("bubble", "bubble", ".3f"),
           ("predicted_bubble", "predicted", ".3f"), ("kept", "kept", ".3g"))
VIRTUAL = ("--virtual-compute", "2,2,2", "--steps", "4")  # milliseconds of a whole rank


def _names(text):
    return text.split(",")


def add_options(p):
    p.add_argument("--ranks", type=whole, default=4, metavar="N", help="default 4")
    p.add_argument("--steps", type=whole, default=20, metavar="K",
                   help="of each run (default 20)")
    p.add_argument("--schedules", type=_names, default=["gpipe", "1f1b", "zb-h1"], metavar="A,B",
                   help="of the pipelines: " + ", ".join(SCHEDULES) + "; my.csv, FILE.py:NAME "
                   "(default gpipe,1f1b,zb-h1)")


def check(o):
    """Refuse schedules that there are not, and lengths that are not this report's."""
    if any(word.partition("=")[0] in ("--steps", "--epochs") for word in o.job):
        raise UsageError("how long the runs are is the report's to say: --steps K before the --")
    for name in o.schedules:
        if not name.endswith(".csv"):
            scheduler_of(name)


def layouts(ranks):
    """Every Mesh of so many ranks, first the one with most replicas."""
    divisors = [d for d in range(1, ranks + 1) if ranks % d == 0]
    found = [Mesh(ranks // pp // tp, pp, tp) for pp in divisors for tp in divisors
             if ranks % (pp * tp) == 0]
    return sorted(found, key=lambda mesh: (-mesh.dp, mesh.pp))


def rows(o, folder):
    """A row for each layout and, of those with a pipeline, schedule. folder: of the metrics."""
    found = []
    for mesh in layouts(o.ranks):
        for i, schedule in enumerate(o.schedules if mesh.pp > 1 else [None]):
            options = [*o.job, "--dp", str(mesh.dp), "--pp", str(mesh.pp), "--tp", str(mesh.tp)]
            options += ["--schedule", schedule] if schedule else []
            path = folder / f"dp{mesh.dp}-pp{mesh.pp}-tp{mesh.tp}-{i}.jsonl"
            run = train([*options, "--steps", str(o.steps)], o.ranks, o.launcher, path)
            row = {"dp": mesh.dp, "pp": mesh.pp, "tp": mesh.tp, "layout": str(mesh),
                   "schedule": schedule}
            found.append(row)
            if run.error:
                row["error"] = run.error
                continue
            row |= {"samples_per_s": run.median("samples_per_s"),
                    "communication": run.communication(), "memory": max(run.end["memory_of_ranks"])}
            if schedule:
                row |= _simulated(o, schedule, mesh.pp)
            if schedule and mesh.tp == 1:
                virtual = train([*options, *VIRTUAL], o.ranks, o.launcher,
                                path.with_suffix(".virtual.jsonl"))
                row["bubble"] = None if virtual.error else virtual.end["bubble_rate"]
    return found


def _simulated(o, name, pp):
    """What the simulator says of a schedule."""
    job = o.job_options
    given = None if name.endswith(".csv") else job.microbatches or 2 * pp
    try:
        found = simulate(schedule_of(name, pp, given, job.chunks), Times(1, 1, 1, 0))
    except (UsageError, ScheduleError):
        return {}
    return {"predicted_bubble": float(found.bubble_rate), "kept": max(found.peaks.ranks)}


def recommend(rows):
    """One sentence: which row, and why; None if all have failed."""
    ran = sorted((row for row in rows if "error" not in row), key=lambda row: -row["samples_per_s"])
    if not ran:
        return None
    best, least = ran[0], min(ran, key=lambda row: row["memory"])
    words = f"Take {_name(best)}: {best['samples_per_s']:,.0f} samples/s"
    if len(ran) > 1:
        words += (f", {best['samples_per_s'] / ran[1]['samples_per_s']:.2f} times those of "
                  f"{_name(ran[1])}, the next")
    if least["memory"] < best["memory"]:
        words += (f"; it holds {amount(best['memory'])}, and if that is too much, {_name(least)} "
                  f"holds {amount(least['memory'])}, at {least['samples_per_s']:,.0f} samples/s")
    return words + "."


def _name(row):
    return row["layout"] + (f" with {row['schedule']}" if row["schedule"] else "")


def words(o, rows):
    """What stands below the table."""
    return filter(None, [recommend(rows)])


def draw(rows, folder, ending):
    """Draw the rows into a file of the folder."""
    plots = import_module(".plots", __package__)
    plots.strategies([{**row, "name": _name(row)} for row in rows if "error" not in row],
                     folder / f"strategies.{ending}")
