"""The communicator: a group of ranks, and what they can do together, under MPI's names."""

import math
import pickle

import numpy as np

from ..context import current
from ..tensor import Tensor
from .plan import OPS, Engine, Plan
from .program import CHANNELS
from .select import select
from .window import LINE, Arena, Fence, Window, mapped_segments, memory_key

_TURNS = 256  # plans of single collectives take their tags in turn; kept plans have their own


class Work:
    """A started operation: `test()`, `wait()`. Returned for async_op=True and by isend, irecv."""

    __slots__ = ("_plan", "_finish", "done")

    def __init__(self, plan, finish):
        self._plan, self._finish, self.done = plan, finish, False

    def test(self):
        """Whether the operation is complete; makes progress, never blocks."""
        if not self.done and self._plan.test():
            self.done = True
            self._finish()
        return self.done

    def wait(self):
        """Block until the operation is complete."""
        self._plan.wait()
        self.test()


class _Single:
    """One message with the interface of a plan.

    traffic: (whether it is a send, peer, bytes, tag).
    """

    def __init__(self, array, traffic, transport, engine):
        self._sends, self._peer, _, tag = traffic
        make = transport.send_init if self._sends else transport.recv_init
        self._messages, self._transport, self._engine = (
            [make(array, self._peer, tag)], transport, engine)
        self.done, recorder = False, current().recorder
        self._flight = recorder and recorder.flight(transport)
        if self._flight is not None:
            self._flight.departs([traffic])
        engine.add(self)
        transport.start(self._messages)

    def test(self):
        if not self.done and self._transport.test(self._messages):
            self.done = True
            self._engine.remove(self)
            if self._flight is not None:
                self._flight.landed()
        return self.done

    def wait(self):
        self._engine.wait(self)

    @property
    def name(self):
        return f"{'send to' if self._sends else 'receive from'} rank {self._peer}"

    def waits_for(self):
        return 0, (self._transport.in_world(self._peer),)

    def free(self):
        self._transport.free(self._messages)


def _array(x):
    """The array of a tensor or array, counting the in-place change that is about to happen."""
    if isinstance(x, Tensor):
        x.storage.version += 1
        return x.array
    if not isinstance(x, np.ndarray):
        raise TypeError(f"a tensor or a NumPy array was expected, not {type(x).__name__}")
    return x


def _is_mean(op, dtype):
    """Whether the reduction is a mean: a sum, and a division at the end."""
    if op == "mean" and dtype.kind != "f":
        raise TypeError(f"the mean of {dtype} is not one: cast to a floating type")
    return op == "mean"


class Communicator:
    """A group of ranks. Collectives are called by all of its ranks, in the same order.

    rank: this rank's number, 0 <= rank < size.
    Arrays are NumPy arrays or Tensors of any dtype; `op` is sum, mean, prod, max or min;
    `algorithm` is "auto", the name of a registered program, or a program of your own.
    """

    def __init__(self, transport, engine=None):
        self.transport = transport
        self.rank, self.size = transport.rank, transport.size
        self.engine = Engine(transport) if engine is None else engine
        self._plans, self._runs, self._splits, self._held = 0, 0, 0, []
        self._turns = [None] * _TURNS  # the plan in flight on each turn's tags
        self._arena, self._shares, self._reused = Arena(self._window), None, {}
        self._message_tags = transport.max_tag // 2  # below: plans; from here: send and recv

    def __repr__(self):
        return f"<Communicator rank {self.rank} of {self.size}>"

    # Collectives

    def plan(self, kind, array, op="sum", algorithm="auto", root=0):
        """Compile a collective for a buffer that it will be run on many times.

        array: contiguous; the plan keeps it and changes it in place at every `start()`. Call
        `free()` when done with it (`close()` does so for those that are left).
        """
        if not array.flags.c_contiguous:
            raise ValueError("a plan needs a contiguous array")
        slots = self._message_tags // CHANNELS - _TURNS
        plan = self._compile(kind, array, op, algorithm, root, _TURNS + self._plans % slots)
        self._plans += 1
        return plan

    def _compile(self, kind, array, op, algorithm, root, slot):
        if op not in OPS:
            raise ValueError(f"no reduction {op!r} for a plan: there are {', '.join(OPS)}")
        if not 0 <= root < self.size:
            raise ValueError(f"root {root} is not one of {self.size} ranks")
        program = select(kind, self.size, array.nbytes, algorithm)
        trace = program.trace(self.rank, self.size, array.size, root=root)
        if trace.one_sided and slot < _TURNS:  # of a single collective
            return self._reuse(program, trace, array, op, root)
        return self._make(program, trace, array, op, slot)

    def _make(self, program, trace, array, op, slot):
        shared = self._share(trace, array, program) if trace.one_sided else {}
        plan = Plan(trace, {"x": array.reshape(-1)}, self.transport, self.engine, op,
                    slot * CHANNELS, CHANNELS, f"{program.kind.name} {program.name}", **shared)
        self._held.append(plan)
        return plan

    def _reuse(self, program, trace, array, op, root):
        """A plan in shared memory for this call: making one takes long, so two are kept for each
        length, which take turns. Whatever is decided here, every rank decides alike.
        """
        key = program, array.size, array.dtype, op, root, self._arena.find(array)
        plans, calls = self._reused.setdefault(key, ([], [0]))
        turn, calls[0] = calls[0] % 2, calls[0] + 1
        if turn == len(plans):
            plans.append(self._make(program, trace, array, op, 0))
            plans[turn].reused = True
        else:
            plans[turn].wait()
            plans[turn].bind({"x": array.reshape(-1)})
        return plans[turn]

    # Shared memory

    def shares_memory(self):
        """Whether all ranks can map each other's memory. Collective when first asked."""
        if self._shares is None:
            keys = self.all_gather(np.array([memory_key()]))
            own = self.transport.segments(0) is not None
            self._shares = own or (keys[0, 0] != 0 and bool((keys == keys[0]).all()))
        return self._shares

    def _window(self, nbytes):
        segments = self.transport.segments(nbytes)
        return Window(mapped_segments(self, nbytes) if segments is None else segments, self.rank)

    def empty(self, shape, dtype):
        """A new array, of the same shape and dtype on every rank, in memory that all can map.

        One-sided programs work in it without a copy. Its values are arbitrary. An ordinary array
        where ranks share no memory. Collective; the memory is the communicator's until `close()`.
        """
        dtype = np.dtype(dtype)
        count = math.prod(shape) if isinstance(shape, tuple) else shape
        if not self.shares_memory():
            return np.empty(shape, dtype)
        window, offset = self._arena.take(count * dtype.itemsize)
        return window.view(self.rank, offset, count, dtype).reshape(shape)

    def _share(self, trace, array, program):
        """Where a one-sided program works: its buffers' places, and a fence.

        The regions stay the plan's until the communicator is closed.
        """
        if not self.shares_memory():
            raise ValueError(f"{program.name} reads and writes memory of its peers, which these "
                             f"{self.size} ranks do not share")
        places = {}
        for name, length in trace.buffers.items():
            found = self._arena.find(array) if name == "x" else None
            places[name] = found or self._arena.take(length * array.itemsize)
        return {"places": places, "fence": Fence(*self._arena.take(LINE))}

    def free(self, plan):
        """Release a plan that is not in flight."""
        self._held.remove(plan)
        plan.free()

    def _run(self, kind, array, op, algorithm, root, async_op, finish=None):
        turn = self._runs % _TURNS
        if self._turns[turn] is not None:
            self._turns[turn].wait()  # on every rank it is this collective that comes first
        plan = self._compile(kind, array, op, algorithm, root, turn)
        self._runs += 1
        self._turns[turn] = plan
        plan.start()

        def done():
            if self._turns[turn] is plan:
                self._turns[turn] = None
            if not plan.reused:
                self.free(plan)
            if finish is not None:
                finish()
        work = Work(plan, done)
        if async_op:
            return work
        work.wait()
        return None

    def all_reduce(self, array, op="sum", algorithm="auto", async_op=False):
        """Reduce `array` over the ranks, in place on every rank; all get the same bits.

        Returns None, or a `Work` at once if `async_op`.
        """
        target = _array(array)
        mean = _is_mean(op, target.dtype)
        buffer = np.ascontiguousarray(target)
        if buffer.ndim != target.ndim:
            buffer = buffer.reshape(target.shape)  # NumPy makes 0-d arrays 1-d here
        copied = not np.may_share_memory(buffer, target)

        def finish():
            if mean:
                buffer[...] /= self.size
            if copied:
                target[...] = buffer
        return self._run("all_reduce", buffer, "sum" if mean else op, algorithm, 0, async_op,
                         finish)

    def reduce_scatter(self, array, op="sum", algorithm="auto"):
        """This rank's part of the reduction of `array`: elements [rank n // p, (rank+1) n // p).

        array: any shape, left as it is; its n elements are taken in order. Returns a new 1-D
        array (or Tensor, if given one).
        """
        source = array.array if isinstance(array, Tensor) else np.asarray(array)
        work, mean = source.reshape(-1).copy(), _is_mean(op, source.dtype)
        self._run("reduce_scatter", work, "sum" if mean else op, algorithm, 0, False)
        n = work.size
        part = work[self.rank * n // self.size:(self.rank + 1) * n // self.size].copy()
        if mean:
            part /= self.size
        return Tensor(part) if isinstance(array, Tensor) else part

    def all_gather(self, array, algorithm="auto"):
        """The arrays of all ranks, one after another along a new first dim: (size, *shape).

        array: of the same shape and dtype on every rank.
        """
        source = array.array if isinstance(array, Tensor) else np.asarray(array)
        out = np.empty((self.size, *source.shape), source.dtype)
        out[self.rank] = source
        self._run("all_gather", out, "sum", algorithm, 0, False)
        return Tensor(out) if isinstance(array, Tensor) else out

    def broadcast(self, array, root=0, algorithm="auto"):
        """Copy `array` of rank `root` into every rank's, in place."""
        target = _array(array)
        buffer = np.ascontiguousarray(target)
        self._run("broadcast", buffer, "sum", algorithm, root, False)
        if not np.may_share_memory(buffer, target):
            target[...] = buffer.reshape(target.shape)

    def broadcast_object(self, value, root=0):
        """Rank `root`'s `value`, anything that pickle takes, on every rank."""
        data = np.frombuffer(pickle.dumps(value if self.rank == root else None), np.uint8).copy()
        length = np.array(data.size)
        self.broadcast(length, root)
        if self.rank != root:
            data = np.empty(int(length), np.uint8)
        self.broadcast(data, root)
        return pickle.loads(data)

    def broadcast_arrays(self, arrays, root=0):
        """Rank `root`'s {name: array} on every rank; what the others give is not read."""
        forms = {name: (a.shape, a.dtype) for name, a in arrays.items()}
        forms = self.broadcast_object(forms, root)
        out = {}
        for name, (shape, dtype) in forms.items():
            out[name] = arrays[name] if self.rank == root else np.empty(shape, dtype)
            self.broadcast(out[name], root)
        return out

    def barrier(self):
        """Return when every rank has come here."""
        self._run("barrier", np.empty(0, np.uint8), "sum", "auto", 0, False)

    # Messages

    def _message(self, sends, array, peer, tag, finish=None):
        if not 0 <= peer < self.size or peer == self.rank:
            raise ValueError(f"rank {self.rank} of {self.size} has no peer {peer}")
        limit = self.transport.max_tag - self._message_tags
        if not 0 <= tag < limit:
            raise ValueError(f"tag {tag} is not in [0, {limit})")
        traffic = sends, peer, array.nbytes, self._message_tags + tag
        single = _Single(array, traffic, self.transport, self.engine)
        self._held.append(single)

        def done():
            self.free(single)
            if finish is not None:
                finish()
        return Work(single, done)

    def isend(self, array, dest, tag=0):
        """Start sending `array` to rank `dest`; it must not change until the Work is done."""
        source = array.array if isinstance(array, Tensor) else np.asarray(array)
        return self._message(True, np.ascontiguousarray(source), dest, tag)

    def irecv(self, array, source, tag=0):
        """Start receiving from rank `source` into `array` (same number of bytes as sent)."""
        target = _array(array)
        buffer = target if target.flags.c_contiguous else np.empty_like(target, order="C")
        finish = None if buffer is target else lambda: np.copyto(target, buffer)
        return self._message(False, buffer, source, tag, finish)

    def send(self, array, dest, tag=0):
        """Send `array` to rank `dest`."""
        self.isend(array, dest, tag).wait()

    def recv(self, array, source, tag=0):
        """Receive from rank `source` into `array`."""
        self.irecv(array, source, tag).wait()

    # Groups

    def split(self, color, key=0):
        """The communicator of the ranks that give the same `color`, ordered by (key, rank).

        Called by every rank; None for those whose color is None (MPI_UNDEFINED).
        """
        self._splits += 1
        given = np.array([color is not None, 0 if color is None else color, key], np.int64)
        table = self.all_gather(given)
        if color is None:
            return None
        members = sorted((r for r in range(self.size) if table[r][0] and table[r][1] == color),
                         key=lambda r: (table[r][2], r))
        return Communicator(self.transport.subgroup(members, (self._splits, int(color))),
                            self.engine)

    def close(self):
        """Release every plan that is left. Called at the end of the job by whoever started it."""
        for plan in self._held:
            plan.free()
        self._held = []
        self.transport.close()
