"""What a training job tells: a metrics file for programs, lines or a bar for people."""

import json
import os
import sys
import time


class Report:
    """Rank 0 writes; on the other ranks every method does nothing.

    metrics: path of a file that gets one JSON object a line, flushed as they come; or None.
    resumed: the steps that were done before: what the file says of them stays, and what it says
             of later ones, which are done again, goes.
    """

    def __init__(self, rank, total_steps, metrics=None, quiet=False, resumed=0):
        self._active = rank == 0
        self._file = None
        if metrics and self._active:
            if resumed:
                _forget_after(metrics, resumed)
            self._file = open(metrics, "a" if resumed else "w", encoding="utf-8")
        self._talks = self._active and not quiet
        self._total, self._bar, self._last = total_steps, None, time.perf_counter()
        if self._talks and sys.stdout.isatty():
            from tqdm import tqdm  # a bar that knows every terminal is not ours to write
            self._bar = tqdm(total=total_steps, initial=resumed, unit="step", file=sys.stdout)

    def write(self, event, **values):
        """Add an object to the metrics file. Values of None are left out."""
        if self._file is not None:
            values = {k: v for k, v in values.items() if v is not None}
            self._file.write(json.dumps({"event": event, **values}) + "\n")
            self._file.flush()

    def say(self, text):
        """Print a line."""
        if self._talks:
            print(text, flush=True) if self._bar is None else self._bar.write(text)

    def step(self, step, epoch, loss, samples_per_s):
        """Show progress: the bar, or a line every second and at the end. loss: a number, or None.
        """
        parts = [f"epoch {epoch}", *([] if loss is None else [f"loss {loss:.4f}"])]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts), refresh=False)
            self._bar.update()
        elif self._talks and (step == self._total or time.perf_counter() - self._last > 1.0):
            self._last = time.perf_counter()
            self.say("  ".join([f"step {step}/{self._total}", *parts,
                                f"{samples_per_s:,.0f} samples/s"]))

    def close(self):
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._file is not None:
            self._file.close()
            self._file = None


def _forget_after(path, step):
    """Remove from a metrics file what is later than `step`, and what is not a whole line."""
    def early(line):
        try:
            event = json.loads(line)
            return event["event"] != "end" and event["step"] <= step
        except (ValueError, KeyError, TypeError):
            return False  # cut off in the middle by the crash
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            kept = [line for line in file if early(line)]
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.writelines(kept)
        os.replace(f"{path}.new", path)
