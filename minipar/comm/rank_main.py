"""A rank's half of `launch`: what a process that a `Job` has started does.

It connects to the parent, gets its work, finds the other ranks, runs the function, and reports
what that returns or raises. A thread waits for the parent to hang up, which it does when the job
is over and when it is gone itself; the process ends with it.
"""

import os
import pickle
import socket
import sys
import threading
import time
import traceback
from multiprocessing import spawn

from .. import context
from . import launcher
from .communicator import Communicator
from .job import receive_bytes, send_bytes
from .transport import processes, rendezvous
from .transport.base import RankFailed
from .world import launched_rank, mpi_communicator, set_world, with_table


def main():
    """Run one rank. The last argument is its number; without one, MPI's launcher says it."""
    host, port, token = os.environ.pop("MINIPAR_PARENT").split(":")
    mpi = len(sys.argv) == 1
    rank = launched_rank() if mpi else int(sys.argv[1])
    meeting = rendezvous.listen("127.0.0.1") if rank == 0 and not mpi else None
    for stream in (sys.stdout, sys.stderr):  # whole lines, so that ranks do not tear each other's
        stream.reconfigure(line_buffering=True, write_through=False)
    parent = _Parent(socket.create_connection((host, int(port))))
    work = parent.get_work(token, rank, meeting)
    try:
        comm = _join(work, rank, meeting)
        set_world(comm)
        threading.excepthook = parent.thread_failed
        parent.report(kind="result", value=launcher.dump_result(_run(work)))
        comm.close()
    except BaseException as error:
        parent.failed(error)
    threading.excepthook = threading.__excepthook__
    try:
        comm.transport.leave()
    except RankFailed:
        os._exit(1)  # the parent knows


def _join(work, rank, meeting):
    """The rank's communicator."""
    if work["how"] == "mpi":
        return mpi_communicator()
    return with_table(Communicator(processes.join(rank, work["size"], *work["meeting"],
                                                  work["token"], meeting)))


def _run(work):
    """What the function returns, in a copy of the caller's context."""
    with context.use(work["context"]):
        launcher.importing_main = True
        spawn.prepare(work["prepare"])  # the caller's path and, if it is needed, its `__main__`
        launcher.importing_main = False
        function, args = pickle.loads(work["call"])
        return function(*args)


class _Parent:
    """The connection to the parent."""

    def __init__(self, sock):
        self._socket, self._lock = sock, threading.Lock()

    def get_work(self, token, rank, meeting):
        """Say who this is, and receive what there is to do."""
        port = meeting.getsockname()[1] if meeting else None
        try:
            rendezvous.send(self._socket, {"token": token, "rank": rank, "port": port})
            work = pickle.loads(receive_bytes(self._socket))
        except (OSError, EOFError):
            os._exit(1)  # the job is over already
        threading.Thread(target=self._watch, daemon=True, name="parent").start()
        return work

    def _watch(self):
        try:
            self._socket.recv(1)
        except OSError:
            pass
        os._exit(1)

    def report(self, **what):
        """Send what the parent reads as a dict."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with self._lock:
            try:
                send_bytes(self._socket, pickle.dumps(what))
            except OSError:
                os._exit(1)  # the parent is gone

    def failed(self, error):
        """Report an exception, and wait for the end, which the parent brings to all ranks."""
        if isinstance(error, SystemExit):
            text = error.code if isinstance(error.code, str) else ""
            self.report(kind="exit", status=1 if text else error.code or 0, text=text)
        else:
            trace = error.__traceback__
            while trace.tb_next is not None and trace.tb_frame.f_code.co_filename == __file__:
                trace = trace.tb_next  # to the caller's function
            text = "".join(traceback.format_exception(type(error), error, trace))
            try:
                value = launcher.dump_result(error)
            except TypeError:
                value = b""
            kind = "peer failed" if isinstance(error, RankFailed) else "error"
            self.report(kind=kind, text=text, value=value)
        time.sleep(60)
        os._exit(1)

    def thread_failed(self, args):
        """An exception in another thread of this rank."""
        if args.exc_type is not SystemExit:
            self.failed(args.exc_value)
