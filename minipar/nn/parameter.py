"""Parameters: leaves with a name, made from a recipe when they are first needed.

A Parameter made by a layer holds a shape and an initializer but no memory. It is materialised by
`Module.materialize()`, or at the first touch of its `.array`; its values are a function of the
seed and its qualified name alone, so every rank of every partition that holds it makes the same
ones, and a model that is cut before it is materialised is never whole anywhere.
"""

import weakref

from .. import dtypes, random
from ..context import current
from ..device import CPU, device_of, empty, place_of, put
from ..tensor import Storage, Tensor
from ..sinks import Sink


class Parameter(Tensor):
    """A leaf that requires grad and that a Module registers.

    Parameter(tensor): takes over the tensor's memory, as in PyTorch.
    Parameter.lazy(shape, initializer): `initializer(generator, shape)` returns an array; it is
    drawn in float64 and rounded to `dtype`, so that precisions share their initial weights.
    placement: the Shard of the whole that this parameter is, None if it is the whole (`cut`).
    counted:   whether this rank counts it in norms; False where another rank does.
    """

    __slots__ = ("_shape", "_dtype", "_device", "_seed", "initializer", "_module", "_key", "name",
                 "placement", "counted")

    def __init__(self, data, requires_grad=True):
        if not isinstance(data, Tensor):
            raise TypeError(f"a Parameter is made from a tensor, not {type(data).__name__}")
        self._setup(data.array.shape, data.array.dtype, None, data.device)
        super().__init__(data.array, storage=data.storage)
        self.requires_grad_(requires_grad)

    @classmethod
    def lazy(cls, *shape, initializer, dtype=None):
        """An unmaterialised parameter of the default dtype, or of `dtype`."""
        self = cls.__new__(cls)
        dtype = dtypes.dtype(dtype or current().default_dtype)
        self._setup(tuple(shape), dtype.storage, initializer)
        self.storage, self.requires_grad, self.node, self._sink = Storage(), True, None, None
        return self

    def _setup(self, shape, dtype, initializer, device=CPU):
        self._shape, self._dtype, self.initializer = shape, dtype, initializer
        self._device = device
        self._seed = current().seed
        self._module, self._key, self.name = None, None, None
        self.placement, self.counted = None, True

    # Known without memory. `array` is an unset slot until then, which costs the hot path nothing.
    shape = property(lambda self: self._shape)
    ndim = property(lambda self: len(self._shape))
    dtype = property(lambda self: dtypes.dtype(self._dtype))
    nbytes = property(lambda self: self.numel() * self._dtype.itemsize)
    device = property(lambda self: self._device)

    @property
    def sink(self):
        if self._sink is None:
            self._sink = Sink(self._shape, self._dtype, device=place_of(self._device))
        return self._sink

    @property
    def is_materialized(self):
        try:
            object.__getattribute__(self, "array")
        except AttributeError:
            return False
        return True

    def __getattr__(self, attribute):
        if attribute != "array":
            raise AttributeError(attribute)
        self.materialize()
        return self.array

    def materialize(self):
        """Allocate and fill the parameter, if it is not yet.

        Raises RuntimeError if it was given away: ranks hold slices of it, and no rank all of it.
        """
        if not self.is_materialized:
            self._check_here()
            values = self.initializer(self.generator(), self.whole_shape)
            if self.placement is not None:
                values = self.placement.take(values)
            self.array = put(values.astype(self._dtype, copy=False), self._device)

    def _check_here(self):
        if self.storage.owner is not None:
            raise RuntimeError(f"{self.qualified_name() or 'a parameter'} is not here now: ranks "
                               f"hold slices of it, and gather it when its block runs")

    @property
    def whole_shape(self):
        """The shape of the parameter that this one is a piece of; its own if it is the whole."""
        return self._shape if self.placement is None else self.placement.whole(self._shape)

    def cut(self, placement):
        """Become one piece, a Shard, of the whole that it is; with or without memory yet."""
        shape = placement.shape(self._shape)
        if self.is_materialized:
            self.array = placement.take(self.array)
        self._shape, self.placement, self._sink = shape, placement, None

    def allocate(self):
        """Memory without values, for who is about to write them all; nothing if there is some."""
        if not self.is_materialized:
            self._check_here()
            self.array = empty(self._shape, self._dtype, place_of(self._device))

    def _stays(self, dtype, device):
        """Whether it has that DType already and is on that device; None stands for its own."""
        return dtype in (None, self.dtype) and device in (None, self._device)

    def check_convertible(self, dtype, device=None):
        """Raise RuntimeError if the parameter cannot become one of another DType or device."""
        if not self._stays(dtype, device) and self.storage.owner is not None:
            target = dtype.name if dtype not in (None, self.dtype) else device
            raise RuntimeError(f"{self.qualified_name() or 'a parameter'} lies in flat memory, "
                               f"which an optimizer or data parallelism holds: convert it to "
                               f"{target} before making them")

    def convert(self, dtype, device=None):
        """Become a parameter of a floating DType and on a device, with its gradient; stay without
        memory if so.
        """
        if self._stays(dtype, device):
            return
        self._dtype = self._dtype if dtype is None else dtype.storage
        self._device = device or self._device
        if self.is_materialized:
            self.array = put(self.array.astype(self._dtype, copy=False), self._device)
            self.storage.version += 1  # a graph that saved it cannot go back
        if self._sink is not None:
            self._sink.convert(self._dtype, self._device)

    def generator(self):
        """The generator of this parameter's initial values: a function of seed and name."""
        name = self.qualified_name()
        if name is None:  # touched before it had a module: the order of creation must do
            context = current()
            context.orphans += 1
            name = context.orphans
        return random.generator(self._seed, "init", name)

    def qualified_name(self):
        """`name` if materialize() of a root module fixed it, else what the modules say now."""
        if self.name is not None:
            return self.name
        module = self._module and self._module()
        if module is None:
            return None
        path = module.qualified_name()
        return f"{path}.{self._key}" if path else self._key

    def attach(self, module, key):
        """Remember the first module that registers the parameter: a tied one has one name."""
        if self._module is None:
            self._module, self._key = weakref.ref(module), key

    def __deepcopy__(self, memo):
        """A parameter with the same values in memory of its own, and without a gradient."""
        self.materialize()
        return _remake(type(self), self.array.copy(), *self.__reduce__()[1][2:])

    def __reduce__(self):
        """Pickled are the values, or the recipe with the name it has now; no gradient, no hooks.

        In flat memory or not, what is unpickled is an ordinary parameter.
        """
        if self.is_materialized:
            array, recipe, name = self.array, None, self.name
        else:
            array, recipe, name = None, self.initializer, self.qualified_name()
        return _remake, (type(self), array, self._shape, self.dtype, self.requires_grad, recipe,
                         self._seed, name, self.placement, self.counted)


def _remake(cls, array, shape, dtype, requires_grad, initializer, seed, name, placement, counted):
    parameter = cls.lazy(*shape, initializer=initializer, dtype=dtype)
    if array is not None:
        parameter.array, parameter._device = array, device_of(array)
    parameter.requires_grad, parameter._seed, parameter.name = requires_grad, seed, name
    parameter.placement, parameter.counted = placement, counted
    return parameter
