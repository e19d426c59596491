"""The collectives' table: time against MPI's own, gloo's, and what memory allows, with targets.

    python benchmarks/collectives.py [--ranks 2,4] [--sections all_reduce,p2p,...] [--json FILE]

Starts itself under mpirun, once for each number of ranks. What is compared works on the same
buffers (float32, in memory that the ranks share, as data parallelism has its gradients) in one
run, in turn; every result is checked before and after; a ratio is the median over the rounds of
the ratio within a round (`minipar bench --help`). `auto` is what minipar picks where nothing is
said, in plans; MPI's collectives are the blocking ones, called from Python through mpi4py.

Sections:
  all_reduce  auto / MPI_Allreduce, 8 B to 64 MiB
  scatter     reduce_scatter and all_gather, from an input to an output: auto / MPI's, from 256 KiB
  p2p         the algorithm that auto picks where no memory is shared / MPI_Allreduce, from 1 MiB
  gloo        auto / torch.distributed over gloo, 8 B to 64 MiB
  predicted   the model's time / the measured time, of each algorithm, at sizes between those of
              the fit: `minipar tune --fit` is run first for as many ranks (--machine: what it has
              written before)
  memory      one result in memory of all ranks / (n+1) bytes at the rate of all ranks' copies
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ.pop("OPENBLAS_CORETYPE", None)

import numpy as np

from minipar.bench import Case, compare, parse_size

from peers import geometric_mean

KIB, MIB = 2**10, 2**20
FLOAT = np.dtype(np.float32)
LARGEST = 64 * MIB


def sizes(low, high, factor=4):
    """`low`, `factor` times as much, ... and `high`, in bytes; none if `high` is less."""
    out = [low * factor**i for i in range(40) if low * factor**i < high]
    return [*out, high] if high >= low else []


# ------------------------------------------------------------------ on the ranks


def ratios(comm, o, kind, which, ours, theirs):
    """[{"size", "time_us", "peer_us", "ratio", "low", "high", "algorithm"}] over the sizes.

    ours: a name, or a function of the size that gives one.
    """
    found = []
    for nbytes in which:
        say(comm, f"  {kind} {theirs} {nbytes}")
        case = Case(comm, kind, nbytes, FLOAT)
        name = ours(nbytes) if callable(ours) else ours
        mine, peer = compare(case, [name, theirs], o.cadence, o.seconds, [theirs], o.rounds)
        if mine["wrong"] or peer["wrong"]:
            raise SystemExit(f"{kind} of {nbytes} bytes: {mine['wrong']} wrong elements by {name}, "
                             f"{peer['wrong']} by {theirs}")
        ratio, low, high = mine["against"][theirs]
        # `more_us`: by the ratio within a round, which what else the machine does changes little.
        found.append({"size": nbytes, "algorithm": mine["algorithm"], "time_us": mine["time_us"],
                      "peer_us": peer["time_us"], "more_us": mine["time_us"] * (1 - 1 / ratio),
                      "ratio": ratio, "low": low, "high": high})
    return found


def all_reduce(comm, o):
    return {"all_reduce": ratios(comm, o, "all_reduce", sizes(8, o.largest, 2), "auto",
                                 "mpi-blocking")}


def scatter(comm, o):
    return {kind: ratios(comm, o, kind, sizes(256 * KIB, o.largest), "auto", "mpi-blocking")
            for kind in ("reduce_scatter_into", "all_gather_into")}


def p2p(comm, o):
    from minipar.comm.select import select

    def by_messages(nbytes):
        return select("all_reduce", comm.size, nbytes)  # of ranks that share no memory
    return {"p2p": ratios(comm, o, "all_reduce", sizes(MIB, o.largest), by_messages,
                          "mpi-blocking")}


def gloo(comm, o):
    from minipar.options import UsageError
    try:
        return {"gloo": ratios(comm, o, "all_reduce", sizes(8, o.largest), "auto", "gloo")}
    except UsageError as error:  # alike on all ranks
        say(comm, f"  {error}")
        return {}


def memory(comm, o):
    return {"memory": ratios(comm, o, "all_reduce", sizes(4 * MIB, o.largest), "shared_result",
                             "memory")}


def predicted(comm, o):
    from minipar.comm.cost import predict
    from minipar.comm.cost.machine import read_machine
    from minipar.comm.program import ALGORITHMS
    machine = read_machine(o.machine)[0]
    found = []
    for nbytes in sizes(96, o.largest):  # the fit takes powers of two
        say(comm, f"  predicted {nbytes}")
        case = Case(comm, "all_reduce", nbytes, FLOAT)
        names = [name for name, p in ALGORITHMS["all_reduce"].items()
                 if p.refusal(comm.size) is None]
        for row in compare(case, names, o.cadence, o.seconds / 2, (), 3):
            program = ALGORITHMS["all_reduce"][row["algorithm"]]
            us = 1e6 * predict(program, comm.size, case.count, machine, root=0,
                               topo=comm.topology if "topo" in program.wants else None)
            found.append({"size": nbytes, "algorithm": row["algorithm"], "predicted_us": us,
                          "time_us": row["time_us"]})
    return {"predicted": found}


SECTIONS = {"all_reduce": all_reduce, "scatter": scatter, "p2p": p2p, "gloo": gloo,
            "memory": memory, "predicted": predicted}


def say(comm, words):
    if comm.rank == 0:
        print(words, file=sys.stderr, flush=True)


def on_the_ranks(o):
    """Run the sections; rank 0 writes {section: rows} to the file `o.out`."""
    from minipar.bench import gloo as torch_gloo
    from minipar.comm import world
    comm, found = world(), {}
    Case(comm, "all_reduce", o.largest, FLOAT)  # takes the memory for all sizes
    for section in o.sections.split(","):
        say(comm, f"{comm.size} ranks: {section}")
        found |= SECTIONS[section](comm, o)
    torch_gloo.leave()
    if comm.rank == 0:
        import mpi4py
        from minipar.comm.transport.mpi import version
        Path(o.out).write_text(json.dumps({
            "versions": {"mpi": version(), "mpi4py": mpi4py.__version__}, "rows": found}))


# ------------------------------------------------------------------ the table


def worst(rows):
    return max(rows, key=lambda row: row["ratio"])


def geomean(rows):
    return geometric_mean([row["ratio"] for row in rows])


def told(rows, low=0, high=float("inf")):
    return [row for row in rows if low <= row["size"] < high]


# (what, against, rows it is made from, of what sizes, its figure, target, digits and unit).
LINES = (
    ("all_reduce, from 256 KiB, geometric mean", "MPI_Allreduce", "all_reduce",
     (256 * KIB,), geomean, 0.3, "{:.2f}"),
    ("all_reduce, from 64 KiB, worst size", "MPI_Allreduce", "all_reduce",
     (64 * KIB,), lambda rows: worst(rows)["ratio"], 1.05, "{:.2f}"),
    ("all_reduce, below 64 KiB, most above it", "MPI_Allreduce", "all_reduce",
     (0, 64 * KIB), lambda rows: max(row["more_us"] for row in rows), 1.5,
     "{:+.1f} us"),
    ("reduce_scatter, from 256 KiB, geometric mean", "MPI's", "reduce_scatter_into",
     (256 * KIB,), geomean, 0.5, "{:.2f}"),
    ("all_gather, from 256 KiB, geometric mean", "MPI's", "all_gather_into",
     (256 * KIB,), geomean, 0.5, "{:.2f}"),
    ("all_reduce by messages, from 1 MiB, geometric mean", "MPI_Allreduce", "p2p",
     (MIB,), geomean, 0.9, "{:.2f}"),
    ("all_reduce, geometric mean", "gloo", "gloo", (0,), geomean, 0.2, "{:.3f}"),
    ("all_reduce into one result, from 4 MiB, worst size", "the memory limit", "memory",
     (4 * MIB,), lambda rows: worst(rows)["ratio"], 1.5, "{:.2f}"),
    ("predicted time, all algorithms, median error", "the measured", "predicted", (0,),
     lambda rows: statistics.median(abs(r["predicted_us"] / r["time_us"] - 1) for r in rows), 0.25,
     "{:.2f}"),
)


def table(results):
    """[{"what", "against", "target", "found": {ranks: figure}, "met"}] of {ranks: {section: rows}}.

    Lines of which nothing was measured are left out.
    """
    out = []
    for what, against, section, limits, figure, target, form in LINES:
        found = {ranks: figure(rows) for ranks, sections in results.items()
                 if (rows := told(sections.get(section, ()), *limits))}
        if found:
            out.append({"what": what, "against": against, "target": target, "found": found,
                        "met": max(found.values()) <= target, "form": form})
    return out


def show(lines, results):
    counts = list(results)
    print(f"{'what':<52}{'against':<18}{'target':>10}"
          + "".join(f"{f'n = {n}':>11}" for n in counts))
    for line in lines:
        cells = [line["form"].format(line["found"][n]) if n in line["found"] else ""
                 for n in counts]
        print(f"{line['what']:<52}{line['against']:<18}"
              f"{'<= ' + line['form'].format(line['target']):>10}"
              + "".join(f"{cell:>11}" for cell in cells)
              + ("  met" if line["met"] else "  MISSED"))


def processor():
    """What this machine's processor calls itself."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def about():
    from importlib.metadata import PackageNotFoundError, version
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = None
    return {"date": time.strftime("%Y-%m-%d"), "processor": processor(), "cores": os.cpu_count(),
            "python": platform.python_version(), "numpy": np.__version__, "torch": torch}


def launch(o, ranks):
    """{"versions", "rows"} of the sections on so many ranks under mpirun."""
    mpirun = shutil.which("mpirun", path=os.path.dirname(sys.executable)) or shutil.which("mpirun")
    if mpirun is None:
        raise SystemExit("there is no mpirun: pip install 'minipar[mpi]'")
    root = Path(__file__).resolve().parent.parent
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryDirectory() as folder:
        out, machine = Path(folder, "rows.json"), o.machine
        if not machine and "predicted" in o.sections.split(","):
            machine = Path(folder, "machine.json")
            subprocess.run(
                [sys.executable, "-m", "minipar", "tune", "--fit", "--ranks", str(ranks),
                 "--launcher", "mpi", "--output", machine],
                check=True, timeout=300, env=env, stdout=sys.stderr)
        subprocess.run(
            [mpirun, "-n", str(ranks), sys.executable, __file__, "--out", out, "--sections",
             o.sections, "--seconds", str(o.seconds), "--rounds", str(o.rounds), "--cadence",
             o.cadence, "--largest", str(o.largest), "--machine", machine],
            check=True, timeout=600, env=env)
        return json.loads(out.read_text())


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--ranks", default="2,4", help="numbers of ranks (default: %(default)s)")
    p.add_argument("--sections", default=",".join(SECTIONS), help="(default: all)")
    p.add_argument("--seconds", type=float, default=0.25, help="for each algorithm and size")
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--cadence", choices=("streaming", "isolated"), default="isolated")
    p.add_argument("--largest", type=parse_size, default=LARGEST, metavar="SIZE")
    p.add_argument("--machine", default="", metavar="FILE",
                   help="for the section predicted (default: fitted first)")
    p.add_argument("--json", metavar="FILE", help="write the table and all that was measured")
    p.add_argument("--out", help=argparse.SUPPRESS)  # on a rank: where rank 0 writes
    o = p.parse_args()
    if unknown := set(o.sections.split(",")) - set(SECTIONS):
        p.error(f"no section {min(unknown)!r}: there are {', '.join(SECTIONS)}")
    if o.out:
        return on_the_ranks(o)
    done = {ranks: launch(o, ranks) for ranks in o.ranks.split(",")}
    results = {ranks: found["rows"] for ranks, found in done.items()}
    lines = table(results)
    show(lines, results)
    if o.json:
        versions = next(iter(done.values()))["versions"]
        Path(o.json).write_text(json.dumps(
            {**about(), **versions, "cadence": o.cadence, "rounds": o.rounds, "dtype": "float32",
             "table": [{k: v for k, v in line.items() if k != "form"} for line in lines],
             "rows": results}, indent=1) + "\n")
    return None


if __name__ == "__main__":
    sys.exit(main())
