"""Programs made of programs. `yield from` runs one after another; these do the rest."""

from itertools import zip_longest

from .program import ONE_SIDED, Program, copy, operations


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


EVERYBODYS = ("all_reduce", "all_gather", "broadcast")  # kinds whose result all ranks have


def compressed(program, codec):
    """The Program that sends all that `program` sends encoded by `codec`: `ring_float16` of `ring`.

    Where all ranks have the result, a rank that sends a chunk first replaces its own copy by what
    the receiver gets, and all do so with x at the end, so that all end with the same bits. (It is
    `minipar verify` that says for which programs this is enough.) The sender pays for a round trip
    through the codec. Raises ValueError if the result of all would need an idempotent codec and
    this is none; and, when it is traced, for a program that reaches into its peers' memory.
    """
    shared = program.kind.name in EVERYBODYS
    if shared and not (codec.idempotent or codec.lossless):
        raise ValueError(f"compressed: {program.name} sends on what it has received, and codec "
                         f"{codec.name} is not idempotent: it would change on the way")

    def encoded(rank, size, *buffers, **options):
        for ops in program(rank, size, *buffers, **options):
            ops = operations(ops)
            if any(op.kind in ONE_SIDED for op in ops):
                raise ValueError(f"compressed: {program.name} reads and writes memory of its "
                                 f"peers, and sends nothing")
            sent = {str(op.chunk): op for op in ops if op.kind == "send"}.values()
            if shared and sent:
                yield tuple(copy(op.chunk, op.chunk, codec)._replace(line=op.line) for op in sent)
            yield tuple(op._replace(codec=codec) if op.peer >= 0 else op for op in ops)
        if shared and size > 1:
            x = buffers[0] if buffers else options["x"]
            yield copy(x, x, codec)
    made = Program(program.kind, encoded, program.ranks, program.deterministic,
                   f"{program.name}_{codec.name}")
    made.wants, made.__doc__ = program.wants, program.__doc__
    return made
