"""Graphs of gossip: mixing matrices keep the average and connect all ranks."""

import numpy as np
import pytest

from minipar.parallel.sync import mixing_matrix, second_eigenvalue
from minipar.parallel.sync.graphs import components, edges


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 7, 9, 12, 16])
@pytest.mark.parametrize("graph", ["ring", "torus", "exponential", "complete"])
def test_mixing_matrices_are_symmetric_doubly_stochastic_and_connect_all_ranks(graph, n):
    if graph == "torus" and n in (1, 2, 3, 7):
        with pytest.raises(ValueError, match=f"no torus has {n} ranks"):
            mixing_matrix(graph, n)
        return
    w = mixing_matrix(graph, n)
    assert (w >= 0).all() and (w == w.T).all() and w.dtype == np.float64
    np.testing.assert_allclose(w.sum(axis=0), 1, rtol=1e-14)
    assert (np.linalg.matrix_power(w, n) > 0).all()
    assert second_eigenvalue(w) < 1 - 1e-3
    assert {(i, j) for i in range(n) for j in range(i + 1, n) if w[i, j]} == edges(graph, n)


def test_second_eigenvalues_are_those_of_the_circulant_and_shrink_with_more_edges():
    for n in (3, 4, 8, 11):  # the ring's weights are 1/3: eigenvalues (1 + 2 cos(2 pi k / n)) / 3
        values = np.abs((1 + 2 * np.cos(2 * np.pi * np.arange(1, n) / n)) / 3)
        assert abs(second_eigenvalue(mixing_matrix("ring", n)) - values.max()) < 1e-14
    ring, torus, exponential, complete = (second_eigenvalue(mixing_matrix(g, 16)) for g in (
        "ring", "torus", "exponential", "complete"))
    assert complete < 1e-12 < exponential < torus < ring
    assert len(edges("torus", 12)) == 24 and len(edges("exponential", 8)) == 8 * 2 + 4


def test_a_star_has_metropolis_weights():
    w = mixing_matrix("0-1,0-2,3-0", 4)
    np.testing.assert_allclose(w[0], [0.25, 0.25, 0.25, 0.25])
    np.testing.assert_allclose(w[1], [0.25, 0.75, 0, 0])
    assert components({(0, 1), (2, 4)}, 5) == [[0, 1], [2, 4], [3]]
