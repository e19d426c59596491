"""The ways to keep replicas together, by the names that `--sync` takes: `local:8`, `gossip:ring`.

Arithmetic only: what can be asked for, and how many ranks serve instead of training.
"""

import difflib
from dataclasses import dataclass

from .adpsgd import sides
from .graphs import mixing_matrix

FORMS = {"ddp": "ddp", "zero1": "zero1", "zero2": "zero2", "zero3": "zero3", "shared": "shared",
         "local": "local:H", "diloco": "diloco:H", "delayed": "delayed",
         "gossip": "gossip:GRAPH", "adpsgd": "adpsgd:GRAPH", "ps": "ps or ps:async", "ssp": "ssp:S"}


@dataclass(frozen=True)
class Method:
    """name: of FORMS. argument: H, S, a graph's name, "async", or None. servers: ranks."""

    name: str = "ddp"
    argument: object = None
    servers: int = 0

    def __str__(self):
        return self.name if self.argument is None else f"{self.name}:{self.argument}"


def parse_method(text, size, servers=None):
    """The Method that `text` asks for, on `size` ranks of which `servers` (default 1) serve, if
    the method has servers. Raises ValueError, in one line, for what cannot be.
    """
    name, colon, argument = text.partition(":")
    if name not in FORMS:
        near = difflib.get_close_matches(name, FORMS, n=3) or FORMS
        raise ValueError(f"no {name!r}: did you mean {', '.join(FORMS[n] for n in near)}?")
    if name in ("local", "diloco", "ssp"):
        low = 0 if name == "ssp" else 1
        if not argument.isdecimal() or int(argument) < low:
            raise ValueError(f"{text} is not {FORMS[name]} with {FORMS[name][-1]} >= {low} steps")
        argument = int(argument)
    elif name == "gossip":
        mixing_matrix(argument, size)  # refuses what is no connected graph
    elif name == "adpsgd":
        sides(argument, size)  # and what is not bipartite
    elif argument != "async" * (name == "ps" and bool(colon)) or colon and not argument:
        raise ValueError(f"no {text!r}: there is {FORMS[name]}")
    if name not in ("ps", "ssp"):
        if servers is not None:
            raise ValueError(f"{servers} servers are for ps and ssp: {text} has none")
        return Method(name, argument if colon else None)
    servers = 1 if servers is None else servers
    if servers >= size:
        raise ValueError(f"servers {servers} >= world size {size}: no rank is left to train")
    return Method(name, argument if colon else None, servers)
