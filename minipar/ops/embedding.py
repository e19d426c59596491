"""Rows of a table by index."""

import numpy as np

from ..device import aligned, one_device
from ..execution import Kernel
from ..sinks import Deferred
from ..tensor import record
from .base import for_kernel, wanted

_BACKWARD = Kernel("embedding.cu", "embedding_backward", rows="rows", width="width")


def padding_row(padding_idx, rows):
    """padding_idx counted from the front. Raises ValueError if the table has no such row."""
    if not -rows <= padding_idx < rows:
        raise ValueError(f"embedding: padding_idx {padding_idx} is not in a table of {rows} rows")
    return padding_idx % rows


def embedding(input, weight, padding_idx=None):
    """weight[input]: row input[...] of the table for every index.

    input: integers of any shape; weight (rows, features), floating -> (*input.shape, features).
    padding_idx: a row that gets no gradient. Raises IndexError `index 70 is not in a table of 65
    rows`; ValueError if padding_idx is not either; TypeError for an input of another type.
    """
    index, table = input.array, weight.array
    if index.dtype.kind not in "iu":
        raise TypeError(f"embedding: indices are integers, not {input.dtype}")
    if table.ndim != 2:
        raise ValueError(f"embedding: weight {table.shape}: expected (rows, features)")
    one_device("embedding", index, table)
    places = index.astype(np.int64, copy=False)
    # As unsigned numbers negative indices are large: one comparison in the usual case.
    if index.size and places.view(np.uint64).max() >= len(table):
        wrong = index.min() if index.min() < 0 else index.max()
        raise IndexError(f"index {wrong} is not in a table of {len(table)} rows")
    if padding_idx is not None:
        padding_idx = padding_row(padding_idx, len(table))
    like = wanted(weight)

    def backward(g):
        def add(out):
            flat, rows = places.reshape(-1), g.reshape(places.size, like.shape[1])
            if padding_idx is not None:
                kept = flat != padding_idx
                flat, rows = flat[kept], rows[kept]
            _scatter_add(out, flat, rows)
        return None, Deferred(like, add=add)
    return record(table.take(places, axis=0), (input, weight), backward, (input,))


def _scatter_add(out, index, g):
    """out[index[i]] += g[i] for all i, in an order that depends on `index` alone."""
    if out.itemsize == 2:  # of many uses of a row the small ones would be lost
        total = np.zeros(out.shape, np.float32, like=out)
        _scatter_add(total, index, g.astype(np.float32))
        out += total
        return
    run = _BACKWARD.build(out)
    if run and out.flags.c_contiguous and aligned(out) and g.dtype == out.dtype:
        run(for_kernel(index), for_kernel(g), out, len(index), *out.shape)
    else:
        _add_runs(out, index, g)


def _add_runs(out, index, g):
    """`_scatter_add` in NumPy.

    The rows of g are sorted by index; a run of equal indices is summed as a vector-matrix product,
    and runs of one are added together. np.add.at takes 3 to 8 times as long; one product with
    one-hot rows is as fast for 64 rows, and grows with the table.
    """
    if not len(index):
        return
    order = np.argsort(index, kind="stable")
    index, g = index[order], g[order]
    ends = np.flatnonzero(np.diff(index, append=-1)) + 1
    starts = np.concatenate((np.zeros(1, ends.dtype, like=ends), ends[:-1]))
    single = ends - starts == 1
    out[index[starts[single]]] += g[starts[single]]
    ones = np.ones_like(g, shape=len(index))
    starts, ends = starts[~single], ends[~single]
    for row, start, end in zip(index[starts].tolist(), starts.tolist(), ends.tolist()):
        out[row] += ones[start:end] @ g[start:end]
