"""Every case of `comm_cases`, between the ranks of a launcher; prints nothing."""

import sys

import comm_cases
from minipar.comm import world

comm = world()
assert comm.size == int(sys.argv[1]), f"{comm.size} ranks"
for case in comm_cases.CASES:
    case(comm)
    comm.barrier()
# Kept to the end: an operation and a plan that nobody releases.
comm.plan("all_reduce", comm_cases.values(comm.rank, comm.size, 100, float)).start()
comm.split(0).plan("broadcast", comm_cases.values(comm.rank, comm.size, 9, float))
