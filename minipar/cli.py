"""`minipar COMMAND ...`, the same as `python -m minipar COMMAND ...`."""

import sys
from importlib import import_module

from . import __version__

# {command: (module, whose main(argv) returns the exit status; what it does)}
COMMANDS = {
    "train": ("train", "train a model: minipar train --help"),
    "bench": ("bench", "time collectives, algorithms side by side: minipar bench --help"),
    "emulate": ("emulate", "run a CUDA kernel without a GPU, and find what is wrong with it"),
    "verify": ("commands.verify", "prove collective programs and pipeline schedules right, or "
               "print a counterexample"),
    "simulate": ("commands.simulate", "what pipeline schedules would cost, side by side"),
    "draw": ("commands.draw", "draw a collective or pipeline schedules: in the terminal, as SVG "
             "or PNG, as a page"),
    "explain": ("commands.explain", "which algorithm serves, why, and what each one costs"),
    "tune": ("commands.tune", "measure this machine: a selection table, or the model's prices"),
    "report": ("commands.reports.command", "run the main job several times: scaling, methods, "
               "layouts"),
    "doctor": ("doctor", "what this machine has, and what is missing"),
    "version": ("cli", "print the version"),
}


def usage():
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {words}" for name, (_, words) in COMMANDS.items()]
    return "\n".join(["usage: minipar COMMAND [options]", "", "commands:", *lines])


def main(argv=None):
    """Run a command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] in ("version", "--version"):
        print(__version__)
        return 0
    if argv[0] not in COMMANDS:
        print(f"minipar: error: no command {argv[0]!r}: there are {', '.join(COMMANDS)}",
              file=sys.stderr)
        return 2
    return import_module(f".{COMMANDS[argv[0]][0]}", __package__).main(argv[1:])
