"""`minipar COMMAND ...`, the same as `python -m minipar COMMAND ...`."""

import sys

_USAGE = """usage: minipar COMMAND [options]

commands:
  train    train a model: minipar train --help
  version  print the version"""


def main(argv=None):
    """Run a command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    if argv[0] == "train":
        from .train import main as train
        return train(argv[1:])
    if argv[0] == "version":
        from . import __version__
        print(__version__)
        return 0
    print(f"minipar: error: no command {argv[0]!r}: there are train, version", file=sys.stderr)
    return 2
