"""Tensor, storage, graph and backward(): the whole of automatic differentiation, with no ops.

A Tensor is a view on a Storage. An operation (see `ops/`) computes an array and calls `record`,
which wraps it and, if a gradient can flow, hangs a Node on it: a closure `backward(g)` that takes
the gradient of the output and returns one gradient per input. `backward` walks the nodes from the
last made to the first, and writes the gradients of leaves into their sinks (`sinks.py`).

First-order only: a backward takes and returns arrays, not tensors. Knows no ranks.
"""

import weakref
from operator import attrgetter

import numpy as np

from . import dtypes
from .context import current, recorded
from .device import as_array, device_of, host, on_gpu, put
from .sinks import Deferred, Sink


class Storage:
    """Memory that one or more tensors view.

    version: counts in-place writes; a graph that saved an earlier version refuses to go back.
    views:   how many tensors were made as views of another on this storage.
    owner:   who manages the memory, if it is not the array itself (a flat buffer, a window).
    """

    version, views, owner = 0, 0, None  # until they are set: every tensor makes a storage


class Node:
    """One recorded operation. Frees what it holds as soon as backward has passed it.

    backward: closure from the gradient of the output to a tuple of gradients, one per edge: an
              array, a `Deferred`, or None.
    edges:    one per input: the Node that made it, the Sink of a leaf, or None.
    saved:    (storage, version) of each tensor whose array `backward` will read.
    """

    __slots__ = ("backward", "edges", "saved", "order", "grad", "owned")

    @property
    def name(self):
        return self.backward.__qualname__.split(".")[0].lstrip("_") if self.backward else "freed"

    def __repr__(self):
        return f"<{self.name}>"


class Tensor:
    """An n-dimensional array that can record what is computed from it.

    array: the elements, a NumPy array or, on a GPU, CuPy's; may be a view. Other attributes are as
    in PyTorch.
    """

    __slots__ = ("array", "storage", "requires_grad", "node", "_sink", "__weakref__")
    __array_priority__ = 100  # array + tensor is a tensor

    def __init__(self, array, requires_grad=False, storage=None):
        self.array = array
        self.storage = Storage() if storage is None else storage
        self.requires_grad = requires_grad
        self.node = None
        self._sink = None

    shape = property(lambda self: self.array.shape)
    ndim = property(lambda self: self.array.ndim)
    dtype = property(lambda self: dtypes.of(self.array))
    is_leaf = property(lambda self: self.node is None)
    grad_fn = property(attrgetter("node"))
    nbytes = property(lambda self: self.array.nbytes)
    device = property(lambda self: device_of(self.array))

    def size(self, dim=None):
        return self.shape if dim is None else self.shape[dim]

    def dim(self):
        return self.ndim

    def numel(self):
        return int(np.prod(self.shape, dtype=np.int64))

    def item(self):
        """The value of a one-element tensor as a Python number."""
        return self.array.item()

    def tolist(self):
        return self.array.tolist()

    def numpy(self):
        """The elements as a NumPy array that shares memory with the tensor."""
        if self.requires_grad:
            raise RuntimeError("numpy() on a tensor that requires grad: use .detach().numpy()")
        if on_gpu(self.array):
            raise TypeError(f"numpy() on a tensor on {self.device}: use .cpu().numpy()")
        return self.array

    def detach(self):
        """A tensor on the same memory that is outside the graph."""
        self.storage.views += 1
        return Tensor(self.array, storage=self.storage)

    @property
    def data(self):
        return self.detach()

    def requires_grad_(self, requires_grad=True):
        if self.node is not None and not requires_grad:
            raise RuntimeError("only a leaf's requires_grad can be turned off: use .detach()")
        if requires_grad and not self.dtype.is_floating_point:
            raise RuntimeError(f"only floating types can require gradients, not {self.dtype}")
        self.requires_grad = requires_grad
        return self

    @property
    def sink(self):
        """The gradient sink of a leaf, made at the first use."""
        if self._sink is None:
            self._sink = Sink(self.array.shape, self.array.dtype, device=self.array.device)
        return self._sink

    @property
    def grad(self):
        """The gradient of a leaf, shaped like it; None before the first backward."""
        sink = self._sink
        return None if sink is None or sink.fresh else Tensor(sink.buffer)

    @grad.setter
    def grad(self, value):
        self.sink.reset()
        if value is not None:
            self.sink.deposit(put(as_array(_bare(value)), self.device))

    def backward(self, gradient=None, retain_graph=False):
        """Add the gradients of this tensor to the leaves it was computed from.

        gradient: of the same shape; 1 if the tensor has one element.
        """
        backward([self], None if gradient is None else [gradient], retain_graph)

    def __reduce__(self):
        """Pickling and copying take the elements along: no graph, no gradient, no sharing."""
        if self.node is not None:
            raise RuntimeError(f"only a leaf is pickled or copied, not what {self.node} made: "
                               f"use .detach()")
        return type(self), (self.array, self.requires_grad)

    def __len__(self):
        if not self.shape:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __iter__(self):
        if not self.shape:
            raise TypeError("iteration over a 0-d tensor")
        return (self[i] for i in range(len(self)))

    def __bool__(self):
        return bool(self.array)

    def __float__(self):
        return float(self.array)

    def __int__(self):
        return int(self.array)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __repr__(self):
        array = host(self.array)
        array = array.astype(np.float32) if array.itemsize == 2 else array
        text = np.array2string(array, precision=4, separator=", ", prefix="tensor(")
        extra = f", device='{self.device}'" if on_gpu(self.array) else ""
        extra += "" if self.dtype is current().default_dtype else f", dtype={self.dtype}"
        if self.node is not None:
            extra += f", grad_fn={self.node}"
        elif self.requires_grad:
            extra += ", requires_grad=True"
        return f"tensor({text}{extra})"


def _bare(value):
    return value.array if isinstance(value, Tensor) else value


def from_numpy(array):
    """A tensor that shares memory with a NumPy array."""
    dtypes.of(array)
    return Tensor(array)


def record(array, inputs, backward, saved=(), view_of=None, saves_output=False):
    """Wrap the result of an operation, and hang it on the graph if a gradient can flow.

    inputs: the tensors (or None) that `backward` returns gradients for, in its order.
    saved:  the tensors whose arrays `backward` will read; `saves_output`: it reads `array` too.
    view_of: the tensor whose memory `array` shares, if it does.
    """
    if array.__class__ is not np.ndarray and isinstance(array, np.generic):
        array = np.asarray(array)  # NumPy makes scalars of 0-d results
    if view_of is None:
        out = Tensor(array)
    else:
        out = Tensor(array, storage=view_of.storage)
        view_of.storage.views += 1
    context = current()
    if context.grad_enabled:
        for t in inputs:
            if t is not None and t.requires_grad:
                break
        else:
            return out
        out.requires_grad = True
        out.node = node = Node()
        node.backward, node.grad, node.owned = backward, None, False
        node.edges = tuple([
            None if t is None or not t.requires_grad else (t.node or t.sink) for t in inputs])
        node.saved = [(t.storage, t.storage.version) for t in saved]
        if saves_output:
            node.saved.append((out.storage, out.storage.version))
        node.order = context.order = context.order + 1
    return out


@recorded("backward")
@np.errstate(all="ignore")  # Inf and NaN pass as in PyTorch, without a RuntimeWarning
def backward(tensors, gradients=None, retain_graph=False, postponed=None):
    """Run backward from `tensors`, adding to the sinks of all leaves they depend on.

    gradients: one per tensor, shaped like it; None means 1 for one-element tensors.
    postponed: a list that receives the weight gradients of matrix products and convolutions as
               callables instead of running them (zero-bubble pipelines call them later). A leaf
               is ready, and its hooks run, when nothing of it is pending or postponed.
    Raises RuntimeError if the graph was freed, or if a tensor that it needs was changed in place.
    """
    context = current()
    nodes = []
    context.backward_depth += 1  # a recomputing op runs a backward inside a backward
    try:
        leaves = _seed(tensors, gradients, nodes)
        pending = _collect(nodes)
        for sink, _ in leaves:
            pending[sink] = pending.get(sink, 0) + 1
        for sink, gradient in leaves:
            _deposit(sink, gradient, pending)
        nodes.sort(key=attrgetter("order"), reverse=True)
        step = _step if context.recorder is None else context.recorder.each_node(_step)
        for node in nodes:
            step(node, pending, retain_graph, postponed)
        if context.backward_depth == 1:
            callbacks, context.after_backward = context.after_backward, []
            for callback in callbacks:
                callback()
    finally:
        context.backward_depth -= 1
        if context.backward_depth == 0:
            context.after_backward = []
        for node in nodes:  # after an error: no gradient may wait in a graph for the next run
            node.grad = None


def _seed(tensors, gradients, nodes):
    """Give each start node its gradient and append it to `nodes`, each once.

    Returns (sink, gradient) of each start that is a leaf.
    """
    leaves = []
    for i, t in enumerate(tensors):
        if not t.requires_grad:
            raise RuntimeError("backward() on a tensor that does not require grad")
        if gradients is None or gradients[i] is None:
            if t.array.size != 1:
                raise RuntimeError(f"backward() without a gradient needs one element, "
                                   f"not shape {t.shape}")
            gradient = np.ones_like(t.array)
        else:
            gradient = gradients[i]
            gradient = put(as_array(_bare(gradient)), t.device)
            if gradient.shape != t.shape:
                raise RuntimeError(f"a gradient of shape {gradient.shape} "
                                   f"for a tensor of {t.shape}")
            gradient = gradient.astype(t.array.dtype, copy=False)
        if t.node is None:
            leaves.append((t.sink, gradient))
            continue
        _accumulate(t.node, gradient)
        if t.node not in nodes:
            nodes.append(t.node)
    return leaves


def _collect(nodes):
    """Append every node that `nodes` depend on; returns {sink: number of its uses}."""
    pending, seen, stack = {}, set(nodes), list(nodes)
    while stack:
        node = stack.pop()
        if node.backward is None:
            raise RuntimeError("backward through a graph a second time: it was freed; "
                               "use retain_graph=True the first time")
        for edge in node.edges:
            if edge is None:
                continue
            if edge.__class__ is not Node:
                pending[edge] = pending.get(edge, 0) + 1
            elif edge not in seen:
                seen.add(edge)
                nodes.append(edge)
                stack.append(edge)
    return pending


def _step(node, pending, retain_graph, postponed):
    """Run one node's backward and hand its gradients on."""
    gradient, node.grad = node.grad, None
    if gradient is None:
        gradients = (None,) * len(node.edges)
    else:
        for storage, version in node.saved:
            if storage.version != version:
                raise RuntimeError(
                    f"a tensor that the gradient of {node.name} needs was changed in place: "
                    f"it is at version {storage.version}, expected {version}")
        gradients = node.backward(as_array(gradient))  # NumPy makes scalars of 0-d results
    for edge, g in zip(node.edges, gradients):
        if edge is None:
            continue
        if edge.__class__ is Node:
            if g is not None:
                _accumulate(edge, g)
        elif postponed is not None and g.__class__ is Deferred and g.postponable:
            postponed.append(_Postponed(edge, g, pending))
        else:
            _deposit(edge, g, pending)
    if not retain_graph:
        node.backward, node.edges, node.saved = None, (), ()


def _accumulate(node, g):
    """Add to a node's gradient. The first array may be shared with others: never written to."""
    if g.__class__ is Deferred:
        if node.grad is None:
            node.grad, node.owned = g.array(), True
        elif node.owned and node.grad.shape:  # a sum of 0-d arrays is a NumPy scalar
            g.add(node.grad)
        else:
            node.grad, node.owned = node.grad + g.array(), True
    elif node.grad is None:
        node.grad, node.owned = g, False
    elif node.owned:
        node.grad += g
    else:
        node.grad, node.owned = node.grad + g, True


def _deposit(sink, g, pending):
    """One use of a leaf is done; after the last its gradient is complete."""
    if sink.filters:
        g = sink.filtered(g, pending)
    if g is not None:
        sink.deposit(g)
    pending[sink] -= 1
    if pending[sink] == 0 and not sink.fresh:
        for hook in tuple(sink.hooks.values()):
            hook()


class _Postponed:
    """A weight gradient to be computed by calling this, once."""

    __slots__ = ("sink", "gradient", "pending")

    def __init__(self, sink, gradient, pending):
        self.sink, self.gradient, self.pending = sink, gradient, pending

    def __call__(self):
        if self.gradient is None:
            raise RuntimeError("this weight gradient was already computed")
        gradient, self.gradient = self.gradient, None
        _deposit(self.sink, gradient, self.pending)
