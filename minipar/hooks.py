"""Hooks: callables that see a gradient when it is known, and may put another in its place.

Beside `tensor.py`, above it; importing this gives Tensor its hook methods. A tensor that has no
hooks pays nothing: a hook on a result wraps the backward of its node, a hook on a leaf stands in
the leaf's sink.
"""

import itertools
import weakref
from functools import partial, wraps

from .device import as_array
from .tensor import Tensor

_keys = itertools.count()


class RemovableHandle:
    """What registering a hook returns: `remove()` takes the hook out again, once or often.

    table: the dict of hooks; prepend: run before those that are in it already.
    """

    def __init__(self, table, hook, prepend=False):
        self._table, self._key = table, next(_keys)
        later = dict(table) if prepend else {}
        for key in later:
            del table[key]
        table[self._key] = hook
        table.update(later)

    def remove(self):
        self._table.pop(self._key, None)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.remove()


def run_hook(hook, gradient):
    """The array that hook(tensor) makes of `gradient` (an array): the same one if it returns None.

    Raises RuntimeError if it returns another shape; a dtype is converted.
    """
    gradient = as_array(gradient)  # NumPy makes scalars of 0-d results
    given = hook(Tensor(gradient))
    return gradient if given is None else fitting(given, gradient)


def fitting(given, gradient):
    """The array of a gradient that a hook gave in place of `gradient`, in its dtype."""
    array = as_array(given.array if isinstance(given, Tensor) else given)
    if array.shape != gradient.shape:
        raise RuntimeError(f"a hook gave a gradient of shape {array.shape} "
                           f"in place of one of {gradient.shape}")
    return array.astype(gradient.dtype, copy=False)


def _filters(node):
    """(hooks, what retains) of the gradient that enters a node; the first call wraps `backward`."""
    inner = node.backward
    if inner is None:
        raise RuntimeError("a hook on a tensor whose graph was freed")
    if not hasattr(inner, "filters"):
        filters, retain = {}, []

        @wraps(inner)
        def hooked(g):
            for function in (*filters.values(), *retain):
                g = function(g)
            return inner(g)
        hooked.filters = filters, retain
        node.backward = hooked
    return node.backward.filters


def register_hook(self, hook):
    """Call hook(gradient) when backward knows the gradient of this tensor; returns a handle.

    gradient: a tensor of this one's shape, not to be changed. What the hook returns, unless it is
    None, goes on in its place. On a leaf it is the gradient of one backward, before it is added
    to `.grad`.
    """
    if not self.requires_grad:
        raise RuntimeError("a hook on a tensor that does not require grad")
    if self.node is not None:
        table = _filters(self.node)[0]
    else:
        if self.sink.filters is None:
            self.sink.filters = {}
        table = self.sink.filters
    return RemovableHandle(table, partial(run_hook, hook))


def retain_grad(self):
    """Keep the gradient of this result, as its hooks leave it, in `.grad` (leaves always do)."""
    if not self.requires_grad:
        raise RuntimeError("retain_grad() on a tensor that does not require grad")
    if self.node is not None:
        retain = _filters(self.node)[1]
        if not retain:
            this = weakref.ref(self)  # a graph does not keep its results
            retain.append(partial(_keep, this))


def _keep(this, gradient):
    tensor = this()
    if tensor is not None:
        tensor.sink.deposit(as_array(gradient))
    return gradient


def register_post_accumulate_grad_hook(self, hook):
    """Call hook(tensor) each time a backward has written all of this leaf's gradient.

    Returns a handle.
    """
    if not self.requires_grad or self.node is not None:
        raise RuntimeError("a grad hook is for a leaf that requires grad")
    this = weakref.ref(self)  # the sink must not keep its tensor alive
    return RemovableHandle(self.sink.hooks, lambda: hook(this()))


for _method in (register_hook, retain_grad, register_post_accumulate_grad_hook):
    setattr(Tensor, _method.__name__, _method)
