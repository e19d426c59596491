"""Hooks of modules: callables around `forward`, and around its backward, as in PyTorch.

A part of `Module` (module.py). A module that never had a hook pays one test of an attribute.
"""

import numpy as np

from ..context import current
from ..device import as_array
from ..hooks import RemovableHandle, fitting
from ..tensor import Tensor, record


class Hooks:
    """The methods of Module that register hooks, and the call that runs them."""

    _hooks = None  # {kind: {key: (hook, with_kwargs)}} from the first registration on

    def _register(self, kind, hook, prepend, with_kwargs=False):
        if self._hooks is None:
            self.__dict__["_hooks"] = {"pre": {}, "forward": {}, "backward": {}}
        return RemovableHandle(self._hooks[kind], (hook, with_kwargs), prepend)

    def register_forward_pre_hook(self, hook, *, prepend=False, with_kwargs=False):
        """Call hook(module, args) before forward; returns a handle with remove().

        What it returns, unless it is None, takes the place of the positional arguments: a tuple,
        or one value. with_kwargs: hook(module, args, kwargs), which returns None or both.
        prepend: before the hooks there are.
        """
        return self._register("pre", hook, prepend, with_kwargs)

    def register_forward_hook(self, hook, *, prepend=False, with_kwargs=False):
        """Call hook(module, args, output) after forward; returns a handle with remove().

        What it returns, unless it is None, takes the place of the output.
        with_kwargs: hook(module, args, kwargs, output).
        """
        return self._register("forward", hook, prepend, with_kwargs)

    def register_full_backward_hook(self, hook, prepend=False):
        """Call hook(module, grad_input, grad_output) when backward has passed; returns a handle.

        Both are tuples with one entry per positional argument and per output: None for what is no
        tensor and for an unused output, zeros for a tensor without a gradient among the arguments.
        A tuple that the hook returns takes the place of grad_input. If no argument requires a
        gradient, all of it is None and the hook runs as soon as grad_output is known.
        """
        return self._register("backward", hook, prepend)

    def _call_with_hooks(self, args, kwargs):
        if self._hooks is None:
            return self.forward(*args, **kwargs)
        for hook, with_kwargs in tuple(self._hooks["pre"].values()):
            given = hook(self, args, kwargs) if with_kwargs else hook(self, args)
            if given is None:
                continue
            if not with_kwargs:
                args = given if isinstance(given, tuple) else (given,)
            elif isinstance(given, tuple) and len(given) == 2:
                args, kwargs = given
            else:
                raise RuntimeError(f"a forward pre-hook with kwargs returns None or (args, "
                                   f"kwargs), not {type(given).__name__}")
        backward = None
        if self._hooks["backward"] and current().grad_enabled:
            backward = _Backward(self, tuple(h for h, _ in self._hooks["backward"].values()))
            args = backward.enter(args)
        output = self.forward(*args, **kwargs)
        for hook, with_kwargs in tuple(self._hooks["forward"].values()):
            given = (hook(self, args, kwargs, output) if with_kwargs else
                     hook(self, args, output))
            output = output if given is None else given
        return output if backward is None else backward.leave(output)


class _Backward:
    """The backward hooks of one call: gates before and after it on which they wait."""

    def __init__(self, module, hooks):
        self.module, self.hooks = module, hooks
        self.grad_output, self.inputs, self.gated = None, (), False

    def enter(self, args):
        self.inputs = [(a.shape, a.array.dtype) if isinstance(a, Tensor) else None for a in args]
        args, self.gated = _gate(args, self._passed)
        return args

    def leave(self, output):
        outputs, _ = _gate(output if isinstance(output, tuple) else (output,), self._arrived)
        return outputs if isinstance(output, tuple) else outputs[0]

    def _arrived(self, gradients):
        """All gradients of the outputs (arrays or None) are known."""
        self.grad_output = _tensors(gradients)
        if not self.gated and any(g is not None for g in
                                  self._run((None,) * len(self.inputs))):
            raise RuntimeError("a backward hook gave gradients to a module of which no input "
                               "requires one")
        return gradients

    def _passed(self, gradients):
        """All gradients of the inputs are known; returns those to go on."""
        if self.grad_output is None:  # a gradient that did not come through the output
            return gradients
        given = self._run(_tensors(np.zeros(*like) if g is None and like else g
                                   for g, like in zip(gradients, self.inputs)))
        return [g if new is None or g is None else fitting(new, g)
                for g, new in zip(gradients, given)]

    def _run(self, grad_input):
        for hook in self.hooks:
            given = hook(self.module, grad_input, self.grad_output)
            if given is None:
                continue
            given = given if isinstance(given, tuple) else (given,)
            if len(given) != len(grad_input):
                raise RuntimeError(f"a backward hook returned {len(given)} gradients "
                                   f"for {len(grad_input)} inputs")
            grad_input = given
        self.grad_output = None
        return grad_input


def _tensors(gradients):
    return tuple(None if g is None else Tensor(g) for g in gradients)


def _gate(values, function):
    """Pass a tuple of values on; backward calls function(gradients) once all theirs are known.

    function: from a list with an array or None per value to another such list, which goes on.
    Returns (the values, whether a gradient can come). Each tensor that requires a gradient gets
    a node of its own. No use of any of them was recorded before the last of these nodes, so
    when backward comes to the first of them, the gradients of all are complete.
    """
    nodes, out, waiting = {}, list(values), set()

    def through(i):
        def gate(g):
            if i in waiting:
                waiting.discard(i)
                return (g,)
            nodes[i].grad = g
            found = [as_array(nodes[j].grad) if j in nodes and nodes[j].grad is not None
                     else None for j in range(len(values))]
            nodes[i].grad = None
            given = function(found)
            for j, node in nodes.items():
                if j != i and found[j] is not None:
                    node.grad, node.owned = given[j], False
                    waiting.add(j)
            return (given[i],)
        return gate
    for i, t in enumerate(values):
        if isinstance(t, Tensor) and t.requires_grad:
            out[i] = record(t.array, (t,), through(i), view_of=t)
            nodes[i] = out[i].node
    return tuple(out), bool(nodes)
