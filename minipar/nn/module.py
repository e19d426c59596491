"""Module: a tree of parameters, buffers and sub-modules, as in PyTorch. Knows no ranks."""

import weakref
from contextlib import nullcontext
from typing import NamedTuple

from ..context import current, no_grad
from ..dtypes import array_of
from ..tensor import Tensor
from .convert import Conversions
from .hooks import Hooks
from .parameter import Parameter


class IncompatibleKeys(NamedTuple):
    """What load_state_dict did without."""
    missing_keys: list
    unexpected_keys: list


class Module(Hooks, Conversions):
    """Base class of models and layers. Sub-classes define `forward`.

    Parameters, modules and buffers that are set as attributes are found by name. Each also
    stands in the instance's own dict, so that reading `self.weight` costs an attribute access.
    """

    names_children = True  # False in wrappers, whose module keeps the names of its own root

    def __init__(self):
        self.__dict__.update(_parameters={}, _buffers={}, _modules={}, _persistent=set(),
                             _parent=None, _key="", _path=None, training=True)

    def forward(self, *args, **kwargs):
        raise TypeError(f"{type(self).__name__} defines no forward()")

    def __call__(self, *args, **kwargs):
        recorder = current().recorder
        if recorder is None and self._hooks is None:
            return self.forward(*args, **kwargs)
        with nullcontext() if recorder is None else recorder.call(self):
            return self._call_with_hooks(args, kwargs)

    def __setattr__(self, name, value):
        if "_modules" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__}: super().__init__() comes first")
        for registry in (self._parameters, self._modules, self._buffers):
            if name in registry and value is not registry[name]:
                kind = (Tensor if registry is self._buffers else
                        Parameter if registry is self._parameters else Module)
                if value is not None and not isinstance(value, kind):
                    raise TypeError(f"{name} is a {kind.__name__} here, "
                                    f"not {type(value).__name__}")
                self._release(name)
                registry[name] = value
        if isinstance(value, Parameter):
            self._parameters[name] = value
            value.attach(self, name)
        elif isinstance(value, Module):
            self._modules[name] = value
            self._adopt(name, value)
        object.__setattr__(self, name, value)

    def _adopt(self, name, child):
        """A module is named by the first one that it became part of."""
        if self.names_children and child._parent is None:
            child.__dict__.update(_parent=weakref.ref(self), _key=name)

    def _release(self, name):
        child = self._modules.get(name)
        if child is not None and child._parent and (
                child._parent() is self and child._key == name):
            child.__dict__.update(_parent=None, _key="")

    def __delattr__(self, name):
        self._release(name)
        for registry in (self._parameters, self._modules, self._buffers):
            registry.pop(name, None)
        object.__delattr__(self, name)

    def register_buffer(self, name, tensor, persistent=True):
        """A tensor that is state but no parameter; `persistent` ones are in the state dict."""
        self._buffers[name] = tensor
        (self._persistent.add if persistent else self._persistent.discard)(name)
        object.__setattr__(self, name, tensor)

    def register_parameter(self, name, param):
        """Register a Parameter, or None for one that this instance does without."""
        if param is None:
            self._parameters[name] = None
            object.__setattr__(self, name, None)
        else:
            setattr(self, name, param)

    def add_module(self, name, module):
        """Register a sub-module, or None, under a name that is no attribute yet and has no dot."""
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"{name} is a Module here, not {type(module).__name__}")
        if not name or "." in name or (hasattr(self, name) and name not in self._modules):
            raise KeyError(f"{type(self).__name__} cannot have a module named {name!r}")
        self._modules.setdefault(name)
        setattr(self, name, module)

    register_module = add_module

    # The tree

    def named_modules(self, memo=None, prefix=""):
        """(qualified name, module) of this module and all below it, each module once."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        memo.add(self)
        yield prefix, self
        for key, module in self._modules.items():
            if module is not None:
                yield from module.named_modules(memo, f"{prefix}.{key}" if prefix else key)

    def modules(self):
        return (module for _, module in self.named_modules())

    def named_children(self):
        """(name, module) of those just below, each module once."""
        seen = set()
        for key, module in self._present():
            if module not in seen:
                seen.add(module)
                yield key, module

    def _present(self):
        return ((key, module) for key, module in self._modules.items() if module is not None)

    def children(self):
        return (module for _, module in self.named_children())

    def _named(self, registry, prefix="", recurse=True):
        seen = set()
        for path, module in self.named_modules(prefix=prefix) if recurse else [(prefix, self)]:
            for key, tensor in getattr(module, registry).items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{path}.{key}" if path else key, tensor

    def named_parameters(self, prefix="", recurse=True):
        """(qualified name, parameter), each parameter once: a tied one under its first name."""
        return self._named("_parameters", prefix, recurse)

    def parameters(self, recurse=True):
        return (p for _, p in self.named_parameters(recurse=recurse))

    def named_buffers(self, prefix="", recurse=True):
        return self._named("_buffers", prefix, recurse)

    def buffers(self, recurse=True):
        return (b for _, b in self.named_buffers(recurse=recurse))

    def get_submodule(self, target):
        """The module at a path such as "body.0". Raises AttributeError if there is none."""
        module = self
        for key in target.split(".") if target else ():
            module = module._modules.get(key)
            if module is None:
                raise AttributeError(f"{type(self).__name__} has no module {target!r}")
        return module

    def get_parameter(self, target):
        """The parameter at a path such as "body.0.weight"; AttributeError if there is none."""
        path, _, key = target.rpartition(".")
        parameter = self.get_submodule(path)._parameters.get(key)
        if parameter is None:
            raise AttributeError(f"{type(self).__name__} has no parameter {target!r}")
        return parameter

    def apply(self, function):
        """Call `function` on every module below, then on this one; returns self."""
        for module in self.children():
            module.apply(function)
        function(self)
        return self

    # Names and memory

    def qualified_name(self):
        """This module's path from its root: fixed by materialize(), else by its parents."""
        if self._path is not None:
            return self._path
        parent = self._parent and self._parent()
        if parent is None:
            return ""
        path = parent.qualified_name()
        return f"{path}.{self._key}" if path else self._key

    def assign_names(self):
        """Fix every name below this root, so that they survive a cutting of the model.

        What has a fixed name keeps it: a stage made of cut-out modules has the whole's values.
        """
        for path, module in self.named_modules():
            if module._path is None:
                module.__dict__["_path"] = path
        for name, parameter in self.named_parameters():
            if parameter.name is None:
                parameter.name = name
        return self

    def materialize(self):
        """Fix the names below this root, and allocate and fill every parameter; returns self."""
        if self._path is None:
            self.assign_names()
        for parameter in self.parameters():
            parameter.materialize()
        return self

    # Modes and gradients

    def train(self, mode=True):
        for module in self.modules():
            module.__dict__["training"] = mode
        return self

    def eval(self):
        return self.train(False)

    def zero_grad(self):
        for parameter in self.parameters():
            parameter.grad = None

    def requires_grad_(self, requires_grad=True):
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def __getstate__(self):
        """What is copied and pickled: everything but the way to the parent."""
        return {**self.__dict__, "_parent": None}

    def __setstate__(self, state):
        self.__dict__.update(state)
        for key, parameter in self._parameters.items():
            if parameter is not None:
                parameter.attach(self, key)
        for key, module in self._present():
            self._adopt(key, module)

    # State

    def state_dict(self):
        """{qualified name: tensor} of parameters and persistent buffers, sharing their memory.

        A tied parameter stands under each of its names, as in PyTorch. Where parameters are moved
        later (an optimizer or data parallelism lays them out flat; `.to`), it keeps the old ones.
        """
        return {name: tensor.detach() for name, tensor in self.named_state()}

    def named_state(self):
        """(name, parameter or persistent buffer) of all that the state dict has, themselves."""
        for path, module in self._all_paths(""):
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and (key in module._parameters or
                                           key in module._persistent):
                    yield f"{path}.{key}" if path else key, tensor

    def _all_paths(self, path):
        """Like named_modules, but a shared module under each of its names."""
        yield path, self
        for key, module in self._present():
            yield from module._all_paths(f"{path}.{key}" if path else key)

    def load_state_dict(self, state_dict, strict=True):
        """Copy tensors or arrays into the parameters and buffers of the same names.

        Raises RuntimeError naming every missing, unexpected (if `strict`) and misshapen key, and
        then changes nothing. A parameter that is not materialised does not draw its values first.
        Returns (missing_keys, unexpected_keys).
        """
        own, given, missing, unexpected = self.check_state_dict(state_dict, strict)
        with no_grad():
            for key, tensor in own.items():
                if key in given:
                    if isinstance(tensor, Parameter):
                        tensor.allocate()
                    tensor.copy_(given[key])
        return IncompatibleKeys(missing, unexpected)

    def check_state_dict(self, state_dict, strict=True):
        """Raise what load_state_dict would raise; needs no memory for parameters.

        Returns ({name: own tensor}, {name: given array}, missing names, unexpected names).
        """
        own = dict(self.named_state())
        given = {k: array_of(v) for k, v in state_dict.items()}
        missing = [k for k in own if k not in given]
        unexpected = [k for k in given if k not in own]
        wrong = [f"{k} is {given[k].shape} where the model has {own[k].shape}"
                 for k in own if k in given and given[k].shape != own[k].shape]
        problems = [f"{word} {', '.join(keys)}"
                    for word, keys in (("missing", missing), ("unexpected", unexpected))
                    if keys and strict] + wrong
        if problems:
            raise RuntimeError(f"state dict for {type(self).__name__}: {'; '.join(problems)}")
        return own, given, missing, unexpected

    def extra_repr(self):
        return ""

    def __repr__(self):
        lines = [f"({key}): " + repr(module).replace("\n", "\n  ")
                 for key, module in self._present()]
        body = "\n  " + "\n  ".join(lines) + "\n" if lines else self.extra_repr()
        return f"{type(self).__name__}({body})"
