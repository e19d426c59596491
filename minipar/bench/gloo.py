"""torch.distributed over gloo on the buffers of a case: a peer to compare with."""

import os
import tempfile
import warnings
from importlib.util import find_spec

import numpy as np

from ..options import UsageError


def collective(case):
    """A function that does once what the case is about. Called by all ranks together.

    Raises UsageError where PyTorch is not installed, where ranks are threads, and for kinds that
    gloo has only for equal blocks or not at all.
    """
    if find_spec("torch") is None:
        raise UsageError("gloo needs PyTorch: pip install 'minipar[peers]'")
    import torch
    from torch import distributed
    _join(case.comm)
    op = {"sum": distributed.ReduceOp.SUM, "prod": distributed.ReduceOp.PRODUCT,
          "max": distributed.ReduceOp.MAX, "min": distributed.ReduceOp.MIN}[case.op]
    first, *rest = map(torch.from_numpy, case.arrays.values())
    makers = {"all_reduce": lambda: distributed.all_reduce(first, op),
              "broadcast": lambda: distributed.broadcast(first, case.root),
              "reduce": lambda: distributed.reduce(first, case.root, op),
              "barrier": distributed.barrier}
    if case.count % case.comm.size == 0 and case.count:
        reduce_scatter = _renamed("reduce_scatter_single", "reduce_scatter_tensor")
        all_gather = _renamed("all_gather_single", "all_gather_into_tensor")
        makers |= {
            "reduce_scatter_into": lambda: reduce_scatter(rest[0], first, op),
            "all_gather_into": lambda: all_gather(rest[0], first),
            "all_to_all": lambda: distributed.all_to_all_single(rest[0], first)}
    if case.kind not in makers:
        raise UsageError(f"gloo has no {case.kind} of {case.count} elements on {case.comm.size} "
                         f"ranks to compare with: {', '.join(makers)}")
    return makers[case.kind]


def _renamed(new, old):
    """A function of torch.distributed that PyTorch 2.13 has renamed."""
    from torch import distributed
    return getattr(distributed, new, None) or getattr(distributed, old)


def _join(comm):
    """Make the ranks of `comm` the default group of torch.distributed, once."""
    import torch
    from torch import distributed
    if distributed.is_initialized():
        return
    pids = comm.all_gather(np.array([os.getpid()]))
    if len(np.unique(pids)) < comm.size:
        raise UsageError("gloo needs ranks that are processes; these are threads of one")
    torch.set_num_threads(1)
    if comm.shares_memory():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all on one machine
    folder = comm.broadcast_object(tempfile.mkdtemp(prefix="minipar-") if comm.rank == 0 else None)
    store = distributed.FileStore(os.path.join(folder, "gloo"), comm.size)
    distributed.init_process_group("gloo", store=store, rank=comm.rank, world_size=comm.size)


def leave():
    """Undo what a benchmark has joined; nothing if none has."""
    if find_spec("torch") is None:
        return
    import sys
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            distributed.destroy_process_group()
