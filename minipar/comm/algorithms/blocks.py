"""Ranges of blocks: what algorithms that move several blocks at a time name them by."""


def runs(x, parts):
    """run(a, b): the chunk of parts a to b - 1 of `x.split(parts)`, which lie side by side."""
    return lambda a, b: x[a * len(x) // parts:b * len(x) // parts]


def around(x, parts, start, count):
    """`count` parts of x from part `start`, modulo `parts`: one chunk, or two if they wrap."""
    run, start = runs(x, parts), start % parts
    if start + count <= parts:
        return [run(start, start + count)]
    return [run(start, parts), run(0, start + count - parts)]


def ceil_lg(p):
    """The smallest k with 2^k >= p."""
    return (p - 1).bit_length()
