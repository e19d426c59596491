"""`minipar tune`: what it writes is what was fastest, and what it fits is kept. No time is
asserted: choices are made from times that are given; real ones are only seen to be there."""

import json

import pytest
from launch import mpirun, python

from minipar.comm.cost.machine import PRICES, read_machine
from minipar.comm.select import Table
from minipar.comm.select.table_file import read_entries
from minipar.commands import tune


def test_neighbouring_sizes_that_one_algorithm_wins_are_one_entry():
    times = {64: {"ring": 3.0, "tree": 1.0}, 256: {"ring": 3.0, "tree": 2.0},
             1024: {"ring": 3.0, "tree": 4.0}, 4096: {"ring": 3.0, "tree": 9.0}}
    assert tune.entries("all_reduce", 4, times, times) == [
        {"kind": "all_reduce", "ranks": 4, "bytes": 512, "algorithm": "tree"},
        {"kind": "all_reduce", "ranks": 4, "algorithm": "ring"}]


def test_a_winner_that_is_as_good_as_the_next_one_stays():
    times = {64: {"ring": 3.0, "tree": 1.0}, 256: {"ring": 2.9, "tree": 3.0},
             1024: {"ring": 1.0, "tree": 3.0}}
    assert [e.get("bytes") for e in tune.entries("all_reduce", 2, times, times)] == [512, None]


def test_what_works_in_shared_memory_is_for_ranks_that_share_some():
    inside = {64: {"ring": 2.0, "shared": 3.0}, 256: {"ring": 2.0, "shared": 1.0}}
    outside = {64: {"ring": 2.0, "shared": 5.0}, 256: {"ring": 2.0, "shared": 4.0}}
    assert tune.entries("broadcast", 2, inside, outside, {"shared"}) == [
        {"kind": "broadcast", "ranks": 2, "bytes": 128, "shared": True, "algorithm": "ring"},
        {"kind": "broadcast", "ranks": 2, "shared": True, "algorithm": "shared"},
        {"kind": "broadcast", "ranks": 2, "algorithm": "ring"}]
    outside[256]["shared"] = 1.5
    assert [e for e in tune.entries("broadcast", 2, inside, outside, {"shared"})
            if e.get("shared") is False][-1]["algorithm"] == "shared"


def test_a_table_keeps_what_was_measured_on_other_ranks_and_smaller_groups_come_first(tmp_path):
    def made(kind, ranks, algorithm):
        return [{"kind": kind, "ranks": ranks, "algorithm": algorithm}]
    path = tmp_path / "t.json"
    tune.write_table(path, made("all_reduce", 4, "ring") + made("broadcast", 4, "chain"), "first")
    tune.write_table(path, made("all_reduce", 2, "naive"), "second")
    tune.write_table(path, made("all_reduce", 4, "rabenseifner"), "third")
    table = Table(read_entries(path))
    assert [table.find("all_reduce", p, 8).algorithm for p in (2, 3, 4, 5)] == [
        "naive", "rabenseifner", "rabenseifner", "recursive_doubling"]
    assert table.find("broadcast", 4, 8).algorithm == "chain"
    assert json.loads(path.read_text())["about"] == "third"


SMALL = ["--kinds", "all_reduce,broadcast", "--sizes", "64,4KiB", "--seconds", "0.001"]


def test_measured_on_real_ranks_a_table_is_one_that_training_can_use(tmp_path):
    path = tmp_path / "my table.json"
    done = python("-m", "minipar", "tune", *SMALL, "--ranks", "2", "--launcher", "threads",
                  "--output", path)
    assert done.returncode == 0, done.stderr
    assert "not timed: all_reduce mpi" in done.stdout and str(path) in done.stdout
    entries = [e for e in read_entries(path) if str(path) in e.source]
    assert {(e.kind, e.ranks) for e in entries} == {("all_reduce", 2), ("broadcast", 2)}
    done = python("-m", "minipar.train", "--steps", "2", "--ranks", "2", "--launcher", "threads",
                  "--algorithm", "auto", "--algorithm-table", path)
    assert done.returncode == 0, done.stderr


def test_measured_under_mpi_the_librarys_own_is_among_the_candidates(tmp_path):
    done = mpirun(2, "-m", "minipar", "tune", "--kinds", "reduce", "--sizes", "64", "--seconds",
                  "0.001", "--output", tmp_path / "t")
    assert done.returncode == 0 and "not timed" not in done.stdout, done.stderr


def test_a_machine_is_fitted_to_real_ranks_and_kept_for_explain(tmp_path):
    done = python("-m", "minipar", "tune", "--fit", *SMALL, "--ranks", "2",
                  MINIPAR_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    path = tmp_path / "machine-processes-2.json"
    machine, content = read_machine(path)
    assert machine.far is not None and all(getattr(machine, name) >= 0 for name in PRICES)
    assert content["launcher"] == "processes" and content["ranks"] == 2
    assert set(content["median_error"]) == {"fitted", "unseen"}
    assert "at sizes that the fit has not seen" in done.stdout
    done = python("-m", "minipar", "explain", "all_reduce", "-n", "2", MINIPAR_CACHE=str(tmp_path))
    assert f"predicted by {path}, 2 ranks by processes" in done.stdout


@pytest.mark.parametrize("args, words", [
    ([], "1 rank has nobody to talk to"),
    (["--ranks", "0"], "'0' is not a whole number from 1 on"),
    (["--ranks", "2", "--kinds", "all_reduse"], "no kind 'all_reduse' that can be timed"),
    (["--ranks", "2", "--sizes", "2"], "at least one element, 4 bytes"),
    (["--ranks", "2", "--sizes", "4x"], "is no size"),
    (["--ranks", "2", "--seconds", "0"], "--seconds 0.0 is not > 0"),
    (["--ranks", "2", "--dtype", "float31"], "float31"),
    (["--ranks", "2", "--output", "no/such/file"], "no/such/file cannot be written"),
    (["--ranks", "2", "--bytes", "3"], "unrecognized arguments: --bytes 3")])
def test_what_cannot_be_measured_is_refused_with_one_line(args, words, capsys):
    if args:
        args = [*args, "--launcher", "threads"]
    assert tune.main(args) == 2
    err = capsys.readouterr().err
    assert err.startswith("minipar: error: ") and words in err and err.count("\n") == 1


def test_an_output_that_is_no_table_is_not_written_over(tmp_path, capsys):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    assert tune.main([*SMALL, "--ranks", "2", "--launcher", "threads", "--output",
                      str(path)]) == 2
    assert path.read_text() == "mine" and "not JSON" in capsys.readouterr().err
