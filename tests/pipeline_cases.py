"""Models, batches and the serial run that trainings of cut models are compared with."""

import itertools
from functools import lru_cache
from types import SimpleNamespace

import numpy as np

import minipar
from minipar import nn, optim
from minipar.comm import run_threads, world
from minipar.context import batch_position
from minipar.models import GPT, MLP, GPTConfig, resnet18
from minipar.ops.loss import cross_entropy_sum_count
from minipar.parallel import Pipelined, shard_model, vocab_parallel_cross_entropy
from minipar.parallel.mesh import Mesh
from minipar.parallel.schedule import SCHEDULES, ScheduleError
from minipar.parallel.trainer import cut
from minipar.tensor import Tensor

STEPS, CLIP = 5, 0.5


def loss(output, targets):
    return cross_entropy_sum_count(output.reshape(-1, output.shape[-1]), targets.reshape(-1))


def own_model():
    """A user's Sequential, with batch normalisation; 9 blocks."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6), nn.GELU(), nn.Flatten(), nn.Linear(24, 8), nn.Linear(8, 5))


# name: (model, whether it normalises over batches, shape of an input)
MODELS = {
    "mlp": (lambda: MLP([6, 8, 7, 8, 9, 8, 5]), False, (6,)),
    "own": (own_model, True, (1, 4, 4)),
    "resnet18": (lambda: resnet18(5, in_channels=1, small_images=True), True,
                 (1, 16, 16)),
    "gpt": (lambda: GPT(GPTConfig(vocab_size=7, block_size=6, n_layer=6, n_head=2, n_embd=8,
                                  dropout=0.2)), False, (7,)),
}
CUT = ("mlp", "gpt")  # those whose layers can be cut over ranks


def model(name):
    minipar.manual_seed(7)
    minipar.set_default_dtype("float64")
    return MODELS[name][0]()


def batches(name, dp, microbatches, steps):
    """(inputs, targets) of each step; batches are cut unevenly, the last one is shorter.

    Batch normalisation needs several values of each channel in every micro-batch: with few, what
    is left of their differences, and with it the training, is mostly rounding.
    """
    rng = np.random.default_rng(1)
    groups, (_, normalises, shape) = dp * microbatches, MODELS[name]
    least = (2 if name == "resnet18" else 3) if normalises else 1
    sizes = [least * groups + groups // 2 + 1] * (steps - 1) + [least * groups]
    if not normalises:
        sizes[-1] = max(1, groups - 1)  # a micro-batch without samples
    for size in sizes:
        if name == "gpt":
            tokens = rng.integers(0, 7, (size, *shape))
            yield tokens[:, :-1], tokens[:, 1:]
        else:
            yield rng.standard_normal((size, *shape)), rng.integers(0, 5, size)


def make_optimizer(name):
    """AdamW divides by the size of a gradient, and so shows the rounding of those that are all
    but zero: a few of any model (1e-8 in place of this eps leaves 6e-12 of what is 2e-15 with
    SGD), many of one with batch normalisation."""
    def make(module):
        groups = [{"params": module.parameters()}]  # of which a rank's stages may have none
        if MODELS[name][1]:
            return optim.SGD(groups, 0.01, momentum=0.9)
        return optim.AdamW(groups, 0.01, eps=1e-4)
    return make


@lru_cache(maxsize=None)
def serial(name, dp, microbatches, steps=STEPS):
    """({name: array} of parameters and buffers, losses) of one process that knows no ranks.

    It normalises over the same groups of samples; running statistics follow those of replica 0.
    """
    return run_threads(_serial, 1, name, dp, microbatches, steps)[0]


def _serial(name, dp, microbatches, steps):
    module = model(name).materialize()
    optimizer, losses = make_optimizer(name)(module), []
    for step, (x, y) in enumerate(batches(name, dp, microbatches, steps)):
        optimizer.zero_grad()
        total, count, at = 0.0, 0, 0
        for replica, share in enumerate(cut(len(x), dp)):
            before = [b.array.copy() for b in module.buffers()]
            for size in cut(share, microbatches):
                with batch_position(step, at):
                    value, n = loss(module(Tensor(x[at:at + size])), Tensor(y[at:at + size]))
                value.backward()
                total, count, at = total + value.item(), count + n, at + size
            for buffer, array in zip(module.buffers(), before):
                if replica:
                    buffer.array[...] = array
        optimizer.step(scale=1 / count, max_norm=CLIP)
        losses.append(total / count)
    return {k: t.array for k, t in module.state_dict().items()}, losses


def with_layers_cut(name, ranks):
    """(model, its loss) over the ranks of a tensor-parallel group."""
    module = shard_model(model(name), ranks, gather_logits=False)

    def loss_of_pieces(logits, targets):
        return vocab_parallel_cross_entropy(logits.reshape(-1, logits.shape[-1]),
                                            targets.reshape(-1), module.config.vocab_size, ranks)
    return module, loss_of_pieces if name == "gpt" else loss


def pipelined(name, schedule, mesh, steps=STEPS, **options):
    """The same on the calling rank: (state on rank 0; {name: (array, placement)} of what it holds;
    losses)."""
    comm, losses = world(), []
    module, loss_of = (with_layers_cut(name, mesh.split(comm, "tp")) if mesh.tp > 1 else
                       (model(name), loss))
    trainer = Pipelined(module, make_optimizer(name), loss_of, comm, mesh, schedule, **options)
    dp = mesh.coordinates(comm.rank)["dp"]
    for step, (x, y) in enumerate(batches(name, mesh.dp, schedule.microbatches, steps)):
        shares = cut(len(x), mesh.dp)
        at, size = sum(shares[:dp]), shares[dp]
        batch = Tensor(x[at:at + size]), Tensor(y[at:at + size])
        losses.append(trainer.step(batch, SimpleNamespace(start=at), step, max_norm=CLIP)[0])
    state = trainer.state()[0]
    trainer.module.eval()
    trainer.predict(x[at:at + size])  # with the statistics of replica 0
    own = {k: (t.array, getattr(t, "placement", None)) for k, t in trainer.module.named_state()}
    return state, own, losses


def check(name, schedule, dp, tp=1, steps=STEPS, **options):
    """Assert that training with a schedule, on threads, is the serial training."""
    mesh = Mesh(dp, schedule.ranks, tp)
    results = run_threads(lambda: pipelined(name, schedule, mesh, steps, **options), mesh.size)
    compare(results, *serial(name, dp, schedule.microbatches, steps))


def compare(results, expected, losses):
    """Assert that what all ranks found is what is expected."""
    assert results[0][0].keys() >= expected.keys()
    assert_close({k: (array, None) for k, array in results[0][0].items()}, expected)
    for _, own, found in results:
        np.testing.assert_allclose(found, losses, rtol=1e-12)
        assert_close(own, expected)


def assert_close(found, expected):
    """Within 1e-12 of the largest element of each whole array; found: {name: (array, Shard or
    None)}."""
    for key, (array, place) in found.items():
        whole = expected[key]
        worst = np.abs(array - (place.take(whole) if place else whole)).max(initial=0)
        assert worst <= 1e-12 * np.abs(expected[key]).max(initial=0), (key, worst)


def grid(models):
    """(model, schedule's name, ranks, micro-batches, replicas, tp) of all that there can be."""
    for name, scheduler in SCHEDULES.items():
        for p in range(1, 5):
            for m in (p, 2 * p, 3 * p + 1):
                try:
                    scheduler(p, m)
                except ScheduleError:
                    continue  # interleaving wants m a multiple of p
                for model, dp, tp in itertools.product(models, (1, 2), (1, 2)):
                    if tp == 1 or model in CUT:
                        yield model, name, p, m, dp, tp
