"""A model as a sequence of blocks, so that it can be cut into stages. Knows no ranks.

A model that is to be cut defines `blocks()`; a Sequential has its modules. What a stage does not
need is taken out of the model (`keep`), before its parameters are materialised: they keep the
names, and so the values, that they have in the whole.
"""

from typing import Callable, NamedTuple


class Block(NamedTuple):
    """One link of the chain that a model is.

    name:    unique in the model.
    owns:    paths of the sub-modules (or parameters) that its forward uses.
    forward: from the tensor that the block before made to the next one's input.
    """
    name: str
    owns: tuple
    forward: Callable

    def parameters(self, model):
        """Its parameters, each once; those that the model shares with other blocks included."""
        seen = {}
        for path in self.owns:
            above, _, key = path.rpartition(".")
            holder = model.get_submodule(above)
            found = holder._parameters.get(key)
            for p in [found] if found is not None else holder.get_submodule(key).parameters():
                seen[id(p)] = p
        return list(seen.values())

    def buffers(self, model):
        """Its buffers."""
        for path in self.owns:
            above, _, key = path.rpartition(".")
            holder = model.get_submodule(above)
            found = holder._buffers.get(key)
            if found is not None:
                yield found
            elif key not in holder._parameters:
                yield from holder.get_submodule(key).buffers()


def blocks_of(model):
    """The model's Blocks, in order. ValueError for a model that does not say what they are."""
    if not hasattr(model, "blocks"):
        raise ValueError(f"{type(model).__name__} cannot be cut into stages: it defines no "
                         f"blocks(); nn.Sequential has them")
    found = list(model.blocks())
    names = [block.name for block in found]
    if len(set(names)) < len(names):
        raise ValueError(f"{type(model).__name__}: two blocks have one name: {', '.join(names)}")
    return found


def keep(module, paths, prefix=""):
    """Take out of `module` all parameters, buffers and sub-modules that no path leads to."""
    def inside(path):
        return path in paths

    def towards(path):
        return any(p.startswith(path + ".") for p in paths)
    for key, child in list(module._modules.items()):
        path = prefix + key
        if child is None or inside(path):
            continue
        if towards(path):
            keep(child, paths, path + ".")
        else:
            _remove(module, module._modules, key)
    for registry in (module._parameters, module._buffers):
        for key in list(registry):
            if not inside(prefix + key):
                _remove(module, registry, key)


def _remove(module, registry, key):
    """The name stays, without anything behind it: other names do not move."""
    module._release(key)
    registry[key] = None
    object.__setattr__(module, key, None)
