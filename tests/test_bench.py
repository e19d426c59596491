"""The benchmark of collectives: its sizes, its checks, its arithmetic. No time is asserted."""

import functools
import json
import sys

import numpy as np
import pytest
from launch import ROOT, mpirun, python

from minipar import bench
from minipar.comm import Communicator, run_threads, world
from minipar.comm.program import ALGORITHMS
from minipar.comm.transport.base import Lone
from minipar.options import UsageError


@pytest.mark.parametrize("text, nbytes", [("4", 4), ("64KiB", 65536), ("1.5MiB", 1572864),
                                          ("3MB", 3_000_000), ("2k", 2048), ("8 B", 8)])
def test_sizes_are_read_with_their_units(text, nbytes):
    assert bench.parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "x", "4 miles", "1.2.3", "-4"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="is no size"):
        bench.parse_size(text)


def test_sizes_go_up_by_a_factor_and_stay_within():
    assert bench.sizes_between(4, 100) == [4, 16, 64]
    assert bench.sizes_between(8, 8) == [8]


@pytest.mark.parametrize("kind", bench.BUS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_kind_is_run_checked_and_told(kind, n, tmp_path, capsys):
    path = tmp_path / "rows.json"
    args = [kind, "--sizes", "4,1000", "--cadence", "isolated" if n == 2 else "streaming",
            "--json", str(path), "--seconds", "0.001", "--root", str(n - 1), "--op", "max"]
    assert run_threads(lambda: bench.main(args), n) == [0] * n
    told = json.loads(path.read_text())
    counts = [0] if kind == "barrier" else [1, 250]
    if kind == "all_to_all":
        counts = [count - count % n for count in counts]
    assert (told["kind"], told["ranks"], told["op"]) == (kind, n, "max")
    assert [(r["size"], r["count"]) for r in told["rows"]] == [(4 * c, c) for c in counts]
    for row in told["rows"]:
        assert row["wrong"] == 0 and 0 < row["min_us"] <= row["p99_us"]
        assert row["algbw"] == pytest.approx(row["size"] / row["time_us"] / 1e3)
        assert row["busbw"] == pytest.approx(row["algbw"] * bench.BUS[kind](n))
    out = capsys.readouterr().out
    assert f"# {kind}, {n} ranks, float32" in out and "# Avg bus bandwidth" in out
    assert f"cadence {told['cadence']}" in out
    names, units, *lines = out.splitlines()[1:-1]
    assert names.split()[1:] == ["size", "count", "type", "redop", "root", "algorithm", "time",
                                 "min", "p99", "algbw", "busbw", "#wrong"]
    assert all(len(line.split()) == 12 for line in lines) and len(lines) == len(counts)


def test_every_algorithm_of_a_kind_and_the_benchmark_s_own_are_timed_side_by_side(capsys):
    own = "function,shared_result,memory"
    args = ["all_reduce", "--sizes", "400", "--algorithms", f"ring,swing,{own}", "--against",
            "ring,memory", "--seconds", "0.001", "--rounds", "3"]
    assert run_threads(lambda: bench.main(args), 2) == [0, 0]
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line[0] != "#"]
    assert [line[5] for line in lines] == ["ring", "swing", "function", "shared_result", "memory"]
    for line in lines:
        ratios = [float(x) for part in line[12:] for x in part.split("-")]
        assert len(ratios) == (3 if line[5] in ("ring", "memory") else 6)
        for median, least, most in zip(*[iter(ratios)] * 3):
            assert least <= median <= most
    assert run_threads(lambda: bench.main([*args[:4], "all", *args[5:]]), 4) == [0] * 4
    told = {line.split()[5] for line in capsys.readouterr().out.splitlines() if line[0] != "#"}
    assert told == set(ALGORITHMS["all_reduce"]) | {"memory"}


def test_ratios_are_of_times_within_a_round(monkeypatch):
    """The machine is twice as slow in the second round: no ratio shows it."""
    clock = iter([3, 3, *(t * slow for slow in (1, 2, 3) for t in (2, 8))])
    monkeypatch.setattr("minipar.bench.timing._runs", lambda comm, one, count, cadence: (
        lambda t: ([t] * count, t))(float(next(clock))))
    case = bench.Case(Communicator(Lone()), "all_reduce", 4, np.dtype(np.float32))
    ring, other = bench.compare(case, ["ring", "swing"], against=["swing"], rounds=3)
    assert ring["against"] == {"swing": [0.25] * 3} and other["against"] == {}
    assert (ring["time_us"], other["time_us"]) == (4e6, 16e6)
    assert (ring["min_us"], ring["p99_us"]) == (2e6, 4e6)


def test_one_algorithm_is_measured_on_one_size():
    def job():
        return bench.measure(world(), "broadcast", 4000, "binomial", np.dtype(np.float64),
                             "isolated", 0.001)
    for row in run_threads(job, 3):
        assert set(row) == {"algorithm", "time_us", "min_us", "p99_us", "algbw", "busbw", "wrong"}
        assert (row["algorithm"], row["wrong"]) == ("binomial", 0)


def test_what_a_fitted_machine_predicts_is_told_beside_what_was_measured(tmp_path):
    machine, rows = tmp_path / "machine.json", tmp_path / "rows.json"
    machine.write_text('{"machine": {"alpha": 1e-6, "beta": 1e-9, "gamma": 0}}')
    args = ["all_reduce", "--sizes", "4000", "--algorithms", "ring,function", "--machine",
            str(machine), "--json", str(rows), "--seconds", "0.001"]
    assert run_threads(lambda: bench.main(args), 2) == [0, 0]
    ring, function = json.loads(rows.read_text())["rows"]
    assert ring["predicted_us"] == pytest.approx(2 * 1 + 4.0) and "predicted_us" not in function


LAZY = """
from minipar.comm import collective

@collective("all_reduce")
def lazy(rank, size, x):
    yield ()
"""


def test_a_wrong_result_of_a_user_s_program_is_counted_and_ends_with_status_1(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(LAZY)
    args = ["all_reduce", "--sizes", "40", "--algorithms", f"ring,{path}:lazy", "--seconds",
            "0.001"]
    assert run_threads(lambda: bench.main(args), 2) == [1, 1]
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line[0] != "#"]
    assert [(line[5], line[-1]) for line in lines] == [("ring", "0"), ("lazy", "40")]


@pytest.mark.parametrize("args, words", [
    (["all_reduce", "--sizes", "4x"], "no size"),
    (["all_reduce", "--sizes", "1MiB:4"], "less than"),
    (["all_reduce", "--algorithms", "rung"], "did you mean ring"),
    (["all_reduce", "--algorithms", "no/file.py:ring"], "no file"),
    (["broadcast", "--algorithms", "shared_result"], "is an all_reduce"),
    (["broadcast", "--algorithms", "memory"], "limit of all_reduce"),
    (["gather", "--algorithms", "function"], "no method"),
    (["all_reduce", "--algorithms", "mpi-blocking"], "under mpirun"),
    (["broadcast", "--root", "1"], "root 1 is not one of 1 ranks"),
    (["all_reduce", "--dtype", "float31"], "float31"),
    (["all_reduce", "--rounds", "0"], "above 0"),
    (["all_reduce", "--json", "no/such/f"], "cannot be written"),
    (["all_reduce", "--plot", "."], "cannot be written")])
def test_what_cannot_be_timed_is_refused_with_one_line(args, words, capsys):
    assert bench.main([*args, "--sizes", "4"] if "--sizes" not in args else args) == 2
    err = capsys.readouterr().err
    assert err.startswith("minipar: error: ") and err.count("\n") == 1 and words in err


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{"size": 4 ** i, "algorithm": name, "time_us": i, "busbw": i / 2.0,
             **({"predicted_us": i * 1.5} if name == "ring" else {})}
            for i in (1, 2) for name in ("ring", "tree")]
    bench.plot(rows, tmp_path / "p.png", "times")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("op", ["sum", "prod", "max", "min"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
@pytest.mark.parametrize("kind", bench.BUS)
def test_promises_are_those_of_a_reference(kind, dtype, op):
    """Made by NumPy alone from what the ranks are given; and one element less is seen."""
    def job():
        comm, p, root = world(), world().size, 2
        case = bench.Case(comm, kind, 400, np.dtype(dtype), op, root)
        case.fill()
        given = [comm.all_gather(a.copy()) if kind not in ("reduce_scatter_into", "all_gather_into")
                 else None for a in case.arrays.values()][:1]
        n, rank = case.count, comm.rank
        if given and given[0] is None:
            length = next(iter(case.arrays.values())).size
            lengths = comm.all_gather(np.array([length]))[:, 0]
            padded = np.zeros(lengths.max(), dtype)
            padded[:length] = case.arrays["input"]
            given = [[row[:k] for row, k in zip(comm.all_gather(padded), lengths)]]
        blocks = [slice(r * n // p, (r + 1) * n // p) for r in range(p)]
        mine, rows = blocks[rank], given[0] if given else []
        function = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}[op]
        total = functools.reduce(function, rows) if "reduce" in kind else None
        name, place, expected = {
            "all_reduce": lambda: ("x", slice(0, n), total),
            "reduce": lambda: ("x", slice(0, n if rank == root else 0), total),
            "reduce_scatter": lambda: ("x", mine, total[mine]),
            "reduce_scatter_into": lambda: ("output", slice(None), total[mine]),
            "all_gather": lambda: ("x", slice(0, n), np.concatenate(
                [row[b] for row, b in zip(rows, blocks)])),
            "gather": lambda: ("x", slice(0, n if rank == root else 0), np.concatenate(
                [row[b] for row, b in zip(rows, blocks)])),
            "all_gather_into": lambda: ("output", slice(0, n), np.concatenate(rows)),
            "broadcast": lambda: ("x", slice(0, n), rows[root]),
            "scatter": lambda: ("x", mine, rows[root][mine]),
            "all_to_all": lambda: ("output", slice(0, n), np.concatenate(
                [row[mine] for row in rows])),
            "barrier": lambda: ("x", slice(0, 0), np.zeros(0)),
        }[kind]()
        array = case.arrays[name]
        array[place] = expected[:array[place].size]
        assert case.wrong() == 0
        for at in range(array.size)[place]:
            array[at] += 1
            assert case.wrong() == 1
            array[at] -= 1
        assert kind == "barrier" or len(set(rows[root].tolist())) > 1
    run_threads(job, 3)


def test_what_mpi_itself_does_is_timed_on_the_same_buffers():
    for kind in ("all_reduce", "reduce_scatter_into", "all_gather_into", "all_to_all"):
        done = mpirun(2, "-m", "minipar", "bench", kind, "--sizes", "8,992", "--algorithms", "auto,"
                      "function,mpi", "--against", "mpi-blocking", "--seconds", "0.001")
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines() if line[0] != "#"]
        assert [line[5] for line in lines if line[5] in ("function", "mpi", "mpi-blocking")] == [
            "function", "mpi", "mpi-blocking"] * 2
        assert all(line[11] == "0" for line in lines)


@pytest.mark.peer
def test_gloo_is_timed_on_the_same_buffers_and_refused_where_it_cannot_serve(capsys):
    pytest.importorskip("torch")
    done = mpirun(2, "-c", GLOO, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines() if line[0] != "#"]
    assert len(lines) == 7 and all((line[5], line[11]) == ("gloo", "0") for line in lines)
    args = ["all_reduce", "--sizes", "4", "--algorithms", "gloo"]
    assert run_threads(lambda: bench.main(args), 2) == [2, 2]
    assert "threads of one" in capsys.readouterr().err
    assert bench.main(["gather", "--sizes", "4", "--algorithms", "gloo"]) == 2
    assert "gloo has no gather" in capsys.readouterr().err


GLOO = """
from minipar.bench.command import parser, run
from minipar.bench import gloo
from minipar.comm import world
for kind in ("all_reduce", "broadcast", "reduce", "barrier", "reduce_scatter_into",
             "all_gather_into", "all_to_all"):
    run(parser().parse_args([kind, "--sizes", "400", "--algorithms", "gloo", "--root", "1",
                             "--seconds", "0.001"]), world())
gloo.leave()
"""


def test_the_table_of_targets_is_made_by_one_command(tmp_path):
    path = tmp_path / "table.json"
    done = python(ROOT / "benchmarks" / "collectives.py", "--ranks", "2", "--sections",
                  "all_reduce,scatter,memory", "--largest", "4MiB", "--seconds", "0.001",
                  "--rounds", "2", "--json", path, timeout=120)
    assert done.returncode == 0, done.stderr
    told, lines = json.loads(path.read_text()), done.stdout.splitlines()
    assert [line["target"] for line in told["table"]] == [0.3, 1.05, 1.5, 0.5, 0.5, 1.5]
    assert len(lines) == 7 and all(("  met" in line) != ("  MISSED" in line) for line in lines[1:])
    assert {"date", "processor", "cores", "python", "numpy", "torch", "mpi", "mpi4py", "cadence",
            "rows"} <= set(told)
    assert [r["size"] for r in told["rows"]["2"]["all_reduce"]] == [8 * 2**i for i in range(20)]
    assert [r["size"] for r in told["rows"]["2"]["memory"]] == [4 * 2**20]


def test_a_line_of_the_table_is_met_by_the_worst_number_of_ranks():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import collectives
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    row = {"more_us": 2.0, "time_us": 9.0, "peer_us": 4.0}
    rows = [{**row, "size": 8, "ratio": 3.0}, {**row, "size": 64 * 1024, "ratio": 1.0},
            {**row, "size": 2**18, "ratio": 0.4}, {**row, "size": 2**20, "ratio": 0.1}]
    first, second, third = collectives.table({"2": {"all_reduce": rows},
                                              "4": {"all_reduce": rows[:3], "gloo": []}})
    assert first["found"] == {"2": pytest.approx(0.2), "4": pytest.approx(0.4)}
    assert (first["met"], second["met"], third["met"]) == (False, True, False)
    assert (second["found"]["4"], third["found"]["2"]) == (1.0, 2.0)
    assert collectives.sizes(8, 100) == [8, 32, 100] and collectives.sizes(9, 8) == []
