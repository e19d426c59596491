"""The speed-up that the cost model says is possible, for gradients that an all-reduce sums."""

from ... import dtypes
from ...comm import Topology
from ...comm.cost import predict
from ...comm.cost.machine import nearest_machine
from ...comm.program import ALGORITHMS


def chosen(end):
    """(the algorithm that has reduced the gradients, their bytes), of a job's last event: the
    one with the largest buffer. None of a job that did not all-reduce them."""
    served = end.get("algorithms", {}).get("all_reduce")
    if end.get("sync") != "ddp" or end["dp"] < end["world_size"] or not served:
        return None
    name = max(served, key=served.get)
    return name, end["memory"]["gradients"]


def communication(name, nbytes, ranks, dtype, launcher):
    """Predicted seconds of an all-reduce; None for one that comes not with minipar."""
    program = ALGORITHMS["all_reduce"].get(name)
    if program is None or program.refusal(ranks):
        return None
    itemsize = dtypes.dtype(dtype).storage.itemsize
    options = {"topo": Topology((ranks,))} if "topo" in program.wants else {}
    return predict(program, ranks, nbytes // itemsize, nearest_machine(ranks, launcher)[0],
                   itemsize, **options)


def speedup(ranks, cores, compute, communication, work=1):
    """How many times the samples of one rank a second's worth on more ranks has at most.

    compute:       seconds of one rank's step. work: how many times its batch all ranks' batch is.
    communication: seconds of the all-reduce, in which nothing else is done.
    Ranks beyond the cores add nothing: a step is work * compute / min(ranks, cores) of
    computation, and then communication.
    """
    return work * compute / (work * compute / min(ranks, cores) + communication)
