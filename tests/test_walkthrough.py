"""docs/a-new-algorithm.md: its commands are run as they stand, in a folder outside the package."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from launch import ROOT, SETTINGS, launcher

PAGE = (ROOT / "docs" / "a-new-algorithm.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.S)
         for line in block.splitlines()]
STEPS = []  # [command, the lines of output that the page shows]
for line in LINES:
    if line.startswith("$ "):
        STEPS.append([line[2:], []])
    else:
        STEPS[-1][1].append(line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page's first block stands as two_rings.py."""
    folder = tmp_path_factory.mktemp("of a user")
    block = re.search(r"```python\n(.*?)```", PAGE, re.S)[1]
    assert len(block.strip().splitlines()) - block.count("\n\n") <= 10
    (folder / "two_rings.py").write_text(block, encoding="utf-8")
    return folder


@pytest.mark.parametrize("command, shown", STEPS, ids=[command for command, _ in STEPS])
def test_a_command_of_the_page_does_what_the_page_says(command, shown, folder):
    line = command.replace("minipar ", f'"{sys.executable}" -m minipar ', 1)
    if command.startswith("mpirun"):
        line = line.replace("mpirun", f'"{launcher()}"', 1)
    environment = {**os.environ, **SETTINGS, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, shell=True, cwd=folder, env=environment, text=True,
                          capture_output=True, timeout=60)
    assert done.returncode == (1 if "wrong.py --" in command else 0), done.stderr
    if shown:
        told = done.stdout.replace(str(Path(folder).resolve()) + os.sep, "")
        assert told.strip().splitlines() == shown
    for word in re.findall(r"--output (\S+)|--metrics (\S+)", command):
        assert (folder / "".join(word)).stat().st_size


def test_all_that_one_does_with_an_algorithm_is_on_the_page():
    for word in ("verify", "draw", "explain", "bench", "train"):
        assert any(f"minipar {word} " in command for command, _ in STEPS)
