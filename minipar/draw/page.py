"""A page for lectures: the space-time diagram with a slider, what every rank has after each step,
and the lines of the program that did it. One file, which needs no network and no server.

The page itself is `page.html`, in which @WORDS@ are replaced.
"""

import ast
import json
import linecache
import re
from html import escape
from importlib.resources import files
from pathlib import Path

from .names import ranges, sentence, short_line, title, unit
from .spacetime import space_time
from .svg import to_svg


def to_page(flow):
    """The HTML text of a Flow's page."""
    changes = [[[rank, chunk, held.total(), _whose(held)]
                for (rank, chunk), held in sorted(change.items())] for change in flow.changes]
    moves = [[[sentence(move), [short_line(line) for line in move.lines]] for move in row]
             for row in flow.moves]
    for step in flow.fences:
        lines = {short_line(task.line) for task in flow.tasks
                 if task.kind == "fence" and flow.step_of(task) == step}
        moves[step].append(["all ranks pass a fence", sorted(lines)])
    data = {"unit": unit(flow), "steps": flow.steps, "ranks": flow.size, "moves": moves,
            "chunks": len(flow.chunks), "changes": changes, "source": source(flow),
            "most": max([change[2] for row in changes for change in row], default=0) or 1}
    meaning = ("A number: how many ranks' contributions to the chunk are added up there."
               if flow.program.kind.reduces else
               "A number: from how many ranks something of the chunk is there.")
    fields = {"TITLE": escape(title(flow)), "UNIT": unit(flow), "STEPS": str(flow.steps),
              "MEANING": meaning, "SVG": to_svg(space_time(flow), prolog=False),
              "DATA": json.dumps(data).replace("<", "\\u003c")}
    page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"@([A-Z]+)@", lambda field: fields[field[1]], page)


def _whose(held):
    """Ranks in words: "ranks 0-2"; one that contributed twice is told."""
    twice = [f"rank {rank} {times} times" for rank, times in sorted(held.items()) if times > 1]
    text = "rank" + "s" * (len(held) > 1) + f" {ranges(sorted(held))}"
    return ", ".join([text, *twice]) if held else ""


def source(flow):
    """The functions that a program's operations stand in, as they are written: [{"file", "first":
    number of its first line, "lines"}]."""
    own = flow.program.function.__code__
    wanted = {own.co_filename: {own.co_firstlineno}}
    for task in flow.tasks:
        path, number = task.line.rsplit(":", 1)
        wanted.setdefault(path, set()).add(int(number))
    found = []
    for path, numbers in wanted.items():
        text = linecache.getlines(path)
        for first, last in _functions(text, numbers):
            found.append({"file": Path(path).name, "first": first,
                          "lines": [line.rstrip("\n") for line in text[first - 1:last]]})
    return found


def _functions(text, numbers):
    """(first line, last line) of the outermost functions that these lines are in."""
    try:
        tree = ast.parse("".join(text))
    except SyntaxError:  # of what is no file any more: lines as they stand
        return [(number, number) for number in sorted(numbers)]
    found = []
    for node in tree.body:
        if hasattr(node, "decorator_list"):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if any(first <= number <= node.end_lineno for number in numbers):
                found.append((first, node.end_lineno))
    return found
