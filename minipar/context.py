"""What one rank owns while it runs: grad mode, default type, random state, position, recorder.

Nothing here is global. A context belongs to one thread, because a rank may be a thread; whoever
starts a rank makes its context (`use`), and a helper thread of a rank enters a copy of it. Python
does not hand context variables to new threads, hence a thread-local of our own.
"""

import os
import threading
from contextlib import contextmanager
from functools import wraps

from . import dtypes, random

KERNELS = ("reference", "compiled", "emulated")  # how operations that have a kernel run

_local = threading.local()


def _checked(kernels):
    if kernels not in KERNELS:
        raise ValueError(f"no kernels {kernels!r}: there are {', '.join(KERNELS)}")
    return kernels


class BatchPosition:
    """Where the samples of a forward pass stand in the global batch of an optimizer step.

    step:  the optimizer step (int).
    start: position in the global batch of the forward's first sample; the others follow it.
    calls: how often each name has drawn random numbers in this forward, so that a second call
           of one module gets other numbers and a recomputation (with a fresh dict) the same ones.
    """

    __slots__ = ("step", "start", "calls")

    def __init__(self, step=0, start=0):
        self.step, self.start, self.calls = step, start, {}


class Context:
    """The execution context of one rank. Attributes are read and set directly."""

    __slots__ = ("grad_enabled", "default_dtype", "seed", "_generator", "kernels", "batch",
                 "order", "after_backward", "backward_depth", "orphans", "recorder", "threads",
                 "helper", "autocast")

    def __init__(self, seed=0, default_dtype=dtypes.float32):
        self.grad_enabled = True
        self.default_dtype = default_dtype
        self.seed = seed
        self.kernels = _checked(os.environ.get("MINIPAR_KERNELS") or "compiled")
        self._generator = None
        self.batch = BatchPosition()
        self.order = 0  # of graph nodes: a later node has a larger number
        self.after_backward = []  # one-shot callables, run when the outermost backward() ends
        self.backward_depth = 0
        self.orphans = 0  # parameters materialised before they had a qualified name
        self.threads = None  # that a compiled kernel takes; None: execution/threads.py decides
        self.helper = False  # whether it was copied: other threads or ranks run beside this one
        self.autocast = None  # the 16-bit DType of `amp.autocast`, while it is on
        self.recorder = None  # of `trace`, while it records; code below it asks only this

    @property
    def generator(self):
        """The rank's sequential generator, for what need not be equal across layouts."""
        if self._generator is None:
            self._generator = random.Generator().manual_seed(self.seed)
        return self._generator

    def manual_seed(self, seed):
        """Restart all random state from `seed` (int)."""
        self.seed, self._generator, self.orphans = int(seed), None, 0
        self.batch = BatchPosition()

    def random_state(self):
        """All random state, as what JSON can hold."""
        return {"seed": self.seed, "sequential": random.state_of(self.generator),
                "orphans": self.orphans}

    def set_random_state(self, state):
        """Go on from what `random_state` has told."""
        self.manual_seed(state["seed"])
        self._generator = random.from_state(state["sequential"])
        self.orphans = state["orphans"]

    def copy(self):
        """A context for another thread or rank: same settings, nothing in flight."""
        other = Context(self.seed, self.default_dtype)
        other.grad_enabled, other.kernels = self.grad_enabled, self.kernels
        other.helper = True
        other.autocast = self.autocast
        other.batch = BatchPosition(self.batch.step, self.batch.start)
        return other


def current():
    """The calling thread's context; a default one is made at the first call."""
    try:
        return _local.context
    except AttributeError:
        _local.context = Context()
        return _local.context


@contextmanager
def use(context):
    """Run the block with `context` as the calling thread's context."""
    previous = current()
    _local.context = context
    try:
        yield context
    finally:
        _local.context = previous


class _GradMode:
    """Sets grad mode inside a `with` block or, as a decorator, inside a function."""

    enabled = True

    def __new__(cls, function=None):
        self = object.__new__(cls)
        return self if function is None else self(function)  # @no_grad, without parentheses

    def __enter__(self):
        context = current()
        self._previous = context.grad_enabled
        context.grad_enabled = self.enabled

    def __exit__(self, *exc):
        current().grad_enabled = self._previous

    def __call__(self, function):
        def wrapped(*args, **kwargs):
            with type(self)():
                return function(*args, **kwargs)
        wrapped.__name__, wrapped.__doc__ = function.__name__, function.__doc__
        return wrapped


class no_grad(_GradMode):
    """Operations in the block record no graph."""
    enabled = False


class enable_grad(_GradMode):
    """Operations in the block record a graph again."""
    enabled = True


@contextmanager
def batch_position(step=0, start=0):
    """Say where in the global batch of `step` the samples of the block's forwards stand.

    With it, random masks depend on the sample and not on the rank or micro-batch that holds it.
    Without it, every forward draws new masks.
    """
    context = current()
    previous, context.batch = context.batch, BatchPosition(step, start)
    try:
        yield context.batch
    finally:
        context.batch = previous


def recorded(category):
    """Decorator: while the rank records, each call is a span of `category`, named so too."""
    def decorate(function):
        @wraps(function)
        def wrapped(*args, **kwargs):
            recorder = current().recorder
            if recorder is None:
                return function(*args, **kwargs)
            with recorder.span(category, category):
                return function(*args, **kwargs)
        return wrapped
    return decorate


def manual_seed(seed):
    """Set the seed that initial weights, dropout and sampling of this rank derive from."""
    current().manual_seed(seed)


def set_kernels(kernels):
    """Choose how operations run that have a kernel: "compiled", "emulated" (every CUDA thread, for
    tests), or the NumPy "reference"."""
    current().kernels = _checked(kernels)


def set_default_dtype(dtype):
    """Set the floating type of new parameters and of tensors made from Python floats."""
    dtype = dtypes.dtype(dtype)
    if not dtype.is_floating_point:
        raise TypeError(f"the default dtype is a floating type, not {dtype}")
    current().default_dtype = dtype


def get_default_dtype():
    """The floating type of new parameters and of tensors made from Python floats."""
    return current().default_dtype
