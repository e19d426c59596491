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


@pytest.fixture
def folder(tmp_path):
    """Where the page's first block stands as two_rings.py."""
    folder = tmp_path / "of a user"
    folder.mkdir()
    block = re.search(r"```python\n(.*?)```", PAGE, re.S)[1]
    assert len(block.strip().splitlines()) - block.count("\n\n") <= 10
    (folder / "two_rings.py").write_text(block, encoding="utf-8")
    return folder


def test_the_commands_of_the_page_do_one_after_the_other_what_the_page_says(folder):
    environment = {**os.environ, **SETTINGS, "PYTHONPATH": str(ROOT)}
    for command, shown in STEPS:
        line = command.replace("minipar ", f'"{sys.executable}" -m minipar ', 1)
        if command.startswith("mpirun"):
            line = line.replace("mpirun", f'"{launcher()}"', 1)
        done = subprocess.run(line, shell=True, cwd=folder, env=environment, text=True,
                              capture_output=True, timeout=60)
        assert done.returncode == (1 if "wrong.py --" in command else 0), (command, done.stderr)
        if shown:
            told = done.stdout.replace(str(Path(folder).resolve()) + os.sep, "")
            assert told.strip().splitlines() == shown, command
        for word in re.findall(r"--output (\S+)|--metrics (\S+)", command):
            assert (folder / "".join(word)).stat().st_size, command


def test_all_that_one_does_with_an_algorithm_is_on_the_page():
    for word in ("verify", "draw", "explain", "bench", "train"):
        assert any(f"minipar {word} " in command for command, _ in STEPS)
