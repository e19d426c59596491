"""The whole of a model and of its optimizer's state, from the slices that ranks keep of them.

What trainers have in common whose parameters lie in Shards (`shards.py`): `zero.py` for whole
models, `pipelined_zero.py` for those that are cut.
"""

import numpy as np

from .gather import gather_whole, scatter_pieces
from .trainer import Trainer


class Sliced(Trainer):
    """Base class. Sub-classes call `_keep_places`, and then make the optimizer."""

    def _keep_places(self, units):
        """units: the Shards that hold parameters of the module."""
        self._places_of = {id(p): (unit, unit.place(p)) for unit in units
                           for p in unit.parameters}

    def _sum(self, squares):
        total = np.array([squares], float)
        self.comm.all_reduce(total)
        return float(total[0])

    def _update_others(self, units):
        """Give every rank the slices that the others have updated. Collective."""
        for unit in units:
            unit.update_others()
        for unit in units:
            unit.wait()

    def _named(self):
        """(name, (unit, parameter)) of all parameters that lie in slices."""
        return [(name, (self._places_of[id(p)][0], p)) for name, p in
                self.module.named_parameters() if id(p) in self._places_of]

    def first_bad(self):
        stage = self.mesh.coordinates(self.comm.rank)["pp"]
        for what in ("parameter", "gradient of"):
            mine = [(stage, i, name) for i, (name, (unit, p)) in enumerate(self._named())
                    if not np.isfinite(unit.view(
                        p, unit.data if what == "parameter" else unit.grad)).all()]
            found = [self.comm.broadcast_object(mine[:1], rank) for rank in range(self.comm.size)]
            if bad := sum(found, []):
                return f"first bad: {what} {min(bad)[-1]}"
        return "all parameters and gradients are finite"

    def _piece(self, t, array=None):
        """[(what this rank gives of a tensor, its place)], nothing if others give it all.

        array: another one that belongs to the parameter, of the optimizer's state.
        """
        if id(t) not in self._places_of:
            return [(t.array if array is None else array, getattr(t, "placement", None))]
        unit, place = self._places_of[id(t)]
        own = unit.view(t, unit.data) if array is None else array
        return [] if t.numel() and not own.size else [(own, place)]

    def _gather(self, tensors):
        return gather_whole(self.comm, {
            name: piece for name, t in tensors for piece in self._piece(t)})

    def state(self):
        parameters = dict(self.module.named_parameters())
        optimizer = {key: piece for key, value in self.optimizer.named_state(self.module).items()
                     for piece in (self._piece(parameters[key.rpartition(".")[0]], value)
                                   if np.ndim(value) else [(np.asarray(value), None)])}
        return self._gather(self.module.named_state()), gather_whole(self.comm, optimizer)

    def load(self, model, optimizer):
        self.comm.barrier()  # nobody reads any more what is about to change
        tensors = dict(self.module.named_state())
        mine = scatter_pieces(self.comm, model, {
            name: self._place(t) for name, t in tensors.items()})
        if mine and (missing := tensors.keys() - mine.keys()):
            raise RuntimeError(f"missing in what is loaded: {', '.join(sorted(missing))}")
        for name, array in mine.items():
            t, (unit, _) = tensors[name], self._places_of.get(id(tensors[name]), (None, None))
            (t.array if unit is None else unit.view(t, unit.data))[...] = array
            t.storage.version += 1
        if mine:
            self._loaded()
        places = {name: self._place(p) for name, p in self.module.named_parameters()}
        wanted = {f"{name}.{key}": place for name, place in places.items()
                  for key in self.optimizer.state_names}
        wanted.update((f"{name}.step", None) for name in places)
        if mine := scatter_pieces(self.comm, optimizer, wanted):
            self.optimizer.load_named_state(self.module, mine)

    def _place(self, t):
        if id(t) in self._places_of:
            return self._places_of[id(t)][1]
        return getattr(t, "placement", None)

    def _loaded(self):
        """The slices have new values. Collective."""
