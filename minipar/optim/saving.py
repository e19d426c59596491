"""The state of an optimizer, given away and taken back: a part of `Optimizer` (optimizer.py).

Two forms. `state_dict` is PyTorch's, by the parameters' position, with the groups' options.
`named_state` is by the parameters' names, for checkpoints that another layout reads. Neither
knows of the flat memory that the state lies in.
"""

import numpy as np

from ..device import assign
from ..dtypes import array_of
from ..tensor import Tensor

# Options of PyTorch's groups that do not change what a step computes.
_ELSEWHERE = {"foreach", "fused", "capturable", "differentiable", "params"}


class Saving:
    """The methods of Optimizer that save and load its state."""

    saves_step = True  # whether PyTorch's state has a step count (SGD's has none)

    def _arrays(self, i):
        """{state name: view} of the parameter at `i` in flat order: shaped like it, or 1-D where
        ranks hold slices of it.
        """
        p, _, flat, *_ = self._order[i]
        return {name: flat.view(p, array)
                for name, array in zip(self.state_names, self._state[id(flat)])}

    def nbytes(self):
        """Bytes of the state arrays that this rank holds."""
        return sum(array.nbytes for arrays in self._state.values() for array in arrays)

    def _places(self):
        """{id of a parameter: its position in flat order}."""
        return {id(p): i for i, (p, *_) in enumerate(self._order)}

    def state_dict(self):
        """{"state": {position: {name: tensor}}, "param_groups": [{option: value, "params":
        [position]}]}, as PyTorch's: tensors that share the optimizer's memory.

        A parameter that had no step yet has no state.
        """
        places, state, groups, position = self._places(), {}, [], 0
        for group in self.param_groups:
            numbers = list(range(position, position + len(group["params"])))
            position += len(numbers)
            groups.append({**group, "params": numbers})
            for n, p in zip(numbers, group["params"]):
                i = places[id(p)]
                entry = {k: Tensor(a) for k, a in self._arrays(i).items()}
                if self.saves_step:
                    entry["step"] = Tensor(np.asarray(self._steps[i], np.float32))
                if self._steps[i] and entry:
                    state[n] = entry
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict):
        """Take over what `state_dict` of this optimizer, or of PyTorch's namesake, returned.

        Arrays are copied. Raises ValueError, and then changes nothing, if the groups are others,
        a state is missing or misshapen, or an option asks for what this optimizer cannot do.
        """
        saved = state_dict["param_groups"]
        sizes, given = ([len(g["params"]) for g in groups] for groups in (self.param_groups, saved))
        if sizes != given:
            raise ValueError(f"the state is of groups with {given} parameters, "
                             f"the optimizer's have {sizes}")
        groups = [self._loaded_group(own, new) for own, new in zip(self.param_groups, saved)]
        places, entries, problems = self._places(), [], []
        for own, new in zip(self.param_groups, saved):
            for p, n in zip(own["params"], new["params"]):
                entry = {k: v for k, v in state_dict["state"].get(n, {}).items() if v is not None}
                if entry and not self.saves_step:
                    entry["step"] = 1  # the next is not the first, which is all that counts
                entries.append((places[id(p)], self._checked(n, entry, places[id(p)], problems)))
        self._take(entries, problems)
        for own, new in zip(self.param_groups, groups):
            own.update(new)

    def _loaded_group(self, own, new):
        """The options of a saved group, checked."""
        more = {k for k, v in new.items() if v and k not in own and k not in _ELSEWHERE}
        if more - {"initial_lr", "param_names"}:
            raise ValueError(f"the state has options that {type(self).__name__} has not: "
                             f"{', '.join(sorted(more))}")
        group = {k: v for k, v in new.items() if k not in _ELSEWHERE and (k in own or k in more)}
        self._check({**own, **group})
        return group

    def named_state(self, model):
        """{"<parameter's name>.exp_avg": array, ..., "<parameter's name>.step": int}.

        Names are those of model.named_parameters(); arrays are shaped like the parameter and
        share the optimizer's memory. A parameter that had no step yet has no entries. Raises
        ValueError if the model lacks a parameter of the optimizer.
        """
        state = {}
        for name, i in self._named(model):
            if self._steps[i]:
                state.update({f"{name}.{key}": a for key, a in self._arrays(i).items()})
                state[f"{name}.step"] = int(self._steps[i])
        return state

    def load_named_state(self, model, state, strict=True):
        """Copy what `named_state` returned; a parameter without entries starts anew.

        Raises ValueError naming every missing, misshapen and (if `strict`) unexpected entry, and
        then changes nothing.
        """
        entries, problems, known = [], [], set()
        for name, i in self._named(model):
            keys = {key: f"{name}.{key}" for key in (*self.state_names, "step")}
            known.update(keys.values())
            entry = {key: state[full] for key, full in keys.items() if full in state}
            entries.append((i, self._checked(name, entry, i, problems)))
        if strict:
            problems += [f"unexpected {key}" for key in state if key not in known]
        self._take(entries, problems)

    def _named(self, model):
        """[(name in the model, position in flat order)] of every parameter."""
        places = self._places()
        named = [(name, places[id(p)]) for name, p in model.named_parameters() if id(p) in places]
        if len(named) != len(places):
            raise ValueError(f"the model has {len(named)} of the optimizer's {len(places)} "
                             f"parameters")
        return named

    def _checked(self, name, entry, i, problems):
        """(step, {state name: array}) of a parameter's entry; appends what is wrong with it."""
        if not entry:
            return 0, {}
        problems += [f"missing {name}.{key}" for key in (*self.state_names, "step")
                     if key not in entry]
        arrays = {}
        for key, own in self._arrays(i).items():
            if key in entry:
                value = entry[key]
                arrays[key] = array_of(value)
                if arrays[key].shape != own.shape:
                    problems.append(f"{name}.{key} is {arrays[key].shape} where the parameter "
                                    f"has {own.shape}")
        return int(entry.get("step", 0)), arrays

    def _take(self, entries, problems):
        """Set the state to `entries` unless there are problems."""
        if problems:
            raise ValueError(f"state for {type(self).__name__}: {'; '.join(problems)}")
        self._fresh = None  # steps that differ cut the stretches in another way
        for i, (step, arrays) in entries:
            self._steps[i] = step
            for key, own in self._arrays(i).items():
                assign(own, arrays.get(key, np.zeros((), own.dtype)))

    def __getstate__(self):
        raise TypeError("an optimizer is not copied or pickled: use its state_dict()")
