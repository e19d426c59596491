"""One-sided programs in memory that ranks share: threads of a process, and processes of a node."""

import os
import re
import sys

import numpy as np
import pytest
from launch import ROOT, mpirun

from minipar.comm import collective, copy, fence, get, put, run_threads, world
from minipar.comm.cost import cost
from minipar.comm.local import merge
from minipar.comm.program import ALGORITHMS
from minipar.comm.verify import VerificationError, verify
from minipar.comm.window import Arena, Fence, Window

sys.path.insert(0, str(ROOT / "tests" / "mpi_programs"))
import shared  # noqa: E402


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_one_sided_programs_compute_what_they_promise_on_threads(n):
    run_threads(lambda: shared.check(world()), n)


@pytest.mark.skipif(sys.platform != "linux", reason="processes share memory on Linux")
@pytest.mark.parametrize("n", [2, 4])
def test_one_sided_programs_compute_what_they_promise_over_mpi(n):
    done = mpirun(n, ROOT / "tests" / "mpi_programs" / "shared.py")
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
    assert not [name for name in os.listdir("/dev/shm") if "minipar" in name]


def test_a_program_that_wants_shared_memory_is_refused_by_name_where_there_is_none(monkeypatch):
    monkeypatch.setattr("minipar.comm.communicator.memory_key", lambda: 0)
    monkeypatch.setattr("minipar.comm.transport.threads.Threads.segments", lambda *a: None)

    def job():
        with pytest.raises(ValueError, match="reduce_and_put reads and writes memory of its peers, "
                                             "which these 2 ranks do not share"):
            world().all_reduce(np.ones(3), algorithm=shared.reduce_and_put)
        x = world().empty((3, 2), np.float32)  # an ordinary one
        x[...] = world().rank
        world().all_reduce(x)
        assert x.shape == (3, 2) and (x == 1).all()
    run_threads(job, 2)


def windows(sizes, made):
    def make(nbytes):
        made.append(nbytes)
        return Window([np.zeros(nbytes, np.uint8) for _ in range(2)], 0)
    return make


def test_regions_are_whole_lines_that_do_not_overlap():
    made = []
    arena = Arena(windows(2, made))
    regions = [arena.take(n) for n in (1, 64, 65, 0, 5_000_001, 8)]
    assert made == [Arena.CHUNK, 5_000_064, Arena.CHUNK]
    spans = sorted((id(w), at, at + -(-max(n, 1) // 64) * 64)
                   for (w, at), n in zip(regions, (1, 64, 65, 0, 5_000_001, 8)))
    assert all(at % 64 == 0 for _, at, _ in spans)
    assert all(a[0] != b[0] or a[2] <= b[1] for a, b in zip(spans, spans[1:]))


def test_an_array_is_found_by_where_its_memory_lies():
    arena = Arena(windows(2, []))
    window, offset = arena.take(400)
    inside = window.view(0, offset, 100, np.dtype(np.float32))
    assert arena.find(inside) == (window, offset)
    assert arena.find(inside[10:20]) == (window, offset + 40)
    assert arena.find(np.zeros(3)) is None


def test_a_fence_opens_when_the_last_rank_has_come():
    memory = [np.zeros(64, np.uint8) for _ in range(3)]
    fences = [Fence(Window(memory, r), 0) for r in range(3)]
    for _ in range(3):
        for r in (2, 0):
            fences[r].arrive()
            assert not fences[r].passed()
        fences[1].arrive()
        assert all(f.passed() for f in fences)


@collective("reduce_scatter_into")
def into_the_input(rank, size, input, output):
    yield copy(output, input[:len(output)])


@collective("reduce_scatter_into")
def into_a_peer_s_input(rank, size, input, output):
    yield fence()
    yield put(output, (rank + 1) % size, input[:len(output)])
    yield fence()


@collective("all_gather_into")
def out_of_a_peer_s_output(rank, size, input, output):
    yield fence()
    yield get(output[:1], (rank + 1) % size, output[1:2])
    yield fence()


@pytest.mark.parametrize("program, words", [
    (into_the_input, "rank 0, round 0: copy into input[0:2], which reduce_scatter_into leaves as"),
    (into_a_peer_s_input, "rank 0, round 1: put into input[0:2], which reduce_scatter_into leaves"),
    (out_of_a_peer_s_output, "round 1: get at output[1:2] of rank 1, which is that rank's own")])
def test_inputs_are_not_written_and_outputs_are_their_ranks_own(program, words):
    with pytest.raises(VerificationError, match=re.escape(words)):
        verify(program, 2, 4)


@pytest.mark.parametrize("p", [1, 2, 3, 8, 17])
def test_a_result_that_ranks_share_is_proved_and_moves_less_than_any_other_all_reduce(p):
    program, n = ALGORITHMS["reduce_scatter_into"]["shared"], 1000 * p
    verify(program, p)
    assert cost(program, p, n).sent == 4 * n * (p - 1) // p  # read; `shared` writes as many, too
    assert cost(ALGORITHMS["all_reduce"]["shared"], p, n).sent == 2 * 4 * n * (p - 1) // p


def test_local_rounds_are_joined_and_a_copy_that_is_reduced_into_is_one_pass():
    a, b, c, d = (np.full(4, float(i)) for i in range(4))
    fence, send = ([], [], [], {1}, True), (["message"], [], [], {1}, False)

    def local(*work):
        return [], list(work), [], set(), False
    rounds = [fence, local((None, c, a, None)), local((np.add, c, c, b), (np.add, c, c, d)), send,
              local((None, d, a, None), (np.add, d, d, d[:])), local((None, b, c, None))]
    merged, ops = merge(rounds, ["f", "g", "h", "s", "x", "y"])
    assert ops == [("f",), ("g", "h", "s"), ("x", "y")] and merged[0] == fence
    messages, work, *rest = merged[1]
    assert (messages, rest) == (["message"], [[], {1}, False])
    assert [[id(x) for x in step] for step in work] == [
        [id(x) for x in step] for step in ((np.add, c, a, b), (np.add, c, c, d))]
    assert len(merged[2][1]) == 3  # what is added is what was copied: two passes
