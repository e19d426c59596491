"""Pictures of a collective as text, for a terminal."""

import textwrap

from .names import chunk_names, claim, counted, frames, ranges, title, totals, unit

# What a rank does, {} being whom with: as in the counterexamples of `minipar verify`.
SIGNS = {("message", True): ">{}", ("message", False): "<{}", ("put", True): "put>{}",
         ("get", False): "get<{}", ("get_reduce", False): "+get<{}", ("copy", True): "=",
         ("reduce", True): "+="}
MEANING = {">{}": ">r c send chunk c to rank r", "<{}": "<r c receive it from r",
           "+<{}": "+<r c receive and add", "put>{}": "put>r c into r's memory",
           "get<{}": "get<r c from r's memory", "+get<{}": "+get<r c from there, and add",
           "=": "= c copy within the rank", "+=": "+= c add within the rank"}


def sign(move, rank):
    """The sign of what `rank` does in a move; None if it does nothing."""
    text = SIGNS.get((move.kind, rank == move.source))
    return f"+{text}" if text == "<{}" and move.reduces else text


def space_time_text(flow, width=100):
    """A table, a row a step and a column a rank, of at most `width` letters if that can be.

    What a rank does in a step stands in one line; where that is too wide, below each other; where
    that is too wide, the ranks are cut into several tables.
    """
    cells = [[_cell(flow, step, rank) for rank in range(flow.size)] for step in range(flow.steps)]
    lines = heading(flow, width)
    in_line = [[["  ".join(texts)] if texts else [] for texts in row] for row in cells]
    if max([len(text) for row in in_line for texts in row for text in texts],
           default=0) + 2 <= (width - 9) // flow.size:
        cells = in_line
    widths = [max([len(f"rank {rank}"), *(len(text) for row in cells for text in row[rank])])
              for rank in range(flow.size)]
    for ranks in _columns(widths, width - 9):
        lines += ["", *_table(flow, cells, ranks, widths)]
    return "\n".join([*lines, "", *_legend(flow, width)])


def heading(flow, width):
    """The lines above a picture."""
    return [line for text in (title(flow), claim(flow), totals(flow))
            for line in textwrap.wrap(text, width)]


def _cell(flow, step, rank):
    """What a rank does in a step: a list of texts, one for all others with whom it does the same
    with the same chunks."""
    held = {}  # {(sign, other rank, channel): the chunks of all such moves}
    for move in flow.moves[step]:
        text = sign(move, rank) if rank in (move.source, move.target) else None
        if text is not None:
            other = move.target if rank == move.source else move.source
            held.setdefault((text, other, move.channel), set()).update(move.chunks)
    found = {}  # {(sign, chunks, channel): the other ranks}
    for (text, other, channel), chunks in sorted(held.items()):
        words = f" {chunk_names(sorted(chunks), 10)}" if chunks else ""
        found.setdefault((text, words, channel), []).append(other)
    order = sorted(found, key=lambda key: ("<" in key[0], "=" in key[0], found[key]))
    return [text.format(ranges(found[text, words, channel])) + words
            + f" #{channel}" * bool(channel) for text, words, channel in order]


def _columns(widths, room):
    """The ranks in groups whose columns fit beside each other."""
    groups, used = [[]], 0
    for rank, width in enumerate(widths):
        if groups[-1] and used + width + 2 > room:
            groups.append([])
            used = 0
        groups[-1].append(rank)
        used += width + 2
    return groups


def _table(flow, cells, ranks, widths):
    """The lines of one table, of some of the ranks."""
    lines = [" ".join([f"{unit(flow):>6}", *(f" {f'rank {rank}':{widths[rank]}}"
                                             for rank in ranks)]).rstrip()]
    tall = any(len(texts) > 1 for row in cells for texts in row)
    for step, row in enumerate(cells):
        if tall and step:
            lines.append("")
        if step in flow.fences:
            across = sum(widths[rank] + 2 for rank in ranks) - 2
            lines.append(f"{step:>6}  {' fence '.center(across, '=')}")
            continue
        for i in range(max([1, *(len(row[rank]) for rank in ranks)])):
            texts = [row[rank][i] if i < len(row[rank]) else "" for rank in ranks]
            lines.append(" ".join([f"{step if i == 0 else '':>6}", *(
                f" {text:{widths[rank]}}" for rank, text in zip(ranks, texts))]).rstrip())
    return lines


def _legend(flow, width):
    """What the signs and chunks mean."""
    signs = {sign(move, rank) for moves in flow.moves for move in moves
             for rank in (move.source, move.target)}
    words = [text for key, text in MEANING.items() if key in signs]
    if any(move.channel for move in flow.messages):
        words.append("#k on channel k")
    chunks = [f"c{i} {buffer}[{start}:{stop}]"
              for i, (buffer, start, stop) in enumerate(flow.chunks)]
    if len(chunks) > 12:
        chunks = [*chunks[:3], "...", chunks[-1]]
    return [*_filled(words, width), *_filled(chunks, width)]


def _filled(texts, width):
    """Texts beside each other, in lines of at most `width` letters if they can be."""
    lines = [""]
    for text in texts:
        if lines[-1] and len(lines[-1]) + 3 + len(text) > width:
            lines.append("")
        lines[-1] += "   " * bool(lines[-1]) + text
    return lines if texts else []


def chunks_text(flow, width=100):
    """For every step a table of ranks and chunks: how many ranks' contributions are there."""
    number = len(str(flow.size))
    columns = [f"c{c}" for c in range(len(flow.chunks))]
    wide = max([number, *map(len, columns)]) + 1
    told = frames(flow)
    side = max(max(len(when) for when, _ in told), 8 + wide * len(columns))
    beside = max(1, (width + 3) // (side + 3))
    tables = []
    for when, table in told:
        tables.append([when, " " * 8 + "".join(f"{c:>{wide}}" for c in columns)] + [
            f"rank {rank:<3}" + "".join(f"{held.total() or '.':>{wide}}" for held in row)
            for rank, row in enumerate(table)])
    lines = heading(flow, width)
    for i in range(0, len(tables), beside):
        lines.append("")
        for rows in zip(*tables[i:i + beside]):
            lines.append("   ".join(f"{row:{side}}" for row in rows).rstrip())
    where = "added up in" if flow.program.kind.reduces else "present at"
    return "\n".join([*lines, "", *textwrap.wrap(
        f"numbers: of {counted(flow.size, 'rank')}, how many contributions to a chunk are {where} "
        f"a rank", width)])
