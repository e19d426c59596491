"""The machine, as the doctor's probes ask it; and what they answer."""

import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


class Machine:
    """What the probes may ask."""

    executable, environ = sys.executable, os.environ
    cores, is_root = os.cpu_count() or 1, getattr(os, "geteuid", lambda: -1)() == 0
    patience = 20.0  # seconds for a program to answer

    def which(self, name, folder=None):
        """The path of a program on PATH, or in one folder; None if there is none."""
        return shutil.which(name, path=None if folder is None else str(folder))

    def read(self, path):
        """The text of a small file."""
        return Path(path).read_text(encoding="utf-8", errors="replace")

    def installed(self, distribution):
        """The version of an installed Python distribution; None if it is not installed."""
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            return None

    def run(self, *command):
        """What a program prints. Raises OSError if it fails, or does not end in time."""
        own_group = {"start_new_session": True} if hasattr(os, "killpg") else {}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, errors="replace",
                                   **own_group)
        try:
            output, _ = process.communicate(timeout=self.patience)
        except subprocess.TimeoutExpired:
            if own_group:  # its children too, which hold the pipe open
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.communicate()
            raise OSError(f"{command[0]} did not answer within {self.patience:g} s") from None
        if process.returncode:
            last = (output.strip().splitlines() or ["it printed nothing"])[-1]
            raise OSError(f"{command[0]} ended with status {process.returncode}: {last}")
        return output


@dataclass
class Finding:
    """One fact. value: in words. advice: what to do about it. blocks: the main job cannot run."""
    name: str
    value: str
    advice: str = ""
    blocks: bool = False


def install(extra):
    """The command that installs an extra of setup.py beside this very minipar."""
    root = Path(__file__).resolve().parents[2]
    what = f"-e '{root}[{extra}]'" if (root / "setup.py").exists() else f"'minipar[{extra}]'"
    return f"pip install {what}"


def size(count):
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.4g} {unit}"
        count /= 1024
