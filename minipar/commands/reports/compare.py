"""`minipar report compare`: ways to share gradients, side by side on one task."""

from importlib import import_module

from ...comm.codecs import CODECS
from ...options import UsageError
from ...parallel.hooks import compression
from ...parallel.sync.method import parse_method
from ..ranks import whole
from .jobs import evaluations
from .runs import train
from .table import amount

ABOUT = "ways to share gradients on one task: loss against samples, bytes and seconds"
EPILOG = ("loss and accuracy: of the test set, at the end. sent: bytes that a rank sends in a "
          "step, on average over ranks (servers too) and steps, evaluations apart. seconds: of "
          "the steps of rank 0. memory: parameters, gradients and the optimizer's state of the "
          "rank that holds most. staleness: updates that others made since a gradient's "
          "parameters were read, on average over the steps of rank 0.")
OWN = ("--sync", "--servers", "--compress", "--codec")
COLUMNS = (("method", "method", ""), ("loss", "test loss", ".4f"), ("accuracy", "accuracy", ".2%"),
           ("bytes_per_step", "sent", lambda n: f"{n:,.0f} B"), ("seconds", "seconds", ".2f"),
           ("memory", "memory", amount), ("staleness", "staleness", ".2f"))


def add_options(p):
    p.add_argument("methods", nargs="+", metavar="METHOD", help="of --sync: ddp, zero1, local:8, "
                   "diloco:16, gossip:ring, delayed, ps, ssp:4, ...; or compress=int8, "
                   "compress=powersgd:4, codec=float16")
    p.add_argument("--ranks", type=whole, default=4, metavar="N", help="default 4")
    p.add_argument("--servers", type=whole, metavar="K", help="of the methods that have parameter "
                   "servers (default 1)")


def check(o):
    """Refuse methods that there are not."""
    if len(set(o.methods)) < len(o.methods):
        raise UsageError(f"a method is named twice: {' '.join(o.methods)}")
    for method in o.methods:
        option, equals, value = method.partition("=")
        try:
            if not equals:
                parse_method(method, o.ranks, o.servers if _has_servers(method) else None)
            elif option not in VALUES:
                raise ValueError(f"no {option!r}: there are {', '.join(VALUES)}")
            else:
                VALUES[option](value)
        except ValueError as error:
            raise UsageError(f"{method}: {error}") from None


def _has_servers(method):
    return method.partition(":")[0] in ("ps", "ssp")


def _codec(name):
    if name not in CODECS:
        raise ValueError(f"no {name!r}: there are {', '.join(CODECS)}")


VALUES = {"compress": compression, "codec": _codec}  # {option: what refuses a wrong value}


def options_of(method, job, servers=None):
    """The options of the main job that a method's name stands for. job: those of the user."""
    option, equals, value = method.partition("=")
    found = [*job, *([f"--{option}", value] if equals else ["--sync", method])]
    return found + (["--servers", str(servers)] if servers and _has_servers(method) else [])


def rows(o, folder):
    """A row for each method. folder: of the metrics files."""
    often, found = evaluations(o), []
    for i, method in enumerate(o.methods):
        run = train([*options_of(method, o.job, o.servers), *often], o.ranks, o.launcher,
                    folder / f"{i}-{''.join(c if c.isalnum() else '-' for c in method)}.jsonl")
        row = {"method": method, "ranks": o.ranks}
        found.append(row | ({"error": run.error} if run.error else of(run)))
    return found


def of(run):
    """What a Run says of its method."""
    end, curve = run.end, run.curve()
    sent = end.get("bytes_sent")
    return {"loss": end["loss"], "accuracy": end["test_accuracy"],
            "bytes_per_step": None if sent is None else sent / end["world_size"] / end["steps"],
            "seconds": curve[-1]["seconds"], "memory": max(end["memory_of_ranks"]),
            "staleness": run.mean("staleness"), "curve": curve}


def words(o, rows):
    """What stands below the table."""
    return []


def draw(rows, folder, ending):
    """Draw the rows into three files of the folder."""
    plots = import_module(".plots", __package__)
    for key in ("samples", "bytes", "seconds"):
        plots.losses([row for row in rows if "error" not in row], key,
                     folder / f"loss-{key}.{ending}")
