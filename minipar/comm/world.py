"""The world of the calling rank: finding it, and ending it when one rank fails.

An exception or an exit of one rank would leave the others waiting for ever under a plain
`mpirun -n 4 python ...`. So a rank that raises prints its traceback and aborts the job; and a
rank that leaves says goodbye to its peers, who end the job if they were still waiting for it.
"""

import atexit
import os
import sys
import threading
import time
import traceback
from contextlib import contextmanager

from ..execution.threads import share_cores
from .communicator import Communicator
from .transport.base import Lone, RankFailed

# Set by the launchers of MPICH (hydra), Open MPI, Slurm's PMIx, Intel MPI.
_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS", "PMIX_RANK")
# Set by whoever starts ranks without MPI: ours, and the names that PyTorch's launchers set.
_OWN = ("MINIPAR_RANK", "MINIPAR_WORLD_SIZE", "MINIPAR_ADDR", "MINIPAR_PORT")
_TORCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_world = None
_lock = threading.Lock()
_thread = threading.local()


@contextmanager
def use_world(communicator):
    """Make `communicator` the calling thread's world inside the block."""
    previous = getattr(_thread, "world", None)
    _thread.world = communicator
    try:
        yield communicator
    finally:
        _thread.world = previous


def world():
    """The communicator of all ranks of this job, as seen by the calling rank.

    In a thread started as a rank: its own. In a process started by an MPI launcher: MPI's world.
    In a process whose environment says which rank it is (docs/launching.md): that of the
    processes which meet there. Else a world of one rank, for which no MPI library is needed.
    """
    found = getattr(_thread, "world", None)
    if found is None:
        found = process_world()
    return found


def launched_size():
    """How many ranks the launcher's environment speaks of; None if there was no launcher."""
    for name in _SIZE_VARIABLES:
        if name in os.environ:
            return None if name == "PMIX_RANK" else int(os.environ[name])
    return None


def launched_rank():
    """This process's rank as MPI's launcher has it, for when MPI cannot say; else 0."""
    for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK"):
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return 0


def is_launched():
    """Whether this process was started by an MPI launcher."""
    return any(name in os.environ for name in _SIZE_VARIABLES)


def _meeting_variables():
    """The names of the variables that say how processes meet without MPI; () if none do.

    Ours come before MPI's, which a rank may have inherited from whoever started the processes;
    PyTorch's come after them, and only if all four are there.
    """
    if _OWN[0] in os.environ:
        return _OWN
    return _TORCH if not is_launched() and all(name in os.environ for name in _TORCH) else ()


def process_world():
    """The communicator of this process: its launcher's world, or one rank if there was none."""
    global _world
    with _lock:
        if _world is None:
            names = _meeting_variables()
            if names:
                _world = _met_communicator(names)
            else:
                _world = mpi_communicator() if is_launched() else Communicator(Lone())
            if names or is_launched():
                _install_hooks(_world.transport)
            if _world.size > 1:
                share_cores()
            atexit.register(_leave)
    return _world


def set_world(communicator):
    """Make `communicator` the world of this process; whoever made it ends it."""
    global _world
    _world = communicator


def _met_communicator(names):
    from .transport import processes
    values = [os.environ.get(name) for name in names]
    if None in values:
        raise RuntimeError(f"{names[0]} is set, but not {names[values.index(None)]}")
    try:
        rank, size, port = int(values[0]), int(values[1]), int(values[3])
    except ValueError:
        raise RuntimeError(f"{names[0]}, {names[1]} and {names[3]} are whole numbers, not "
                           f"{values[0]}, {values[1]} and {values[3]}") from None
    if not 0 <= rank < size:
        raise RuntimeError(f"{names[0]}={rank} is not in [0, {names[1]}={size})")
    if "TORCHELASTIC_RUN_ID" in os.environ and names is _TORCH:
        port += 1  # torchrun itself listens on the port that it tells
    token = os.environ.get("MINIPAR_TOKEN", "")
    return with_table(Communicator(processes.join(rank, size, values[2], port, token)))


def with_table(comm):
    """A new world, agreed on the table that its ranks select algorithms by: now, while all of them
    are here, because a collective that is started later must not wait for anybody."""
    comm.agree()
    return comm


def mpi_communicator():
    """The communicator of MPI's world. Raises RuntimeError if launcher and library do not fit."""
    try:
        from .transport import mpi
    except (ImportError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise RuntimeError(f"this process was started by an MPI launcher, but MPI cannot be "
                           f"loaded ({reason}): install minipar[mpi]") from None
    transport = mpi.world()
    expected = launched_size()
    if expected is not None and expected != transport.size:
        raise RuntimeError(f"the launcher started {expected} ranks, but {mpi.version()} sees "
                           f"{transport.size}: mpirun and mpi4py belong to different MPI libraries")
    return with_table(Communicator(transport))


def _install_hooks(transport):
    """An exception on this rank, in any thread, ends the job; so does leaving by os._exit."""
    previous, process, exit_now = sys.excepthook, os.getpid(), os._exit

    def fail(kind, value, trace, hook=previous):
        if issubclass(kind, KeyboardInterrupt):
            print(f"minipar: rank {transport.rank} was interrupted", file=sys.stderr)
        elif issubclass(kind, RankFailed):
            print(f"minipar: {value}; ending the job", file=sys.stderr)
        else:
            print(f"minipar: rank {transport.rank} of {transport.size} failed:", file=sys.stderr)
            hook(kind, value, trace)
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(0.2)  # MPICH's launcher drops what it has not read when a rank aborts
        transport.abort(1)

    def leave_at_once(status):
        if os.getpid() == process:  # not a forked child
            transport.abort(status or 1)  # MPICH's launcher would call a status of 0 success
        exit_now(status)
    os._exit = leave_at_once
    sys.excepthook = fail
    threading.excepthook = lambda args: fail(
        args.exc_type, args.exc_value, args.exc_traceback, traceback.print_exception)


def _leave():
    """At the end of this process, however it came about: release, and tell the peers."""
    if _world is not None:
        _world.close()
        try:
            _world.transport.leave()
        except RankFailed as error:
            print(f"minipar: {error}; ending the job", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            _world.transport.abort(1)
