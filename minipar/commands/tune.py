"""`minipar tune`: measure this machine, and write what algorithms are selected and priced by.

Without --fit every algorithm is timed at sizes of a grid, and the fastest ones become a selection
table (JSON), which MINIPAR_ALGORITHMS or --algorithm-table names. With --fit the parameters of
the cost model are fitted, for `minipar explain` and whoever else predicts.
"""

import json
import os
from math import isqrt
from pathlib import Path

import numpy as np

from .. import dtypes
from ..bench import BUS, parse_size, sizes_between
from ..comm.cost.fit import errors, fit
from ..comm.cost.machine import fitted_path, nearest_machine, write_machine
from ..comm.select.table_file import entries_of
from ..options import UsageError
from . import ranks, timing

LIMITS = (16 * 2**10, 256 * 2**10, 2 * 2**20)  # where per-byte prices may change: about L1, L2, L3
CLOSE = 1.05  # a winner stays one at the next size if it takes at most so much of the best time


def _parser():
    p = ranks.Parser(prog="minipar tune", allow_abbrev=False,
                     description=__doc__.split(": ", 1)[1].split("\n\n")[0])
    p.add_argument("--fit", action="store_true",
                   help="fit the cost model's parameters to this machine")
    p.add_argument("--kinds", default="all_reduce,reduce_scatter,all_gather,broadcast,reduce",
                   metavar="KIND,KIND", help="collectives to time (default %(default)s)")
    p.add_argument("--sizes", default="64:4MiB", metavar="LOW:HIGH",
                   help="bytes of the buffer, in steps of 4; or several, with commas (default "
                        "%(default)s)")
    p.add_argument("--dtype", default="float32", help="default float32")
    p.add_argument("--seconds", type=float, default=0.05,
                   help="for each measurement (default %(default)s)")
    p.add_argument("--output", metavar="FILE",
                   help="where to write; default algorithms.json here, whose other entries stay; "
                        "with --fit a file in the user's cache folder")
    ranks.add_options(p)
    return p


def main(argv):
    """Run the command; returns the exit status."""
    return ranks.run(main, argv, _parser(), _job)


def _job(o, comm):
    if comm.size == 1:
        raise UsageError("1 rank has nobody to talk to: --ranks N, or mpirun -n N")
    kinds = o.kinds.split(",")
    for kind in kinds:
        if kind not in BUS:
            raise UsageError(f"no kind {kind!r} that can be timed: there are {', '.join(BUS)}")
    if not o.seconds > 0:
        raise UsageError(f"--seconds {o.seconds} is not > 0")
    dtype = dtypes.dtype(o.dtype).storage
    sizes = _sizes(o.sizes, dtype.itemsize)
    name = ranks.launcher_of(comm)
    output = Path(o.output or (fitted_path(name, comm.size) if o.fit else "algorithms.json"))
    _check(output, comm, o.fit)
    say = print if comm.rank == 0 else lambda *a, **k: None
    return (_fit if o.fit else _table)(o, comm, kinds, sizes, dtype, output, say)


def _sizes(text, itemsize):
    """The sizes in bytes that --sizes asks for, ascending, whole elements."""
    if ":" in text:
        low, high = map(parse_size, text.split(":"))
        found = sizes_between(max(low, itemsize), high)
    else:
        found = [parse_size(part) for part in text.split(",")]
    found = sorted({nbytes // itemsize * itemsize for nbytes in found})
    if not found or found[0] < itemsize:
        raise UsageError(f"--sizes {text}: a buffer has at least one element, {itemsize} bytes")
    return found


def _check(output, comm, fits):
    """Refuse, on all ranks, what rank 0 could not write or go on from, before anything is timed."""
    problem = None
    if comm.rank == 0:
        if fits:
            try:
                output.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                problem = f"{output} cannot be written: {error.strerror}"
        elif output.is_file():
            try:
                entries_of(output.read_text(encoding="utf-8"), str(output))
            except (OSError, ValueError) as error:
                problem = f"{error}; --output names another file"
        if not output.resolve().parent.is_dir() or output.is_dir():
            problem = problem or (f"{output} cannot be written: {output.resolve().parent} is no "
                                  f"folder, or it is one itself")
    if problem := comm.broadcast_object(problem):
        raise UsageError(problem)


# ------------------------------------------------------------------ the selection table


def _table(o, comm, kinds, sizes, dtype, output, say):
    say(f"# {comm.size} ranks ({ranks.launcher_of(comm)}), {o.dtype}: the fastest of each size")
    made = []
    for kind in kinds:
        serve, refused = timing.candidates(comm, kind)
        for name, reason in refused.items():
            say(f"# not timed: {kind} {name} ({reason})")
        one_sided = {n for n, p in serve.items()
                     if timing.is_one_sided(p, comm.size, timing.topology_of(comm))}
        inside, outside = {}, {}  # {size: {algorithm: seconds}}: buffer in shared memory, or not
        room = comm.empty((2 * (sizes[-1] // dtype.itemsize),), dtype)
        room.fill(0)
        for nbytes in sizes:
            inside[nbytes] = timing.fastest(comm, kind, room, nbytes, serve, o.seconds)
            own = np.zeros(2 * (nbytes // dtype.itemsize), dtype)
            outside[nbytes] = inside[nbytes] | timing.fastest(comm, kind, own, nbytes, one_sided,
                                                              o.seconds, checks=False)
            best = min(inside[nbytes], key=inside[nbytes].get)
            say(f"  {kind:16} {nbytes:10} B  {best:24} {inside[nbytes][best] * 1e6:10.1f} us",
                flush=True)
        made += entries(kind, comm.size, inside, outside, one_sided)
    if comm.rank == 0:
        write_table(output, made, f"Measured by minipar tune on {comm.size} ranks "
                                  f"({ranks.launcher_of(comm)}), {o.dtype}.")
    say(f"{output}: {len(made)} entries for {comm.size} ranks; MINIPAR_ALGORITHMS={output} or "
        f"--algorithm-table {output} selects by them")
    return 0


def entries(kind, size, inside, outside, one_sided=()):
    """The entries of a table, as dicts, that name the fastest algorithm for `size` ranks.

    inside, outside: {bytes: {algorithm: seconds}}, with the buffer in memory that the ranks share
    and elsewhere. one_sided: the algorithms that work in such memory: without it, they are out.
    Neighbouring sizes that one algorithm wins are one entry; limits lie half-way (of logarithms).
    """
    out = []
    for shared, times in ((True, inside), (False, outside), (None, inside)):
        allowed = {nbytes: {name: t for name, t in of.items()
                            if shared is not None or name not in one_sided}
                   for nbytes, of in times.items()}
        steps = _winners(allowed)
        if shared is not None and not {name for _, name in steps} & set(one_sided):
            continue  # as without shared memory
        for limit, name in steps:
            fields = {"kind": kind, "ranks": size, "bytes": limit, "shared": shared,
                      "algorithm": name}
            out.append({field: value for field, value in fields.items() if value is not None})
    return out


def _winners(times):
    """[(largest bytes or None, algorithm)], ascending: who is fastest at {bytes: {name: seconds}}.
    """
    steps = []
    for nbytes in sorted(times):
        here = times[nbytes]
        name = min(here, key=here.get)
        if steps and here.get(steps[-1][1], np.inf) <= CLOSE * here[name]:
            name = steps[-1][1]
        if steps and steps[-1][1] == name:
            steps[-1] = nbytes, name
        else:
            if steps:
                steps[-1] = isqrt(steps[-1][0] * nbytes), steps[-1][1]
            steps.append((nbytes, name))
    return steps[:-1] + [(None, steps[-1][1])]


def write_table(path, made, about):
    """Write entries to a table's file, in place of those that it has of the same kinds and ranks.

    Those of fewer ranks come first, as the first match counts.
    """
    kept = []
    if path.is_file():
        replaced = {(entry["kind"], entry["ranks"]) for entry in made}
        kept = [entry for entry in json.loads(path.read_text(encoding="utf-8"))["table"]
                if (entry["kind"], entry.get("ranks")) not in replaced]
    rows = sorted(made + kept, key=lambda e: (e["kind"], e.get("ranks") or float("inf")))
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    draft.write_text(f'{{\n "about": {json.dumps(about)},\n "table": [\n{lines}\n ]\n}}\n',
                     encoding="utf-8")
    os.replace(draft, path)


# ------------------------------------------------------------------ the machine


def _fit(o, comm, kinds, sizes, dtype, output, say):
    """Fit at the sizes, and predict between them."""
    name = ranks.launcher_of(comm)
    between = [nbytes // dtype.itemsize * dtype.itemsize
               for nbytes in (isqrt(a * b) for a, b in zip(sizes, sizes[1:]))]
    seen = timing.probe_runs(comm, sizes) + timing.algorithm_runs(comm, kinds, sizes)
    unseen = timing.algorithm_runs(comm, kinds, between)
    say(f"# {comm.size} ranks ({name}), {o.dtype}: {len(seen)} measurements to fit, and "
        f"{len(unseen)} between them to predict", flush=True)
    measured = timing.samples(comm, seen + unseen, dtype, o.seconds)
    if comm.rank == 0:
        known, asked = measured[:len(seen)], measured[len(seen):]
        machine = best_fit(known, comm.size)
        for limit, prices in machine.levels():
            say(f"{'to ' + format(limit, ',') if limit else 'larger':>14} B: "
                + ", ".join(f"{field} {getattr(prices, field):.3g}" for field in (
                    "alpha", "beta", "gamma", "copy", "access", "get_reduce")))
        say(f"{'any size':>16}: " + ", ".join(
            f"{field} {getattr(machine, field):.3g}" for field in (
                "run", "round", "call", "fence")) + f"; {machine.cores} cores")
        found = {"fitted": float(np.median(errors(known, machine)))}
        if asked:
            found["unseen"] = float(np.median(errors(asked, machine)))
            _tell_errors(asked, machine, say)
        write_machine(output, machine, launcher=name, ranks=comm.size, dtype=o.dtype,
                      median_error=found)
        say(f"{output}: median error {found['fitted']:.0%} where it was fitted"
            + (f", {found['unseen']:.0%} at sizes that the fit has not seen" if asked else ""))
    comm.barrier()
    return 0


def best_fit(samples, size, cores=None):
    """The Machine that predicts the samples best, of those whose ranks share this machine's cores
    and those whose ranks take turns (threads of one interpreter)."""
    cores = cores or usable_cores()
    start = nearest_machine(size)[0]
    made = [fit(samples, start, n, LIMITS) for n in sorted({1, cores}, reverse=True)]
    return min(made, key=lambda machine: np.median(errors(samples, machine)))


def usable_cores():
    """How many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _tell_errors(samples, machine, say):
    """The median error of each algorithm."""
    by_name = {}
    for sample, error in zip(samples, errors(samples, machine)):
        by_name.setdefault((sample.program.kind.name, sample.program.name), []).append(error)
    for (kind, name), found in by_name.items():
        say(f"  {kind:16} {name:28} median error {np.median(found):4.0%} at unseen sizes")
