"""Who talks to whom in gossip, and with what weight: mixing matrices.

W is symmetric and doubly stochastic, so mixing keeps the average over the ranks; its second
largest eigenvalue (in absolute value) is below 1 if the graph is connected, and says how fast the
ranks come together: a mixing shrinks what they differ by that factor.
"""

import numpy as np

GRAPHS = ("ring", "torus", "exponential", "complete")


def edges(graph, n):
    """{(i, j), i < j} of a graph on ranks 0 .. n-1.

    ring:        each rank and the next.
    torus:       rows x columns, as nearly square as n allows; each row and column is a ring.
    exponential: distances 1, 2, 4, ... around the ring (Ying et al. 2021).
    complete:    everyone with everyone.
    0-1,1-2:     these.
    Raises ValueError if there is no such graph.
    """
    if graph not in GRAPHS:
        return _listed(graph, n)
    if graph == "ring":
        pairs = [(i, i + 1) for i in range(n)]
    elif graph == "complete":
        pairs = [(i, j) for i in range(n) for j in range(i)]
    elif graph == "exponential":
        pairs = [(i, i + 2**k) for i in range(n) for k in range(max(1, n - 1).bit_length())]
    else:
        rows = max((r for r in range(2, n) if n % r == 0 and r * r <= n), default=None)
        if rows is None:
            raise ValueError(f"no torus has {n} ranks: {n} is no product rows x columns of two "
                             f"numbers >= 2")
        columns = n // rows
        pairs = [(r * columns + c, other) for r in range(rows) for c in range(columns)
                 for other in (r * columns + (c + 1) % columns, (r + 1) % rows * columns + c)]
    pairs = {(min(i % n, j % n), max(i % n, j % n)) for i, j in pairs}
    return {(i, j) for i, j in pairs if i != j}


def _listed(text, n):
    pairs = [part.split("-") for part in text.split(",")]
    if not all(len(p) == 2 and p[0].isdecimal() and p[1].isdecimal() for p in pairs):
        raise ValueError(f"no graph {text!r}: there are {', '.join(GRAPHS)}, or edges: 0-1,1-2")
    pairs = {tuple(sorted(map(int, p))) for p in pairs}
    for i, j in sorted(pairs):
        if j >= n or i == j:
            raise ValueError(f"{i}-{j} is no edge between two of the ranks 0 to {n - 1}")
    return pairs


def components(pairs, n):
    """The ranks that can reach each other, as a list of sorted lists."""
    left, found = set(range(n)), []
    while left:
        reached, new = set(), {min(left)}
        while new:
            reached |= new
            new = {k for i, j in pairs for k in (i, j) if i in reached or j in reached} - reached
        found.append(sorted(reached))
        left -= reached
    return found


def mixing_matrix(graph, n):
    """float64 (n, n): Metropolis weights (Xiao & Boyd 2004), 1 / (1 + the larger degree of the
    two) for each edge, and for itself what is left to 1. On the complete graph all are 1 / n.

    Raises ValueError if there is no such graph, or if it is not connected.
    """
    pairs = edges(graph, n)
    if len(parts := components(pairs, n)) > 1:
        raise ValueError(f"the graph {graph} of {n} ranks is not connected: "
                         f"{' and '.join(str(part) for part in parts)}")
    degree = np.bincount([k for pair in pairs for k in pair], minlength=n)
    weights = np.zeros((n, n))
    for i, j in pairs:
        weights[i, j] = weights[j, i] = 1 / (1 + max(degree[i], degree[j]))
    weights[np.diag_indices(n)] = 1 - weights.sum(axis=1)
    return weights


def second_eigenvalue(weights):
    """The second largest absolute eigenvalue of a mixing matrix; 0 for one rank."""
    sizes = np.sort(np.abs(np.linalg.eigvalsh(weights)))
    return float(sizes[-2]) if len(sizes) > 1 else 0.0
