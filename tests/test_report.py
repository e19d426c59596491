"""`minipar report`: its arithmetic on recorded lines, what it refuses, and small reports whole."""

import csv
import json

import numpy as np
import pytest

from launch import python
from minipar.cli import main
from minipar.commands.reports import compare, possible, runs, scaling, strategies, table
from minipar.commands.reports.runs import Run

JOB = ("--hidden", "16", "--batch-size", "32")


def step(number, seconds, waited=0.0, samples=32, **more):
    return {"event": "step", "step": number, "samples_per_s": samples / seconds,
            "compute_s": seconds - waited, "comm_s": waited, **more}


def end(**more):
    return {"event": "end", "steps": 4, "loss": 0.5, "test_accuracy": 0.9, "world_size": 2, "dp": 2,
            "sync": "ddp", "algorithms": {"all_reduce": {"ring": 4096, "mpi": 24}},
            "memory": {"gradients": 4096}, "memory_of_ranks": [700, 900], "bytes_sent": 800} | more


def recorded(tmp_path, *events):
    path = tmp_path / "run.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    return runs.read(path)


# What one run says


def test_medians_leave_out_the_first_tenth_and_at_least_one_step(tmp_path):
    steps = [step(1, 9.0), step(2, 9.0), *(step(i, 0.5, 0.125) for i in range(3, 21))]
    run = recorded(tmp_path, *steps, end())
    assert len(run.settled()) == 18
    assert run.median("samples_per_s") == 64 and run.median("compute_s") == 0.375
    assert run.communication() == 0.25
    assert run.median("overlap") is None and run.mean("overlap") is None
    assert Run((step(1, 0.5),)).median("samples_per_s") == 64  # the only one there is
    assert Run((step(1, 0.5), step(2, 0.25))).median("samples_per_s") == 128


def test_a_curve_counts_samples_seconds_and_a_ranks_bytes_up_to_each_evaluation(tmp_path):
    lines = [step(1, 0.5, samples=32), step(2, 0.3, 0.1, samples=7),
             {"event": "eval", "step": 2, "loss": 2.0, "accuracy": 0.1, "bytes_sent": 400},
             step(3, 0.2, samples=32),
             {"event": "eval", "step": 3, "loss": 1.0, "accuracy": 0.5}, end()]
    first, last = recorded(tmp_path, *lines).curve()
    assert (first["samples"], first["bytes"], first["loss"]) == (39, 200, 2.0)
    assert (last["samples"], last["bytes"], last["accuracy"]) == (71, None, 0.5)
    assert abs(first["seconds"] - 0.8) < 1e-12 and abs(last["seconds"] - 1.0) < 1e-12


def test_a_method_is_told_by_its_bytes_a_step_and_its_fullest_rank(tmp_path):
    run = recorded(tmp_path, step(1, 0.5, staleness=0), step(2, 0.5, staleness=3),
                   {"event": "eval", "step": 2, "loss": 0.5, "accuracy": 0.9, "bytes_sent": 800},
                   end())
    row = compare.of(run)
    assert row["bytes_per_step"] == 800 / 2 / 4 and row["memory"] == 900
    assert row["staleness"] == 1.5 and row["seconds"] == 1.0


# Speed-up, efficiency, what is possible


class Options:
    compress = codec = exact = None
    dtype = "float32"


def row(ranks, speed, batch=32, **more):
    return {"ranks": ranks, "samples_per_s": speed, "compute_s": 0.1, "algorithm": "ring",
            "gradient_bytes": 4096, "batch_size": batch, **more}


def test_speed_up_and_efficiency_are_against_one_rank(monkeypatch):
    monkeypatch.setattr(possible, "communication", lambda *args: 0.025)
    rows = [row(1, 100), row(2, 150), {"ranks": 3, "error": "no"}, row(4, 240, batch=128)]
    scaling.compare(rows, 2, Options, "processes")
    assert [r.get("speedup") for r in rows] == [1, 1.5, None, 2.4]
    assert [r.get("efficiency") for r in rows] == [1, 0.75, None, 0.6]
    # 0.1 s on two cores and a message of 0.025 s; with four times the batch, 0.2 s and a message.
    expected = [1, 0.1 / 0.075, None, 0.4 / 0.225]
    for r, limit in zip(rows, expected):
        assert r.get("possible") == (limit and pytest.approx(limit))
        assert "error" in r or r["of_possible"] == pytest.approx(r["speedup"] / limit)


def test_without_one_rank_there_is_nothing_to_compare_with():
    rows = [{"ranks": 1, "error": "no"}, row(2, 150)]
    scaling.compare(rows, 2, Options, "processes")
    assert "speedup" not in rows[1] and "possible" not in rows[1]


def test_free_communication_makes_the_cores_the_limit():
    assert [possible.speedup(n, 4, 0.1, 0) for n in (1, 2, 4, 8)] == pytest.approx([1, 2, 4, 4])
    assert possible.speedup(2, 4, 0.1, 0.05) == pytest.approx(1)
    assert possible.speedup(2, 4, 0.1, 0.05, work=2) == pytest.approx(4 / 3)


def test_the_all_reduce_of_the_gradients_is_the_one_with_the_largest_buffer():
    assert possible.chosen(end()) == ("ring", 4096)
    assert possible.chosen(end(sync="local:2")) is None
    assert possible.chosen(end(dp=1)) is None
    assert possible.communication("ring", 4096, 2, "float32", None) > 0
    assert possible.communication("mpi", 4096, 2, "float32", None) is None
    assert possible.communication("swing", 4096, 3, "float32", None) is None  # serves 2^k


# Layouts


def test_layouts_are_all_products_of_three_numbers():
    for n in (1, 4, 6, 7):
        found = [(m.dp, m.pp, m.tp) for m in strategies.layouts(n)]
        every = [(a, b, c) for a in range(1, n + 1) for b in range(1, n + 1)
                 for c in range(1, n + 1) if a * b * c == n]
        assert sorted(found) == every and found[0] == (n, 1, 1)


def test_the_fastest_is_recommended_with_its_numbers_and_what_needs_less_memory():
    rows = [{"layout": "A", "schedule": None, "samples_per_s": 1000.0, "memory": 4096},
            {"layout": "B", "schedule": "1f1b", "samples_per_s": 3000.0, "memory": 2048},
            {"layout": "C", "schedule": None, "samples_per_s": 1500.0, "memory": 512},
            {"layout": "D", "schedule": None, "error": "no"}]
    assert strategies.recommend(rows) == (
        "Take B with 1f1b: 3,000 samples/s, 2.00 times those of C, the next; it holds 2.0 KiB, and "
        "if that is too much, C holds 512 B, at 1,500 samples/s.")
    assert strategies.recommend(rows[:1]) == "Take A: 1,000 samples/s."
    assert strategies.recommend(rows[3:]) is None


# Tables


def test_a_failed_row_tells_its_error_and_an_unused_column_goes():
    columns = (("name", "name", ""), ("n", "n", "d"), ("x", "x", ".1f"), ("y", "y", ".1f"))
    rows = [{"name": "a", "n": 10, "x": 1.25}, {"name": "bc", "n": 7, "error": "it broke"},
            {"name": "d", "n": 1, "x": None}]
    assert table.text(rows, columns).splitlines() == [
        "name   n    x", "a     10  1.2", "bc     7  it broke", "d      1    -"]


@pytest.mark.parametrize("value, words", [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"),
                                          (3 * 2**20, "3.0 MiB"), (2**42, "4096.0 GiB")])
def test_amounts_of_bytes_are_told_in_their_unit(value, words):
    assert table.amount(value) == words


# Whole reports


def test_scaling_writes_tables_pictures_and_metrics(tmp_path):
    done = python("-m", "minipar", "report", "scaling", "--ranks", "1,2", "--weak", "--launcher",
                  "threads", "--output", tmp_path, "--", *JOB, "--steps", "8")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].split()[:3] == ["scaling", "ranks", "batch"]
    alone, two, weak = json.loads((tmp_path / "scaling.json").read_text())["rows"]
    assert (alone["speedup"], alone["grad_variance"]) == (1, 0)
    assert alone["grad_cosine"] == pytest.approx(1)
    lines = [json.loads(s) for s in (tmp_path / "runs" / "strong-2.jsonl").read_text().splitlines()]
    speeds = [line["samples_per_s"] for line in lines if line["event"] == "step"]
    assert two["samples_per_s"] == np.median(speeds[1:])
    assert two["speedup"] == two["samples_per_s"] / alone["samples_per_s"] and two["possible"] > 0
    assert 0 < two["grad_cosine"] < 1 and two["grad_norm"] == pytest.approx(alone["grad_norm"])
    assert (weak["batch_size"], weak["curve"][-1]["samples"]) == (64, 8 * 32)
    assert two["loss"] == pytest.approx(alone["loss"], rel=1e-5)  # at equal samples, as ever
    cells = list(csv.DictReader((tmp_path / "scaling.csv").read_text().splitlines()))
    assert [float(row["samples_per_s"]) for row in cells] == [
        row["samples_per_s"] for row in (alone, two, weak)]
    for name in ("scaling.png", "training.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_compare_goes_on_after_a_method_that_fails(tmp_path):
    done = python("-m", "minipar", "report", "compare", "ddp", "local:4", "adpsgd:ring",
                  "compress=int8", "--ranks", "2", "--launcher", "threads", "--output", tmp_path,
                  "--pictures", "svg", "--", *JOB, "--steps", "8", "--algorithm",
                  "recursive_doubling")
    assert (done.returncode, done.stderr) == (0, "")
    ddp, local, gossip, int8 = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert ddp["bytes_per_step"] > 3.9 * local["bytes_per_step"] > 0  # 2 averages in 8 steps
    assert "error" not in gossip and len(ddp["curve"]) == 8
    assert int8["error"].startswith("--compress int8 has its own collectives")
    assert f"compress=int8  {int8['error']}" in done.stdout
    assert {p.name for p in tmp_path.glob("*.svg")} == {"loss-samples.svg", "loss-bytes.svg",
                                                        "loss-seconds.svg"}


def test_strategies_measures_every_layout_and_recommends_the_fastest():
    done = python("-m", "minipar", "report", "strategies", "--ranks", "2", "--launcher", "threads",
                  "--schedules", "gpipe", "--steps", "4", "--json", "--", *JOB)
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)["rows"]
    assert [row["layout"] for row in rows] == [
        "dp 2 x pp 1 x tp 1", "dp 1 x pp 1 x tp 2", "dp 1 x pp 2 x tp 1"]
    piped = rows[-1]
    assert piped["predicted_bubble"] == pytest.approx(0.2)  # (p - 1) / (m + p - 1), 4 micro-batches
    assert 0 < piped["bubble"] < 1 and piped["kept"] == 4
    assert all(row["samples_per_s"] > 0 for row in rows)
    assert rows[0]["memory"] > max(row["memory"] for row in rows[1:])


def test_a_report_of_which_every_run_fails_ends_with_status_1(tmp_path):
    done = python("-m", "minipar", "report", "compare", "ddp", "--ranks", "2", "--output",
                  tmp_path, "--", "--steps", "2", "--batch-size", "1")
    assert done.returncode == 1 and done.stderr == "" and not list(tmp_path.glob("*.png"))
    assert "global batch 1 < 2 ranks" in done.stdout


def test_without_matplotlib_the_tables_are_written_and_one_line_says_what_is_missing(tmp_path):
    code = ("import sys; sys.modules['matplotlib'] = None\n"
            "from minipar.commands.reports import command\n"
            "command.find_spec = lambda name: None\n"
            f"sys.exit(command.main(['scaling', '--ranks', '1', '--no-gradients', '--output', "
            f"{str(tmp_path)!r}, '--', '--steps', '2', '--hidden', '8']))")
    done = python("-c", code)
    assert done.returncode == 0
    assert done.stderr == "minipar: no pictures: they need matplotlib: pip install 'minipar[viz]'\n"
    assert (tmp_path / "scaling.csv").exists() and not list(tmp_path.glob("*.png"))


REFUSED = [
    (["speed"], "no report 'speed': there are scaling, compare, strategies"),
    (["scaling", "--ranks", "2,4"], "'2,4' is not numbers of ranks that grow from 1 on"),
    (["scaling", "--ranks", "1,x"], "'1,x' is not numbers of ranks"),
    (["scaling", "--ranks", "1,4,2"], "'1,4,2' is not numbers of ranks"),
    (["scaling", "--rank", "1"], "unrecognized arguments: --rank"),
    (["scaling", "--", "--ranks", "2"], "--ranks is the report's to say"),
    (["scaling", "--", "--metrics=a"], "--metrics is the report's to say"),
    (["scaling", "--", "--pp", "2"], "--pp 2 does not go with one rank"),
    (["scaling", "--", "--nonsense"], "--nonsense"),
    (["scaling", "--", "--data", "nowhere.csv"], "nowhere.csv"),
    (["scaling", "--", "--help"], "python -m minipar.train --help"),
    (["scaling", "--output", __file__], "File exists"),
    (["compare"], "METHOD"),
    (["compare", "dpd"], "dpd: no 'dpd': did you mean ddp"),
    (["compare", "ddp", "ddp"], "a method is named twice"),
    (["compare", "compress=int9"], "compress=int9: no 'int9': did you mean int8"),
    (["compare", "codec=int9"], "codec=int9: no 'int9'"),
    (["compare", "speed=3"], "no 'speed': there are compress, codec"),
    (["compare", "ps", "--ranks", "2", "--servers", "2"], "servers 2 >= world size 2"),
    (["compare", "ddp", "--", "--sync", "ps"], "--sync is the report's to say"),
    (["strategies", "--", "--steps", "3"], "--steps K before the --"),
    (["strategies", "--schedules", "1f2b"], "no schedule '1f2b': did you mean 1f1b"),
    (["strategies", "--", "--dp", "2"], "--dp is the report's to say"),
]


@pytest.mark.parametrize("argv, words", REFUSED, ids=[" ".join(a)[:40] for a, _ in REFUSED])
def test_what_cannot_be_is_refused_with_one_line_and_status_2(argv, words, capsys):
    assert main(["report", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("minipar: error: ") and err.count("\n") == 1
    assert words in err


@pytest.mark.parametrize("name", ["scaling", "compare", "strategies"])
def test_help_tells_the_options_and_what_the_columns_are(name, capsys):
    assert main(["report", name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--output DIR" in shown and "memory" in shown or "waiting" in shown
    assert main(["report"]) == 0
    assert name in capsys.readouterr().out
