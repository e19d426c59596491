"""Trains a small model with data parallelism and writes the trace of all ranks to argv[1]."""

import sys

from minipar import trace
from minipar.comm import world
from test_trace import STEPS, small_model, train_step

comm = world()
model, optimizer = small_model()
with trace.record() as recorder:
    for _ in range(STEPS):
        train_step(model, optimizer)
trace.write_chrome(sys.argv[1], comm, recorder)
