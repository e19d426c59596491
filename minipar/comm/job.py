"""The parent's half of `launch`: it starts the ranks, hears from them, and ends them.

It starts one Python a rank, or mpirun, which does. Every rank connects back, gets its work, and
reports what its function returned or raised. Only the parent ends ranks: when one has failed,
when time is up, when it is interrupted. Ranks whose parent is gone end themselves.
"""

import multiprocessing  # noqa: F401  (makes `__mp_main__` known, which results may name)
import os
import pickle
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

from .transport import rendezvous
from .transport.base import RankFailed

_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS",
            "VECLIB_MAXIMUM_THREADS")
# Open MPI refuses root and more ranks than cores unless told; MPICH ignores these.
_MPI_SETTINGS = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                 "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
                 "OMPI_MCA_rmaps_base_oversubscribe": "1"}
# What a launcher sets for its own ranks, and must not reach those of another.
_OTHERS = ("MINIPAR_RANK", "MINIPAR_WORLD_SIZE", "PMI_", "PMIX_", "HYDI_", "MPI_LOCAL",
           "OMPI_COMM_WORLD_", "OMPI_UNIVERSE_SIZE")
_GRACE = 1.0  # seconds in which a better reason than "its peer failed" may come
_LAST = 10.0  # seconds for processes to end after they have returned


class Job:
    """Ranks that run, as a context manager: when it ends, none of them is left.

    work: what each rank gets, as `rank_main.py` reads it.
    """

    def __init__(self, work, size, mpi, timeout):
        self._work, self._size, self._mpi, self._timeout = work, size, mpi, timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._token = secrets.token_hex(16)
        self._listener = rendezvous.listen("127.0.0.1")
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._sockets = {}  # the connections of ranks, by rank
        self._results = {}
        self._meeting = None  # where the ranks find each other: rank 0's (host, port)
        self._processes = []  # one a rank, in order; under MPI mpirun alone

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self):
        environment = {name: value for name, value in os.environ.items()
                       if not name.startswith(_OTHERS)}
        for name in _THREADS:  # before NumPy's import; what the user has set stands
            environment.setdefault(name, "1")
        host, port = self._listener.getsockname()
        environment["MINIPAR_PARENT"] = f"{host}:{port}:{self._token}"
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        # -P: no module of the working folder stands in for one of the library's.
        python = [sys.executable, *subprocess._args_from_interpreter_flags(), "-P", "-c",
                  f"import sys; sys.path.insert(0, {root!r}); "
                  "from minipar.comm.rank_main import main; main()"]
        commands = [[*python, str(rank)] for rank in range(self._size)]
        if self._mpi:
            environment = {**_MPI_SETTINGS, **environment}
            commands = [[_mpirun(), "-n", str(self._size), *python]]
        # A session of their own: a terminal's Ctrl-C reaches the parent alone, which ends them.
        options = (dict(creationflags=subprocess.CREATE_NEW_PROCESS_GROUP)
                   if sys.platform == "win32" else dict(start_new_session=True))
        for command in commands:
            self._processes.append(subprocess.Popen(command, env=environment,
                                                    stdin=subprocess.DEVNULL, **options))

    @contextmanager
    def forwarding(self):
        """Inside, SIGTERM and the first Ctrl-C of this process are passed on to the ranks."""
        if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
            yield  # elsewhere handlers cannot be set, or a SIGTERM be passed on
            return
        asked = []

        def pass_on(number, frame):
            if asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            asked.append(number)
            for process in self._processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
        previous = {n: signal.signal(n, pass_on) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def wait(self):
        """The results of all ranks, in order. Raises what a rank has raised, or RankFailed."""
        second, until = None, None  # a rank that failed because another had, and for how long
        while len(self._results) < self._size:
            now = time.monotonic()
            if self._deadline is not None and now > self._deadline:
                raise TimeoutError(f"{self._size - len(self._results)} of {self._size} ranks "
                                   f"still ran after {self._timeout} s")
            if second is not None and now > until:
                self._raise(*second)
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._listener:
                    self._accept()
                    continue
                rank, report = key.data, _receive(key.fileobj)
                if report is None:
                    self._hung_up(rank)
                elif report["kind"] == "result":
                    self._results[rank] = self._load(rank, report["value"])
                elif report["kind"] == "peer failed":
                    second, until = second or (rank, report), until or now + _GRACE
                else:
                    self._raise(rank, report)
            self._check_start()
        self._finish()
        return [self._results[rank] for rank in range(self._size)]

    def _accept(self):
        """A rank connects; give it its work once it is known where rank 0 can be met."""
        sock, _ = self._listener.accept()
        hello = rendezvous.greeted(sock, self._token)
        if hello is None or hello["rank"] in self._sockets:
            return
        sock.settimeout(None)
        self._sockets[hello["rank"]] = sock
        self._selector.register(sock, selectors.EVENT_READ, hello["rank"])
        if hello["rank"] == 0:
            self._meeting = "127.0.0.1", hello["port"]
        waiting = self._sockets.values() if hello["rank"] == 0 else [sock] * bool(self._meeting)
        work = {**self._work, "meeting": self._meeting, "token": self._token}
        for each in waiting:
            try:
                send_bytes(each, pickle.dumps(work))
            except OSError:
                pass  # that it has ended is seen where it is read

    def _hung_up(self, rank):
        """A rank has closed its connection: it has ended, or will in a moment."""
        self._selector.unregister(self._sockets[rank])
        if rank in self._results:
            return
        how = "ended"
        if not self._mpi:  # mpirun writes itself how its processes end
            try:
                how = _how(self._processes[rank].wait(5))
            except subprocess.TimeoutExpired:
                how = "hung up"
        raise RankFailed(f"rank {rank} of {self._size} {how} before it had returned")

    def _check_start(self):
        """Raise RankFailed if a process has ended whose rank has never been heard of."""
        if len(self._sockets) < self._size:
            for rank, process in enumerate(self._processes):
                if process.poll() is not None and (self._mpi or rank not in self._sockets):
                    who = "mpirun" if self._mpi else f"rank {rank} of {self._size}"
                    raise RankFailed(f"{who} {_how(process.returncode)} before it had started "
                                     f"{'all ranks' if self._mpi else 'its work'}")

    def _load(self, rank, value):
        try:
            return pickle.loads(value)
        except Exception as error:
            raise RankFailed(f"what rank {rank} of {self._size} returned cannot be read here "
                             f"({type(error).__name__}: {error})") from None

    def _raise(self, rank, report):
        """Raise what a rank has reported."""
        who = f"rank {rank} of {self._size}"
        if report["kind"] == "exit":
            raise RankFailed(f"{who} ended with status {report['status']} before it had returned"
                             + (f": {report['text']}" if report["text"] else ""))
        cause = RankFailed(f"{who} failed:\n\n{report['text']}")
        try:
            error = pickle.loads(report["value"])
        except Exception:  # it cannot be made again here: its text has to do
            error = None
        if not isinstance(error, BaseException) or report["kind"] == "peer failed":
            raise cause
        raise error from cause

    def _finish(self):
        """Let the processes end by themselves, so that nothing they write is lost."""
        deadline = time.monotonic() + _LAST
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                return

    def __exit__(self, *exc):
        if not self._mpi:
            for process in self._processes:
                _kill(process)
        for sock in (self._listener, *self._sockets.values()):  # MPI's ranks end themselves now
            sock.close()
        self._selector.close()
        for process in self._processes:
            try:  # an mpirun that ends by itself leaves nothing behind
                process.wait(3)
            except subprocess.TimeoutExpired:
                _kill(process)
                process.wait()


def _kill(process):
    """End a process and what it has started, at once."""
    if process.poll() is not None:
        return
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own


def _how(status):
    """How a process ended, in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _mpirun():
    """The path of mpirun, beside this Python or else on PATH."""
    found = (shutil.which("mpirun", path=os.path.dirname(sys.executable))
             or shutil.which("mpirun"))
    if found is None:
        raise RuntimeError("no mpirun beside this Python or on PATH: pip install minipar[mpi], or "
                           "use how=\"processes\", which needs none")
    return found


def _receive(sock):
    try:
        return pickle.loads(receive_bytes(sock))
    except (OSError, EOFError):
        return None


def send_bytes(sock, data):
    """Send `data` and its length over a blocking socket."""
    sock.sendall(len(data).to_bytes(8, "little"))
    sock.sendall(data)


def receive_bytes(sock):
    """Receive what `send_bytes` has sent. Raises EOFError at the end."""
    return rendezvous.take(sock, int.from_bytes(rendezvous.take(sock, 8), "little"))
