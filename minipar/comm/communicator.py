"""The communicator: a group of ranks. Plans, shared memory, messages and sub-groups are here, its
collectives in `collectives.py`."""

import math

import numpy as np

from ..device import assign, host, on_gpu
from .collectives import Collectives, read, written
from .engine import Engine, chosen_progress
from .gpu.nccl import NCCL
from .gpu.plans import DevicePlans
from .gpu.staging import Synchronised
from .kinds import KINDS
from .mpi_plan import LIBRARY, LibraryPlan
from .plan import Plan
from .program import CHANNELS
from .reduction import OPS
from .select.choosing import Choosing
from .topology import Topology, hosts
from .window import LINE, Arena, Fence, Window, mapped_segments, memory_key
from .work import Single, Work

_TURNS = 256  # plans of single collectives take their tags in turn; kept plans have their own


class Communicator(Collectives, Choosing, DevicePlans):
    """A group of ranks. Collectives are called by all of its ranks, in the same order.

    Those of several groups may be in flight together, started in any order: plans at once; single
    calls with async_op, too, but where they work in shared memory (`auto` may choose so): the first
    of a length waits for all ranks of its group, and a third in flight for the first.

    rank:     this rank's number, 0 <= rank < size.
    progress: how operations in flight go on: by "hooks", when the rank waits or asks; or by a
              "thread" beside it; what MINIPAR_PROGRESS says, or by hooks, if None. Settable while
              nothing is in flight; all communicators of a rank have one.
    """

    def __init__(self, transport, engine=None, progress=None):
        self.transport = transport
        self.rank, self.size = transport.rank, transport.size
        self._owns_engine = engine is None
        self.engine = Engine(transport, chosen_progress()) if engine is None else engine
        if progress is not None:
            self.engine.use(progress)
        self._plans, self._runs, self._splits, self._held = 0, 0, 0, []
        self._turns = [None] * _TURNS  # the plan in flight on each turn's tags
        self._arena, self._shares, self._reused = Arena(self._window), None, {}
        self._common = Arena(self._common_window)  # of which every rank has the same memory
        self._message_tags = transport.max_tag // 2  # below: plans; from here: send and recv
        self._topology = self._barrier = None
        self.chosen = {}

    def __repr__(self):
        return f"<Communicator rank {self.rank} of {self.size}>"

    @property
    def bytes_sent(self):
        """Bytes that this rank has sent in messages, by all of its communicators, and has copied
        from or to the memory of others. NaN after one of the MPI library's own collectives, which
        does not tell.
        """
        return self.engine.bytes_sent

    @property
    def progress(self):
        return self.engine.progress_by

    @progress.setter
    def progress(self, way):
        self.engine.use(way)

    @property
    def topology(self):
        """Where the ranks stand (a Topology), for algorithms that ask. Settable, alike on all.

        Else it is found by the names of hosts when an algorithm first asks, by all ranks together.
        """
        if self._topology is None:
            self._topology = hosts(self)
        return self._topology

    @topology.setter
    def topology(self, topology):
        if reason := topology.problem(self.size):
            raise ValueError(reason)
        self._topology = Topology(tuple(topology.levels))

    # Plans

    def plan(self, kind, arrays, op="sum", algorithm="auto", root=0, counts=None):
        """Compile a collective for buffers that it will be run on many times.

        arrays: the contiguous array that is changed in place at every `start()`; or, for a kind of
        several buffers, {buffer: array}. The plan keeps them. counts: for an all_to_all of unequal
        blocks, the elements that each rank sends to each, a (size, size) tuple of tuples. Call
        `free()` when done with it (`close()` does so for those that are left).
        """
        arrays = arrays if isinstance(arrays, dict) else {"x": arrays}
        if not all(array.flags.c_contiguous for array in arrays.values()):
            raise ValueError("a plan needs a contiguous array")
        slot = _TURNS + self._plans % (self._message_tags // CHANNELS - _TURNS)
        self._plans += 1
        return self._compile(kind, arrays, slot, op, algorithm, root, counts)

    def _compile(self, kind, arrays, slot, op, algorithm, root, counts):
        if op not in OPS:
            raise ValueError(f"no reduction {op!r} for a plan: there are {', '.join(OPS)}")
        if not 0 <= root < self.size:
            raise ValueError(f"root {root} is not one of {self.size} ranks")
        if len({array.dtype for array in arrays.values()}) > 1:
            raise ValueError(f"a plan has one dtype, not "
                             f"{' and '.join(a.dtype.name for a in arrays.values())}")
        arrays = {name: array.reshape(-1) for name, array in arrays.items()}
        nbytes = max(a.nbytes for a in arrays.values())
        if counts is not None and algorithm == "auto":
            algorithm = "pairwise"  # the tables are for equal blocks
        transport, device = self.transport, on_gpu(next(iter(arrays.values())))
        if device and self.size > 1 and self._stages(algorithm):
            return self._staged(kind, arrays, slot, slot >= _TURNS, op, algorithm, root,
                                counts)
        transport = Synchronised(transport) if device else transport
        program = self.choose(kind, nbytes, algorithm,
                              lambda: None if device else
                              self._is_shared(kind, arrays, slot < _TURNS))
        if program is NCCL:
            return self._by_nccl(kind, arrays, op, root)
        if program is LIBRARY:
            plan = LibraryPlan(kind, arrays, transport, self.engine, op, root, counts)
            self._held.append(plan)
            return plan
        options = {"root": root, "counts": counts,
                   "topo": self.topology if "topo" in program.wants else None}
        n = max(array.size for array in arrays.values())
        trace = program.trace(self.rank, self.size, n, **options)
        for name, array in arrays.items():
            if trace.buffers.get(name) != array.size:
                raise ValueError(f"{kind} has no buffer {name} of {array.size} elements: its "
                                 f"buffers are {trace.buffers}")
        if device and any(o.codec is not None for ops in trace.rounds for o in ops):
            return self._staged(kind, arrays, slot, slot >= _TURNS, op, algorithm, root,
                                counts)
        if trace.one_sided and slot < _TURNS:  # of a single collective
            return self._reuse(program, trace, arrays, op, root)
        return self._make(program, trace, arrays, op, slot, transport)

    def _make(self, program, trace, arrays, op, slot, transport=None):
        shared = self._share(trace, arrays, program) if trace.one_sided else {}
        plan = Plan(trace, arrays, transport or self.transport, self.engine, op, slot * CHANNELS,
                    CHANNELS, f"{program.kind.name} {program.name}", **shared)
        self._held.append(plan)
        return plan

    def _reuse(self, program, trace, arrays, op, root):
        """A plan in shared memory for this call: making one takes long, so two are kept for each
        length, which take turns. Whatever is decided here, every rank decides alike.
        """
        key = program, op, root, *(
            (name, array.size, array.dtype, on_gpu(array),
             None if name in program.kind.own else self._arena.find(array))
            for name, array in arrays.items())
        plans, calls = self._reused.setdefault(key, ([], [0]))
        turn, calls[0] = calls[0] % 2, calls[0] + 1
        if turn == len(plans):
            plans.append(self._make(program, trace, arrays, op, 0))
            plans[turn].reused = True
        else:
            plans[turn].wait()
            plans[turn].bind(arrays)
        return plans[turn]

    # Shared memory

    def shares_memory(self):
        """Whether all ranks can map each other's memory. Collective when first asked."""
        if self._shares is None:
            keys = self.all_gather(np.array([memory_key()]), algorithm="bruck")
            own = self.transport.segments(0) is not None
            self._shares = own or (keys[0, 0] != 0 and bool((keys == keys[0]).all()))
        return self._shares

    def _is_shared(self, kind, arrays, once):
        """Whether the buffers that peers touch lie in shared memory; None if the ranks share none,
        or if they have enough of it for single collectives.
        """
        if self.size == 1 or not self.shares_memory() or once and len(self._reused) >= 64:
            return None
        return all(self._arena.find(array) is not None for name, array in arrays.items()
                   if name not in KINDS[kind].own)

    def _window(self, nbytes):
        segments = self.transport.segments(nbytes)
        if segments is None:
            segments = mapped_segments(self, nbytes, range(self.size))
        return Window(segments, self.rank)

    def _common_window(self, nbytes):
        segments = self.transport.segments(nbytes)
        if segments is None:
            segments = mapped_segments(self, nbytes, [0])
        return Window(segments[:1] * self.size, self.rank)

    def empty(self, shape, dtype):
        """A new array, of the same shape and dtype on every rank, in memory that all can map.

        One-sided programs work in it without a copy. Its values are arbitrary. An ordinary array
        where ranks share no memory. Collective; the memory is the communicator's until `close()`.
        """
        return self._take(self._arena, shape, dtype)

    def empty_shared(self, shape, dtype):
        """A new array that is the same memory on every rank, for `all_reduce(x, out=it)`: the
        result is then written once, and read where it stands.

        What a rank writes there all others see, sooner or later. An ordinary array of each rank's
        own where ranks share no memory: results are the same. Otherwise as `empty`.
        """
        return self._take(self._common, shape, dtype)

    def _take(self, arena, shape, dtype):
        dtype = np.dtype(dtype)
        count = math.prod(shape) if isinstance(shape, tuple) else shape
        if not self.shares_memory():
            return np.empty(shape, dtype)
        window, offset = arena.take(count * dtype.itemsize)
        return window.view(self.rank, offset, count, dtype).reshape(shape)

    def _share(self, trace, arrays, program):
        """Where a one-sided program works: its buffers' places, and a fence.

        The regions stay the plan's until the communicator is closed.
        """
        if not self.shares_memory():
            raise ValueError(f"{program.name} reads and writes memory of its peers, which these "
                             f"{self.size} ranks do not share")
        first = next(iter(arrays.values()))
        arena, fence = self._mapped() if on_gpu(first) else (self._arena, Fence)
        lengths = {name: k for name, k in trace.buffers.items() if name not in program.kind.own}
        # They differ where blocks are uneven. By messages: windows cannot be asked for here.
        longest = self.all_gather(np.array([*lengths.values()], np.int64), "bruck").max(0)
        places = {}
        for name, length in zip(lengths, longest.tolist()):
            found = arena.find(arrays[name]) if name in arrays else None
            places[name] = found or arena.take(length * first.itemsize)
        return {"places": places, "fence": fence(*self._arena.take(LINE)),
                "kept": program.kind.kept}

    def free(self, plan):
        """Release a plan that is not in flight."""
        self._held.remove(plan)
        plan.free()

    def _run(self, kind, arrays, op="sum", algorithm="auto", root=0, async_op=False, finish=None,
             counts=None):
        """Run a collective once on flat `arrays`, and then `finish()`."""
        arrays = arrays if isinstance(arrays, dict) else {"x": arrays}
        turn = self._runs % _TURNS
        if self._turns[turn] is not None:
            self._turns[turn].wait()  # on every rank it is this collective that comes first
        plan = self._compile(kind, arrays, turn, op, algorithm, root, counts)
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

    # Messages

    def _message(self, sends, array, peer, tag, finish=None):
        if not 0 <= peer < self.size or peer == self.rank:
            raise ValueError(f"rank {self.rank} of {self.size} has no peer {peer}")
        limit = self.transport.max_tag - self._message_tags
        if not 0 <= tag < limit:
            raise ValueError(f"tag {tag} is not in [0, {limit})")
        traffic = sends, peer, array.nbytes, self._message_tags + tag
        single = Single(array, traffic, self.transport, self.engine)
        self._held.append(single)

        def done():
            self.free(single)
            if finish is not None:
                finish()
        return Work(single, done)

    def isend(self, array, dest, tag=0):
        """Start sending `array` to rank `dest`; it must not change until the Work is done."""
        return self._message(True, np.ascontiguousarray(host(read(array))), dest, tag)

    def irecv(self, array, source, tag=0):
        """Start receiving from rank `source` into `array` (same number of bytes as sent)."""
        target = written(array)
        buffer = (target if target.flags.c_contiguous and not on_gpu(target) else
                  np.empty(target.shape, target.dtype))
        finish = None if buffer is target else lambda: assign(target, buffer)
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
        group = Communicator(self.transport.subgroup(members, (self._splits, int(color))),
                             self.engine)
        group.source, group._table = self.source, self._table
        return group

    def close(self):
        """Release every plan that is left. Called at the end of the job by whoever started it."""
        if self._owns_engine:
            self.engine.close()
        for plan in self._held:
            plan.free()
        self._held = []
        self._close_device()
        self.transport.close()
