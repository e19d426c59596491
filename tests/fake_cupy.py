"""A stand-in for CuPy where there is no GPU: `install()` puts it into sys.modules as "cupy".

Its arrays wrap NumPy arrays and refuse what CuPy's refuse: becoming NumPy arrays by themselves,
working together with NumPy arrays, methods of ufuncs (np.add.reduce), functions and keyword
arguments that CuPy has not, `flags.aligned`. Kernels are launched with real grids and blocks
through the project's own compiled or emulated build, their arguments checked as no GPU would.

What it cannot show: that the CUDA compiler takes the kernels (tests of execution/gpu.py do), that
they are right on a GPU, speed, and anything about order: everything here is done when it is asked
for, so a missing synchronisation, a copy from memory that is not pinned, or a race between
streams passes unseen. Nor that the attributes of CuPy that minipar uses exist: another test looks
into the real package, where it is installed. tests/gpu/ is for the rest.
"""

import ctypes
import inspect
import sys
import threading
import types
from contextlib import contextmanager

import numpy as np

COUNT = 2  # GPUs
_local = threading.local()
_SCALARS = (bool, int, float, np.generic)
# What NumPy has and CuPy 14 has not, of what anybody might use.
MISSING = set("""block insert spacing unstack vecdot vecmat matvec nanquantile nanpercentile
    geomspace einsum_path isnat getbufsize frompyfunc""".split())
METHODS = {  # of arrays: the keyword arguments that CuPy's take
    "all": "axis out keepdims", "any": "axis out keepdims", "argmax": "axis out dtype keepdims",
    "argmin": "axis out dtype keepdims", "argsort": "axis kind", "astype": "order casting copy",
    "clip": "min max out", "copy": "order", "cumsum": "axis dtype out", "diagonal": "",
    "fill": "", "flatten": "", "max": "axis out keepdims", "mean": "axis dtype out keepdims",
    "min": "axis out keepdims", "nonzero": "", "prod": "axis dtype out keepdims", "ravel": "",
    "repeat": "axis", "reshape": "order", "round": "", "sort": "axis kind", "squeeze": "axis",
    "std": "axis dtype out ddof keepdims", "sum": "axis dtype out keepdims", "swapaxes": "",
    "take": "axis out", "tolist": "", "transpose": "", "var": "axis dtype out ddof keepdims",
    "view": "dtype", "item": "", "dot": "out", "searchsorted": "side"}
try:
    import cupy as real  # its signatures, where the package is installed; it needs no driver
except ImportError:
    real = None


class CUDARuntimeError(RuntimeError):
    def __init__(self, status):
        super().__init__(f"cudaError {status}")
        self.status = status


class Device:
    def __init__(self, id=None):
        self.id = current() if id is None else int(id)

    def use(self):
        _local.device = self.id

    def __enter__(self):
        _local.stack = [*getattr(_local, "stack", []), current()]
        self.use()
        return self

    def __exit__(self, *exc):
        _local.device = _local.stack.pop()

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    def synchronize(self):
        pass


def current():
    return getattr(_local, "device", 0)


def refuse(x):
    raise TypeError(f"Unsupported type {type(x)}")


def bare(x, device=None):
    """What NumPy computes with: arrays unwrapped, wherever they stand in lists and tuples."""
    if isinstance(x, ndarray):
        if x.device.id != (current() if device is None else device):
            raise ValueError(f"Array device must be same as the current device: array device = "
                             f"{x.device.id} while current = {current()}")
        return x.host
    if isinstance(x, np.ndarray):
        refuse(x)
    if isinstance(x, (list, tuple)):
        return type(x)(bare(v) for v in x)
    if isinstance(x, dict):
        return {k: bare(v) for k, v in x.items()}
    return x


def wrap(x):
    if isinstance(x, (np.ndarray, np.generic)):
        return ndarray(np.asarray(x))
    if isinstance(x, (list, tuple)):
        return type(x)(wrap(v) for v in x)
    return x


def index_of(key):
    if isinstance(key, tuple):
        return tuple(index_of(k) for k in key)
    return bare(key)


class Flags:
    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous = flags.c_contiguous, flags.f_contiguous
        self.owndata = flags.owndata


class Memory:
    """cudaMalloc's, which a handle can stand for; and what another thread has."""

    def __init__(self, size):
        self.data, self.size = np.zeros(size, np.uint8), size
        self.ptr = self.data.ctypes.data


class UnownedMemory:
    def __init__(self, ptr, size, owner, device_id=-1):
        self.ptr, self.size = ptr, size


class MemoryPointer:
    def __init__(self, mem, offset):
        assert offset == 0
        self.mem, self.ptr = mem, mem.ptr


class Pointer:
    def __init__(self, host, device_id):
        self.ptr, self.device_id = host.__array_interface__["data"][0], device_id

    def copy_to_host_async(self, mem, size, stream=None):
        ctypes.memmove(mem, self.ptr, size)

    def copy_from_host_async(self, mem, size, stream=None):
        ctypes.memmove(self.ptr, mem, size)


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    __array_priority__ = 100

    def __init__(self, host, device=None, memptr=None):
        if memptr is not None:  # CuPy's own: ndarray(shape, dtype, memptr)
            data = (ctypes.c_ubyte * memptr.mem.size).from_address(memptr.mem.ptr)
            host, device = np.frombuffer(data, device, host), None
            self.memory = memptr.mem
        self.host, self.device = host, Device(device)

    shape = property(lambda self: self.host.shape)
    dtype = property(lambda self: self.host.dtype)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    itemsize = property(lambda self: self.host.itemsize)
    nbytes = property(lambda self: self.host.nbytes)
    strides = property(lambda self: self.host.strides)
    T = property(lambda self: wrap(self.host.T))
    flags = property(lambda self: Flags(self.host.flags))
    data = property(lambda self: Pointer(self.host, self.device.id))
    __cuda_array_interface__ = property(lambda self: self.host.__array_interface__)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method != "__call__" or ufunc.__name__ in MISSING:
            return NotImplemented
        allowed = {"out", "dtype", "casting"} | ({"axes"} if ufunc.signature else set())
        assert not set(kwargs) - allowed, f"{ufunc.__name__}: CuPy takes no {set(kwargs)}"
        for x in inputs:
            if not isinstance(x, (ndarray, *_SCALARS)):
                return refuse(x) if isinstance(x, np.ndarray) else NotImplemented
        out = kwargs.pop("out", None)
        if out is not None:
            assert all(isinstance(o, ndarray) for o in out), "out= is not on the GPU"
            kwargs["out"] = out
        result = ufunc(*bare(inputs), **bare(kwargs))
        return out[0] if out is not None else wrap(result)

    def __array_function__(self, func, types, args, kwargs):
        if func.__name__ in MISSING:
            return NotImplemented
        if "device" in kwargs:  # np.ones and np.full pass it on
            raise TypeError("got an unexpected keyword argument 'device'")
        if real is not None:
            theirs = getattr(real, func.__name__)
            try:
                inspect.signature(theirs).bind(*args, **kwargs)
            except ValueError:
                pass  # it does not tell
        # cupy.asarray and its kind copy from NumPy; everything else refuses its arrays
        if func.__name__ in ("asarray", "array", "ascontiguousarray"):
            return globals()[func.__name__](*args, **kwargs)
        out = kwargs.get("out")
        result = func(*bare(args), **bare(kwargs))
        return out if out is not None else wrap(result)

    def __getitem__(self, key):
        return wrap(self.host[index_of(key)])

    def __setitem__(self, key, value):
        if isinstance(value, np.ndarray):
            refuse(value)
        self.host[index_of(key)] = bare(value)

    def get(self, stream=None, order="C", out=None, blocking=True):
        if out is None:
            return self.host.copy(order)
        assert out.shape == self.shape and out.dtype == self.dtype and out.flags.c_contiguous
        out[...] = self.host
        return out

    def set(self, arr, stream=None):
        assert isinstance(arr, np.ndarray) and arr.shape == self.shape
        assert arr.dtype == self.dtype and self.host.flags.c_contiguous
        self.host[...] = arr

    def tobytes(self):
        return self.host.tobytes()

    def __len__(self):
        return len(self.host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __bool__(self):
        return bool(self.host)

    def __int__(self):
        return int(self.host)

    def __float__(self):
        return float(self.host)

    def __index__(self):
        return self.host.__index__()

    def __repr__(self):
        return repr(self.host)

    def __reduce__(self):
        return asarray, (self.get(),)


def _method(name, keywords):
    def method(self, *args, **kwargs):
        assert not set(kwargs) - set(keywords.split()), f"CuPy's {name}() takes no {set(kwargs)}"
        result = getattr(bare(self), name)(*bare(args), **bare(kwargs))
        if name in ("tolist", "item"):
            return result
        out = kwargs.get("out")
        return out if out is not None else wrap(result)
    setattr(ndarray, name, method)


for _name, _keywords in METHODS.items():
    _method(_name, _keywords)


def asarray(a, dtype=None, order=None, copy=None):
    if isinstance(a, ndarray):
        if a.device.id != current():  # CuPy copies from another GPU
            return wrap(np.array(a.host, dtype, order=order or "C"))
        return wrap(np.asarray(a.host, dtype, order))
    return wrap(np.array(bare(a) if isinstance(a, (list, tuple)) else a, dtype,
                         order=order or "C"))


def array(a, dtype=None, copy=True):
    return asarray(a, dtype).copy()


def ascontiguousarray(a, dtype=None):
    return wrap(np.asarray(asarray(a).host, dtype, order="C"))


def asnumpy(a):
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def __getattr__(name):
    """A function of NumPy's name, for arrays on the GPU."""
    function = getattr(np, name, None)
    if function is None or name in MISSING:
        raise AttributeError(f"cupy has no {name}")
    if isinstance(function, type):
        return function
    if isinstance(function, np.ufunc):
        return UFunc(function)

    def call(*args, **kwargs):
        return wrap(function(*bare(args), **bare(kwargs)))
    return call


class UFunc:
    """What CuPy's own ufuncs can do beyond being called: add.at, multiply.outer."""

    def __init__(self, ufunc):
        self.ufunc = ufunc

    def __call__(self, *args, **kwargs):
        return wrap(self.ufunc(*bare(args), **bare(kwargs)))

    def outer(self, a, b):
        return wrap(self.ufunc.outer(bare(a), bare(b)))

    def at(self, a, key, b=None):
        assert self.ufunc.__name__ in ("add", "subtract", "maximum", "minimum")
        self.ufunc.at(bare(a), index_of(key), bare(b))


# Kernels

class RawModule:
    """Kernels of a file, run as `EXECUTION` says: "compiled", one thread a block, or "emulated"."""

    EXECUTION = "compiled"
    launches = []  # (name, grid, block) of every launch

    def __init__(self, *, code, options=(), name_expressions=None, backend="nvrtc"):
        assert isinstance(options, tuple) and "-std=c++17" in options
        from pathlib import Path
        defined = dict(o[2:].split("=") for o in options if o.startswith("-D"))
        folder = next(o[2:] for o in options if o.startswith("-I"))
        self.source = Path(folder) / code.split('"')[1]
        self.real, self.names = defined["REAL"], name_expressions
        assert defined["ACC"]

    def get_function(self, name):
        assert name in self.names
        return lambda grid, block, args, shared_mem=0: self.launch(name, grid, block, args)

    def launch(self, name, grid, block, args):
        from minipar.execution import Kernel, compiled, emulated
        from minipar.execution.source import element
        assert all(isinstance(n, int) and 0 < n < 2**31 for n in (*grid, *block)), (grid, block)
        assert np.prod(block) <= 1024 and np.prod(grid[1:]) <= 65535**2
        RawModule.launches.append((name, grid, block))
        module = emulated if self.EXECUTION == "emulated" else compiled
        key = self.source, self.real, module
        if key not in _libraries:
            _libraries[key] = module.Library(self.source, self.real)
        library = _libraries[key]
        signatures = getattr(library, "signatures", None) or library._signatures
        for p, value in zip(signatures[name], args, strict=True):
            wanted = element(p.plain(self.real))
            assert isinstance(value, ndarray if p.pointer else np.generic), (name, p, type(value))
            assert value.dtype == wanted, (name, p, value.dtype)
        hosts = [bare(a) if isinstance(a, ndarray) else a.item() for a in args]
        if module is compiled:
            library.function(Kernel(self.source.name, name))(*hosts)
        else:
            library.launch(name, hosts, tuple(min(n, 6) for n in grid), block)


_libraries = {}


# Streams, memory, devices: everything is done at once

class Event:
    done = True

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.timing = not disable_timing

    def record(self, stream=None):
        pass

    def synchronize(self):
        pass


class Stream:
    ptr, done, null = 0, True, None

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self._before = []

    def __enter__(self):
        self._before.append(cuda.get_current_stream())
        _local.stream = self
        return self

    def __exit__(self, *exc):
        _local.stream = self._before.pop()

    use = __enter__

    def synchronize(self):
        Stream.waits = getattr(Stream, "waits", 0) + 1

    def wait_event(self, event):
        pass

    def record(self, event=None):
        return event or Event()


class PinnedMemory(bytearray):
    """Memory of the host that a GPU copies from: here only memory."""


class _Module(types.ModuleType):
    pass


def _current_stream():
    if not hasattr(_local, "stream"):
        _local.stream = Stream()
    return _local.stream


def _device_count():
    if COUNT < 0:
        raise CUDARuntimeError(-COUNT)
    return COUNT


class _Pool:
    def used_bytes(self):
        return 0

    def free_all_blocks(self):
        pass


def get_default_memory_pool():
    return _Pool()


cuda = _Module("cupy.cuda")
cuda.runtime = _Module("cupy.cuda.runtime")
cuda.runtime.CUDARuntimeError = CUDARuntimeError
cuda.runtime.getDeviceCount = _device_count
cuda.runtime.getDevice = lambda: current()
cuda.runtime.getDeviceProperties = lambda i: {
    "name": b"stand-in", "multiProcessorCount": 4, "major": 9, "minor": 0}
cuda.runtime.deviceGetPCIBusId = lambda i: f"0000:{i:02x}:00.0"


class NcclCommunicator:
    """NCCL between threads: the sum is there when all ranks have come with their arrays."""

    groups = {}

    def __init__(self, size, unique, rank):
        self.size, self.rank, self.calls = size, rank, 0
        self.barrier, self.pointers = self.groups.setdefault(
            unique, (threading.Barrier(size, timeout=20), {}))

    def _together(self, pointer, count, dtype, make):
        self.pointers[self.rank] = pointer
        self.barrier.wait()
        arrays = [np.ctypeslib.as_array(ctypes.cast(self.pointers[r], ctypes.POINTER(dtype)),
                                        (count,)) for r in range(self.size)]
        result = make(arrays)
        self.barrier.wait()
        if result is not None:
            arrays[self.rank][...] = result
        self.barrier.wait()

    def allReduce(self, send, receive, count, dtype, op, stream):
        self._together(send, count, dtype, lambda a: op.reduce(np.stack(a), axis=0))

    def reduce(self, send, receive, count, dtype, op, root, stream):
        self._together(send, count, dtype, lambda a: op.reduce(np.stack(a), axis=0)
                       if self.rank == root else None)

    def broadcast(self, send, receive, count, dtype, root, stream):
        self._together(send, count, dtype, lambda a: a[root].copy())


cuda.nccl = _Module("cupy.cuda.nccl")
cuda.nccl.get_unique_id = lambda: len(NcclCommunicator.groups)
cuda.nccl.NcclCommunicator = NcclCommunicator
cuda.nccl.NCCL_FLOAT, cuda.nccl.NCCL_DOUBLE = ctypes.c_float, ctypes.c_double
cuda.nccl.NCCL_SUM, cuda.nccl.NCCL_MAX = np.add, np.maximum
cuda.compiler = _Module("cupy.cuda.compiler")
cuda.compiler.CompileException = type("CompileException", (Exception,), {})
cuda.Device, cuda.Stream, cuda.Event = Device, Stream, Event
cuda.Memory, cuda.UnownedMemory, cuda.MemoryPointer = Memory, UnownedMemory, MemoryPointer
cuda.runtime.ipcGetMemHandle = lambda pointer: bytes(64)  # ranks are threads here
cuda.get_current_stream = _current_stream
cuda.get_elapsed_time = lambda start, end: 0.0
cuda.alloc_pinned_memory = lambda nbytes: PinnedMemory(max(1, nbytes))


@contextmanager
def installed():
    """Inside, `import cupy` gives this module, and minipar.device has seen no other."""
    from minipar.device import _gpus, import_cupy
    state = import_cupy.__globals__
    before, known = sys.modules.get("cupy"), state["_cupy"]
    sys.modules["cupy"], state["_cupy"] = sys.modules[__name__], None
    parts = {f"cupy.{name}": getattr(sys.modules[__name__], name) for name in ("cuda",)}
    saved = {name: sys.modules.get(name) for name in parts}
    sys.modules.update(parts)
    _local.__dict__.clear()
    try:
        yield sys.modules[__name__]
    finally:
        state["_cupy"] = known
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
        _gpus.clear()
        _local.__dict__.clear()
        if before is None:
            del sys.modules["cupy"]
        else:
            sys.modules["cupy"] = before
