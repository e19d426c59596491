"""Devices: where the elements of an array live. The only module that imports CuPy.

Bottom of the stack: knows arrays, no tensors. A tensor's array is NumPy's on the CPU and CuPy's on
a GPU. CuPy's arrays answer to NumPy's own functions: `np.exp(a)`, `np.concatenate((a, b))`,
`np.empty(shape, dtype, like=a)` run where `a` lives, so operations are written once, with NumPy's
names, and only say `like=` where an array comes from nothing (`np.ones` and `np.full` cannot: they
hand CuPy an argument that it has not; `np.full_like(a, 1, shape=shape)` can). What CuPy does not
answer to, `np.add.reduce` and `np.vecdot`, is avoided, or goes through `module_of`.

A rank computes on one GPU, the current one: what CuPy allocates lies there. `cuda.set_device`
chooses it (the main job gives rank r GPU r % count).
"""

from contextlib import contextmanager

import numpy as np

_NO_DEVICE, _NO_DRIVER = 100, 35  # of cudaError_t


class DeviceError(RuntimeError):
    """CuPy, a driver or a GPU is missing. The message is one line."""


class device:
    """A device, as in PyTorch: device("cpu"), device("cuda"), device("cuda:1"), device("cuda", 1).

    type: "cpu" or "cuda"; index: of the GPU, None for the current one. Raises ValueError for
    another type; that a GPU is there is seen when something is put on it.
    """

    __slots__ = ("type", "index", "_hash")

    def __init__(self, type, index=None):
        if isinstance(type, device):
            type, index = type.type, type.index
        kind, colon, number = str(type).partition(":")
        if kind not in ("cpu", "cuda") or colon and (index is not None or not number.isdecimal()):
            raise ValueError(f"no device {str(type)!r}: there are 'cpu', 'cuda' and 'cuda:INDEX'")
        index = int(number) if colon else index
        if kind == "cpu" and index:
            raise ValueError(f"no device 'cpu:{index}': there is one CPU")
        self.type, self.index = kind, None if kind == "cpu" else index
        self._hash = hash((kind, self.index))

    def __str__(self):
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self):
        index = "" if self.index is None else f", index={self.index}"
        return f"device(type={self.type!r}{index})"

    def __eq__(self, other):
        return self is other or (isinstance(other, device) and self.type == other.type
                                 and self.index == other.index)

    def __hash__(self):
        return self._hash

    def __reduce__(self):
        return device, (str(self),)


CPU = device("cpu")
_gpus = {}  # device objects by index
_cupy = None


def import_cupy():
    """The module CuPy. Raises DeviceError in one line if it, a driver or a GPU is missing."""
    global _cupy
    if _cupy is None:
        try:
            import cupy
        except ImportError as error:
            raise DeviceError(f"device 'cuda' needs CuPy, which is missing or broken ({error}): "
                               f"pip install cupy-cuda12x") from None
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise DeviceError({
                _NO_DRIVER: "device 'cuda': CuPy is there, but no NVIDIA driver that is new "
                            "enough for it",
                _NO_DEVICE: "device 'cuda': CuPy and a driver are there, but no GPU",
            }.get(error.status, f"device 'cuda': {error}")) from None
        if not count:
            raise DeviceError("device 'cuda': CuPy and a driver are there, but no GPU")
        _cupy = cupy
    return _cupy


def import_nccl():
    """CuPy's module of NCCL, whose `available` says whether the library itself is there."""
    import_cupy()
    from cupy.cuda import nccl
    return nccl


def gpu_count():
    """How many GPUs there are. Raises DeviceError where there is none."""
    return import_cupy().cuda.runtime.getDeviceCount()


def on_gpu(array):
    """Whether an array lies on a GPU."""
    return not isinstance(array, (np.ndarray, np.generic))


def module_of(array):
    """The array module of an array: NumPy, or CuPy."""
    return _cupy if on_gpu(array) else np


def device_of(array):
    """The `device` of an array."""
    return gpu(array.device.id) if on_gpu(array) else CPU


def gpu(index):
    """The `device` of the GPU of that number; always the same object."""
    if index not in _gpus:
        _gpus[index] = device("cuda", index)
    return _gpus[index]


def resolve(wanted):
    """The `device` that an argument `device=` stands for, with a number if it is a GPU.

    wanted: a device, a name, the number of a GPU, or None for the CPU. Raises ValueError for one
    that there is not, RuntimeError where there is no GPU at all.
    """
    if wanted is None or wanted is CPU:
        return CPU
    wanted = gpu(wanted) if isinstance(wanted, int) else device(wanted)
    if wanted.type == "cpu":
        return CPU
    runtime = import_cupy().cuda.runtime
    if wanted.index is None:
        return gpu(runtime.getDevice())
    if not 0 <= wanted.index < runtime.getDeviceCount():
        raise ValueError(f"no device '{wanted}': there are {runtime.getDeviceCount()} GPUs")
    return gpu(wanted.index)


@contextmanager
def on(wanted):
    """Inside, the array module that is given makes its arrays on the device `wanted`."""
    wanted = resolve(wanted)
    if wanted is CPU:
        yield np
    else:
        with _cupy.cuda.Device(wanted.index):
            yield _cupy


def put(array, wanted):
    """`array` on a device, itself if it is there. A copy to the CPU waits for what computes it."""
    wanted = resolve(wanted)
    if device_of(array) is wanted:
        return array
    if wanted is CPU:
        return array.get()
    with on(wanted) as cupy:
        return cupy.asarray(array)


def as_array(value):
    """The array that `value` is, wherever it lies, or that NumPy makes of it."""
    if isinstance(value, np.ndarray) or hasattr(value, "__cuda_array_interface__"):
        return value
    return np.asarray(value)


def aligned(array):
    """Whether elements lie at multiples of their size, as kernels need them."""
    return on_gpu(array) or array.flags.aligned


def writeable(array):
    """Whether elements may be changed; not where several share a place, as after `expand`."""
    if on_gpu(array):
        return not any(s == 0 and n > 1 for s, n in zip(array.strides, array.shape))
    return array.flags.writeable


def beside(array, other):
    """`other` where `array` is: copied there, if it is on the CPU."""
    return put(other, device_of(array)) if on_gpu(array) and not on_gpu(other) else other


def host(array):
    """The elements of an array as a NumPy array: itself, or a copy of what is on a GPU."""
    return array.get() if on_gpu(array) else array


def assign(target, source):
    """target[...] = source (an array), wherever the two live; broadcast and converted."""
    target[...] = put(source, device_of(target))


def empty(shape, dtype, place):
    """A new array. place: what `.device` of an array says that it shall lie beside."""
    if place.__class__ is str:
        return np.empty(shape, dtype)
    with place:
        return _cupy.empty(shape, dtype)


def pinned(count, dtype):
    """A new 1-D NumPy array in memory that a GPU copies from and to while the host goes on."""
    memory = import_cupy().cuda.alloc_pinned_memory(max(1, count * np.dtype(dtype).itemsize))
    return np.frombuffer(memory, dtype, count)


def place_of(wanted):
    """What `.device` of an array on a device says."""
    wanted = resolve(wanted)
    return "cpu" if wanted is CPU else _cupy.cuda.Device(wanted.index)


def one_device(name, first, *others):
    """Raise RuntimeError unless the arrays, of which others may be None, live on one device."""
    for array in others:
        if array.__class__ is first.__class__ is np.ndarray or array is None:
            continue
        if array.__class__ is not first.__class__ or array.device != first.device:
            raise RuntimeError(f"{name}: all tensors must be on one device, but there are "
                               f"{device_of(first)} and {device_of(array)}")
