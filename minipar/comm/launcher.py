"""`launch(fn, nprocs)`: run a function on ranks that are threads, processes, or MPI's processes.

This file knows what travels to a rank: the function, its arguments, where the caller's modules
are. `job.py` starts the ranks and ends them; `rank_main.py` is what one of them does.
"""

import io
import os
import pickle
import sys
from contextlib import nullcontext

from .. import context

importing_main = False  # in a rank: whether it is importing the script that started it


def launch(fn, nprocs, *, args=(), how="processes", timeout=None, forward_signals=False):
    """Run `fn(*args)` on `nprocs` ranks; returns the list of their results, by rank.

    Inside, `minipar.comm.world()` is the rank's communicator. Ranks start with a copy of the
    caller's context (seed, default dtype).

    how:     "processes" (one Python process a rank, no MPI needed), "mpi" (the same, under
             mpirun) or "threads" (of this process; nothing is pickled).
    timeout: seconds; None waits for ever.
    forward_signals: SIGTERM and the first Ctrl-C reach the ranks as SIGTERM, which may end in
             good order then; otherwise Ctrl-C ends them. Not for threads, which share the
             process's own handlers.

    `fn`, `args` and results travel by pickle, and by cloudpickle if that is installed and pickle
    cannot (functions defined in a notebook, lambdas). A script that calls this does so under
    `if __name__ == "__main__":`, as its ranks import it.

    If a rank raises, all ranks are ended and its exception is raised here, from a RankFailed that
    holds the rank's traceback; RankFailed alone if a rank ended in another way; TimeoutError when
    time is up; TypeError if `fn` or `args` cannot be pickled. No rank is left running, also when
    this call is interrupted.
    """
    if nprocs < 1:
        raise ValueError(f"a job has at least 1 rank, not {nprocs}")
    if how == "threads":
        from .transport.threads import run_threads
        return run_threads(fn, nprocs, *args, timeout=timeout)
    if how not in ("processes", "mpi"):
        raise ValueError(f"no way {how!r} to run ranks: there are processes, mpi, threads")
    if importing_main:
        raise RuntimeError("launch() was called while a rank imported the script: call it under "
                           "`if __name__ == \"__main__\":`")
    from .job import Job
    call, needs_main = dump_call(fn, args)
    work = dict(size=nprocs, how=how, call=call, context=context.current().copy(),
                prepare=_surroundings(needs_main))
    with Job(work, nprocs, how == "mpi", timeout) as job:
        with job.forwarding() if forward_signals else nullcontext():
            return job.wait()


class _Pickler(pickle.Pickler):
    """Notices whether what it pickles refers to `__main__`, which a rank has to import then."""

    needs_main = False

    def reducer_override(self, obj):
        if callable(obj) and getattr(obj, "__module__", None) in ("__main__", "__mp_main__"):
            self.needs_main = True
        return NotImplemented


def dump_call(fn, args):
    """(fn and args as bytes, whether reading them needs the caller's `__main__`).

    Raises TypeError, in one line, if they cannot be pickled.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump((fn, args))
        if not pickler.needs_main or _main_file() or _main_module():
            return file.getvalue(), pickler.needs_main
        reason = "defined in a notebook or an interactive session"
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        reason = str(error).split("\n")[0]
    try:
        import cloudpickle
    except ImportError:
        name = getattr(fn, "__qualname__", repr(fn))
        raise TypeError(f"{name} cannot be sent to other processes ({reason}): define it in a "
                        f"file, or install cloudpickle (pip install minipar[notebook])") from None
    return cloudpickle.dumps((fn, args)), False


def dump_result(value):
    """What a rank returns or raises, as bytes. Raises TypeError if it cannot be pickled."""
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        try:
            import cloudpickle
            return cloudpickle.dumps(value)
        except (ImportError, pickle.PicklingError, AttributeError, TypeError):
            reason = str(error).split("\n")[0]
    raise TypeError(f"a {type(value).__name__} cannot be sent to the parent ({reason})")


def _main_module():
    """The name of the module that was started with -m; None if it was not."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else None


def _main_file():
    """The path of the script that was started; None in a notebook, with -c, or from a pipe."""
    path = getattr(sys.modules["__main__"], "__file__", None)
    return os.path.abspath(path) if path and os.path.isfile(path) else None


def _surroundings(needs_main):
    """Where a rank finds the caller's modules, for multiprocessing.spawn.prepare."""
    found = dict(sys_path=[path or os.getcwd() for path in sys.path], sys_argv=sys.argv)
    if needs_main and _main_module():
        found["init_main_from_name"] = _main_module()
    elif needs_main:
        found["init_main_from_path"] = _main_file()
    return found
