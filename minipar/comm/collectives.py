"""The collectives of a communicator, under MPI's names: arrays in, arrays out.

What they promise is in `kinds.py`, how they do it in `algorithms/`. Here arrays of any shape,
dtype and layout become the flat buffers that programs work on, and results become arrays again.
"""

import math
import pickle

import numpy as np

from ..device import as_array, host, on_gpu
from ..dtypes import FLOATING
from ..tensor import Tensor


def written(x):
    """The array of a tensor or array, counting the in-place change that is about to happen."""
    if isinstance(x, Tensor):
        x.storage.version += 1
        return x.array
    if as_array(x) is not x:
        raise TypeError(f"a tensor or an array was expected, not {type(x).__name__}")
    return x


def read(x):
    """The array of a tensor, an array, or what can become one."""
    return x.array if isinstance(x, Tensor) else as_array(x)


def _flat(array):
    """The elements of an array in order, 1-D: a view where the layout allows it, else a copy."""
    return np.ascontiguousarray(array, like=array).reshape(-1)


def _is_mean(op, dtype):
    """Whether the reduction is a mean: a sum, and a division at the end."""
    if op == "mean" and dtype.kind not in FLOATING:
        raise TypeError(f"the mean of {dtype} is not one: cast to a floating type")
    return op == "mean"


def _result(out, shape, dtype, like=None):
    """The array to put a result into: `out`'s, checked, or a new one, where `like` is."""
    if out is None:
        return np.empty(shape, dtype, like=like)
    array = written(out)
    if array.shape != tuple(shape) or array.dtype != dtype:
        raise ValueError(f"out is {array.dtype}{array.shape}, not {dtype}{tuple(shape)}")
    if not array.flags.c_contiguous:
        raise ValueError("out must be contiguous")
    return array


def _as_given(given, out, array):
    """What is returned: `out`, or the result as a Tensor if a Tensor was given."""
    if out is not None:
        return out
    return Tensor(array) if isinstance(given, Tensor) else array


def _started(work, result):
    """The Work of a collective, which knows what its result will be."""
    work.result = result
    return work


class Collectives:
    """The collectives, on top of a communicator's `_run`.

    Called by all ranks of the communicator, in the same order. Arrays are NumPy arrays or Tensors
    of any dtype, of equal shape and dtype on every rank if nothing else is said; those on a GPU
    too, but for `scatter`. `op` is sum, mean, prod, max or min; `algorithm` is "auto", the name of
    a registered program, a program of your own, "mpi", the MPI library's own, or "nccl", NVIDIA's.
    `out` is a contiguous array for the result, which is then returned.
    """

    def all_reduce(self, array, op="sum", algorithm="auto", async_op=False, out=None):
        """Reduce `array` over the ranks, in place on every rank; all get the same bits.

        out: of its shape and dtype, for the result, `array` being left as it is. If it is from
        `empty_shared` of this communicator, the ranks of the node write one result together, which
        all then read in place, until the next call with it; a mean is refused there.
        Returns None, or `out`, or a `Work` at once if `async_op`.
        """
        source = written(array) if out is None else read(array)
        target = source if out is None else _result(out, source.shape, source.dtype, source)
        mean, flat = _is_mean(op, target.dtype), _flat(target)
        if out is not None and self._common.find(flat) is not None:
            if mean:
                raise ValueError("all_reduce into memory that ranks share: sum, and divide where "
                                 "the mean is used; nobody may write there when all read")
            work = self._run("reduce_scatter_into", {"input": _flat(source),
                                                     "output": self._block(flat)},
                             op, "shared" if algorithm == "auto" else algorithm, 0, async_op)
            return _started(work, out) if async_op else out
        if out is not None:
            target[...] = source

        def finish():
            if mean:
                flat[...] /= self.size
            if not np.may_share_memory(flat, target):
                target[...] = flat.reshape(target.shape)
        work = self._run("all_reduce", flat, "sum" if mean else op, algorithm, async_op=async_op,
                         finish=finish)
        return _started(work, array if out is None else out) if async_op else out

    def _block(self, flat):
        """This rank's block of a flat array."""
        n = flat.size
        return flat[self.rank * n // self.size:(self.rank + 1) * n // self.size]

    def _by_windows(self, algorithm, array):
        """Whether a collective goes straight from the input to the result, through windows."""
        return algorithm == "shared" or (algorithm == "auto" and self.size > 1
                                         and array.nbytes >= 8192 and not on_gpu(array)
                                         and self.shares_memory())

    def reduce(self, array, root=0, op="sum", algorithm="auto", async_op=False):
        """Reduce `array` over the ranks, in place at `root`; the others' are left as they are.

        Returns None, or a `Work` at once if `async_op`.
        """
        at_root = self.rank == root
        target = written(array) if at_root else read(array)
        mean = _is_mean(op, target.dtype)
        flat = _flat(target) if at_root else target.flatten()  # partial results are written here

        def finish():
            if at_root and mean:
                flat[...] /= self.size
            if at_root and not np.may_share_memory(flat, target):
                target[...] = flat.reshape(target.shape)
        work = self._run("reduce", flat, "sum" if mean else op, algorithm, root, async_op, finish)
        return _started(work, array) if async_op else None

    def reduce_scatter(self, array, op="sum", algorithm="auto", out=None, async_op=False):
        """This rank's part of the reduction of `array`: elements [rank n // p, (rank+1) n // p).

        array: any shape, left as it is; its n elements are taken in order. Returns a new 1-D
        array (or Tensor, if given one) or `out`; a `Work` at once if `async_op`, which needs `out`.
        """
        source = read(array)
        mean, flat = _is_mean(op, source.dtype), _flat(source)
        result = _result(out, self._block(flat).shape, flat.dtype, source)
        straight = self._by_windows(algorithm, source)
        work = None if straight else source.flatten()  # partial results are written there

        def finish():
            if not straight:
                result[...] = self._block(work)
            if mean:
                result[...] /= self.size
        kind, buffers = (("reduce_scatter_into", {"input": flat, "output": result}) if straight
                         else ("reduce_scatter", work))
        return self._with_result(_as_given(array, out, result), out, async_op, finish, kind,
                                 buffers, "sum" if mean else op, algorithm)

    def all_gather(self, array, algorithm="auto", out=None, async_op=False):
        """The arrays of all ranks, one after another along a new first dim: (size, *shape).

        Returns a new array (or Tensor, if given one) or `out`; a `Work` at once if `async_op`,
        which needs `out`.
        """
        source = read(array)
        result = _result(out, (self.size, *source.shape), source.dtype, source)
        kind, buffers = "all_gather", result.reshape(-1)
        if self._by_windows(algorithm, result):
            kind, buffers = "all_gather_into", {"input": _flat(source), "output": buffers}
        else:
            result[self.rank] = source
        return self._with_result(_as_given(array, out, result), out, async_op, None, kind, buffers,
                                 algorithm=algorithm)

    def gather(self, array, root=0, algorithm="auto", out=None):
        """At `root` the arrays of all ranks along a new first dim, (size, *shape); else None.

        out: for the root alone.
        """
        source = read(array)
        if self.rank != root:
            out = None
        result = _result(out, (self.size, *source.shape), source.dtype, source)
        result[self.rank] = source
        self._run("gather", result.reshape(-1), "sum", algorithm, root)
        return _as_given(array, out, result) if self.rank == root else None

    def scatter(self, array, root=0, algorithm="auto", out=None):
        """This rank's row of `root`'s array of shape (size, *shape); what others give is not read.

        out: of that shape, on every rank or on none; with it, the root need not tell the others
        what is coming. Returns a new array (or Tensor, where one was given) or `out`.
        """
        source = read(array) if self.rank == root else None
        if source is not None and source.shape[:1] != (self.size,):
            raise ValueError(f"scatter: shape {source.shape} does not begin with {self.size}, "
                             f"the number of ranks")
        if out is not None:
            shape, dtype = read(out).shape, read(out).dtype
        else:
            form = None if source is None else (source.shape[1:], source.dtype)
            shape, dtype = self.broadcast_object(form, root)
        result = _result(out, shape, dtype)
        if source is None:
            source = np.empty((self.size, *shape), dtype)
        elif source.shape[1:] != shape or source.dtype != dtype:
            raise ValueError(f"out is {dtype}{shape}, not {source.dtype}{source.shape[1:]}")
        flat = _flat(source)
        self._run("scatter", flat, "sum", algorithm, root)
        result[...] = flat.reshape(source.shape)[self.rank]
        return _as_given(array, out, result)

    def broadcast(self, array, root=0, algorithm="auto", async_op=False):
        """Copy `array` of rank `root` into every rank's, in place.

        Returns None, or a `Work` at once if `async_op`.
        """
        target = written(array)
        flat = _flat(target)

        def finish():
            if not np.may_share_memory(flat, target):
                target[...] = flat.reshape(target.shape)
        work = self._run("broadcast", flat, "sum", algorithm, root, async_op, finish)
        return _started(work, array) if async_op else None

    def all_to_all(self, array, algorithm="auto", out=None, async_op=False):
        """Row i of the result is this rank's row of rank i's array: rows are exchanged.

        array: (size, *shape), left as it is. Returns a new array of its shape (or Tensor, if given
        one) or `out`, which must not share its memory; a `Work` at once if `async_op`, which needs
        `out`.
        """
        source = read(array)
        if source.shape[:1] != (self.size,):
            raise ValueError(f"all_to_all: shape {source.shape} does not begin with {self.size}, "
                             f"the number of ranks")
        result = _result(out, source.shape, source.dtype, source)
        return self._with_result(
            _as_given(array, out, result), out, async_op, None, "all_to_all",
            {"input": _flat(source), "output": result.reshape(-1)}, algorithm=algorithm)

    def all_to_all_v(self, array, counts, algorithm="auto"):
        """Exchange of unequal numbers of rows: (rows from all ranks, how many from each).

        array: (rows, *shape), left as it is; the first counts[0] rows go to rank 0, the next
        counts[1] to rank 1, and so on. Rows arrive in the order of the ranks they come from. Only
        *shape and dtype are equal on all ranks. As PyTorch's all_to_all_single with split sizes,
        but that the receivers are told theirs, by an all-gather of the counts.
        """
        source = read(array)
        if len(counts) != self.size or sum(counts) != (len(source) if source.ndim else -1):
            raise ValueError(f"all_to_all_v: counts {' + '.join(map(str, counts))} of {self.size} "
                             f"ranks for an array of shape {source.shape}")
        table = self.all_gather(np.array(counts, np.int64))
        arriving, width = table[:, self.rank].tolist(), math.prod(source.shape[1:])
        result = np.empty((sum(arriving), *source.shape[1:]), source.dtype, like=source)
        elements = tuple(tuple(int(k) * width for k in row) for row in table)
        self._run("all_to_all", {"input": _flat(source), "output": result.reshape(-1)},
                  algorithm=algorithm, counts=elements)
        return _as_given(array, None, result), arriving

    def barrier(self):
        """Return when every rank has come here."""
        if self._barrier is None:
            self._barrier = self.plan("barrier", np.empty(0, np.uint8))
        self._barrier.start()
        self._barrier.wait()

    def start(self, kind, array, algorithm="auto"):
        """Start a collective in place, once: `array`, flat and contiguous, is the program's.

        kind: "reduce_scatter" leaves the sum's elements [rank n // p, (rank + 1) n // p) where
        they are, and arbitrary values elsewhere; "all_gather" takes these elements from each rank.
        Returns a Work.
        """
        return self._run(kind, array, algorithm=algorithm, async_op=True)

    def _with_result(self, result, out, async_op, finish, kind, arrays, op="sum",
                     algorithm="auto"):
        """Run a collective whose result is returned, or later found in `out`."""
        if async_op and out is None:
            raise ValueError(f"{kind} with async_op needs out, to put the result into")
        work = self._run(kind, arrays, op, algorithm, async_op=async_op, finish=finish)
        return _started(work, result) if async_op else result

    # Whole objects

    def broadcast_object(self, value, root=0, algorithm="auto"):
        """Rank `root`'s `value`, anything that pickle takes, on every rank."""
        data = np.frombuffer(pickle.dumps(value if self.rank == root else None), np.uint8).copy()
        length = np.array(data.size)
        self.broadcast(length, root, algorithm)
        if self.rank != root:
            data = np.empty(int(length), np.uint8)
        self.broadcast(data, root, algorithm)
        return pickle.loads(data)

    def broadcast_arrays(self, arrays, root=0):
        """Rank `root`'s {name: array} on every rank; what the others give is not read."""
        arrays = {name: host(a) for name, a in arrays.items()}
        forms = {name: (a.shape, a.dtype) for name, a in arrays.items()}
        forms = self.broadcast_object(forms, root)
        out = {}
        for name, (shape, dtype) in forms.items():
            out[name] = arrays[name] if self.rank == root else np.empty(shape, dtype)
            self.broadcast(out[name], root)
        return out
