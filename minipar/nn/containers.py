"""Containers: modules made of modules."""

from collections import OrderedDict
from operator import index as as_index

from .blocks import Block
from .module import Module


class _Numbered(Module):
    """What Sequential and ModuleList share: a list of modules, named "0", "1", ..."""

    def __len__(self):
        return len(self._modules)

    def __iter__(self):
        return iter(self._modules.values())

    def _key_at(self, index):
        """The name of the module at an index, which may count from the end."""
        size = len(self)
        if not -size <= as_index(index) < size:
            raise IndexError(f"index {index} of a {type(self).__name__} of {size} modules")
        return list(self._modules)[index]

    def __setitem__(self, index, module):
        self.add_module(self._key_at(index), module)

    def __delitem__(self, index):
        modules = list(self)
        del modules[index]
        self._replace(modules)

    def _replace(self, modules):
        """Have these modules and no others, with numbers for names."""
        for key in list(self._modules):
            delattr(self, key)
        self.extend(modules)

    def append(self, module):
        """Add a module at the end; returns self."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules):
        """Add modules at the end; returns self."""
        for module in list(modules):
            self.append(module)
        return self

    def insert(self, index, module):
        """Put a module in front of the one at `index`; those behind it are renamed."""
        if not isinstance(module, Module):
            raise TypeError(f"a Module is inserted, not {type(module).__name__}")
        modules = list(self)
        modules.insert(index, module)
        self._replace(modules)
        return self

    def pop(self, index):
        """Take out the module at `index`, or those of a slice; those behind are renamed."""
        module = self[index]
        del self[index]
        return module

    def __iadd__(self, modules):
        return self.extend(modules)


class Sequential(_Numbered):
    """Modules applied one after another, named "0", "1", ..., or by the keys of an OrderedDict.

    A slice is a Sequential of the same modules under the same names.
    """

    def __init__(self, *modules):
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], OrderedDict):
            for key, module in modules[0].items():
                self.add_module(key, module)
        else:
            self.extend(modules)

    def blocks(self):
        """The modules as blocks, those of a Sequential in it one by one."""
        for key, module in self._present():
            if isinstance(module, Sequential):
                for name, owns, forward in module.blocks():
                    yield Block(f"{key}.{name}", tuple(f"{key}.{path}" for path in owns), forward)
            else:
                yield Block(key, (key,), module)

    def forward(self, x):
        for module in self._modules.values():
            x = module(x)
        return x

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Sequential(OrderedDict(list(self._modules.items())[index]))
        return self._modules[self._key_at(index)]

    def __add__(self, other):
        return Sequential(*self, *other) if isinstance(other, Sequential) else NotImplemented


class ModuleList(_Numbered):
    """A list of modules, named "0", "1", ... A slice is a ModuleList, numbered from 0."""

    def __init__(self, modules=None):
        super().__init__()
        self.extend(() if modules is None else modules)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return ModuleList(list(self)[index])
        return self._modules[self._key_at(index)]

    def __add__(self, other):
        return ModuleList([*self, *other])


class ModuleDict(Module):
    """A dict of modules, in order, under their keys. modules: a mapping, or pairs.

    A key is an attribute's name: KeyError for one that is taken ("forward"), or has a dot.
    """

    def __init__(self, modules=None):
        super().__init__()
        self.update({} if modules is None else modules)

    def __getitem__(self, key):
        return self._modules[key]

    def __setitem__(self, key, module):
        self.add_module(key, module)

    def __delitem__(self, key):
        self._modules[key]  # a KeyError, where deleting an attribute raises another
        delattr(self, key)

    def __len__(self):
        return len(self._modules)

    def __iter__(self):
        return iter(self._modules)

    def __contains__(self, key):
        return key in self._modules

    def keys(self):
        return self._modules.keys()

    def items(self):
        return self._modules.items()

    def values(self):
        return self._modules.values()

    def update(self, modules):
        """Add or replace modules: of a mapping, or of (key, module) pairs."""
        for key, module in dict(modules).items():
            self[key] = module

    def pop(self, key):
        """Take out a module and return it."""
        module = self[key]
        del self[key]
        return module

    def clear(self):
        """Take out all modules."""
        for key in list(self._modules):
            del self[key]
