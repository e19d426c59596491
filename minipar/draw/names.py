"""What pictures say in words: headings, names of sets of chunks, sentences about moves."""

import re
import sys
from pathlib import Path

# Who wrote it, and when: names, then a year.
PAPER = re.compile(r"(?:(?:[A-Z][\w'-]+|de|van)(?:,| &| and| et al\.)? )+(?:19|20)\d\d")
# What a rank does with a move, and to or from whom.
VERBS = {"message": "sends {} to rank {}", "put": "puts {} into rank {}'s memory"}


def ranges(numbers):
    """Numbers in order as "0-3,7"."""
    runs = []
    for k in numbers:
        if runs and k == runs[-1][1] + 1:
            runs[-1][1] = k
        else:
            runs.append([k, k])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def chunk_names(chunks, most=99):
    """Indices in order as "c0-3,7"; what would be longer than `most` letters as "6 chunks"."""
    text = f"c{ranges(chunks)}" if chunks else "nothing"
    return text if len(text) <= most else f"{len(chunks)} chunks"


def paper(program):
    """The paper that a program names: in its docstring, or else in its module's; "" if none."""
    module = sys.modules.get(program.function.__module__)
    for text in (program.__doc__, getattr(module, "__doc__", None)):
        found = PAPER.search(" ".join((text or "").split()))
        if found:
            return found[0]
    return ""


def title(flow):
    """One line: kind, program, paper, ranks, options."""
    source = paper(flow.program)
    return (f"{flow.program.kind.name} {flow.program.name}" + f" ({source})" * bool(source)
            + f" on {counted(flow.size, 'rank')}" + options(flow))


def options(flow):
    """", root 0" and ", topology 3 x 2" if there are such."""
    found = ""
    if "root" in flow.options:
        found += f", root {flow.options['root']}"
    if "topo" in flow.options:
        found += f", topology {' x '.join(map(str, flow.options['topo'].levels))}"
    return found


def claim(flow):
    """What the program says of itself: the first paragraph of its docstring."""
    return " ".join((flow.program.__doc__ or "").strip().split("\n\n")[0].split())


def counted(number, word):
    """"1 round", "2 rounds"."""
    return f"{number:,} {word}{'es' if word.endswith('h') else 's'}" if number != 1 else f"1 {word}"


def totals(flow):
    """What it costs, in one line: rounds, messages, bytes of float32."""
    cost, n = flow.cost, flow.n
    shares = f" ({cost.sent / (4 * n):.4g} n)" if n and cost.sent else ""
    return (f"n = {counted(n, 'element')} of 4 bytes; {counted(cost.rounds, 'round')}, "
            f"{counted(len(flow.messages), 'message')}, "
            + f"{counted(len(flow.reductions), 'reduction')}, " * bool(flow.reductions)
            + f"{counted(cost.total, 'byte')}; a rank sends at most "
            f"{counted(cost.messages, 'message')}, {counted(cost.sent, 'byte')}{shares}"
            + f", and reduces {counted(cost.reduced, 'byte')}" * bool(cost.reduced))


def unit(flow):
    """What a step of the picture is called."""
    return "round" if flow.in_step else "step"


def frames(flow):
    """[(when, table)] of Flow.states; steps that leave all as it is are told with what was."""
    found = []
    for step, table in enumerate(flow.states()):
        if found and found[-1][2] == table:
            found[-1][1] = step - 1
        else:
            found.append([step - 1, step - 1, table])
    return [(_when(unit(flow), first, last), table) for first, last, table in found]


def _when(word, first, last):
    if first < 0:
        return "before" if last < 0 else f"before, and until {word} {last}"
    return f"after {word} {first}" if first == last else f"after {word}s {first}-{last}"


def sentence(move):
    """A move as a sentence."""
    what = chunk_names(move.chunks)
    if move.kind == "copy":
        return f"rank {move.target} copies {what}"
    if move.kind == "reduce":
        return f"rank {move.target} adds {what} to what it has"
    if move.kind in ("get", "get_reduce"):
        return (f"rank {move.target} gets {what} from rank {move.source}'s memory"
                + ", and adds it" * move.reduces)
    return (f"rank {move.source} {VERBS[move.kind].format(what, move.target)}"
            + ", which adds it" * move.reduces + f", channel {move.channel}" * bool(move.channel))


def short_line(line):
    """A source line without the folders: "ring.py:18"."""
    path, number = line.rsplit(":", 1)
    return f"{Path(path).name}:{number}"
