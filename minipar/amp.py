"""Mixed precision, under PyTorch's names (torch.amp): `autocast` and `GradScaler`.

    scaler = amp.GradScaler()                     # float16 needs it, bfloat16 does not
    with amp.autocast("cpu", dtype=minipar.float16):
        loss = F.cross_entropy(model(x), y)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()

Parameters, their gradients and the optimizer's state stay float32: only what is multiplied, and
what is kept for backward, has 16 bits (Micikevicius et al. 2018, "Mixed precision training").
"""

import numpy as np

from . import dtypes
from .context import current
from .device import aligned
from .execution import Kernel

_UNSCALE = Kernel("cast.cu", "unscale", rows="parts", width="n")
_PART = 4096  # ROW of that kernel
_DEFAULTS = {"cpu": dtypes.bfloat16, "cuda": dtypes.float16}


class autocast:
    """Matrix products, convolutions and attention in the block run in a 16-bit type, and softmax,
    losses, norms, sums and what leaves a type's range (exp, log, pow, ...) in float32.

    A context manager, or a decorator of a function. Operands of these operations are converted,
    float64 ones excepted; other operations take the types that come, two together as ever.

    device_type: "cpu" or "cuda", which gives dtype its default: bfloat16 and float16. Raises
    ValueError for another device, TypeError for a dtype that is not of 16 bits.
    """

    def __init__(self, device_type, dtype=None, enabled=True):
        if device_type not in _DEFAULTS:
            raise ValueError(f"autocast: no device {device_type!r}: there are "
                             f"{', '.join(_DEFAULTS)}")
        self.enabled = enabled
        self.dtype = dtype = dtypes.dtype(_DEFAULTS[device_type] if dtype is None else dtype)
        if dtype not in (dtypes.float16, dtypes.bfloat16):
            raise TypeError(f"autocast: float16 or bfloat16, not {dtype.name}")
        self._before = []

    def __enter__(self):
        context = current()
        self._before.append(context.autocast)
        context.autocast = self.dtype if self.enabled else None
        return self

    def __exit__(self, *exc):
        current().autocast = self._before.pop()

    def __call__(self, function):
        def wrapped(*args, **kwargs):
            with autocast("cpu", self.dtype, self.enabled):
                return function(*args, **kwargs)
        wrapped.__name__, wrapped.__doc__ = function.__name__, function.__doc__
        return wrapped


class GradScaler:
    """Multiplies the loss, so that small gradients do not vanish in float16, and divides the
    gradients by as much; steps whose gradients have an Inf or NaN are skipped.

    The factor begins with `init_scale`, is multiplied by `backoff_factor` after a step that was
    skipped, and by `growth_factor` after `growth_interval` steps in a row that were not.

    device: as in PyTorch; it changes nothing. comm: the communicator of ranks that must skip a
    step together. It is not needed where all have the same gradients, as under data parallelism,
    whose reduction hands an Inf of one rank to all; but where each has a part of the parameters.
    """

    def __init__(self, device="cpu", init_scale=2.0**16, growth_factor=2.0, backoff_factor=0.5,
                 growth_interval=2000, enabled=True, *, comm=None):
        if not growth_factor > 1:
            raise ValueError(f"growth_factor = {growth_factor} is not > 1")
        if not 0 < backoff_factor < 1:
            raise ValueError(f"backoff_factor = {backoff_factor} is not between 0 and 1")
        self._scale, self._tracker, self._comm = float(init_scale), 0, comm
        self._growth, self._backoff, self._interval = growth_factor, backoff_factor, growth_interval
        self._enabled = enabled
        self._found = {}  # since the last update: {id of an optimizer: whether there was an Inf}
        self._stepped = set()  # their ids

    def is_enabled(self):
        return self._enabled

    def get_scale(self):
        """The factor, a float; 1 if disabled."""
        return self._scale if self._enabled else 1.0

    def get_growth_factor(self):
        return self._growth

    def get_backoff_factor(self):
        return self._backoff

    def get_growth_interval(self):
        return self._interval

    def scale(self, outputs):
        """A loss, or a list or tuple of them, times the factor."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, (list, tuple)):
            return type(outputs)([self.scale(t) for t in outputs])
        return outputs * self._scale

    def unscale_(self, optimizer):
        """Divide the gradients of the optimizer's parameters by the factor, in place: before they
        are clipped or looked at. `step` does it otherwise.

        Raises RuntimeError if that was done since the last `update`, or the step was.
        """
        if not self._enabled:
            return
        if id(optimizer) in self._stepped:
            raise RuntimeError("unscale_() is called after step()")
        if id(optimizer) in self._found:
            raise RuntimeError("unscale_() has already been called on this optimizer since the "
                               "last update()")
        found = [_unscale(gradient, 1 / self._scale) for gradient in optimizer.gradients()]
        flag = np.array([any(found)], np.uint8)
        if self._comm is not None:
            self._comm.all_reduce(flag, "max")
        self._found[id(optimizer)] = bool(flag[0])

    def step(self, optimizer, *args, **kwargs):
        """optimizer.step(*args, **kwargs), and what it returns; nothing, and None, if a gradient
        has an Inf or NaN. Raises RuntimeError for a second step without an `update`.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if id(optimizer) in self._stepped:
            raise RuntimeError("step() has already been called since the last update()")
        if id(optimizer) not in self._found:
            self.unscale_(optimizer)
        self._stepped.add(id(optimizer))
        return None if self._found[id(optimizer)] else optimizer.step(*args, **kwargs)

    def update(self, new_scale=None):
        """Choose the factor of the next step, or take `new_scale`. Call it once, after all steps.

        Raises RuntimeError if there was neither a step nor an `unscale_` since the last time.
        """
        if not self._enabled:
            return
        if new_scale is not None:
            self._scale = float(new_scale)
        elif not self._found:
            raise RuntimeError("update() without a step() or unscale_() before it")
        elif any(self._found.values()):
            self._scale, self._tracker = self._scale * self._backoff, 0
        else:
            self._tracker += 1
            if self._tracker == self._interval:
                self._tracker = 0
                if self._scale * self._growth < float(np.finfo(np.float32).max):
                    self._scale *= self._growth
        self._found, self._stepped = {}, set()

    def state_dict(self):
        """What `load_state_dict` goes on from, under PyTorch's keys; {} if disabled."""
        if not self._enabled:
            return {}
        return {"scale": self._scale, "growth_factor": self._growth,
                "backoff_factor": self._backoff, "growth_interval": self._interval,
                "_growth_tracker": self._tracker}

    def load_state_dict(self, state_dict):
        """Take over what `state_dict`, or PyTorch's, returned. RuntimeError if that is empty."""
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError("the state of a GradScaler is empty: it was saved from a disabled "
                               "one")
        self._scale = float(state_dict["scale"])
        self._growth, self._backoff = state_dict["growth_factor"], state_dict["backoff_factor"]
        self._interval = state_dict["growth_interval"]
        self._tracker = int(state_dict["_growth_tracker"])


@np.errstate(all="ignore")
def _unscale(gradient, inverse):
    """gradient *= inverse, in place; returns whether there was an Inf or NaN."""
    run = _UNSCALE.build(gradient) if gradient.flags.c_contiguous else None
    if run is None or not aligned(gradient):
        found = not bool(np.isfinite(gradient).all())
        gradient *= inverse
        return found
    bad = np.empty(-(-gradient.size // _PART), np.uint8, like=gradient)
    run(gradient.reshape(-1), bad, inverse, bad.size, gradient.size)
    return bool(bad.any())
