"""Runs of the main job, each a process of its own, and what their metrics say."""

import json
import os
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# One thread a rank, also where there is one rank: what more ranks gain is not to be what threads
# lose.
ONE_THREAD = dict.fromkeys(("MINIPAR_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS",
                            "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")
FIRST = 0.1  # the part of the steps that is not timed: caches and buckets settle in it


@dataclass(frozen=True)
class Run:
    """The events of a metrics file. error: why the run failed, in a line; None if it did not."""

    steps: tuple = ()
    evals: tuple = ()
    end: dict | None = None
    error: str | None = None

    def settled(self):
        """The steps that are timed: without the first tenth, and at least one of several."""
        skipped = max(1, int(FIRST * len(self.steps))) if len(self.steps) > 1 else 0
        return self.steps[skipped:]

    def median(self, key):
        """The median of a value of the settled steps; None if no step has it."""
        found = [step[key] for step in self.settled() if key in step]
        return statistics.median(found) if found else None

    def mean(self, key):
        """The mean of a value over all steps; None if no step has it."""
        found = [step[key] for step in self.steps if key in step]
        return statistics.fmean(found) if found else None

    def communication(self):
        """The median share of a step in which rank 0 waited for messages."""
        return statistics.median(step["comm_s"] / seconds(step) for step in self.settled())

    def curve(self):
        """A dict for each evaluation: step, samples seen by then, bytes that a rank has sent on
        average (None where nobody can tell), seconds of training, loss and accuracy."""
        found, samples, spent, steps = [], 0, 0.0, iter(self.steps)
        for event in self.evals:
            for step in steps:
                samples += round(step["samples_per_s"] * seconds(step))
                spent += seconds(step)
                if step["step"] == event["step"]:
                    break
            sent = event.get("bytes_sent")
            found.append({"step": event["step"], "samples": samples, "seconds": spent,
                          "bytes": None if sent is None else sent / self.end["world_size"],
                          "loss": event["loss"], "accuracy": event["accuracy"]})
        return found


def seconds(step):
    """What a step took."""
    return step["compute_s"] + step["comm_s"]


def read(path):
    """The Run that a metrics file tells of."""
    events = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    kinds = {kind: tuple(e for e in events if e["event"] == kind)
             for kind in ("step", "eval", "end")}
    return Run(kinds["step"], kinds["eval"], *kinds["end"])


def train(options, ranks, launcher, path):
    """Run the main job on so many ranks, its metrics going to `path`; returns a Run."""
    command = [sys.executable, "-m", "minipar.train", *options, "--ranks", str(ranks),
               "--launcher", launcher, "--metrics", str(path), "--quiet"]
    status, said = _run(command)
    return Run(error=_reason(status, said)) if status else read(path)


def _run(command):
    """(exit status, what it wrote on stderr). A report that is told to end ends the job, too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        with subprocess.Popen(command, env={**os.environ, **ONE_THREAD}, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              text=True) as process:
            try:
                said = process.communicate()[1]
            except KeyboardInterrupt:
                process.terminate()  # which a launcher passes on to its ranks
                raise
        return process.returncode, said
    finally:
        signal.signal(signal.SIGTERM, before)


def _reason(status, said):
    """Why a job failed: the line in which it says so, else its last one."""
    lines = [line for line in said.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("minipar: error: ")]
    line = (told or lines or [f"exit status {status}"])[-1]
    return line.removeprefix("minipar: error: ")
