"""`minipar explain KIND` or `FILE.py`: which algorithm serves, why, and what each one costs.

For a size and a number of ranks: what `auto` picks and by which entry of the table; of every
algorithm the rounds, messages and bytes, beside what none can go below; the time that the cost
model predicts and, with --measure, the time that it takes here.
"""

import json

import numpy as np

from .. import dtypes
from ..bench import BUS, parse_size
from ..comm import Topology
from ..comm.cost import cost, lower_bounds, predict
from ..comm.cost.closed_forms import FORMS
from ..comm.cost.machine import SHIPPED, nearest_machine, read_machine
from ..comm.mpi_plan import LIBRARY
from ..comm.program import ALGORITHMS
from ..comm.verify import VerificationError, verify
from ..comm.window import memory_key
from ..options import UsageError
from . import ranks, timing
from .explain_text import text
from .programs import programs_of

MEMORY = {"shared": True, "own": False, "none": None}  # what a table's entry calls `shared`


def _parser():
    p = ranks.Parser(prog="minipar explain", allow_abbrev=False,
                     description=__doc__.split("\n\n", 1)[0].split(": ", 1)[1])
    p.add_argument("what", metavar="KIND | FILE.py",
                   help="a kind of collective (" + ", ".join(ALGORITHMS) + "), or the programs of "
                        "a file beside those that come with minipar")
    p.add_argument("--size", default="4MiB", help="bytes of the buffer (default 4MiB)")
    p.add_argument("--dtype", default="float32", help="default float32")
    p.add_argument("--memory", choices=MEMORY, help="where the buffer lies: in memory that the "
                   "ranks share, in a rank's own (they share some, and it is copied), or the ranks "
                   "share none (default: shared where this machine can)")
    p.add_argument("--topology", metavar="4,2", help="ranks a node, nodes, ... from the inside out "
                   "(default: all on one node)")
    p.add_argument("--algorithm-table", "--table", metavar="FILE.json",
                   help="select by this table (default: $MINIPAR_ALGORITHMS, or minipar's)")
    p.add_argument("--machine", metavar="FILE.json", help="predict for this machine (default: "
                   "what `minipar tune --fit` has found here, or the one that comes with minipar)")
    p.add_argument("--measure", action="store_true",
                   help="also time them, on the ranks of mpirun or on -n ranks started here")
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    ranks.add_options(p)
    return p


def main(argv):
    """Run the command; returns the exit status."""
    return ranks.run(main, argv, _parser(), _job, needs_ranks=lambda o: o.measure)


def _job(o, comm):
    size = o.ranks or (comm.size if comm.size > 1 else 4)
    own = programs_of(o.what) if o.what.endswith(".py") else []
    kinds = list(dict.fromkeys(p.kind.name for p in own))
    if not own:
        if o.what not in ALGORITHMS:
            raise UsageError(f"no kind {o.what!r}: there are {', '.join(ALGORITHMS)}; a file's "
                             f"name ends with .py")
        kinds = [o.what]
    comm.read_table(o.algorithm_table)
    for program in own:
        _check(program, size, o.what)
    facts = [explain(o, comm, size, kind, [p for p in own if p.kind.name == kind])
             for kind in kinds]
    if comm.rank == 0:
        print(json.dumps(facts if own else facts[0], indent=1) if o.json
              else "\n\n".join(map(text, facts)))
    return 0


def _check(program, size, path):
    """Refuse a program that is wrong: it has no cost, and might wait for ever."""
    try:
        if program.refusal(size) is None:
            verify(program, size)
    except VerificationError as error:
        raise UsageError(f"{program.name} is wrong: {str(error).splitlines()[0]} (the whole story: "
                         f"minipar verify {path} --ranks {size})") from None


def explain(o, comm, size, kind, own=()):
    """What there is to say of a kind, as a dict that JSON can hold.

    own: Programs of the user's for it. Times in seconds, sizes in bytes.
    """
    dtype = dtypes.dtype(o.dtype).storage
    n = 0 if kind == "barrier" else parse_size(o.size) // dtype.itemsize
    if kind == "all_to_all":
        n -= n % size
    nbytes, memory = n * dtype.itemsize, _memory(o, comm)
    topo = _topology(o, size)
    machine, about = _machine(o, comm, size)
    facts = {"kind": kind, "bytes": nbytes, "elements": n, "dtype": o.dtype, "ranks": size,
             "memory": memory, "topology": list(topo.levels), "machine": about,
             "auto": _auto(comm, kind, size, nbytes, memory, topo)}
    try:
        facts["bounds"] = lower_bounds(kind, size, nbytes)
    except ValueError:  # a kind of the user's
        facts["bounds"] = None
    programs = {**{p.name: p for p in own}, **{
        name: p for name, p in ALGORITHMS.get(kind, {}).items() if p not in own}}
    facts["algorithms"] = [
        {"name": name, "own": program in own, **_of(program, size, n, dtype, machine, memory, topo)}
        for name, program in programs.items()]
    facts["algorithms"].append({"name": LIBRARY.name, "own": False, "about":
                                "the MPI library's own: what it does it does not tell"})
    if o.measure:
        for row in facts["algorithms"]:
            _measure(row, programs.get(row["name"]), comm, kind, n, dtype, memory)
    facts["algorithms"].sort(key=lambda row: ("refused" in row, row.get("predicted_s", np.inf)))
    return facts


def _memory(o, comm):
    if o.memory:
        return o.memory
    can = comm.shares_memory() if comm.size > 1 else memory_key() != 0
    return "shared" if can else "none"


def _topology(o, size):
    if not o.topology:
        return Topology((size,))
    levels = o.topology.split(",")
    if not all(level.isdecimal() for level in levels):
        raise UsageError(f"--topology {o.topology}: numbers, with commas")
    topology = Topology(tuple(map(int, levels)))
    if reason := topology.problem(size):
        raise UsageError(f"--topology: {reason}")
    return topology


def _machine(o, comm, size):
    """(Machine, {"file", "fitted_here", ...})."""
    launcher = ranks.launcher_of(comm) if comm.size > 1 else None
    path = o.machine or nearest_machine(size, launcher)[1]
    machine, content = read_machine(path)
    about = {key: content[key] for key in ("launcher", "ranks", "about") if key in content}
    return machine, {"file": str(path), "comes_with_minipar": path == SHIPPED, **about}


def _auto(comm, kind, size, nbytes, memory, topo):
    """What the table picks: {"algorithm", "entry", and its limits}, or None."""
    entry = comm.table.find(
        kind, size, nbytes, lambda: MEMORY[memory] if size > 1 else None, lambda: topo.levels[0])
    if entry is None:
        return None
    limits = {name: getattr(entry, name) for name in ("ranks", "node", "bytes", "shared")}
    return {"algorithm": entry.algorithm, "entry": entry.source,
            **{name: value for name, value in limits.items() if value is not None}}


def _of(program, size, n, dtype, machine, memory, topo):
    """What one program costs, or why it cannot serve."""
    reason = timing.reason_against(program, size, topo, memory != "none")
    if reason:
        return {"refused": reason}
    options = {"topo": topo} if "topo" in program.wants else {}
    if program.kind.rooted:
        options["root"] = 0
    nbytes = n * dtype.itemsize
    took = cost(program, size, n, dtype.itemsize, **options)
    seconds = predict(program, size, n, machine, dtype.itemsize, **options)
    if memory == "own" and timing.is_one_sided(program, size, topo):
        seconds += 2 * nbytes * machine.at(nbytes).copy  # there and back
    found = {**vars(took), "predicted_s": seconds}
    form = FORMS.get((program.kind.name, program.name))
    if form is not None and program is ALGORITHMS[program.kind.name].get(program.name):
        found |= {"form": form.text(), "legend": form.legend()}
    return found


def _measure(row, program, comm, kind, n, dtype, memory):
    """Add the measured time, or why there is none."""
    if "refused" in row:
        return
    if program is None and ranks.launcher_of(comm) != "mpi":
        row["refused"] = "it needs ranks under mpirun"
        return
    algorithm = LIBRARY.name if program is None else program
    if memory == "shared" and kind in BUS:
        row["measured_s"] = timing.seconds_of(comm, kind, n * dtype.itemsize, algorithm, dtype)
        return
    make = comm.empty if memory == "shared" else np.empty
    room = make((2 * n,), dtype)
    room.fill(0)
    arrays = timing.arrays_in(room, comm, kind, n)
    row["measured_s"] = timing.seconds_on(comm, kind, arrays, algorithm)
