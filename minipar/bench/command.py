"""`minipar bench`: its options, its table, its files."""

import argparse
import json
import statistics
import sys
from importlib.util import find_spec
from pathlib import Path

from .. import dtypes
from ..comm import world
from ..comm.cost import predict
from ..comm.cost.machine import read_machine
from ..comm.program import ALGORITHMS
from ..comm.reduction import OPS
from ..options import UsageError
from . import gloo
from .cases import BUS, Case
from .contestants import OTHERS
from .picture import plot
from .sizes import sizes_of
from .timing import ROUNDS, compare


def parser():
    others = "; ".join(f"{name}: {words}" for name, words in OTHERS.items())
    p = argparse.ArgumentParser(
        prog="minipar bench", description="collectives timed, size by size, algorithms side by "
        "side; start it with mpirun", epilog=f"--algorithms also takes: {others}")
    p.add_argument("kind", choices=sorted(BUS))
    p.add_argument("--algorithms", default="auto", metavar="NAMES",
                   help="with commas: auto, mpi, names, FILE.py:NAME; or all (default: auto)")
    p.add_argument("--algorithm-table", metavar="FILE.json",
                   help="what auto selects by, before minipar's own table (default: "
                        "$MINIPAR_ALGORITHMS); minipar tune writes one")
    p.add_argument("--against", default="", metavar="NAMES",
                   help="algorithms to be timed too, in turn with the others, and told the ratios "
                        "of time to")
    p.add_argument("--sizes", default="4:256MiB", metavar="LOW:HIGH",
                   help="bytes of the buffer, in steps of 4; or one size, or several with commas "
                        "(default: %(default)s)")
    p.add_argument("--dtype", default="float32")
    p.add_argument("--op", default="sum", choices=OPS, help="the reduction (default: sum)")
    p.add_argument("--root", default=0, type=int, help="of broadcast, reduce, gather, scatter")
    p.add_argument("--memory", default="shared", choices=("shared", "ordinary"),
                   help="where buffers lie: in memory that the ranks share, as gradients do "
                        "(default), or not")
    p.add_argument("--cadence", choices=("streaming", "isolated"), default="streaming",
                   help="runs back to back (default), or each alone after a barrier")
    p.add_argument("--rounds", default=ROUNDS, type=int,
                   help="how often the algorithms take turns (default: %(default)s)")
    p.add_argument("--seconds", default=0.2, type=float,
                   help="for each algorithm and size, about (default: %(default)s)")
    p.add_argument("--machine", metavar="FILE.json",
                   help="the machine that `minipar tune --fit` has written: what the model "
                        "predicts is told in --json, and dotted in --plot")
    p.add_argument("--json", metavar="FILE", help="also write the rows")
    p.add_argument("--plot", metavar="FILE.png", help="also draw them (needs matplotlib)")
    return p


def main(argv=None):
    """Run the benchmark on the ranks of this job; returns the exit status."""
    o = parser().parse_args(argv)
    comm = world()
    try:
        _check(o)
        comm.read_table(o.algorithm_table)
        rows = run(o, comm)
    except (UsageError, ValueError, TypeError) as error:
        if comm.rank == 0:
            print(f"minipar: error: {error}", file=sys.stderr)
        return 2
    finally:
        gloo.leave()
    if comm.rank == 0 and o.json:
        about = {key: getattr(o, key) for key in ("kind", "dtype", "op", "root", "memory",
                                                  "cadence", "rounds")}
        with open(o.json, "w", encoding="utf-8") as file:
            json.dump({**about, "ranks": comm.size, "rows": rows}, file, indent=1)
    if comm.rank == 0 and o.plot:
        plot(rows, o.plot, f"{o.kind}, {comm.size} ranks, {o.cadence}")
    return 1 if any(row["wrong"] for row in rows) else 0


def run(o, comm):
    """Print the table of the parsed options `o`; returns its rows."""
    dtype = dtypes.dtype(o.dtype).storage
    sizes = [0] if o.kind == "barrier" else sizes_of(o.sizes, dtype.itemsize)
    names, against = o.algorithms.split(","), list(filter(None, o.against.split(",")))
    if o.algorithms == "all":
        names = [n for n, p in ALGORITHMS[o.kind].items() if p.refusal(comm.size) is None]
    names = list(dict.fromkeys(names + against))
    machine = read_machine(o.machine)[0] if o.machine else None
    where = "window" if o.memory == "shared" else "ordinary"
    Case(comm, o.kind, max(sizes), dtype, o.op, o.root, where)  # takes the memory for all sizes
    say = print if comm.rank == 0 else lambda *a, **k: None
    for line in _header(o, comm.size, against):
        say(line)
    rows = []
    for nbytes in sizes:
        case = Case(comm, o.kind, nbytes, dtype, o.op, o.root, where)
        for row in compare(case, names, o.cadence, o.seconds, against, o.rounds):
            rows.append({"size": case.nbytes, "count": case.count, **row})
            program = ALGORITHMS[o.kind].get(row["algorithm"])
            if machine is not None and program is not None:
                rows[-1]["predicted_us"] = 1e6 * predict(
                    program, comm.size, case.count, machine, dtype.itemsize, root=o.root,
                    topo=comm.topology if "topo" in program.wants else None)
            say(_line(rows[-1], o, against), flush=True)
    say(f"# Avg bus bandwidth: {statistics.mean(row['busbw'] for row in rows):.3f} GB/s")
    return rows


COLUMNS = (("size", "(B)", 12), ("count", "(elements)", 10), ("type", "", 8), ("redop", "", 5),
           ("root", "", 4), ("algorithm", "", 24), ("time", "(us)", 10), ("min", "(us)", 10),
           ("p99", "(us)", 10), ("algbw", "(GB/s)", 7), ("busbw", "(GB/s)", 7), ("#wrong", "", 6))
RATIO = 26  # the width of a column of ratios


def _header(o, size, against):
    reduces = "" if o.kind in ("broadcast", "barrier") else f", {o.op}"
    yield (f"# {o.kind}, {size} ranks, {o.dtype}{reduces}, {o.memory} memory, cadence {o.cadence}, "
           f"{o.rounds} rounds")
    for part in (0, 1):
        words = [f"{column[part]:>{column[2]}}" for column in COLUMNS]
        words += [f"{('time/' + name, 'median least-most')[part]:>{RATIO}}" for name in against]
        yield "#" + " ".join(words)[1:]


def _line(row, o, against):
    reduces = "reduce" in o.kind
    rooted = o.kind in ("broadcast", "reduce", "gather", "scatter")
    values = (row["size"], row["count"], o.dtype, o.op if reduces else "none",
              o.root if rooted else -1, row["algorithm"], f"{row['time_us']:.1f}",
              f"{row['min_us']:.1f}", f"{row['p99_us']:.1f}", f"{row['algbw']:.2f}",
              f"{row['busbw']:.2f}", row["wrong"])
    words = [f"{value:>{column[2]}}" for value, column in zip(values, COLUMNS)]
    for name in against:
        ratio = row["against"].get(name)
        words.append(f"{'' if ratio is None else '{:.2f} {:.2f}-{:.2f}'.format(*ratio):>{RATIO}}")
    return " ".join(words)


def _check(o):
    """Refuse what cannot be, and what could not be written, before anything is timed."""
    if o.rounds < 1 or not o.seconds > 0:
        raise UsageError(f"--rounds {o.rounds} and --seconds {o.seconds} are both above 0")
    for path in filter(None, (o.json, o.plot)):
        if not Path(path).resolve().parent.is_dir() or Path(path).is_dir():
            raise UsageError(f"{path} cannot be written: {Path(path).resolve().parent} is no "
                             f"folder, or it is one itself")
    if o.plot and find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'minipar[viz]'")
