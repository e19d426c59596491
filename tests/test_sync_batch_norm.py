"""Batch normalisation over all ranks: what one process computes over the whole batch."""

import json

import numpy as np
import pytest

import fake_cupy
import minipar as mp
from minipar import nn, options, optim, train
from minipar.comm import run_threads, world
from minipar.models import resnet18
from minipar.options import UsageError
from minipar.parallel import DistributedDataParallel, Mesh, Pipelined, SyncBatchNorm
from minipar.parallel.schedule import SCHEDULES
from minipar.tensor import Tensor
from minipar.train import loss_and_count

SHARES = [(5, 3), (1, 7), (4, 0, 4), (1, 1, 2), (8,), (0, 8)]
SHAPES = {1: (3,), 2: (3, 5), 3: (3, 4, 2), 4: (3, 2, 1, 3)}


def made(kind, shape, **options):
    """A layer with weights that are no ones, and a running mean that is not 0."""
    mp.set_default_dtype("float64")
    layer = kind(3, **options).materialize()
    if layer.weight is not None:
        layer.weight.array[...] = 1.5, -2.0, 0.25
        layer.bias.array[...] = 0.5, 0.0, -1.0
    if layer.running_mean is not None:
        layer.running_mean.array[...] = 3, 2, 1
    return layer


def batches(shape, total, offset):
    """(x, gradient of the output) of two steps; means of a size that sums of squares would feel."""
    rng = np.random.default_rng((3, len(shape), total))
    for _ in range(2):
        x = rng.standard_normal((total, *shape)) + offset
        yield x, rng.standard_normal(x.shape)


def passed(layer, x, g):
    """[output, gradients of input, weight and bias] of one pass; the gradients are added up."""
    x = Tensor(x, requires_grad=True)
    out = layer(x)
    out.backward(Tensor(g))
    return [out.array, x.grad.array]


def state_of(layer):
    return {k: t.array.copy() for k, t in layer.named_buffers()}


def close(found, expected, least=0.0):
    scale = max(np.abs(expected).max(initial=0), least)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max(initial=0) <= 1e-12 * scale


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False},
                                     {"track_running_stats": False, "eps": 0.1}])
@pytest.mark.parametrize("dims", SHAPES)
@pytest.mark.parametrize("shares", SHARES)
def test_ranks_with_any_shares_compute_what_one_computes_over_the_whole_batch(
        shares, dims, options):
    shape, total = SHAPES[dims], sum(shares)
    kind = nn.BatchNorm2d if dims == 3 else nn.BatchNorm1d

    def flat(a):  # an equal thing that the ordinary layers take
        return a.reshape(*a.shape[:2], -1) if dims == 4 else a

    def rank():
        layer = made(SyncBatchNorm, shape, **options)
        begin = sum(shares[:world().rank])
        mine, outs = slice(begin, begin + shares[world().rank]), []
        for x, g in batches(shape, total, 0):
            outs.append(passed(layer, x[mine], g[mine]))
        gradients = [p.grad.array for p in layer.parameters()]
        state = state_of(layer)
        layer.eval()
        return outs, gradients, state, layer(Tensor(x[:2])).array if state else None

    def whole():
        layer = made(kind, shape, **options)
        outs = [passed(layer, flat(x), flat(g)) for x, g in batches(shape, total, 0)]
        gradients = [p.grad.array for p in layer.parameters()]
        state = state_of(layer)
        layer.eval()
        x = list(batches(shape, total, 0))[1][0]
        return outs, gradients, state, layer(Tensor(flat(x[:2]))).array if state else None
    results = run_threads(rank, len(shares))
    outs, gradients, state, evaluated = run_threads(whole, 1)[0]
    for step, expected in enumerate(outs):
        for i, value in enumerate(expected):
            close(flat(np.concatenate([r[0][step][i] for r in results])), value)
    for i, value in enumerate(gradients):
        close(sum(r[1][i] for r in results), value)
    for _, _, own, out in results:
        assert own.keys() == state.keys()
        for key, value in state.items():
            close(own[key], value)
            np.testing.assert_array_equal(own[key], results[0][2][key])
        if evaluated is not None:
            close(flat(out), evaluated)


def test_variances_far_from_zero_do_not_cancel():
    x = np.random.default_rng(0).standard_normal((6, 3, 50))
    far = x + 1e6  # the squares are 1e12 times as large as the variance

    def rank():
        layer = made(SyncBatchNorm, (3, 50), momentum=1.0)
        k = world().rank
        layer(Tensor(far[3 * k:3 * k + 3]))
        return layer.running_var.array
    expected = far.transpose(1, 0, 2).reshape(3, -1).var(axis=1, ddof=1)
    for found in run_threads(rank, 2):
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    squares = (far * far).sum((0, 2)) / 300 - far.mean((0, 2)) ** 2
    assert np.abs(squares * 300 / 299 / expected - 1).max() > 1e-6  # what must not be computed


@pytest.mark.peer
@pytest.mark.parametrize("shares", [(3, 5), (0, 6, 2)])
def test_it_is_pytorchs_batch_norm_over_the_whole_batch(shares):
    torch = pytest.importorskip("torch")
    (x, g), *_ = batches((3, 4, 2), sum(shares), 2)
    theirs = torch.nn.BatchNorm2d(3, momentum=0.3).double()
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor([1.5, -2.0, 0.25]))
        theirs.bias.copy_(torch.tensor([0.5, 0.0, -1.0]))
        theirs.running_mean.copy_(torch.tensor([3.0, 2.0, 1.0]))
    leaf = torch.tensor(x, requires_grad=True)
    out = theirs(leaf)
    out.backward(torch.tensor(g))

    def rank():
        layer = made(SyncBatchNorm, (3, 4, 2), momentum=0.3)
        begin = sum(shares[:world().rank])
        mine = slice(begin, begin + shares[world().rank])
        return (*passed(layer, x[mine], g[mine]), layer.weight.grad.array,
                layer.bias.grad.array, layer.state_dict())
    results = run_threads(rank, len(shares))
    close(np.concatenate([r[0] for r in results]), out.detach().numpy())
    close(np.concatenate([r[1] for r in results]), leaf.grad.numpy())
    close(sum(r[2] for r in results), theirs.weight.grad.numpy())
    close(sum(r[3] for r in results), theirs.bias.grad.numpy())
    for key, value in theirs.state_dict().items():
        close(results[-1][4][key].array, value.numpy())


def test_a_batch_of_one_value_is_refused_on_every_rank_and_one_of_none_changes_nothing():
    def rank(samples):
        layer = made(SyncBatchNorm, (3,))
        out = layer(Tensor(np.ones((samples * (world().rank == 0), 3))))
        return out.array, layer.running_mean.array
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        run_threads(rank, 2, 1)
    for out, mean in run_threads(rank, 2, 0):
        assert out.shape == (0, 3) and mean.tolist() == [3, 2, 1]


def test_a_converted_model_has_the_names_values_and_memory_of_the_one_before():
    def rank():
        mp.set_default_dtype("float64")
        mp.manual_seed(3)
        plain = resnet18(4, in_channels=1, small_images=True)
        mp.manual_seed(3)
        model = resnet18(4, in_channels=1, small_images=True)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert SyncBatchNorm.convert_sync_batchnorm(model) is model
        new = [m for m in model.modules() if isinstance(m, SyncBatchNorm)]
        assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(new) == len(norms) == 20
        assert all(a.weight is b.weight and a.running_mean is b.running_mean
                   for a, b in zip(new, norms))
        model.assign_names()
        plain.assign_names()
        state, expected = dict(model.named_state()), dict(plain.named_state())
        assert list(state) == list(expected)
        assert all(getattr(state[key], "name", 0) == getattr(t, "name", 0) for key, t in
                   expected.items())
        assert [m.qualified_name() for m in new] == [
            name for name, m in plain.named_modules() if isinstance(m, nn.BatchNorm2d)]
        both = nn.BatchNorm1d(2)
        twice = SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(both, nn.ReLU(), both))
        assert twice[0] is twice[2] and isinstance(twice[0], SyncBatchNorm)
        alone = SyncBatchNorm.convert_sync_batchnorm(both, world())
        assert alone.weight is both.weight and alone.process_group is world()
        assert SyncBatchNorm.convert_sync_batchnorm(alone) is alone
    run_threads(rank, 2)


def test_on_a_gpu_it_computes_what_it_does_on_the_cpu():
    shares = [slice(0, 3), slice(3, 8)]
    (x, g), *_ = batches((3, 4), 8, 1)

    def rank(device):
        layer, mine = made(SyncBatchNorm, (3, 4)).to(device), shares[world().rank]
        leaf = Tensor(x[mine]).to(device)
        leaf.requires_grad = True
        out = layer(leaf)
        out.backward(Tensor(g[mine]).to(device))
        assert out.device == layer.running_mean.device == mp.device(device)
        return [t.cpu().array for t in (out.detach(), leaf.grad, layer.weight.grad,
                                        layer.running_mean, layer.running_var)]
    expected = run_threads(rank, 2, "cpu")
    with fake_cupy.installed():
        results = run_threads(rank, 2, "cuda:0")
    for ours, theirs in zip(results, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            close(a, b)


def own_model():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3),
                         nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def trained(make_model, n=None):
    """Parameters and buffers after some steps of a small model on batches of 9."""
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((4, 9, 1, 6, 6)), rng.integers(0, 5, (4, 9))
    mp.set_default_dtype("float64")
    mp.manual_seed(1)
    model, comm = make_model(own_model()), world()
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9)
    cuts = [9 * r // comm.size for r in range(comm.size + 1)]
    mine = slice(*cuts[comm.rank:comm.rank + 2])
    for inputs, targets in zip(x, y):
        optimizer.zero_grad()
        loss, _ = loss_and_count(model(Tensor(inputs[mine])), Tensor(targets[mine]))
        loss.backward()
        optimizer.step(scale=1 / 9)
    return {k.removeprefix("module."): t.array.copy() for k, t in model.state_dict().items()}


@pytest.mark.parametrize("n", [2, 4])
def test_data_parallelism_with_it_trains_what_one_process_trains_on_whole_batches(n):
    def replicas(model):
        return DistributedDataParallel(SyncBatchNorm.convert_sync_batchnorm(model),
                                       gradient="sum")
    expected = run_threads(trained, 1, lambda model: model)[0]
    for found in run_threads(trained, n, replicas):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            close(found[key], value, 1e-3)


def test_replicas_of_a_pipeline_normalise_each_microbatch_together():
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((3, 8, 1, 6, 6)), rng.integers(0, 5, (3, 8))

    class Shard:
        start = 0

    def rank(mesh, order):
        mp.set_default_dtype("float64")
        mp.manual_seed(1)
        comm = world()
        model = SyncBatchNorm.convert_sync_batchnorm(own_model(), mesh.split(comm, "dp"))
        trainer = Pipelined(model, lambda m: optim.SGD(m.parameters(), 0.05), loss_and_count, comm,
                            mesh, SCHEDULES["1f1b"](mesh.pp, 2), recompute=mesh.pp > 1)
        dp = mesh.coordinates(comm.rank)["dp"]
        mine = order[dp * len(order) // mesh.dp:(dp + 1) * len(order) // mesh.dp]
        for step, (inputs, targets) in enumerate(zip(x, y)):
            trainer.step((Tensor(inputs[mine]), Tensor(targets[mine])), Shard(), step)
        return trainer.state()[0]
    # Micro-batch m of both replicas together is micro-batch m of one.
    found = run_threads(rank, 4, Mesh(2, 2), [0, 1, 2, 3, 4, 5, 6, 7])[0]
    expected = run_threads(rank, 1, Mesh(1, 1), [0, 1, 4, 5, 2, 3, 6, 7])[0]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        close(found[key], value, 1e-3)


def job(n, path, *args):
    o = options.parse(["--quiet", "--model", "resnet18", "--steps", "2", "--batch-size", "6",
                       "--data", "digits", "--dtype", "float64", "--optimizer", "sgd", "--lr",
                       "0.01", "--metrics", str(path), *args], n)
    run_threads(lambda: train.run(o, world()), n)
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()][:2]


def test_the_job_with_it_is_the_serial_job_and_without_it_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda trainer, dataset, batch_size: (0.0, 0.0))
    monkeypatch.setattr(train, "build_model", lambda o, data: nn.Sequential(  # a small one
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10)))
    serial = job(1, tmp_path / "1")
    np.testing.assert_allclose(job(3, tmp_path / "2", "--sync-batch-norm"), serial, rtol=1e-12)
    np.testing.assert_allclose(job(2, tmp_path / "3", "--sync-batch-norm", "--sync", "zero3"),
                               serial, rtol=1e-12)
    assert abs(job(3, tmp_path / "4")[1] / serial[1] - 1) > 1e-6


@pytest.mark.parametrize("argv, message", [
    ([], "--sync-batch-norm: mlp has no batch normalisation"),
    (["--model", "cnn"], "--sync-batch-norm: cnn has no batch normalisation"),
    (["--model", "resnet18", "--sync", "local:4"], "compute each step together: .* local:4")])
def test_where_it_cannot_be_it_is_refused_in_one_line(argv, message):
    with pytest.raises(UsageError, match=message):
        options.parse(["--sync-batch-norm", *argv], 2)


def test_an_input_without_channels_is_refused():
    with pytest.raises(ValueError, match="1 dims: expected at least 2"):
        SyncBatchNorm(3)(Tensor(np.ones(3, np.float32)))
    with pytest.raises(ValueError, match="2 channels of input"):
        SyncBatchNorm(3)(Tensor(np.ones((3, 2), np.float32)))
