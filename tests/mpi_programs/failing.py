"""Ranks all-reduce in a loop for ever; one of them leaves it in the way it is told to.

    failing.py RANK STEP HOW
"""

import os
import signal
import sys
import threading

import numpy as np

from minipar.comm import world


class Planted(Exception):
    """Raised on purpose."""


def leave(how):
    if how == "raise":
        raise Planted("on purpose")
    if how == "raise in a thread":
        threading.Thread(target=leave, args=("raise",)).start()
        return
    if how == "exit 3":
        sys.exit(3)
    if how == "exit text":
        raise SystemExit("leaves with a text")
    if how == "exit 0":
        sys.exit(0)
    if how == "_exit 1":
        os._exit(1)
    if how == "_exit 0":
        os._exit(0)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(how)


rank, step, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
comm = world()
x = np.zeros(1000)
count = 0
while True:
    if (comm.rank, count) == (rank, step):
        leave(how)
    comm.all_reduce(x)
    count += 1
