"""GPUs of this machine, under the names of torch.cuda. Importing it imports no CuPy."""

from contextlib import contextmanager

from .device import import_cupy, resolve


def is_available():
    """Whether CuPy, a driver and a GPU are there."""
    try:
        import_cupy()
    except RuntimeError:
        return False
    return True


def device_count():
    """How many GPUs there are; 0 where something is missing."""
    return import_cupy().cuda.runtime.getDeviceCount() if is_available() else 0


def current_device():
    """The number of the GPU that this thread computes on."""
    return import_cupy().cuda.runtime.getDevice()


def _index(device):
    wanted = resolve(device)
    if wanted.type == "cpu":
        raise ValueError("a GPU is expected, not 'cpu'")
    return wanted.index


def set_device(device):
    """Make a GPU (number, name or device) the one that this thread computes on."""
    import_cupy().cuda.Device(_index(device)).use()


@contextmanager
def device(device):
    """`with cuda.device(1):` this thread computes on another GPU."""
    with import_cupy().cuda.Device(_index(device)):
        yield


def get_device_name(device=None):
    """What the maker calls a GPU; None: the current one."""
    runtime = import_cupy().cuda.runtime
    index = current_device() if device is None else _index(device)
    return runtime.getDeviceProperties(index)["name"].decode()


def synchronize(device=None):
    """Wait for all work of a GPU; None: the current one."""
    cupy = import_cupy()
    cupy.cuda.Device(current_device() if device is None else _index(device)).synchronize()


def memory_allocated():
    """Bytes of the current GPU that arrays hold."""
    return import_cupy().get_default_memory_pool().used_bytes()


def empty_cache():
    """Give the memory that is kept for later arrays back to the driver."""
    import_cupy().get_default_memory_pool().free_all_blocks()


class Event:
    """A point in a stream's work. enable_timing: for elapsed_time()."""

    def __init__(self, enable_timing=False):
        self.event = import_cupy().cuda.Event(disable_timing=not enable_timing)

    def record(self, stream=None):
        """Let it be after what the stream (None: the current one) has been given so far."""
        self.event.record(None if stream is None else stream.stream)

    def query(self):
        """Whether the work before it is done."""
        return self.event.done

    def synchronize(self):
        """Wait for the work before it."""
        self.event.synchronize()

    def elapsed_time(self, end):
        """Milliseconds from this event to `end`. Both are synchronised."""
        return import_cupy().cuda.get_elapsed_time(self.event, end.event)


class Stream:
    """Work that a GPU does in order, beside that of other streams. `with stream:` fills it."""

    def __init__(self, stream=None):
        self.stream = import_cupy().cuda.Stream(non_blocking=True) if stream is None else stream

    def __enter__(self):
        self.stream.__enter__()
        return self

    def __exit__(self, *exc):
        return self.stream.__exit__(*exc)

    def synchronize(self):
        """Wait for all its work."""
        self.stream.synchronize()

    def query(self):
        """Whether all its work is done."""
        return self.stream.done

    def record_event(self, event=None):
        """The event (a new one if None) after its work so far."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event):
        """Have later work wait for an event."""
        self.stream.wait_event(event.event)

    def wait_stream(self, stream):
        """Have later work wait for what another stream has been given so far."""
        self.wait_event(stream.record_event())


def current_stream():
    """The stream that this thread's work goes to."""
    return Stream(import_cupy().cuda.get_current_stream())
