"""The main job on ranks that it starts itself, and what every rank is given."""

import sys
import threading
from contextlib import nullcontext

from .comm import RankFailed, launch
from .interrupt import Interrupt


def start_ranks(argv, o):
    """Run the job on the ranks that `--ranks` asks for; returns its exit status."""
    try:
        if o.launcher == "threads":
            interrupt = Interrupt()  # signals are the process's: its ranks share one
            with interrupt if o.checkpoint else nullcontext(), one_blas_thread():
                return max(launch(rank_main, o.ranks, args=(argv, interrupt), how="threads"))
        return max(launch(rank_main, o.ranks, args=(argv,), how=o.launcher,
                          forward_signals=bool(o.checkpoint)))
    except RankFailed as error:
        print(f"minipar: error: {error}", file=sys.stderr)
        return 1


def rank_main(argv, interrupt=None):
    """The job on one of the ranks that were started for it; returns its exit status."""
    from minipar.train import main as job  # by this name also where this file is `__main__`
    try:
        return job(argv, interrupt)
    except RankFailed:
        return 1  # whoever failed has said why


def one_blas_thread():
    """BLAS with one thread a rank: the ranks already keep the cores busy."""
    if threading.current_thread() is not threading.main_thread():
        return nullcontext()  # BLAS belongs to the process: whoever started the threads has done it
    from threadpoolctl import threadpool_limits
    return threadpool_limits(1, user_api="blas")
