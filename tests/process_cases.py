"""What ranks do in test_processes.py. They import this file and not pytest."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

import comm_cases
import minipar
from comm_cases import GUARD, guarded
from minipar import optim
from minipar.comm import world
from minipar.comm.transport.frames import EAGER, WINDOW
from minipar.models import MLP
from minipar.parallel import DistributedDataParallel
from minipar.tensor import Tensor
from minipar.train import loss_and_count


def every_case():
    """Returns what the bytes took, to each peer."""
    comm = world()
    for case in comm_cases.CASES:
        case(comm)
        comm.barrier()
    messages_of_any_size(comm)
    many_in_flight(comm)
    one_that_nobody_receives_blocks_no_other(comm)
    comm.barrier()
    # Kept to the end: operations that nobody waits for and plans that nobody releases.
    comm.plan("all_reduce", comm_cases.values(comm.rank, comm.size, 100, float)).start()
    comm.split(0).plan("broadcast", comm_cases.values(comm.rank, comm.size, 9, float))
    return comm.transport.paths() if comm.size > 1 else {}


def one_sided():
    """Programs that read and write their peers' memory."""
    sys.path.insert(0, str(Path(__file__).parent / "mpi_programs"))
    import shared
    shared.check(world())
    return True


def payload(source, number, n):
    """What message `number` from `source` holds: n bytes that differ from place to place."""
    period = (np.arange(251) * 7 + 31 * source + number) % 251
    return np.resize(period.astype(np.uint8), n)


def messages_of_any_size(comm):
    """All pairs at once, both directions, receives before sends, after them, and in between."""
    rank, peers = comm.rank, [r for r in range(comm.size) if r != comm.rank]
    for round, n in enumerate([0, 1, 1001, 2**16 + 1, EAGER, EAGER + 1, 10**7]):
        if n > 10**6 and comm.size > 3:
            peers = [r for r in peers if r == rank ^ 1]
        got = {peer: guarded(np.zeros(n, np.uint8)) for peer in peers}
        early = [comm.irecv(got[peer][1], peer) for peer in peers if (peer + rank + round) % 2]
        sends = [comm.isend(payload(rank, round, n), peer) for peer in peers]
        if rank == 0:
            time.sleep(0.01)
        late = [comm.irecv(got[peer][1], peer) for peer in peers if not (peer + rank + round) % 2]
        for work in late + sends + early:
            work.wait()
        for peer, (buffer, view) in got.items():
            assert (view == payload(peer, round, n)).all(), (peer, n)
            assert (buffer[n:] == GUARD).all()


def many_in_flight(comm):
    """More than rings and windows hold, sent both ways before anything is received."""
    rank, count, n = comm.rank, 150, 40_001
    peer = rank ^ 1
    if peer >= comm.size:
        return
    assert count * n > WINDOW
    sends = [comm.isend(payload(rank, i, n), peer, tag=i % 7) for i in range(count)]
    got = [np.empty(n, np.uint8) for _ in range(count)]
    works = [comm.irecv(got[i], peer, tag=i % 7) for tag in range(6, -1, -1)
             for i in range(tag, count, 7)]
    for work in works[::2] + sends + works[1::2]:
        work.wait()
    for i in range(count):
        assert (got[i] == payload(peer, i, n)).all(), i


def one_that_nobody_receives_blocks_no_other(comm):
    rank, peer = comm.rank, comm.rank ^ 1
    if peer >= comm.size:
        return
    for n, count in ((3 * 10**6, 1), (10**5, 60)):
        first = [comm.isend(payload(rank, i, n), peer, tag=1) for i in range(count)]
        comm.send(np.array([rank]), peer, tag=2)
        x = np.empty(1, int)
        comm.recv(x, peer, tag=2)
        assert x[0] == peer
        for i in range(count):
            buffer = np.empty(n, np.uint8)
            comm.recv(buffer, peer, tag=1)
            assert (buffer == payload(peer, i, n)).all()
        for work in first:
            work.wait()


def echo(a, b):
    comm = world()
    threads = os.environ["OPENBLAS_NUM_THREADS"], os.environ["OMP_NUM_THREADS"]
    return (comm.rank, comm.size, a, b, minipar.get_default_dtype().name,
            float(minipar.Tensor(np.ones(1)).array[0]), minipar.context.current().seed, threads)


def train(steps=4):
    """A hash of the parameters after some steps of data parallel training."""
    comm = world()
    minipar.set_default_dtype("float64")
    minipar.manual_seed(5)
    model = DistributedDataParallel(MLP([6, 7, 5, 4]), gradient="sum", bucket_cap_mb=1e-4)
    optimizer = optim.AdamW(model.parameters(), 0.01)
    rng = np.random.default_rng(1)
    for _ in range(steps):
        x, y = rng.standard_normal((12, 6)), rng.integers(0, 4, 12)
        optimizer.zero_grad()
        loss, _ = loss_and_count(model(Tensor(x[comm.rank::comm.size])),
                                 Tensor(y[comm.rank::comm.size]))
        loss.backward()
        optimizer.step(scale=1 / 12)
    digest = hashlib.sha256()
    for name, p in sorted(model.module.named_parameters()):
        digest.update(name.encode() + p.array.tobytes())
    return digest.hexdigest()


class Planted(Exception):
    """Raised on purpose; pickle cannot make it again."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


def leave(how):
    if how in ("raise", "raise with a child"):
        raise KeyError("this one")
    if how == "raise what pickle cannot read":
        raise Planted("planted", "on purpose")
    if how == "raise in a thread":
        threading.Thread(target=leave, args=("raise",)).start()
    elif how == "exit 3":
        sys.exit(3)
    elif how == "exit text":
        sys.exit("leaves with a text")
    elif how == "_exit 4":
        os._exit(4)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "sleep":
        time.sleep(100)
    elif how == "lengths":
        world().send(np.zeros(3), 0)
    else:
        raise AssertionError(how)


def fail(pids, culprit, step, how):
    """All ranks reduce for ever; the culprit leaves in the way it is told to, or returns."""
    comm, x = world(), np.zeros(100)
    (pids / f"{comm.rank}").write_text(str(os.getpid()))
    if how == "raise with a child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
        (pids / f"child of {comm.rank}").write_text(str(child.pid))
    comm.barrier()
    if comm.rank == 0:
        print("all are here", flush=True)
    for i in range(10**9):
        if comm.rank == culprit and i == step:
            if how == "return":
                return
            leave(how)
        if how == "lengths" and comm.rank == 0 and i == step:
            comm.recv(np.zeros(5), culprit)
        comm.all_reduce(x)


def cannot_be_sent():
    return threading.Lock()
