"""`minipar explain`: what it says is what is counted, bounded, picked and predicted elsewhere."""

import json

import pytest
from launch import mpirun

from minipar.comm import Topology
from minipar.comm.cost import cost, lower_bounds, predict
from minipar.comm.cost.machine import Machine, read_machine, write_machine
from minipar.comm.program import ALGORITHMS, KINDS
from minipar.commands import explain, explain_text

MINE = '''
from minipar.comm import collective, recv, recv_reduce, send


@collective("all_reduce", name="mine")
def all_at_rank_0(rank, size, x):
    """Everybody sends to rank 0, and gets the sum back."""
    if rank == 0:
        for peer in range(1, size):
            yield recv_reduce(x, peer)
        yield [send(x, peer) for peer in range(1, size)]
    else:
        yield send(x, 0)
        yield recv(x, 0)
'''


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIPAR_CACHE", str(tmp_path / "cache"))


def told(capsys, *args):
    status = explain.main([*args, "--json"])
    out = capsys.readouterr()
    assert status == 0, out.err
    return json.loads(out.out)


def rows(facts):
    return {row["name"]: row for row in facts["algorithms"]}


@pytest.mark.parametrize("kind", [k for k in KINDS if ALGORITHMS[k]])
def test_costs_bounds_and_predictions_are_those_of_the_model(kind, capsys, tmp_path):
    machine = Machine(2e-6, 1e-10, 3e-11, run=1e-6, copy=2e-11)
    write_machine(tmp_path / "m.json", machine)
    facts = told(capsys, kind, "-n", "6", "--size", "24000", "--machine", str(tmp_path / "m.json"),
                 "--memory", "shared")
    n = facts["elements"]
    assert facts["bounds"] == lower_bounds(kind, 6, 4 * n)
    for name, program in ALGORITHMS[kind].items():
        row, options = rows(facts)[name], {"topo": Topology((6,)), "root": 0}
        if program.refusal(6):
            assert row["refused"] == program.refusal(6)
            continue
        took = cost(program, 6, n, **options)
        assert {key: row[key] for key in vars(took)} == vars(took)
        assert row["predicted_s"] == pytest.approx(predict(program, 6, n, machine, **options))
    assert "tell" in rows(facts)["mpi"]["about"]


def test_what_auto_picks_is_named_with_its_entry_and_follows_a_users_table(capsys, tmp_path):
    args = ["all_reduce", "-n", "4", "--size", "64KiB"]
    auto = told(capsys, *args, "--memory", "none")["auto"]
    assert (auto["algorithm"], auto["bytes"]) == ("rabenseifner", 512 * 1024)
    auto = told(capsys, *args, "--memory", "shared")["auto"]
    assert auto["algorithm"] == "shared" and "minipar's table" in auto["entry"]
    path = tmp_path / "t.json"
    path.write_text('{"table": [{"kind": "all_reduce", "node": 2, "algorithm": "swing"}]}')
    for topology, algorithm in (("2,2", "swing"), ("4", "rabenseifner")):
        facts = told(capsys, *args, "--memory", "none", "--table", str(path),
                     "--topology", topology)
        assert facts["auto"]["algorithm"] == algorithm
    assert explain.main([*args, "--memory", "none", "--table", str(path), "--topology", "2,2"]) == 0
    out = capsys.readouterr().out
    assert f"auto picks swing: entry 1 of {path} (any size, any number of ranks, up to 2 of" in out
    assert "swing *" in out


def test_an_entry_that_cannot_serve_is_said_to_be_refused(capsys, tmp_path):
    path = tmp_path / "t.json"
    path.write_text('{"table": [{"kind": "all_reduce", "algorithm": "swing"}]}')
    assert explain.main(["all_reduce", "-n", "3", "--table", str(path)]) == 0
    out = capsys.readouterr().out
    assert "which it refuses: swing serves 2^k ranks, not 3" in out


def test_one_sided_programs_need_memory_and_a_copy_where_the_buffer_is_elsewhere(capsys, tmp_path):
    write_machine(tmp_path / "m", Machine(1e-6, 1e-9, 1e-9, copy=1e-9))
    args = ["all_reduce", "-n", "2", "--size", "8000", "--machine", str(tmp_path / "m")]
    shared, own, none = (rows(told(capsys, *args, "--memory", memory))["shared"]
                         for memory in ("shared", "own", "none"))
    assert own["predicted_s"] == pytest.approx(shared["predicted_s"] + 2 * 8000 * 1e-9)
    assert "do not share" in none["refused"]


def test_the_table_for_people_shows_bounds_forms_and_the_machine(capsys):
    assert explain.main(["all_reduce", "--size", "4MiB", "-n", "4", "--memory", "shared"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("all_reduce of 4 MiB (1,048,576 float32) on 4 ranks, buffer in shared")
    line = next(line for line in out.splitlines() if line.startswith("ring "))
    assert "6 (3x)" in line and "6 MiB (1x)" in line and "3 MiB (1x)" in line
    assert "ring                       2(p-1) alpha + 2n(p-1)/p beta + n(p-1)/p gamma" in out
    assert "no algorithm below" in out and "comes with minipar" in out and "L = lg p" in out


def test_programs_of_a_file_stand_beside_those_that_come_with_minipar(capsys, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    facts, = told(capsys, str(path), "-n", "3", "--size", "1200")
    row = rows(facts)["mine"]
    assert row["own"] and row["betas"] == 4 * 1200 and row["alphas"] == 4 and "ring" in rows(facts)
    assert explain.main([str(path), "-n", "3"]) == 0
    assert "mine (yours)" in capsys.readouterr().out


def test_a_kind_of_ones_own_has_costs_but_no_bounds(capsys, tmp_path):
    path = tmp_path / "kind.py"
    path.write_text("from minipar.comm import Kind, collective, recv, send\n"
                    "def none(rank, size, x):\n    return ()\n"
                    "@collective(Kind('turn', none, none))\n"
                    "def turn(rank, size, x):\n"
                    "    yield send(x, (rank + 1) % size), recv(x[0:0], (rank - 1) % size)\n")
    path.write_text(path.read_text().replace("send(x,", "send(x[0:0],"))
    facts, = told(capsys, str(path), "-n", "3")
    assert facts["bounds"] is None and facts["auto"] is None and rows(facts)["turn"]["alphas"] == 1
    assert explain.main([str(path), "-n", "3"]) == 0
    assert "no entry of the table is for it" in capsys.readouterr().out


@pytest.mark.parametrize("memory", ["shared", "own"])
def test_measured_times_stand_beside_predicted_ones(memory, capsys, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    facts, = told(capsys, str(path), "-n", "2", "--size", "4KiB", "--measure", "--memory", memory,
                  "--launcher", "threads")
    for row in facts["algorithms"]:
        assert ("measured_s" in row) != ("refused" in row), row
        assert row.get("measured_s", 1) > 0
    assert "under mpirun" in rows(facts)["mpi"]["refused"]


@pytest.mark.parametrize("kind", ["all_to_all", "barrier", "gather"])
def test_kinds_that_the_benchmark_has_not_are_measured_too(kind, capsys):
    facts = told(capsys, kind, "-n", "2", "--size", "4KiB", "--measure", "--launcher", "threads")
    assert all(row.get("measured_s", 1) > 0 for row in facts["algorithms"])


def test_under_mpi_the_library_is_measured_beside_the_programs():
    done = mpirun(2, "-m", "minipar", "explain", "all_reduce", "--size", "4KiB", "--measure",
                  "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["ranks"] == 2 and rows(facts)["mpi"]["measured_s"] > 0


@pytest.mark.parametrize("more", [[], ["--measure", "--launcher", "threads"]])
def test_a_wrong_program_is_neither_priced_nor_run(more, capsys, tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(MINE.replace("range(1, size):", "range(2, size):"))
    assert explain.main([str(path), "-n", "2", *more]) == 2
    err = capsys.readouterr().err
    assert "mine is wrong" in err and "minipar verify" in err and err.count("\n") == 1


@pytest.mark.parametrize("args, words", [
    (["all_reduse"], "no kind 'all_reduse'"), (["none.py"], "no file none.py"),
    (["all_reduce", "--size", "x"], "is no size"), (["all_reduce", "--table", "no"], "cannot be"),
    (["all_reduce", "--machine", "no"], "cannot be read"),
    (["all_reduce", "-n", "4", "--topology", "3"], "3 != 4 ranks"),
    (["all_reduce", "--topology", "a"], "numbers, with commas"),
    (["all_reduce", "--memory", "mine"], "invalid choice")])
def test_what_cannot_be_explained_is_refused_with_one_line(args, words, capsys):
    assert explain.main(args) == 2
    err = capsys.readouterr().err
    assert err.startswith("minipar: error: ") and words in err and err.count("\n") == 1


def test_numbers_are_written_for_people():
    assert [explain_text.size(n) for n in (0, 100, 1536, 4 << 20, 5 << 30)] == [
        "0 B", "100 B", "1.5 KiB", "4 MiB", "5 GiB"]
    assert [explain_text.seconds(s) for s in (2.0, 0.0125, 3.14159e-6)] == [
        "2 s", "12.5 ms", "3.14 us"]


def test_the_machine_that_comes_with_minipar_is_one():
    from minipar.comm.cost.machine import SHIPPED
    machine, content = read_machine(SHIPPED)
    assert machine.beta > 0 and content["about"]
