"""The main job's options for how a pipeline is cut, and what it does in place of computing."""

import argparse

# What makes no sense where nothing is trained.
_TRAINS = ("checkpoint", "eval_every", "recompute", "sample", "amp")


def add_pipeline_options(add):
    """Declare them. add: `add_argument` of the job's parser."""
    add("--partition", type=_partition, metavar="HOW", help="blocks of the model on each stage: "
        "3,2,1; or balanced by their parameters (default: parameters), or by measured time "
        "(measured)")
    add("--stage-speeds", type=speeds, metavar="1,0.5,...", help="how fast each stage's device "
        "is, for a balanced partition")
    add("--virtual-compute", type=_milliseconds, metavar="F,B,W[,COMM]", help="stages sleep "
        "instead of computing: milliseconds of a forward, an input gradient and a weight gradient "
        "of a whole rank (1:2:1 for unequal stages); messages are real; --metrics gets the "
        "measured bubble_rate, and the predicted one, for messages that take COMM")


def _partition(text):
    if text in ("parameters", "measured"):
        return text
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is neither parameters, measured, nor numbers "
                                         f"of blocks from 1, as 3,2,1")
    return [int(part) for part in parts]


def speeds(text):
    """The numbers > 0 in "1,0.5"; for argparse."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if not all(0 < speed < float("inf") for speed in found):
        raise argparse.ArgumentTypeError(f"{text!r} is not speeds > 0, as 1,0.5")
    return found


def _milliseconds(text):
    from .commands.schedule_options import times  # which knows the errors of the options
    return times(text)


def check_pipeline_options(o):
    """Complete them, given `o.pipeline`, a Schedule or None. Raises ValueError, in one line.

    `o.predicted` becomes the simulated bubble rate of virtual compute, whose times become seconds.
    """
    for option in ("schedule", "chunks", "partition", "stage_speeds", "virtual_compute"):
        if o.pp == 1 and getattr(o, option):
            raise ValueError(f"--{option.replace('_', '-')} is of a pipeline: give --pp")
    if o.recompute and o.pipeline is None:
        raise ValueError("--recompute is of a model that is cut: give --pp or --tp")
    o.partition = o.partition or "parameters"
    if o.stage_speeds and isinstance(o.partition, list):
        raise ValueError("--stage-speeds balances; --partition "
                         f"{','.join(map(str, o.partition))} leaves nothing to balance")
    if o.virtual_compute:
        if o.tp > 1:
            raise ValueError("--virtual-compute is of whole layers: not with --tp")
        for option in _TRAINS:
            if getattr(o, option):
                raise ValueError(f"--virtual-compute trains nothing: not with "
                                 f"--{option.replace('_', '-')}")
        from .sim.schedule import simulate
        try:
            o.predicted = simulate(o.pipeline, o.virtual_compute).bubble_rate
        except ValueError as error:
            raise ValueError(f"argument --virtual-compute: {error}") from None
        o.virtual_compute = o.virtual_compute.scaled(1e-3)
