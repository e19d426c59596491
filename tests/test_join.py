"""Ranks that run out of batches at different times, inside DistributedDataParallel.join()."""

import textwrap

import numpy as np
import pytest
from launch import python

import minipar as mp
from minipar import nn, optim
from minipar.comm import run_threads, world
from minipar.futures import Future
from minipar.models import MLP
from minipar.parallel import DistributedDataParallel
from minipar.tensor import Tensor

COUNTS = {"1, 3, 5": (1, 3, 5), "5, 3, 1": (5, 3, 1), "none at all": (0, 0, 0),
          "the first none": (0, 2, 2), "alike": (2, 2, 2), "one rank": (4,), "3, 0": (3, 0)}
TINY = 1e-6  # MiB: every parameter has its own bucket


def mlp():
    mp.set_default_dtype("float64")
    mp.manual_seed(5)
    return MLP([4, 5, 3])


def inputs(rank, i):
    """Batch i of a rank: (k, 4)."""
    return np.random.default_rng([rank, i]).standard_normal((2 + rank, 4))


def state(module):
    return {k: t.array.copy() for k, t in module.state_dict().items()}


def serial(counts, initial, make=mlp, batches_of=inputs):
    """What joined ranks should compute, on one: each step's gradient is the sum over those that
    have a batch, divided by all or by them."""
    def work():
        module, n = make(), len(counts)
        optimizer = optim.SGD(module.parameters(), 0.1, momentum=0.9)
        for i in range(max(counts)):
            optimizer.zero_grad()
            active = [r for r in range(n) if i < counts[r]]
            for r in active:
                ((module(Tensor(batches_of(r, i))) ** 2).mean() / (n if initial else len(active))
                 ).backward()
            optimizer.step()
        return state(module)
    return run_threads(work, 1)[0]


def joined(counts, initial=True, **options):
    """The same by ranks; (state of the module, steps it took) of each."""
    def work():
        model, steps = DistributedDataParallel(mlp(), **options), 0
        optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
        with model.join(divide_by_initial_world_size=initial):
            for i in range(counts[world().rank]):
                optimizer.zero_grad()
                (model(Tensor(inputs(world().rank, i))) ** 2).mean().backward()
                optimizer.step()
                steps += 1
        return state(model.module), steps
    return run_threads(work, len(counts))


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("cap", [25, TINY])
@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_ranks_with_fewer_batches_go_along_and_end_with_the_last_ones_model(counts, initial, cap):
    expected = serial(counts, initial)
    for rank, (found, steps) in enumerate(joined(counts, initial, bucket_cap_mb=cap)):
        assert_close(found, expected)
        assert steps == counts[rank]


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_a_hook_reduces_zeros_of_those_that_have_no_batch(counts):
    def reduce(state, bucket):
        values = bucket.buffer().array
        bucket.comm.all_reduce(values)
        values /= bucket.divisor
        done = Future()
        done.set_result(values)
        return done

    def work():
        model = DistributedDataParallel(mlp(), bucket_cap_mb=TINY)
        model.register_comm_hook(None, reduce)
        optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
        with model.join():
            for i in range(counts[world().rank]):
                optimizer.zero_grad()
                (model(Tensor(inputs(world().rank, i))) ** 2).mean().backward()
                optimizer.step()
        return state(model.module)
    expected = serial(counts, True)
    for found in run_threads(work, len(counts)):
        assert_close(found, expected)


def test_after_a_join_training_goes_on_alike_and_another_join_may_follow():
    def work():
        rank, model = world().rank, DistributedDataParallel(mlp(), bucket_cap_mb=TINY)
        optimizer = optim.SGD(model.parameters(), 0.1)

        def step(i):
            optimizer.zero_grad()
            (model(Tensor(inputs(rank, i))) ** 2).mean().backward()
            optimizer.step()
        for counts in ((1, 3), (2, 0)):
            with model.join(divide_by_initial_world_size=False):
                for i in range(counts[rank]):
                    step(i)
            step(7)
        return state(model.module)

    def alone():
        module = mlp()
        optimizer = optim.SGD(module.parameters(), 0.1)
        for batches in ([(0, 0), (1, 0)], [(1, 1)], [(1, 2)], [(0, 7), (1, 7)], [(0, 0)], [(0, 1)],
                        [(0, 7), (1, 7)]):
            optimizer.zero_grad()
            for batch in batches:
                ((module(Tensor(inputs(*batch))) ** 2).mean() / len(batches)).backward()
            optimizer.step()
        return state(module)
    expected = run_threads(alone, 1)[0]
    for found in run_threads(work, 2):
        assert_close(found, expected)


def test_gradients_accumulated_without_reduction_need_no_company():
    def work():
        rank, model = world().rank, DistributedDataParallel(mlp(), gradient="sum")
        with model.join():
            for i in range((2, 4)[rank] // 2):
                with model.no_sync():
                    (model(Tensor(inputs(rank, 2 * i))) ** 2).sum().backward()
                (model(Tensor(inputs(rank, 2 * i + 1))) ** 2).sum().backward()
                if rank == 1:
                    seen = {k: p.grad.array.copy() for k, p in model.module.named_parameters()}
                model.zero_grad()
        return seen if rank == 1 else None

    def alone():
        module = mlp()
        for i in (2, 3):  # in the second round rank 0 had nothing
            (module(Tensor(inputs(1, i))) ** 2).sum().backward()
        return {k: p.grad.array.copy() for k, p in module.named_parameters()}
    assert_close(run_threads(work, 2)[1], run_threads(alone, 1)[0])


@pytest.mark.parametrize("shares", [True, False])
def test_buffers_are_those_of_a_rank_that_still_trains(shares):
    counts = (1, 4, 2)

    def work():
        mp.set_default_dtype("float64")
        model = DistributedDataParallel(nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1)),
                                        broadcast_buffers=shares)
        seen = []
        with model.join():
            for i in range(counts[world().rank]):
                x = np.array([[1.0], [3.0]]) + 10 * world().rank + i
                model(Tensor(x)).sum().backward()
                seen.append(float(model.module[0].running_mean.array[0]))
        return seen, float(model.module[0].running_mean.array[0]), int(
            model.module[0].num_batches_tracked.array)
    # Before each forward everyone has the mean of the highest rank that has a batch.
    means, owner = [0.0] * 3, [2, 2, 1, 1]
    expected = [[], [], []]
    for i in range(4):
        active = [r for r in range(3) if i < counts[r]]
        if shares:
            means = [means[active[-1]]] * 3
        for r in active:
            means[r] = 0.9 * means[r] + 0.1 * (2 + 10 * r + i)
            expected[r].append(means[r])
        assert active[-1] == owner[i]
    for rank, (seen, mean, batches) in enumerate(run_threads(work, 3)):
        np.testing.assert_allclose(seen, expected[rank], rtol=1e-12)
        np.testing.assert_allclose(mean, means[1], rtol=1e-12)
        assert batches == 4


def test_on_request_all_end_as_soon_as_one_has_no_batch():
    def work():
        model, done = DistributedDataParallel(mlp()), 0
        message = "rank 1 of 3 has no more inputs, rank 0 has: all end here"
        with pytest.raises(RuntimeError, match=message), model.join(
                throw_on_early_termination=True):
            for i in range((4, 2, 3)[world().rank]):
                model(Tensor(inputs(0, i))).sum().backward()
                done += 1
        model(Tensor(inputs(0, 0))).sum().backward()  # the model serves on
        return done
    assert run_threads(work, 3) == [2, 2, 2]


def test_if_all_have_as_many_batches_nothing_is_thrown_and_a_disabled_join_does_nothing():
    def work():
        model = DistributedDataParallel(mlp())
        for options in ({"throw_on_early_termination": True}, {"enable": False}):
            with model.join(**options):
                for i in range(2):
                    model(Tensor(inputs(world().rank, i))).sum().backward()
        return state(model.module)
    run_threads(work, 2)


@pytest.mark.parametrize("options", [{"enable": False}, {"throw_on_early_termination": True}, {}])
def test_after_a_join_buffers_are_shared_as_without_one(options):
    def work():
        mp.set_default_dtype("float64")
        rank, model = world().rank, DistributedDataParallel(nn.BatchNorm1d(1))
        x = Tensor(np.array([[1.0], [3.0]]) + 10 * rank)
        try:
            with model.join(**options):
                for _ in range(2 if options.get("enable") is False else 1 + rank):
                    model(x).sum().backward()
        except RuntimeError:
            assert options
        model(x)
        model.eval()
        model(x)
        return float(model.module.running_mean.array[0])
    means = run_threads(work, 2)
    assert means[0] == means[1]


def test_ranks_that_do_different_things_are_told_so():
    def work():
        model = DistributedDataParallel(mlp())
        x = Tensor(inputs(0, 0))
        with model.join():
            y = model(x).sum()
            if world().rank == 0:
                y.backward()
            model(x)
    with pytest.raises(RuntimeError, match="ranks 0 and 1 are at different points"):
        run_threads(work, 2)


PEER = """
    import numpy as np, os, signal, sys, torch  # imported once: the ranks are forked
    from torch import distributed as dist
    folder = sys.argv[1]
    given = np.load(f"{folder}/start.npz")
    torch.set_num_threads(1)

    def train(rank, initial):
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5),
                                    torch.nn.Linear(5, 3)).double()
        model.load_state_dict({k: torch.tensor(given[k]) for k in given.files})
        model = torch.nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with model.join(divide_by_initial_world_size=initial):
            for i in range((1, 5, 3)[rank]):
                x = np.random.default_rng([rank, i]).standard_normal((2 + rank, 4))
                optimizer.zero_grad()
                (model(torch.tensor(x)) ** 2).mean().backward()
                optimizer.step()
        np.savez(f"{folder}/{initial}{rank}.npz",
                 **{k: t.numpy() for k, t in model.module.state_dict().items()})

    for rank in range(3):
        if not os.fork():
            signal.alarm(90)  # a rank that waits for ever ends
            dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank,
                                    world_size=3)
            train(rank, True)
            train(rank, False)
            dist.destroy_process_group()
            os._exit(0)
    sys.exit(any(os.wait()[1] for _ in range(3)))
"""


@pytest.mark.peer
def test_ranks_of_1_5_and_3_batches_end_as_in_pytorch(tmp_path):
    pytest.importorskip("torch")

    def make():
        mp.set_default_dtype("float64")
        mp.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).materialize()

    def work(initial):
        model = DistributedDataParallel(make())
        optimizer = optim.SGD(model.parameters(), 0.1)
        with model.join(divide_by_initial_world_size=initial):
            for i in range((1, 5, 3)[world().rank]):
                optimizer.zero_grad()
                (model(Tensor(inputs(world().rank, i))) ** 2).mean().backward()
                optimizer.step()
        return state(model.module)
    np.savez(tmp_path / "start.npz", **run_threads(lambda: state(make()), 1)[0])
    done = python("-c", textwrap.dedent(PEER), tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    for initial in (True, False):
        for rank, found in enumerate(run_threads(work, 3, initial)):
            expected = np.load(tmp_path / f"{initial}{rank}.npz")
            assert_close(found, {k: expected[k] for k in expected.files})
