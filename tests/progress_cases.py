"""What ranks do in test_progress.py, by hooks and by a thread. They import this and not pytest."""

import random
import time

import numpy as np

import comm_cases
from minipar import nn
from minipar.comm import Codec, collective, recv, send, world
from minipar.comm.algorithms.ring import ring
from minipar.context import current
from minipar.parallel import DistributedDataParallel
from minipar.tensor import Tensor

CASES = [case for case in comm_cases.CASES if case.__name__ not in
         ("plans_started_again", "all_reduce", "reduce_scatter_gather_broadcast")]


def by(way, function, *args):
    """Run a function with progress by `way`, on the calling rank."""
    comm = world()
    comm.progress = way
    assert comm.progress == way
    return function(comm, *args)


def cases(comm):
    for case in CASES:
        case(comm)
    comm_cases.all_reduce(comm, [np.float64])
    comm_cases.reduce_scatter_gather_broadcast(comm, [np.int32])


def goes_on_alone(comm, seconds):
    """Whether a long plan is done although its rank only sleeps, for at most `seconds`."""
    x = comm_cases.values(comm.rank, comm.size, 10_007, np.float64)
    plan = comm.plan("all_reduce", x, algorithm="ring")
    comm.barrier()
    plan.start()
    deadline = time.monotonic() + seconds
    while not plan.done and time.monotonic() < deadline:
        time.sleep(1e-3)
    alone = plan.done
    plan.wait()
    comm_cases.same(x, comm_cases.reduced(comm.size, 10_007, np.float64, "sum"), "alone")
    return alone


def overlapping_groups(comm):
    """Communicators that share ranks: the world, a copy, halves, neighbours, and all but rank 0."""
    p, rank = comm.size, comm.rank
    groups = [comm, comm.split(0), comm.split(rank % 2), comm.split(rank // 2),
              comm.split(rank < p // 2, key=-rank), comm.split(None if rank == 0 else 0)]
    return [group for group in groups if group is not None]


def many_in_flight(comm, seeds=range(12)):
    """Plans on overlapping groups, each group's in one order on all of its ranks, but groups mixed
    in an order of the rank's own; and waited for in any order."""
    groups = overlapping_groups(comm)
    members = [group.all_gather(np.array(comm.rank)).tolist() for group in groups]
    plans = []  # (group, its place in the group's order, members, array, plan)
    for group, ranks in zip(groups, members):
        for i, (n, algorithm) in enumerate([(1, "auto"), (40_001, "ring"), (100, "rabenseifner"),
                                            (5000, "recursive_doubling")]):
            x = np.empty(n)
            plans.append((group, i, ranks, x, group.plan("all_reduce", x, algorithm=algorithm)))
    for seed in seeds:
        draw = random.Random(f"{seed} {comm.rank}")
        queues = {id(group): [] for group in groups}
        for entry in plans:
            queues[id(entry[0])].append(entry)
        agreed = random.Random(seed)  # the order within a group is the same on all of its ranks
        for queue in queues.values():
            agreed_order = list(range(len(queue)))
            agreed.shuffle(agreed_order)
            queue[:] = [queue[i] for i in agreed_order]
        left = [queue for queue in queues.values() if queue]
        while left:
            queue = draw.choice(left)
            group, i, ranks, x, plan = queue.pop(0)
            x[...] = np.arange(x.size) + 10 * comm.rank + i + seed
            plan.start()
            left = [queue for queue in left if queue]
        for group, i, ranks, x, plan in draw.sample(plans, len(plans)):
            plan.wait()
            expected = len(ranks) * (np.arange(x.size) + i + seed) + 10 * sum(ranks)
            comm_cases.same(x, expected.astype(float), f"plan {i} among {ranks}, seed {seed}")


def _refuses(buffer, array):
    raise ArithmeticError("planted in a codec")


broken = Codec("broken", lambda n, itemsize: n * itemsize,
               lambda array, out: np.copyto(out, array.view(np.uint8)), _refuses)


@collective("broadcast")
def star(rank, size, x, root):
    """As it should be, but that nobody can decode what comes."""
    if rank == root:
        yield [send(x, peer, codec=broken) for peer in range(size) if peer != root]
    else:
        yield recv(x, root, codec=broken)


def an_error_reaches_who_waits(comm):
    """A plan that raises in flight, beside one that does not."""
    x, y = np.ones(100), np.ones(1000)
    bad, good = comm.plan("broadcast", x, algorithm=star), comm.plan("all_reduce", y)
    bad.start()
    good.start()
    good.wait()
    assert (y == comm.size).all()
    caught = []
    for ask in (bad.wait, bad.test, bad.wait):
        try:
            ask()
        except ArithmeticError as error:
            caught.append(str(error))
    assert caught == ["planted in a codec"] * (0 if comm.rank == 0 else 3), caught
    comm.all_reduce(y)
    assert (y == comm.size ** 2).all()


def settings_of_who_starts(comm):
    """NumPy's error mode of the rank that starts a plan is that of its arithmetic."""
    x = np.array([np.inf if comm.rank else -np.inf, 1e308])
    with np.errstate(all="ignore"):
        comm.all_reduce(x, algorithm=ring)
    assert np.isnan(x[0]) and x[1] == np.inf
    x = np.array([1e308])
    try:
        with np.errstate(all="raise"):
            comm.reduce(x, 0, algorithm="binomial")
    except FloatingPointError:
        assert comm.rank == 0
    else:
        assert comm.rank


def gradients(comm, algorithm):
    """Bits of gradients reduced in many buckets, and the overlap that was measured."""
    current().manual_seed(3)
    model = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 30), nn.Linear(30, 2))
    model = DistributedDataParallel(model, gradient="sum", bucket_cap_mb=1e-3,
                                    algorithm=algorithm, progress=comm.progress)
    before = model.overlap
    for step in range(3):
        model.zero_grad()
        rng = np.random.default_rng([step, comm.rank])
        (model(Tensor(rng.standard_normal((9, 40)).astype(np.float32))) ** 2).sum().backward()
    bits = b"".join(p.grad.array.tobytes() for p in model.parameters())
    return bits, before, model.overlap

