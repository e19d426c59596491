"""How many threads of this process a compiled kernel may take.

As many as BLAS does, where the process has the machine to itself; one where it is a rank among
others, or the calling thread is. What the user says stands: MINIPAR_NUM_THREADS, or
`set_num_threads`, which is about the calling thread's context.
"""

import os

from ..context import current

# What the libraries that NumPy's BLAS may be are told by, first the one that decides.
_BLAS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS")

_default = {}  # {whether there are no other ranks: threads}, found when it is first asked for
_alone = True  # this process, as far as it is known
_forked = False  # OpenMP's threads are not in a forked process, and its runtime waits for them


def get_num_threads():
    """The number of threads (int) that a compiled kernel takes here, if it has work for them."""
    if _forked:
        return 1
    context = current()
    if context.threads is not None:
        return context.threads
    alone = _alone and not context.helper
    if alone not in _default:
        _default[alone] = _find(alone)
    return _default[alone]


def set_num_threads(n):
    """Let kernels of the calling thread's context take `n` threads (int >= 1).

    BLAS's threads are BLAS's own matter (OPENBLAS_NUM_THREADS, threadpoolctl). Raises ValueError
    for n < 1, RuntimeError for n > 1 in a process that was forked, where OpenMP does not work.
    """
    if n < 1 or n != int(n):
        raise ValueError(f"a kernel runs on 1 thread or more, not {n}")
    if _forked and n > 1:
        raise RuntimeError(f"kernels run on 1 thread, not {n}, in a process that was forked: "
                           f"OpenMP does not work there (start it with \"spawn\")")
    current().threads = int(n)


def share_cores():
    """This process has become a rank among others: kernels take one thread unless told."""
    global _alone
    _alone = False


def _find(alone):
    """The number of threads from the environment, or from the cores. Raises ValueError."""
    told = os.environ.get("MINIPAR_NUM_THREADS")
    if told:
        if not told.isdecimal() or int(told) == 0:
            raise ValueError(f"MINIPAR_NUM_THREADS is a number of threads, 1 or more, not "
                             f"{told!r}")
        return int(told)
    if not alone:
        return 1
    cores = (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
             else os.cpu_count() or 1)
    for name in _BLAS:
        first = os.environ.get(name, "").split(",")[0]
        if first.isdecimal() and int(first):
            return min(int(first), cores)
    return cores


def _after_fork():
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
