"""The benchmark of collectives: its sizes, its checks, its arithmetic. No time is asserted."""

import json

import numpy as np
import pytest

from minipar import bench
from minipar.comm import collective, run_threads
from minipar.comm.program import ALGORITHMS, register
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
    if not ALGORITHMS[kind]:
        pytest.skip(f"no algorithm of {kind}")
    path = tmp_path / "rows.json"
    args = [kind, "--sizes", "4,1000", "--cadence", "isolated" if n == 2 else "streaming",
            "--json", str(path)]
    assert run_threads(lambda: bench.main(args), n) == [0] * n
    told = json.loads(path.read_text())
    assert (told["kind"], told["ranks"], [r["size"] for r in told["rows"]]) == (kind, n, [4, 1000])
    for row in told["rows"]:
        assert row["wrong"] == 0 and 0 < row["min_us"] <= row["p99_us"]
        assert row["algbw"] == pytest.approx(row["size"] / row["time_us"] / 1e3)
        assert row["busbw"] == pytest.approx(row["algbw"] * bench.BUS[kind](n))
    out = capsys.readouterr().out
    assert f"# {kind}, {n} ranks, float32, cadence" in out and "# Avg bus bandwidth" in out


def test_a_wrong_result_is_counted_and_ends_with_status_1(monkeypatch, capsys):
    @collective("all_reduce")
    def lazy(rank, size, x):
        yield ()
    monkeypatch.setitem(ALGORITHMS["all_reduce"], "lazy", None)
    register(lazy)
    args = ["all_reduce", "--sizes", "40", "--algorithms", "ring,lazy"]
    assert run_threads(lambda: bench.main(args), 2) == [1, 1]
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line[0] != "#"]
    assert [(line[2], line[-1]) for line in lines] == [("ring", "0"), ("lazy", "20")]


def test_what_cannot_be_timed_is_refused_with_one_line(capsys):
    for args in (["all_reduce", "--sizes", "4x"], ["all_reduce", "--algorithms", "rung"],
                 ["all_reduce", "--dtype", "float31"], ["all_reduce", "--json", "no/such/f"],
                 ["all_reduce", "--plot", "."]):
        assert bench.main(args) == 2
        err = capsys.readouterr().err
        assert err.startswith("minipar: error: ") and err.count("\n") == 1


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{"size": 4 ** i, "algorithm": name, "time_us": i, "busbw": i / 2.0}
            for i in (1, 2) for name in ("ring", "tree")]
    o = bench.parser().parse_args(["all_reduce", "--plot", str(tmp_path / "p.png")])
    bench.plot(rows, o, 2)
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_promises_are_those_of_a_reference():
    for kind in bench.BUS:
        arrays = []
        for rank in range(3):
            a = np.empty(10)
            bench.fill(a, rank, 3, kind, 0)
            arrays.append(a)
        blocks = [slice(r * 10 // 3, (r + 1) * 10 // 3) for r in range(3)]
        total = sum(arrays)
        done = {"all_reduce": [total] * 3, "reduce": [total, arrays[1], arrays[2]],
                "broadcast": [arrays[0]] * 3,
                "all_gather": [np.concatenate([a[b] for a, b in zip(arrays, blocks)])] * 3}
        done["reduce_scatter"] = [np.where(np.isin(np.arange(10), np.arange(10)[b]), total, -9)
                                  for b in blocks]
        for rank in range(3):
            assert bench.wrong(done[kind][rank], rank, 3, kind, 0) == 0, kind
            if kind != "reduce" or rank == 0:
                worse = done[kind][rank].copy()
                worse[blocks[rank]] += 1
                assert bench.wrong(worse, rank, 3, kind, 0) == blocks[rank].stop - \
                    blocks[rank].start, kind
