"""Kinds of collectives: what each promises, as two tables that are functions of a rank.

A kind names its logical buffers and says which ranges of them hold something before it runs, and
what they hold afterwards. Its functions take the arguments that its programs take:

    def before(rank, size, x, root):      yields the chunks that hold this rank's own elements
    def after(rank, size, x, root):       yields (chunk, [(rank, chunk there), ...]): the sum of
                                          these ranks' elements, as they were before

What a table does not speak of does not matter. The verifier holds programs against these tables,
whoever wrote the kind: `register_kind` takes any.
"""

import inspect
from dataclasses import dataclass
from typing import Callable


@dataclass(frozen=True, eq=False)
class Kind:
    """A collective: its name, tables, and buffers.

    lengths: (rank, size, n) and `counts` if wanted -> {buffer: elements}; {"x": n} if None.
    reduces: whether its programs may reduce. rooted: whether it has a root.
    own: buffers that no peer touches: they may lie anywhere, also where a program is one-sided.
    kept: buffers that nobody writes.
    """
    name: str
    before: Callable
    after: Callable
    lengths: Callable | None = None
    reduces: bool = False
    rooted: bool = False
    own: tuple = ()
    kept: tuple = ()

    def buffers(self, rank, size, n, **options):
        """{buffer: its length in elements} on a rank."""
        return {"x": n} if self.lengths is None else ask(self.lengths, rank, size, n, **options)


def ask(function, *positional, **options):
    """Call `function` with those of the keyword options that it has parameters for."""
    names = inspect.signature(function).parameters
    return function(*positional, **{k: v for k, v in options.items() if k in names})


def _everything(rank, size, x):
    yield x


def _summed(rank, size, x):
    yield x, [(r, x) for r in range(size)]


def _own_block(rank, size, x):
    yield x.split(size)[rank]


def _own_block_summed(rank, size, x):
    mine = x.split(size)[rank]
    yield mine, [(r, mine) for r in range(size)]


def _every_block(rank, size, x):
    for owner, block in enumerate(x.split(size)):
        yield block, [(owner, block)]


def _block(rank, size, n):
    return (rank + 1) * n // size - rank * n // size


def _all_and_block(rank, size, n):
    return {"input": n, "output": _block(rank, size, n)}


def _block_and_all(rank, size, n):
    return {"input": _block(rank, size, n), "output": n}


def _block_summed(rank, size, input, output):
    mine = input.split(size)[rank]
    yield output, [(r, mine) for r in range(size)]


def _inputs_in_order(rank, size, input, output):
    for owner, place in enumerate(output.split(size)):
        yield place, [(owner, type(input)("input", 0, len(place)))]


def _at_root(table):
    """The table on the root, nothing on the others."""
    def at_root(rank, size, x, root):
        if rank == root:
            yield from table(rank, size, x)
    return at_root


def _of_root(rank, size, x, root):
    yield x, [(root, x)]


def _own_block_of_root(rank, size, x, root):
    mine = x.split(size)[rank]
    yield mine, [(root, mine)]


def _nothing(rank, size, x):
    return ()


def _all_input(rank, size, input, output):
    yield input


def _exchange_lengths(rank, size, n, counts=None):
    if counts is not None:
        return {"input": sum(counts[rank]), "output": sum(row[rank] for row in counts)}
    if n % size:
        raise ValueError(f"all_to_all: {n} elements do not divide into {size} equal blocks")
    return {"input": n, "output": n}


def exchange_blocks(rank, size, input, output, counts=None):
    """(what goes to each rank, where what comes from each rank goes): two lists of chunks."""
    if counts is None:
        return list(input.split(size)), list(output.split(size))
    return input.cut(counts[rank]), output.cut([row[rank] for row in counts])


def _exchanged(rank, size, input, output, counts=None):
    places = exchange_blocks(rank, size, input, output, counts)[1]
    for source, place in enumerate(places):
        start = sum(counts[source][:rank]) if counts is not None else rank * len(place)
        there = type(input)("input", start, start + len(place))
        yield place, [(source, there)]


KINDS = {}


def register_kind(kind):
    """Offer a kind to `@collective("name")`; returns it. ValueError if the name is taken."""
    if kind.name in KINDS:
        raise ValueError(f"there is a kind {kind.name!r} already")
    KINDS[kind.name] = kind
    return kind


for _kind in (
    Kind("all_reduce", _everything, _summed, reduces=True),
    Kind("reduce_scatter", _everything, _own_block_summed, reduces=True),
    Kind("all_gather", _own_block, _every_block),
    Kind("reduce_scatter_into", _all_input, _block_summed, lengths=_all_and_block, reduces=True,
         own=("output",), kept=("input",)),
    Kind("all_gather_into", _all_input, _inputs_in_order, lengths=_block_and_all,
         own=("output",), kept=("input",)),
    Kind("broadcast", _at_root(_everything), _of_root, rooted=True),
    Kind("reduce", _everything, _at_root(_summed), reduces=True, rooted=True),
    Kind("gather", _own_block, _at_root(_every_block), rooted=True),
    Kind("scatter", _at_root(_everything), _own_block_of_root, rooted=True),
    Kind("all_to_all", _all_input, _exchanged, lengths=_exchange_lengths,
         kept=("input",)),
    Kind("barrier", _nothing, _nothing),
):
    register_kind(_kind)
