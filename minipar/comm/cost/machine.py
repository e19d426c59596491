"""What a machine charges: the parameters of the cost model, and the files that hold fitted ones."""

import json
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

SHIPPED = Path(__file__).with_name("machine.json")


@dataclass(frozen=True)
class Machine:
    """Prices in seconds; `model.py` says how they add up.

    The three of the papers:
    alpha: a message.   beta: a byte of it.   gamma: a byte reduced.
    What Python and NumPy take besides:
    run:   a program's start, and seeing that it is done.
    round: each of its rounds.
    call:  each operation on memory: a reduction, a copy, a one-sided one.
    copy:  a byte copied within the rank.
    What memory that ranks share charges:
    access:     a byte put or got; beta, if None.
    get_reduce: a byte reduced straight from a peer's memory; access + gamma, if None.
    fence:      a fence; alpha, if None.
    And what they are valid for:
    cores: that all ranks share; if None, each has one of its own.
    cache: buffers of more bytes have the prices of the Machine `far`: memory sets their pace.
    """
    alpha: float
    beta: float
    gamma: float
    run: float = 0.0
    round: float = 0.0
    call: float = 0.0
    copy: float = 0.0
    access: float | None = None
    get_reduce: float | None = None
    fence: float | None = None
    cores: int | None = None
    cache: int | None = None
    far: "Machine | None" = None

    def at(self, nbytes):
        """The Machine whose prices buffers of `nbytes` have, with none of them left open."""
        if self.far is not None and nbytes > self.cache:
            return self.far.at(nbytes)
        access = self.beta if self.access is None else self.access
        return replace(
            self, access=access, far=None, cache=None,
            get_reduce=access + self.gamma if self.get_reduce is None else self.get_reduce,
            fence=self.alpha if self.fence is None else self.fence)

    def levels(self):
        """[(largest buffer in bytes or None, Machine)]: for whoever prints or simulates them."""
        rest = [] if self.far is None else self.far.levels()
        return [(self.cache, self.at(0))] + rest

    def to_json(self):
        """The Machine as what JSON can hold."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value.to_json() if name == "far" else value
                for name, value in values.items() if value is not None}


PRICES = tuple(f.name for f in fields(Machine) if f.name not in ("cores", "cache", "far"))


def from_json(content, name):
    """The Machine that `to_json` has told. Raises ValueError, in a line that names file and field.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{name}: the machine is {content!r}, no object")
    known = [f.name for f in fields(Machine)]
    for field, value in content.items():
        if field not in known:
            raise ValueError(f"{name}: a machine has no {field!r}: it has {', '.join(known)}")
        kind = {"far": dict, "cores": int, "cache": int}.get(field, (int, float))
        if isinstance(value, bool) or not isinstance(value, kind) or (
                field != "far" and not 0 <= value < float("inf")):
            raise ValueError(f"{name}: {field} is {value!r}, no number from 0 on")
    if missing := [field for field in ("alpha", "beta", "gamma") if field not in content]:
        raise ValueError(f"{name}: a machine has {missing[0]}, too")
    if ("far" in content) != ("cache" in content):
        raise ValueError(f"{name}: cache and far go together")
    if content.get("cores") == 0:
        raise ValueError(f"{name}: a machine has at least 1 core")
    values = dict(content)
    if "far" in values:
        values["far"] = from_json(values["far"], name)
    return Machine(**values)


def read_machine(path):
    """(Machine, {what else the file says}). Raises ValueError, in one line, for what is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"the machine {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or "machine" not in content:
        raise ValueError(f'{path} holds no machine: {{"machine": {{"alpha": ..., ...}}}}')
    return from_json(content["machine"], str(path)), content


def write_machine(path, machine, **about):
    """Write a Machine and what else is to be known of it, as JSON; the file appears whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    draft.write_text(json.dumps({"machine": machine.to_json(), **about}, indent=1) + "\n",
                     encoding="utf-8")
    os.replace(draft, path)


def fitted_path(launcher, ranks):
    """Where `minipar tune --fit` keeps what it has found for ranks that `launcher` started."""
    from ...execution import cache_folder
    return cache_folder() / f"machine-{launcher}-{ranks}.json"


LAUNCHERS = ("mpi", "processes", "threads")  # in the order in which a fit of theirs is taken


def nearest_machine(ranks, launcher=None):
    """(Machine, the path of its file): what was fitted here for most nearly so many ranks.

    launcher: of the ranks; any, if None, mpi's first. What comes with minipar, if there is none
    that can be read.
    """
    found = []
    for i, name in enumerate(LAUNCHERS):
        if launcher in (None, name):
            for path in fitted_path(name, 0).parent.glob(f"machine-{name}-*.json"):
                count = path.stem.rsplit("-", 1)[1]
                if count.isdecimal():
                    found.append((abs(int(count) - ranks), i, path))
    for _, _, path in sorted(found):
        try:
            return read_machine(path)[0], path
        except ValueError:
            continue
    return read_machine(SHIPPED)[0], SHIPPED
