"""Data parallelism on threads: gradients, replicas and whole runs equal the serial ones."""

import dataclasses

import numpy as np
import pytest

import minipar as mp
from minipar import nn, options, optim, train
from minipar.comm import collective, recv, recv_reduce, run_threads, send, world
from minipar.data import Blocks
from minipar.models import CNN, MLP
from minipar.parallel import DistributedDataParallel
from minipar.tensor import Tensor
from minipar.train import loss_and_count

TINY = 1e-6  # MiB: one byte, so that every parameter has its own bucket
X = np.random.default_rng(1).standard_normal((12, 6))
Y = np.random.default_rng(2).integers(0, 4, 12)

# How the batch of 12 is cut over the ranks: evenly, unevenly, with ranks that get nothing.
CUTS = {"even": lambda n: [i * 12 // n for i in range(n + 1)],
        "uneven": lambda n: [0, *[1 + i for i in range(n - 1)], 12],
        "empty": lambda n: [0, *[0] * (n - 1), 12] if n < 3 else [0, 0, *[7] * (n - 2), 12]}


def mlp():
    mp.set_default_dtype("float64")
    mp.manual_seed(5)
    return MLP([6, 7, 5, 4])


def total_loss(model, x, y):
    """Sum of the losses, and their number."""
    return loss_and_count(model(Tensor(x)), Tensor(y))


def grads(module):
    return {k: None if p.grad is None else p.grad.array.copy()
            for k, p in module.named_parameters()}


def serial(function, *args):
    """As rank 0 of 1, in a context of its own."""
    return run_threads(function, 1, *args)[0]


def assert_grads(ours, expected, relative=1e-12):
    assert ours.keys() == expected.keys()
    for name in ours:
        assert (ours[name] is None) == (expected[name] is None), name
        if ours[name] is not None:
            worst = np.abs(ours[name] - expected[name]).max()
            assert worst <= relative * np.abs(expected[name]).max(), f"{name} is off by {worst}"


def assert_equal_bits(results):
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for name, value in results[0].items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)


def serial_gradient(x=X, y=Y):
    model = mlp()
    total_loss(model, x, y)[0].backward()
    return grads(model)


@pytest.mark.parametrize("bucket_cap_mb", [25, TINY, 3e-4])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_sum_of_the_ranks_gradients_is_the_gradient_of_the_whole_batch(n, cut, bucket_cap_mb):
    cuts = CUTS[cut](n)

    def work():
        r = world().rank
        model = DistributedDataParallel(mlp(), gradient="sum", bucket_cap_mb=bucket_cap_mb)
        total_loss(model, X[cuts[r]:cuts[r + 1]], Y[cuts[r]:cuts[r + 1]])[0].backward()
        return grads(model.module)
    results = run_threads(work, n)
    assert_equal_bits(results)
    assert_grads(results[0], serial(serial_gradient))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_an_empty_shard_of_images_gives_a_gradient_of_zero(n):
    images, labels = np.arange(3 * 64.0).reshape(3, 1, 8, 8) % 7, np.array([0, 2, 1])

    def cnn():
        mp.set_default_dtype("float64")
        return CNN((1, 8, 8), 3, (2, 3))

    def whole():
        model = cnn()
        total_loss(model, images, labels)[0].backward()
        return grads(model)

    def work():
        r = world().rank
        model = DistributedDataParallel(cnn(), gradient="sum")
        part = slice(r * 3 // n, (r + 1) * 3 // n)
        total_loss(model, images[part], labels[part])[0].backward()
        return grads(model.module)
    results = run_threads(work, n)
    assert_equal_bits(results)
    assert_grads(results[0], serial(whole))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_mean_averages_the_gradients_of_the_ranks_mean_losses(n):
    cuts = CUTS["uneven"](n)

    def rank_gradient(r):
        model = mlp()
        loss, count = total_loss(model, X[cuts[r]:cuts[r + 1]], Y[cuts[r]:cuts[r + 1]])
        (loss / count).backward()
        return grads(model)

    def work():
        r = world().rank
        model = DistributedDataParallel(mlp())
        loss, count = total_loss(model, X[cuts[r]:cuts[r + 1]], Y[cuts[r]:cuts[r + 1]])
        (loss / count).backward()
        return grads(model.module)
    alone = [serial(rank_gradient, r) for r in range(n)]
    expected = {k: sum(a[k] for a in alone) / n for k in alone[0]}
    for result in run_threads(work, n):
        assert_grads(result, expected)


@pytest.mark.parametrize("bucket_cap_mb", [25, TINY])
def test_no_sync_accumulates_alone_and_the_next_backward_reduces_all(bucket_cap_mb):
    def work():
        r, n = world().rank, world().size
        model = DistributedDataParallel(mlp(), gradient="sum", bucket_cap_mb=bucket_cap_mb)
        x, y = X[r::n], Y[r::n]
        with model.no_sync():
            total_loss(model, x[:1], y[:1])[0].backward()
            total_loss(model, x[1:2], y[1:2])[0].backward()
        alone = grads(model.module)
        total_loss(model, x[2:], y[2:])[0].backward()
        return alone, grads(model.module)

    def alone(r):
        return serial_gradient(X[r::3][:2], Y[r::3][:2])
    results = run_threads(work, 3)
    for r, (before, _) in enumerate(results):
        assert_grads(before, serial(alone, r))
    assert_equal_bits([after for _, after in results])
    assert_grads(results[0][1], serial(serial_gradient))


def test_no_sync_nests_and_ends_with_an_exception():
    def work():
        model = DistributedDataParallel(mlp(), gradient="sum")
        r = world().rank
        with pytest.raises(ArithmeticError), model.no_sync():
            with model.no_sync():
                pass
            total_loss(model, X[r::2], Y[r::2])[0].backward()
            raise ArithmeticError
        alone = grads(model.module)
        model.zero_grad()
        total_loss(model, X[r::2], Y[r::2])[0].backward()
        return alone, grads(model.module)
    results = run_threads(work, 2)
    for r, (alone, together) in enumerate(results):
        assert_grads(alone, serial(lambda r: serial_gradient(X[r::2], Y[r::2]), r))
        assert_grads(together, serial(serial_gradient))


def test_a_parameter_used_only_under_no_sync_is_reduced_too():
    def work():
        model = DistributedDataParallel(Branches(), gradient="sum")
        with model.no_sync():
            model(Tensor(np.ones((1, 2))), ["a"]).sum().backward()
        model(Tensor(np.ones((1, 2))), ["b"]).sum().backward()
        return grads(model.module)
    for result in run_threads(work, 2):
        np.testing.assert_array_equal(result["a.weight"], np.full((2, 2), 2.0))
        np.testing.assert_array_equal(result["b.weight"], np.full((2, 2), 2.0))
        assert result["c.weight"] is None


class Branches(nn.Module):
    """Three layers of which a forward uses those it is told to."""

    def __init__(self):
        super().__init__()
        mp.set_default_dtype("float64")
        for name in "abc":
            self.add_module(name, nn.Linear(2, 2, bias=False))

    def forward(self, x, names):
        return sum((getattr(self, name)(x) for name in names[1:]), getattr(self, names[0])(x))


@pytest.mark.parametrize("bucket_cap_mb", [25, TINY])
def test_unused_parameters_have_no_gradient_and_partly_used_ones_the_sum(bucket_cap_mb):
    def work():
        r = world().rank
        model = DistributedDataParallel(Branches(), gradient="sum", bucket_cap_mb=bucket_cap_mb)
        optimizer = optim.AdamW(model.parameters(), 0.1, weight_decay=0.5)
        before = model.module.c.weight.array.copy()
        seen = []
        for _ in range(2):
            optimizer.zero_grad()
            # a everywhere, b on rank 1 alone, c nowhere
            model(Tensor(np.full((1, 2), 1.0 + r)), ["a", "b"] if r == 1 else ["a"]
                  ).sum().backward()
            seen.append(grads(model.module))
            optimizer.step()
        assert (model.module.c.weight.array == before).all()
        return seen, {k: v.array.copy() for k, v in model.module.state_dict().items()}
    results = run_threads(work, 3)
    for seen, _ in results:
        for step in seen:  # in the second one, what the first left in the buckets counts as 0
            np.testing.assert_array_equal(step["a.weight"], np.full((2, 2), 1.0 + 2 + 3))
            np.testing.assert_array_equal(step["b.weight"], np.full((2, 2), 2.0))
            assert step["c.weight"] is None
    assert_equal_bits([state for _, state in results])


@pytest.mark.parametrize("optimizer_first", [False, True])
def test_frozen_parameters_take_no_part(optimizer_first):
    def work():
        r = world().rank
        module = mlp()
        module[1].requires_grad_(False)
        if optimizer_first:
            optim.SGD(module.parameters(), 0.1)  # lays the frozen ones out with the others
        module[1].weight.array[...] += r  # replicas start from rank 0's
        model = DistributedDataParallel(module, gradient="sum", bucket_cap_mb=TINY)
        early = starts(model)
        part = slice(r * 6, (r + 1) * 6)
        total_loss(model, X[part], Y[part])[0].backward()
        return grads(module), module[1].weight.array.copy(), len(early)

    def whole():
        module = mlp()
        module[1].requires_grad_(False)
        total_loss(module, X, Y)[0].backward()
        return grads(module), module[1].weight.array.copy()
    expected, weight = serial(whole)
    for result, frozen, early in run_threads(work, 2):
        assert_grads(result, expected)
        np.testing.assert_array_equal(frozen, weight)
        assert early >= 3


def starts(model):
    """A list that gets the number of each bucket which starts while backward still runs."""
    early, finish = [], model._finish

    def ended():
        early.append(None)
        finish()
        del early[early.index(None):]
    model._finish = ended
    for i, bucket in enumerate(model._buckets):
        def start(i=i, start=bucket.plan.start):
            early.append(i)
            start()
        bucket.plan.start = start
    return early


def test_buckets_start_before_backward_ends_and_from_the_last_layer():
    def work():
        model = DistributedDataParallel(mlp(), bucket_cap_mb=TINY)
        early = starts(model)
        seen = []
        first = model.module[1].weight
        first.register_post_accumulate_grad_hook(lambda p: seen.append(list(early)))
        total_loss(model, X, Y)[0].backward()
        return seen, early, len(model._buckets)
    for seen, early, buckets in run_threads(work, 2):
        assert buckets == 6
        assert seen[0][:4] == [0, 1, 2, 3]  # before the gradient of the first layer was there
        assert early == [0, 1, 2, 3, 4]  # and the one that carries the used flags last of all


def test_one_large_bucket_and_many_small_ones_give_the_same_bits_on_two_ranks():
    def work(bucket_cap_mb):
        r = world().rank
        model = DistributedDataParallel(mlp(), bucket_cap_mb=bucket_cap_mb)
        total_loss(model, X[r::2], Y[r::2])[0].backward()
        return grads(model.module)
    assert_equal_bits([run_threads(work, 2, cap)[0] for cap in (25, TINY)])


class WithBuffers(nn.Module):
    def __init__(self, rank):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.register_buffer("count", Tensor(np.array(10 + rank)))
        self.register_buffer("table", Tensor(np.full((2, 3), rank, np.float32)), persistent=False)

    def forward(self, x):
        return self.fc(x)


def test_parameters_and_buffers_start_from_rank_0():
    def work():
        mp.manual_seed(world().rank)
        model = DistributedDataParallel(WithBuffers(world().rank))
        return {**{k: v.array.copy() for k, v in model.state_dict().items()},
                "table": model.module.table.array.copy()}
    results = run_threads(work, 3)
    assert list(results[0]) == ["module.count", "module.fc.weight", "module.fc.bias", "table"]
    assert results[2]["module.count"] == 10 and (results[2]["table"] == 0).all()
    assert_equal_bits(results)


def test_a_state_dict_goes_in_and_out_of_the_wrapper():
    def work():
        model = DistributedDataParallel(mlp())
        state = {k: v.array + 1 for k, v in model.state_dict().items()}
        model.load_state_dict(state)
        return all((model.state_dict()[k].array == v).all() for k, v in state.items())
    assert serial(work)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_replicas_are_bitwise_equal_after_five_steps(n):
    def work():
        r = world().rank
        mp.manual_seed(r)
        model = DistributedDataParallel(MLP([6, 7, 4]), bucket_cap_mb=TINY)
        optimizer = optim.AdamW(model.parameters(), 0.05)
        for step in range(5):
            optimizer.zero_grad()
            part = slice(r + step, r + step + 3)
            total_loss(model, X[part].astype(np.float32), Y[part])[0].backward()
            optimizer.step(max_norm=1.0)
        return {k: v.array.copy() for k, v in model.state_dict().items()}
    results = run_threads(work, n)
    assert_equal_bits(results)


@collective("all_reduce")
def gather_to_0(rank, size, x):
    """All send to rank 0, which sends the sum back."""
    for r in range(1, size):
        if rank == r:
            yield send(x, 0)
            yield recv(x, 0)
        elif rank == 0:
            yield recv_reduce(x, r)
    if rank == 0:
        yield tuple(send(x, r) for r in range(1, size))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_users_own_program_reduces_the_gradients(n):
    def work():
        r = world().rank
        model = DistributedDataParallel(mlp(), gradient="sum", algorithm=gather_to_0)
        total_loss(model, X[r::n], Y[r::n])[0].backward()
        return grads(model.module)
    results = run_threads(work, n)
    assert_equal_bits(results)
    assert_grads(results[0], serial(serial_gradient))


def test_after_a_backward_that_failed_the_next_one_is_reduced():
    def work():
        r = world().rank
        model = DistributedDataParallel(mlp(), gradient="sum", bucket_cap_mb=TINY)

        def fail(parameter):
            raise ArithmeticError("from a hook")
        handle = model.module[3].weight.register_post_accumulate_grad_hook(fail)
        with pytest.raises(ArithmeticError):
            total_loss(model, X[r::2], Y[r::2])[0].backward()
        handle.remove()
        model.zero_grad()
        total_loss(model, X[r::2], Y[r::2])[0].backward()
        return grads(model.module)
    results = run_threads(work, 2)
    assert_equal_bits(results)
    assert_grads(results[0], serial(serial_gradient))


def test_two_backwards_without_no_sync_average_as_in_pytorch():
    def work():
        r = world().rank
        model = DistributedDataParallel(mlp())
        for part in (slice(0, 6), slice(6, 12)):
            total_loss(model, X[part][r::2], Y[part][r::2])[0].backward()
        return grads(model.module)
    expected = {k: g / 2 for k, g in serial(serial_gradient).items()}
    for result in run_threads(work, 2):
        assert_grads(result, expected)


class TwoTypes(nn.Module):
    """A float32 branch and a float64 branch."""

    def __init__(self):
        super().__init__()
        mp.set_default_dtype("float32")
        self.low = nn.Linear(6, 1)
        mp.set_default_dtype("float64")
        self.high = nn.Linear(6, 1)

    def forward(self, x):
        return self.low(Tensor(x.astype(np.float32))).sum() + self.high(Tensor(x)).sum()


def test_parameters_of_two_types_are_reduced_each_in_its_own():
    def work():
        model = DistributedDataParallel(TwoTypes(), gradient="sum")
        model(X[world().rank::2]).backward()
        return grads(model.module)
    for result in run_threads(work, 2):
        np.testing.assert_allclose(result["high.weight"][0], X.sum(axis=0), rtol=1e-12)
        np.testing.assert_allclose(result["low.weight"][0], X.sum(axis=0), rtol=1e-5)
        assert result["low.weight"].dtype == np.float32


def test_a_process_group_reduces_among_its_own_ranks_only():
    def work():
        r = world().rank
        group = world().split(r % 2)
        mp.manual_seed(r % 2)
        model = DistributedDataParallel(mlp_of_the_seed(), process_group=group, gradient="sum")
        part = slice(group.rank * 6, group.rank * 6 + 6)
        total_loss(model, X[part], Y[part])[0].backward()
        return grads(model.module)

    def alone(seed):
        mp.manual_seed(seed)
        model = mlp_of_the_seed()
        total_loss(model, X, Y)[0].backward()
        return grads(model)
    for r, result in enumerate(run_threads(work, 4)):
        assert_grads(result, serial(alone, r % 2))


def mlp_of_the_seed():
    mp.set_default_dtype("float64")
    return MLP([6, 5, 4])


# Refusals


def one_of_two_models_in_one_optimizer():
    first, second = mlp(), mlp()
    optim.SGD([*first.parameters(), *second.parameters()], 0.1)
    return DistributedDataParallel(first)


def frozen():
    return DistributedDataParallel(nn.Linear(2, 2).requires_grad_(False))


@pytest.mark.parametrize("make, message", [
    (lambda: DistributedDataParallel(mlp(), gradient="average"), "'average'"),
    (lambda: DistributedDataParallel(mlp(), algorithm="rign"), "did you mean ring"),
    (lambda: DistributedDataParallel(mlp(), algorithm="binomial"), "binomial"),
    (frozen, "no parameter"),
    (one_of_two_models_in_one_optimizer, "before"),
])
def test_what_cannot_be_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        serial(make)


# The main job in every layout

SIZES = {"mlp": ["--batch-size", "26", "--hidden", "16"],
         "cnn": ["--batch-size", "17"],
         "gpt": ["--batch-size", "18", "--block-size", "12", "--layers", "2", "--heads", "2",
                 "--embedding", "16", "--dropout", "0.1"]}


@pytest.fixture
def job(monkeypatch):
    """Runs the main job on n threads; returns what every rank ends with, and its parameters."""
    load, digest = train.datasets.load, train.params_sha256

    def load_less(*args, **kwargs):
        data = load(*args, **kwargs)
        if data.kind == "text":
            data = dataclasses.replace(
                data, test=Blocks(data.test.tokens[:500], data.block_size))
        return data
    monkeypatch.setattr(train.datasets, "load", load_less)

    def run(model, n, m, *more):
        ends = {}

        def digest_and_keep(parameters):
            ends[world().rank] = {k: a.copy() for k, a in parameters.items()}
            return digest(parameters)
        monkeypatch.setattr(train, "params_sha256", digest_and_keep)
        o = options.parse(["--model", model, "--dtype", "float64", "--steps", "5", "--clip", "1",
                           "--quiet", "--microbatches", str(m), *SIZES[model], *more], n)
        results = run_threads(lambda: train.run(o, world()), n)
        assert len({result["params_sha256"] for result in results}) == 1
        return results[0], ends[0]
    return run


@pytest.mark.parametrize("model", ["mlp", "cnn", "gpt"])
def test_every_layout_of_the_main_job_trains_what_the_serial_run_does(job, model):
    end, expected = job(model, 1, 1)
    for n, m in [(1, 4), (2, 1), (2, 4), (3, 1), (3, 4), (4, 1), (4, 4)]:
        ours, params = job(model, n, m)
        assert abs(ours["loss"] - end["loss"]) <= 1e-12 * end["loss"], (n, m)
        assert ours["test_accuracy"] == end["test_accuracy"], (n, m)
        for name, value in params.items():
            worst = np.abs(value - expected[name]).max()
            assert worst <= 1e-12 * np.abs(expected[name]).max(), f"{n, m}: {name} by {worst}"


@pytest.mark.parametrize("model", ["mlp", "gpt"])
def test_two_runs_of_one_layout_give_the_same_bits(job, model):
    first, second = (job(model, 3, 2)[0] for _ in range(2))
    assert first["params_sha256"] == second["params_sha256"]
    assert first["loss"] == second["loss"]


def test_another_seed_gives_other_parameters(job):
    assert job("mlp", 2, 1)[0]["params_sha256"] != job("mlp", 2, 1, "--seed", "1")[0][
        "params_sha256"]


def test_dropout_is_on_in_training(job):
    with_it, without = job("gpt", 1, 1), job("gpt", 1, 1, "--dropout", "0")
    assert with_it[0]["params_sha256"] != without[0]["params_sha256"]


def test_a_short_last_batch_leaves_ranks_without_samples_and_still_trains_the_same(job, tmp_path):
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((9, 4)), rng.integers(0, 3, 9)
    path = tmp_path / "small é.npz"
    np.savez(path, x=x, y=y, x_test=x, y_test=y)
    # Batches of 4, 4 and 1: on 4 ranks the last one leaves three with nothing.
    results = [job("mlp", n, 1, "--data", str(path), "--batch-size", "4", "--steps", "6")
               for n in (1, 4)]
    for name, value in results[0][1].items():
        np.testing.assert_allclose(results[1][1][name], value, rtol=1e-11, atol=1e-13)
