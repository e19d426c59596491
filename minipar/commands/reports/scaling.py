"""`minipar report scaling`: the main job on 1, 2, 4, ... ranks."""

import argparse
from importlib import import_module

from ...options import UsageError
from ..tune import usable_cores
from . import possible
from .jobs import evaluations
from .runs import train
from .table import amount

ABOUT = "how training gains by more ranks: throughput, speed-up, efficiency, communication"
EPILOG = ("strong: the same global batch on all numbers of ranks; weak: the batch grows with them. "
          "Medians over the steps after the first tenth. possible: the speed-up by the cost model, "
          "from one rank's computation, shared by as many ranks as there are cores, and the "
          "predicted time of the all-reduce. waiting: the part of a step in which rank 0 waited "
          "for messages; overlap: the part of the reductions that ran beside computation. The "
          "gradients' norm, variance and cosine between ranks come from a run of their own.")
OWN = ("--servers",)
COLUMNS = (("scaling", "scaling", ""), ("ranks", "ranks", "d"), ("batch_size", "batch", "d"),
           ("samples_per_s", "samples/s", ",.0f"), ("speedup", "speed-up", ".2f"),
           ("efficiency", "efficiency", ".0%"), ("possible", "possible", ".2f"),
           ("of_possible", "of it", ".0%"), ("communication", "waiting", ".0%"),
           ("overlap", "overlap", ".0%"), ("gradient_bytes", "gradient", amount),
           ("algorithm", "by", ""), ("loss", "test loss", ".4f"), ("accuracy", "accuracy", ".2%"),
           ("grad_norm", "|gradient|", ".3g"), ("grad_variance", "variance", ".3g"),
           ("grad_cosine", "cosine", ".3f"))


def _counts(text):
    found = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if found[0] != 1 or sorted(set(found)) != found:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers of ranks that grow from 1 on, "
                                         f"with which all are compared: 1,2,4")
    return found


def add_options(p):
    p.add_argument("--ranks", type=_counts, default=[1, 2, 4], metavar="1,2,4",
                   help="numbers of ranks, the first of them 1 (default 1,2,4)")
    p.add_argument("--weak", action="store_true", help="also let the batch grow with the ranks; "
                   "all runs see as many samples")
    p.add_argument("--no-gradients", action="store_true",
                   help="no second run for the gradients' norm, variance and cosine")


def check(o):
    """Refuse what no run could do."""
    for axis in ("dp", "pp", "tp"):
        if (getattr(o.job_options, axis) or 1) > 1:
            raise UsageError(f"--{axis} {getattr(o.job_options, axis)} does not go with one rank: "
                             f"minipar report strategies compares layouts")


def rows(o, folder):
    """A row for each number of ranks, strong and then weak. folder: of the metrics files."""
    often, found = evaluations(o), []
    for kind in ("strong", "weak")[:1 + o.weak]:
        for n in o.ranks if kind == "strong" else o.ranks[1:]:
            options = [*o.job, *often, *(_weaker(o, n) if kind == "weak" else [])]
            run = train(options, n, o.launcher, folder / f"{kind}-{n}.jsonl")
            row = {"scaling": kind, "ranks": n,
                   "batch_size": o.job_options.batch_size * (n if kind == "weak" else 1)}
            found.append(row)
            if run.error:
                row["error"] = run.error
                continue
            row |= _of(run)
            if not o.no_gradients and _has_gradients(o.job_options):
                extra = train([*options, "--gradient-stats"], n, o.launcher,
                              folder / f"{kind}-{n}-gradients.jsonl")
                row |= {key: extra.mean(key) for key in ("grad_norm", "grad_variance",
                                                         "grad_cosine")}
    compare(found, usable_cores(), o.job_options, o.launcher)
    return found


def _weaker(o, n):
    """Options for n times the batch, and as many samples."""
    job = o.job_options
    steps = ["--steps", str(max(1, job.steps // n))] if job.steps else []
    kept = ["--batch-size", str(job.batch_size * n), *steps]
    if job.eval_every or job.steps:  # as often, counted in samples
        every = job.eval_every or max(1, job.steps // 12)
        kept += ["--eval-every", str(max(1, every // n))]
    return kept


def _has_gradients(job):
    return job.sync == "ddp" and job.device == "cpu" and job.amp != "float16" and not (
        job.compress or job.exact)


def _of(run):
    """What one run says by itself."""
    end = run.end
    name, nbytes = possible.chosen(end) or (None, None)
    return {"samples_per_s": run.median("samples_per_s"), "compute_s": run.median("compute_s"),
            "communication": run.communication(), "overlap": run.median("overlap"),
            "algorithm": name, "gradient_bytes": nbytes, "loss": end["loss"],
            "accuracy": end["test_accuracy"], "grad_norm": run.mean("grad_norm"),
            "curve": run.curve()}


def compare(rows, cores, job, launcher):
    """Add to the rows what they are relative to the first, one rank's; nothing, if it failed.

    job: the options of the main job.
    """
    alone = rows[0]
    for row in rows:
        n = row["ranks"]
        if "error" in row or "error" in alone:
            continue
        row["speedup"] = row["samples_per_s"] / alone["samples_per_s"]
        row["efficiency"] = row["speedup"] / n
        if row["algorithm"] is None or job.compress or job.codec or job.exact:
            continue
        took = possible.communication(row["algorithm"], row["gradient_bytes"], n, job.dtype,
                                      launcher) if n > 1 else 0.0
        if took is None:
            continue
        row["predicted_comm_s"] = took
        row["possible"] = possible.speedup(n, cores, alone["compute_s"], row["predicted_comm_s"],
                                           row["batch_size"] / alone["batch_size"])
        row["of_possible"] = row["speedup"] / row["possible"]


def words(o, rows):
    """What stands below the table."""
    cores = usable_cores()
    yield f"{cores} cores; a rank computes on one thread"
    if max(o.ranks) > cores:
        yield f"more than {cores} ranks share cores: no speed-up above {cores} is possible"


def draw(rows, folder, ending):
    """Draw the rows into two files of the folder."""
    plots = import_module(".plots", __package__)
    plots.scaling([row for row in rows if "error" not in row], folder / f"scaling.{ending}")
    plots.training([row for row in rows if "error" not in row], folder / f"training.{ending}")
