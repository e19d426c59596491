"""Whole arrays from the pieces that ranks hold, and pieces from whole ones.

What a checkpoint, a hash or a sample needs is put together on rank 0, one array after another:
no other rank ever holds more than its own and one array on its way.
"""

import numpy as np

from ..device import host


def gather_whole(comm, mine):
    """{name: whole array} on rank 0, {} elsewhere. Collective.

    mine: {name: (array, Shard or None)} of what this rank gives. Of a name that several ranks
    give without a Shard the lowest rank's is taken; Shards of one name together are the whole.
    """
    forms = [comm.broadcast_object(
        {name: (a.shape, a.dtype, shard) for name, (a, shard) in mine.items()}
        if comm.rank == root else None, root) for root in range(comm.size)]
    whole, taken = {}, set()
    for root, given in enumerate(forms):
        for name, (shape, dtype, shard) in given.items():
            if (name, shard) in taken:
                continue
            taken.add((name, shard))
            if comm.rank == root != 0:
                comm.send(mine[name][0], 0)
            if comm.rank != 0:
                continue
            piece = host(mine[name][0]) if root == 0 else np.empty(shape, dtype)
            if root != 0:
                comm.recv(piece, root)
            if shard is None:
                whole[name] = piece
            else:
                if name not in whole:
                    whole[name] = np.empty(shard.whole(shape), dtype)
                shard.put(piece, whole[name])
    return whole


def scatter_pieces(comm, whole, wanted):
    """This rank's {name: array} of rank 0's {name: whole array}. Collective.

    wanted: {name: Shard or None}; what is not wanted passes by. whole: read on rank 0.
    """
    forms = comm.broadcast_object(
        {name: (a.shape, a.dtype) for name, a in whole.items()} if comm.rank == 0 else None)
    mine = {}
    for name, (shape, dtype) in forms.items():
        array = np.ascontiguousarray(whole[name]).reshape(shape) if comm.rank == 0 else (
            np.empty(shape, dtype))
        comm.broadcast(array)
        if name in wanted:
            mine[name] = array if wanted[name] is None else wanted[name].take(array)
    return mine
