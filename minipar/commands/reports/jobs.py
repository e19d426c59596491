"""The options of the main job that stand behind a report's --."""

from ... import data, dtypes
from ...options import DEFAULTS, UsageError, parser

# What a report says itself, or what several runs could not share.
OWN = ("--ranks", "--launcher", "--metrics", "--quiet", "--checkpoint", "--resume", "--trace",
       "--virtual-compute", "--gradient-stats")
EVALUATIONS = 12  # of a run, if nobody says how many


def job_options(job, own):
    """The parsed options of the main job, those that are left out completed.

    own: options that this report says itself.
    """
    for word in job:
        if (option := word.partition("=")[0]) in (*OWN, *own):
            raise UsageError(f"{option} is the report's to say, not an option behind --")
    if {"-h", "--help"} & set(job):
        raise UsageError("python -m minipar.train --help tells the options behind --")
    o = parser().parse_args(job)
    name, batch, epochs, _ = DEFAULTS[o.model]
    o.data, o.batch_size = o.data or name, o.batch_size or batch
    o.epochs = o.epochs or (None if o.steps else epochs)
    return o


def evaluations(o):
    """The option that has a job evaluate now and then, if the user has not said when."""
    job = o.job_options
    if job.eval_every:
        return []
    try:
        steps = job.steps or job.epochs * -(-len(data.load(
            job.data, block_size=job.block_size, dtype=dtypes.dtype(job.dtype),
            image_size=job.image_size).train) // job.batch_size)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from None
    return ["--eval-every", str(max(1, steps // EVALUATIONS))]
