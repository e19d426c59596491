"""Ranks that end normally, each at its own time: a later rank still reads an earlier one's words.

    leaving.py SECONDS_BETWEEN
"""

import sys
import time

import numpy as np

from minipar.comm import world

comm = world()
x = np.array([float(comm.rank)])
comm.all_reduce(x)
assert x[0] == comm.size * (comm.size - 1) / 2
order = sorted(range(comm.size), key=lambda rank: (rank * 7) % 5)
place = order.index(comm.rank)
if place:
    time.sleep(place * float(sys.argv[1]))
    comm.recv(x, order[place - 1])
    assert x[0] == order[place - 1]
if place + 1 < comm.size:
    comm.send(np.array([float(comm.rank)]), order[place + 1])  # small: does not wait
sys.stdout.write(f"rank {comm.rank} leaves\n")
