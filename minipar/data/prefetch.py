"""Batches on a device, of which a GPU has the next one while it computes with this one."""

from ..device import CPU, import_cupy, on, pinned
from ..tensor import Tensor


def on_device(shards, read, device):
    """Yields (shard, function that gives its batch) for every shard.

    read: shard -> list of Tensors on the CPU, called when the batch is asked for; for a GPU also
    for the shard after it, which is copied to pinned memory and, on a stream beside the one that
    computes, from there to the GPU.
    """
    if device is CPU:
        for shard in shards:
            yield shard, lambda shard=shard: read(shard)
        return
    shards, ahead = iter(shards), _Ahead(read, device)
    shard = next(shards, None)
    while shard is not None:
        following = next(shards, None)
        yield shard, lambda: ahead.take(shard, following)
        shard = following


class _Ahead:
    """The batch that is on its way to a GPU."""

    def __init__(self, read, device):
        self._read, self._device, self._coming = read, device, None
        self._stream = import_cupy().cuda.Stream(non_blocking=True)

    def take(self, shard, following):
        """The batch of `shard`; that of `following`, if it is not None, starts on its way."""
        batch = self._coming or self._start(shard)
        self._coming = None
        if following is not None:
            self._coming = self._start(following)
        arrays, _, arrived = batch  # the pinned memory stays until here
        import_cupy().cuda.get_current_stream().wait_event(arrived)
        return [Tensor(array) for array in arrays]

    def _start(self, shard):
        hosts = []
        for t in self._read(shard):
            host = pinned(t.array.size, t.array.dtype).reshape(t.shape)
            host[...] = t.array
            hosts.append(host)
        with on(self._device) as cupy:
            # Memory of the computing stream, so it may still be in use there: the copy comes after.
            arrays = [cupy.empty(h.shape, h.dtype) for h in hosts]
            event = cupy.cuda.Event(disable_timing=True)
            event.record(cupy.cuda.get_current_stream())
            self._stream.wait_event(event)
            for array, host in zip(arrays, hosts):
                array.set(host, stream=self._stream)
            event.record(self._stream)
        return arrays, hosts, event
