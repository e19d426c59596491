"""What a model is judged by: its loss and accuracy over a data set. A hash of its parameters."""

import hashlib

import numpy as np

from . import dtypes
from .context import no_grad
from .data import GlobalBatchSampler
from .device import host
from .ops.loss import cross_entropy_sum_count


class Failed(RuntimeError):
    """Training cannot go on, on one rank; the message is for the user."""


def read(dataset, shard):
    """The samples of a shard: [inputs, targets]."""
    try:
        return dataset.get_batch(shard.indices)
    except ValueError as error:  # an image that is damaged behind its header
        raise Failed(str(error)) from None


def loss_and_count(logits, targets):
    """Sum of the cross-entropies over all targets, and how many there are."""
    classes = logits.shape[-1]
    return cross_entropy_sum_count(logits.reshape(-1, classes), targets.reshape(-1))


def evaluate(trainer, dataset, batch_size):
    """(mean loss, accuracy) over a data set, each replica taking its slice of each batch."""
    comm, mesh, totals = trainer.comm, trainer.mesh, np.zeros(3)
    replica, replicas = mesh.share(comm.rank)
    sampler = GlobalBatchSampler(len(dataset), max(batch_size, replicas), rank=replica,
                                 num_replicas=replicas, shuffle=False)
    with trainer.evaluating(), no_grad():
        for shard in sampler.shards(0):
            inputs, targets = (t.to(trainer.device) for t in read(dataset, shard))
            logits = trainer.predict(inputs.array)
            if logits is not None:
                loss, count = loss_and_count(logits, targets)
                hits = (logits.array.argmax(axis=-1) == targets.array).sum()
                totals += loss.item(), count, int(hits)
    comm.all_reduce(totals)
    return totals[0] / totals[1], totals[2] / totals[1]


def params_sha256(parameters):
    """A hash of all parameters, {name: array}, in name order: equal for every layout that holds
    equal ones."""
    digest = hashlib.sha256()
    for name, array in sorted(parameters.items()):
        digest.update(f"{name} {dtypes.of(array).name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(host(array)).tobytes())
    return digest.hexdigest()
