"""Programs made of programs. `yield from` runs one after another; these do the rest."""

from itertools import zip_longest

from .program import Program, operations


def on(ranks, rounds):
    """The rounds of a program of a sub-group, for the group: `yield from on(node, ring(...))`.

    ranks: the sub-group's members as ranks of the group; the program inside counts by position.
    """
    for ops in rounds:
        yield tuple(op._replace(peer=ranks[op.peer]) if op.peer >= 0 else op
                    for op in operations(ops))


def both(*programs):
    """Run programs at the same time: round i of each together, on channels of their own."""
    k = len(programs)
    for parts in zip_longest(*programs, fillvalue=()):
        yield tuple(op._replace(channel=op.channel * k + i)
                    for i, ops in enumerate(parts) for op in operations(ops))


def channels(program, k):
    """The Program that runs k copies of `program` at the same time, each on a slice of the buffer.

    For kinds whose elements are all treated alike (all_reduce, broadcast, reduce): of the others
    each rank has a block, and a slice has not. Raises ValueError for them.
    """
    if program.kind.name not in ("all_reduce", "broadcast", "reduce"):
        raise ValueError(f"channels: {program.kind.name} gives each rank a block of its own, which "
                         f"a slice of the buffer cuts")

    def copies(rank, size, x, **options):
        yield from both(*(program(rank, size, part, **options) for part in x.split(k)))
    copies.__name__, copies.__doc__ = f"{program.name}_x{k}", program.__doc__
    made = Program(program.kind, copies, program.ranks, program.deterministic)
    made.wants = program.wants
    return made
