"""Selection: the table that comes with minipar, a user's before it, and one choice on all ranks."""

import json

import numpy as np
import pytest
from launch import mpirun, python

from minipar import bench
from minipar.comm import run_threads, world
from minipar.comm.program import ALGORITHMS
from minipar.comm.select import Table, select
from minipar.comm.select.table_file import VARIABLE, entries_of, read_entries, shipped

KIB = 1024


def write(path, *entries):
    path.write_text(json.dumps({"table": list(entries)}))
    return path


def expected(kind, size, nbytes, shared):
    """The rules of the shipped table in words of their own."""
    if shared is not None and nbytes >= 8 * KIB and (shared or nbytes <= 1024 * KIB) and kind in (
            "all_reduce", "reduce_scatter", "all_gather", "broadcast"):
        return "shared"
    if kind == "all_reduce":
        if nbytes <= (128 if size <= 2 else 32) * KIB:
            return "recursive_doubling"
        return "rabenseifner" if nbytes <= 512 * KIB else "ring"
    if kind in ("reduce_scatter", "all_gather"):
        few = "recursive_halving" if kind == "reduce_scatter" else "bruck"
        return few if nbytes <= 512 * KIB else "ring"
    if kind in ("broadcast", "reduce"):
        many = "scatter_all_gather" if kind == "broadcast" else "rabenseifner"
        return "binomial" if size <= 3 or nbytes <= (
            64 if kind == "broadcast" else 32) * KIB else many
    if kind in ("gather", "scatter"):
        return "binomial" if nbytes <= 64 * KIB else "linear"
    if kind == "all_to_all":
        return "bruck" if nbytes <= 4 * KIB else "pairwise"
    return "dissemination"


@pytest.mark.parametrize("shared", [None, False, True])
def test_the_shipped_table_picks_what_was_measured(shared):
    for kind in ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce", "gather",
                 "scatter", "all_to_all", "barrier"):
        for size in (1, 2, 3, 4, 17):
            for k in (0, 1, 4, 8, 32, 64, 128, 512, 1024, 4096):
                for nbytes in {max(0, k * KIB - 1), k * KIB, k * KIB + 1}:
                    found = select(kind, size, nbytes, shared=lambda: shared).name
                    assert found == expected(kind, size, nbytes, shared), (kind, size, nbytes)


def test_a_users_entries_come_first_and_minipars_where_none_of_them_fits(tmp_path):
    path = write(tmp_path / "mine.json",
                 {"kind": "all_reduce", "ranks": 4, "bytes": 100, "algorithm": "naive"},
                 {"kind": "all_reduce", "ranks": 4, "bytes": 1000, "shared": True,
                  "algorithm": "swing"},
                 {"kind": "all_reduce", "ranks": None, "node": 2, "bytes": 2000,
                  "algorithm": "torus_2d"})
    table = Table(read_entries(path))

    def name(size, nbytes, shared=None, node=9):
        return select("all_reduce", size, nbytes, table=table, shared=lambda: shared,
                      node=lambda: node).name
    assert name(4, 100) == "naive" and name(5, 100) == "recursive_doubling"
    assert name(4, 101) == "recursive_doubling" and name(4, 101, True) == "swing"
    assert name(4, 101, False) == "recursive_doubling" and name(4, 101, node=2) == "torus_2d"
    assert name(8, 2000, node=1) == "torus_2d" and name(8, 2001, node=1) == "recursive_doubling"
    assert select("barrier", 4, 0, table=table).name == "dissemination"


def test_memory_and_nodes_are_asked_for_only_where_an_entry_asks():
    def never():
        raise AssertionError("asked")
    assert select("all_reduce", 4, 8 * KIB - 1, shared=never, node=never).name
    assert select("gather", 4, 10**6, shared=never, node=never).name
    with pytest.raises(AssertionError, match="asked"):
        select("all_reduce", 4, 8 * KIB, shared=never)


BAD = {
    "not json": ("{", "not JSON"),
    "a list": ("[]", "holds no table"),
    "no table": ('{"about": "x"}', "holds no table"),
    "a field beside": ('{"table": [], "tables": 1}', "no field 'tables' beside table"),
    "not an object": ('{"table": [3]}', "entry 1 of {file} is 3"),
    "an unknown field": ('{"table": [{"kind": "reduce", "algorithm": "binomial", "rank": 2}]}',
                         "entry 1 of {file}: no field 'rank': did you mean ranks"),
    "no kind": ('{"table": [{"algorithm": "ring"}]}', "entry 1 of {file}: kind is None"),
    "an unknown kind": ('{"table": [{"kind": "barrier", "algorithm": "mpi"}, '
                        '{"kind": "all_reduse", "algorithm": "ring"}]}',
                        "entry 2 of {file}: no kind 'all_reduse': did you mean all_reduce"),
    "an unknown algorithm": ('{"table": [{"kind": "all_reduce", "algorithm": "rung"}]}',
                             "entry 1 of {file}: no all_reduce algorithm 'rung': did you mean "
                             "ring"),
    "another kind's": ('{"table": [{"kind": "broadcast", "algorithm": "swing"}]}',
                       "no broadcast algorithm 'swing'"),
    "bytes": ('{"table": [{"kind": "reduce", "algorithm": "binomial", "bytes": "4K"}]}',
              'bytes is "4K", no whole number from 0 on'),
    "ranks": ('{"table": [{"kind": "reduce", "algorithm": "binomial", "ranks": 0}]}',
              "ranks is 0, no whole number from 1 on"),
    "a bool": ('{"table": [{"kind": "reduce", "algorithm": "binomial", "node": true}]}',
               "node is true"),
    "shared": ('{"table": [{"kind": "reduce", "algorithm": "binomial", "shared": 1}]}',
               "shared is 1, not true, false or null"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_table_is_refused_with_one_line_naming_file_and_entry(case, tmp_path):
    path = tmp_path / "bad table.json"
    path.write_text(BAD[case][0])
    with pytest.raises(ValueError) as error:
        read_entries(path)
    assert BAD[case][1].format(file=path) in str(error.value)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_entries(tmp_path / "none.json")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not text"):
        read_entries(tmp_path / "bytes")


def test_a_choice_that_cannot_serve_names_the_entry_and_the_restriction(tmp_path):
    path = write(tmp_path / "t.json", {"kind": "all_reduce", "algorithm": "swing"})
    table = Table(read_entries(path))
    assert select("all_reduce", 4, 8, table=table).name == "swing"
    with pytest.raises(ValueError, match=r"entry 1 of .*t.json: swing serves 2\^k ranks, not 3"):
        select("all_reduce", 3, 8, table=table)


def test_a_kind_that_no_entry_is_for_wants_a_name():
    with pytest.raises(ValueError, match="no entry of the table is for reduce of 8 bytes on 2"):
        select("reduce", 2, 8, table=Table(()))


def test_every_algorithm_of_the_shipped_table_is_there_whatever_the_ranks():
    for entry in shipped():
        assert ALGORITHMS[entry.kind][entry.algorithm].ranks is None, entry


def test_all_ranks_select_by_the_table_of_rank_0(tmp_path):
    paths = [write(tmp_path / "0", {"kind": "all_reduce", "algorithm": "naive"}),
             write(tmp_path / "1", {"kind": "all_reduce", "algorithm": "rung"}),
             tmp_path / "there is none"]

    def job():
        comm = world()
        comm.read_table(paths[comm.rank])
        x = np.arange(100.0) + comm.rank
        comm.all_reduce(x)
        part = comm.split(comm.rank // 2)
        y = np.ones(3)
        part.all_reduce(y)
        assert (x == 3 * np.arange(100.0) + 3).all() and (y == part.size).all()
        return comm.chosen["all_reduce"], part.chosen["all_reduce"]
    assert run_threads(job, 3) == [({"naive": 800}, {"naive": 24})] * 3


def test_what_is_wrong_with_rank_0s_table_is_raised_on_every_rank(tmp_path):
    def job():
        with pytest.raises(ValueError, match="no.json cannot be read"):
            world().read_table(tmp_path / "no.json" if world().rank == 0 else None)
        world().read_table()
        world().barrier()
    run_threads(job, 3)


def test_the_environment_names_a_table(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(write(tmp_path / "t", {"kind": "barrier", "algorithm":
                                                            "dissemination"},
                                           {"kind": "broadcast", "algorithm": "chain"})))

    def job():
        comm = world()
        x = np.full(5, comm.rank)
        comm.broadcast(x, algorithm="binomial")
        comm.broadcast(x)
        return comm.chosen["broadcast"]
    assert run_threads(job, 2) == [{"binomial": 40, "chain": 40}] * 2


def test_a_wrong_table_in_the_environment_is_an_error_when_it_is_first_needed(monkeypatch):
    monkeypatch.setenv(VARIABLE, "no/such/table")

    def job():
        x = np.ones(3)
        world().all_reduce(x, algorithm="ring")
        with pytest.raises(ValueError, match="no/such/table cannot be read"):
            world().all_reduce(x)
        assert (x == 2).all()
    run_threads(job, 2)


SEND_LATER = """
import numpy as np
from minipar.comm import world
comm, x, y = world(), np.ones(3), np.zeros(1)
if comm.rank == 1:
    work = comm.all_reduce(x, async_op=True)
    comm.send(y, 0)
else:
    comm.recv(y, 1)
    work = comm.all_reduce(x, async_op=True)
work.wait()
assert (x == 2).all()
print(list(comm.chosen["all_reduce"])[0])
"""


def test_the_first_collective_waits_for_nobody_when_it_is_started_and_rank_0s_table_counts(
        tmp_path):
    write(tmp_path / "0", {"kind": "all_reduce", "algorithm": "naive"})
    (tmp_path / "1").write_text("no table")
    (tmp_path / "p.py").write_text(
        "import os\nrank = os.environ.get('PMI_RANK') or os.environ['OMPI_COMM_WORLD_RANK']\n"
        f"os.environ['MINIPAR_ALGORITHMS'] = {str(tmp_path)!r} + '/' + rank\n" + SEND_LATER)
    done = mpirun(2, tmp_path / "p.py", timeout=20)
    assert (done.returncode, done.stdout.count("naive")) == (0, 2), done.stderr


def test_an_entry_may_be_for_groups_with_so_many_ranks_on_a_node(tmp_path, monkeypatch):
    path = write(tmp_path / "t", {"kind": "all_reduce", "node": 2, "algorithm": "naive"},
                 {"kind": "all_reduce", "node": 3, "algorithm": "torus_2d"})
    hosts = ["a", "a", "b", "a"]
    monkeypatch.setattr("minipar.comm.select.choosing.host_names", lambda comm: hosts[:comm.size])

    def job():
        world().read_table(path)
        world().all_reduce(np.ones(3))
        return list(world().chosen["all_reduce"])
    assert [run_threads(job, n)[0] for n in (3, 4)] == [["naive"], ["torus_2d"]]


def test_a_table_may_send_small_buffers_through_shared_memory(tmp_path):
    path = write(tmp_path / "t", *({"kind": kind, "shared": value, "algorithm": "shared"}
                                   for kind in ("all_reduce", "all_gather", "broadcast")
                                   for value in (True, False)))

    def job():
        comm = world()
        comm.read_table(path)
        x = comm.empty((3,), np.float64)
        x[...] = comm.rank
        comm.all_reduce(x)
        assert (x == 3).all() and comm.all_gather(np.array(comm.rank)).tolist() == [0, 1, 2]
        return {kind: list(names) for kind, names in comm.chosen.items()}
    for chosen in run_threads(job, 3):
        assert chosen["all_reduce"] == ["shared"] and "shared" in chosen["all_gather"]


TRAIN = ["-m", "minipar.train", "--steps", "3", "--hidden", "8", "--algorithm", "auto", "--quiet"]


def test_training_selects_by_the_flag_and_its_metrics_say_what_served(tmp_path):
    table = write(tmp_path / "my table.json", {"kind": "all_reduce", "algorithm": "torus_2d"})
    done = mpirun(2, *TRAIN, "--metrics", tmp_path / "m", "--algorithm-table", table)
    assert done.returncode == 0, done.stderr
    end = json.loads((tmp_path / "m").read_text().splitlines()[-1])
    assert list(end["algorithms"]["all_reduce"]) == ["torus_2d"]
    assert end["algorithms"]["all_reduce"]["torus_2d"] > 64 * 8 * 4  # the gradients


def test_a_table_that_cannot_be_is_a_usage_error_by_flag_and_by_environment(tmp_path):
    table = write(tmp_path / "t", {"kind": "all_reduce", "algorithm": "rung"})
    by_flag = python(*TRAIN, "--ranks", "2", "--algorithm-table", table)
    by_environment = python(*TRAIN, MINIPAR_ALGORITHMS=str(table))
    for done in (by_flag, by_environment):
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert f"minipar: error: entry 1 of {table}: no all_reduce algorithm 'rung'" in done.stderr


def test_the_benchmark_selects_by_the_flag(tmp_path, capsys):
    table = write(tmp_path / "t", {"kind": "all_reduce", "algorithm": "torus_2d"})
    args = ["all_reduce", "--sizes", "64", "--seconds", "0.001", "--algorithm-table", str(table)]
    assert run_threads(lambda: bench.main(args), 2) == [0, 0]
    assert "torus_2d" in capsys.readouterr().out


def test_entries_say_where_they_stand():
    entry = entries_of('{"table": [{"kind": "barrier", "algorithm": "mpi"}]}', "a file")[0]
    assert entry.source == "entry 1 of a file" and entry.algorithm == "mpi"
