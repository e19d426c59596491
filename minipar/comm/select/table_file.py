"""Selection tables as files: JSON, read and checked, the same on every rank.

    {"table": [{"kind": "all_reduce", "ranks": 4, "bytes": 65536, "algorithm": "swing"}, ...]}

Of an entry's fields `kind` and `algorithm` are required; the others restrict what it is for, null
being no restriction. Where no entry of a user's file fits, those that come with minipar follow.
"""

import difflib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..mpi_plan import LIBRARY
from ..program import ALGORITHMS

SHIPPED = Path(__file__).with_name("algorithms.json")
VARIABLE = "MINIPAR_ALGORITHMS"  # of the environment: the path of a user's file


@dataclass(frozen=True)
class Entry:
    """One line of a table: `algorithm` for collectives of `kind`, if they are within the rest.

    ranks: at most so many in the group.   node: at most so many of them on one machine.
    bytes: of the collective's largest buffer, at most.
    shared: True: the buffer lies in memory that all ranks can map; False: they share memory, but
            the buffer lies elsewhere, and is copied there and back. None: whatever it is.
    source: where the entry stands, in words.
    """
    kind: str
    algorithm: str
    ranks: int | None = None
    node: int | None = None
    bytes: int | None = None
    shared: bool | None = None
    source: str = ""


FIELDS = ("kind", "algorithm", "ranks", "node", "bytes", "shared")


def entries_of(text, name):
    """The entries that the JSON `text` of the file `name` holds, as a tuple.

    Raises ValueError, in one line that names file and entry, for what is no table: an unknown
    field, kind or algorithm, a limit that is no number.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("table"), list):
        raise ValueError(f'{name} holds no table: {{"table": [{{"kind": ..., "algorithm": ...}}]}}')
    if unknown := set(content) - {"about", "table"}:
        raise ValueError(f"{name}: no field {min(unknown)!r} beside table: there is about, for "
                         f"notes")
    return tuple(_entry(fields, f"entry {i} of {name}")
                 for i, fields in enumerate(content["table"], 1))


def _entry(fields, source):
    if not isinstance(fields, dict):
        raise ValueError(f"{source} is {fields!r}, no object of {', '.join(FIELDS)}")
    for field in fields:
        if field not in FIELDS:
            raise ValueError(f"{source}: no field {field!r}: {_near(field, FIELDS)}")
    for field in ("kind", "algorithm"):
        if not isinstance(fields.get(field), str):
            raise ValueError(f"{source}: {field} is {fields.get(field)!r}, no name")
    kind, algorithm = fields["kind"], fields["algorithm"]
    if kind not in ALGORITHMS:
        raise ValueError(f"{source}: no kind {kind!r}: {_near(kind, ALGORITHMS)}")
    valid = [*ALGORITHMS[kind], LIBRARY.name]
    if algorithm not in valid:
        raise ValueError(f"{source}: no {kind} algorithm {algorithm!r}: {_near(algorithm, valid)}")
    for field, least in (("ranks", 1), ("node", 1), ("bytes", 0)):
        value = fields.get(field)
        if value is not None and (type(value) is not int or value < least):
            raise ValueError(f"{source}: {field} is {json.dumps(value)}, no whole number from "
                             f"{least} on, or null")
    if not (fields.get("shared") is None or type(fields["shared"]) is bool):
        raise ValueError(f"{source}: shared is {json.dumps(fields['shared'])}, not true, false "
                         f"or null")
    return Entry(**fields, source=source)


def _near(word, valid):
    return f"did you mean {', '.join(difflib.get_close_matches(word, valid, n=3) or valid)}?"


@lru_cache(maxsize=1)
def shipped():
    """The entries that come with minipar."""
    return entries_of(SHIPPED.read_text(encoding="utf-8"), "minipar's table")


def read_entries(path):
    """A user's entries, and after them those that come with minipar; ValueError as entries_of."""
    return entries_from(own_source(path))


def _text(path):
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"the table {path} cannot be read: {reason}") from None


def own_source(path=None):
    """(name, text, problem) of the user's file: that at `path`, else the one that
    $MINIPAR_ALGORITHMS names; (None, None, None) if there is none. problem: in words, if it
    cannot be read."""
    name = path or os.environ.get(VARIABLE)
    if not name:
        return None, None, None
    try:
        return str(name), _text(name), None
    except ValueError as error:
        return str(name), None, str(error)


def agreed_source(comm, path=None):
    """Rank 0's `own_source`, on every rank of `comm`: so ranks select alike, whatever files and
    environments the others have. Collective."""
    source = own_source(path) if comm.rank == 0 else None
    if comm.size > 1:  # by an algorithm of its own: there is no table to ask yet
        source = comm.broadcast_object(source, algorithm="binomial")
    return source


def entries_from(source):
    """The entries to select by: those of a source, and after them those that come with minipar.

    Raises ValueError, in one line, for a source that is no table.
    """
    name, text, problem = source
    if problem is not None:
        raise ValueError(problem)
    return (() if text is None else entries_of(text, name)) + shipped()
