"""What the hooks of a trainer keep from step to step, put into checkpoints and taken back.

Replicas owe different things, so each gives its own, under its number; pieces of a parameter that
is cut are put together as everywhere. A run on as many replicas goes on with the same bits. On
another number replica 0 takes over what all owed: only the sum over the ranks counts, and what
was sent plus what is owed stays the sum of all gradients.
"""

import numpy as np

from .gather import gather_whole, scatter_pieces

PREFIX = "compress/"  # of the names of all this, which no parameter's begins with
COUNT = PREFIX + "replicas"
OWN, COMMON = ("owed",), ("summed", "q", "iter")  # all that states keep (hooks/state.py)
LIKE_PARAMETERS = ("owed", "summed")


def residuals(trainer):
    """{name: array} on rank 0, {} elsewhere and where nothing is kept. Collective."""
    mine, first = {}, trainer.mesh.coordinates(trainer.comm.rank)["dp"] == 0
    names = _names(trainer)
    for state, bucket in trainer.hooked():
        for kept in state.keep(bucket):
            for what, arrays in kept.items():
                for p, array in zip(bucket.parameters(), arrays, strict=True):
                    if array is not None and (first or what in OWN):
                        name, place = _entry(trainer, what, names[id(p)], p)
                        mine[name] = array, place
    whole = gather_whole(trainer.comm, mine)
    if whole:
        whole[COUNT] = np.array(trainer.mesh.dp)
    return whole


def load_residuals(trainer, whole):
    """Take over what `residuals` returned on rank 0, of any layout. Collective."""
    names, wanted = _names(trainer), {}
    for _, bucket in trainer.hooked():
        for p in bucket.parameters():
            wanted.update(_entry(trainer, what, names[id(p)], p) for what in OWN + COMMON)
    mine = scatter_pieces(trainer.comm, _for_replicas(whole, trainer.mesh.dp), wanted)
    for state, bucket in trainer.hooked():
        found = {what: [mine.get(_entry(trainer, what, names[id(p)], p)[0])
                        for p in bucket.parameters()] for what in OWN + COMMON}
        own, common = ({what: found[what] for what in whats
                        if any(a is not None for a in found[what])} for whats in (OWN, COMMON))
        state.restore(bucket, own, common)


def _names(trainer):
    return {id(p): name for name, p in trainer.module.named_parameters()}


def _entry(trainer, what, name, p):
    """(name in a checkpoint, placement) of what is kept for a parameter."""
    if what in OWN:
        what = f"{what}/{trainer.mesh.coordinates(trainer.comm.rank)['dp']}"
    elif what not in LIKE_PARAMETERS and p.placement is not None:  # belongs to the piece
        what = f"{what}/{p.placement.index}-of-{p.placement.count}"
    place = p.placement if what.split("/")[0] in LIKE_PARAMETERS else None
    return f"{PREFIX}{what}/{name}", place


def _for_replicas(whole, count):
    """The same for another number of replicas, of which the first owes all."""
    if not whole or int(whole[COUNT]) == count:
        return whole
    moved = {}
    for name, array in whole.items():
        what, _, rest = name.removeprefix(PREFIX).partition("/")
        if what in OWN:
            name = f"{PREFIX}{what}/0/{rest.partition('/')[2]}"
            array = moved[name] + array if name in moved else array
        moved[name] = array
    return moved
