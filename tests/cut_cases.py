"""A gpt that is cut, its training on threads, and how its parameters are compared."""

import itertools
from types import SimpleNamespace

import numpy as np

import minipar as mp
from minipar import optim
from minipar.comm import run_threads, world
from minipar.models import GPT, GPTConfig
from minipar.parallel import Mesh, Pipelined, shard_model, vocab_parallel_cross_entropy
from minipar.parallel.schedule import SCHEDULES
from minipar.tensor import Tensor
from minipar.train import loss_and_count


def adamw(module):
    return optim.AdamW(module.parameters(), 0.01, eps=1e-3)


def trainer(mesh, make=Pipelined, rows=31, layers=2, schedule="1f1b", microbatches=2, **options):
    """Of a gpt with a tied weight, cut as the mesh says; on the calling rank."""
    mp.set_default_dtype("float64")
    mp.manual_seed(5)
    comm, loss = world(), loss_and_count
    model = GPT(GPTConfig(rows, 8, layers, 6, 12, 0.1))
    if mesh.tp > 1:
        group = mesh.split(comm, "tp")
        shard_model(model, group, gather_logits=False)

        def loss(logits, targets):
            flat = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
            return vocab_parallel_cross_entropy(*flat, rows, group)
    options = {"algorithm": "ring", **options}
    return make(model, adamw, loss, comm, mesh, SCHEDULES[schedule](mesh.pp, microbatches),
                **options)


def steps(t, first, last, rows=31, max_norm=0.5):
    """Take steps [first, last), of 11 samples each; returns the norms of the gradients."""
    rng, dp, norms = np.random.default_rng(2), t.mesh.coordinates(t.comm.rank)["dp"], []
    begin, end = 11 * dp // t.mesh.dp, 11 * (dp + 1) // t.mesh.dp
    for step in range(last):
        tokens = rng.integers(0, rows, (11, 9))[begin:end]
        if step >= first:
            batch = Tensor(tokens[:, :-1]), Tensor(tokens[:, 1:])
            t.step(batch, SimpleNamespace(start=begin, size=11), step, max_norm=max_norm)
            norms.append(t.optimizer.grad_norm)
    return norms


def copies(arrays):
    return {name: np.array(a) for name, a in arrays.items()}


def assert_close(ours, expected, relative=1e-12):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        worst = np.abs(ours[name] - value).max(initial=0)
        assert worst <= relative * np.abs(value).max(initial=0), f"{name} is off by {worst}"


def assert_alike(results):
    """Whole parameters have the same bits wherever they are. results: [{name: array}]"""
    for mine, theirs in itertools.combinations(results, 2):
        for name in mine.keys() & theirs.keys():
            np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


def alike(t):
    return {n: p.array.copy() for n, p in t.module.named_parameters() if p.placement is None}
