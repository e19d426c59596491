"""Runs the main job with the given options; rank 0 writes the final parameters to argv[1]."""

import sys

import numpy as np

from minipar import train
from minipar.comm import world

hash_them = train.params_sha256


def keep(parameters):
    if world().rank == 0:
        np.savez(sys.argv[1], **parameters)
    return hash_them(parameters)


train.params_sha256 = keep
sys.exit(train.main(sys.argv[2:]))
