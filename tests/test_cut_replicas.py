"""Replicas of a model that is cut: what several ranks hold alike."""

import pytest

from cut_cases import alike, assert_alike, steps, trainer
from minipar.comm import run_threads
from minipar.parallel import Mesh


@pytest.mark.parametrize("algorithm", ["ring", "auto"])
@pytest.mark.parametrize("mesh, rows", [(Mesh(3, 1, 2), 61), (Mesh(4, 1, 3), 31),
                                        (Mesh(3, 2, 1), 31)])
def test_what_several_ranks_hold_alike_stays_so_to_the_bit(mesh, rows, algorithm):
    # Beside pieces of unequal size, its sums over three replicas once had unequal orders.
    def rank():
        t = trainer(mesh, rows=rows, layers=mesh.pp, algorithm=algorithm)
        steps(t, 0, 3, rows)
        return alike(t)
    assert_alike(run_threads(rank, mesh.size))
