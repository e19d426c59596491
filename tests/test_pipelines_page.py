"""The page about training in a pipeline: its commands are run, in its order."""

import re

import pytest
from launch import ROOT, python

TEXT = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command of the page in a folder with its file; returns what it printed."""
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    own = next(b for b in blocks if b.startswith("# waves.py\n"))
    assert len([line for line in own.splitlines() if line.strip()]) <= 10  # as the page says
    (tmp_path / "waves.py").write_text(own, encoding="utf-8")

    def command(line):
        # The launched program runs in the repository's folder: files by their whole path.
        line = re.sub(r"waves\.py|\w+\.(svg|json)", lambda name: str(tmp_path / name[0]), line)
        done = python(*line.split()[1:])
        assert (done.returncode, done.stderr) == (0, ""), line
        return done.stdout.replace(f"{tmp_path}/", "")
    return command


def test_the_commands_print_what_the_page_shows(run):
    shown = re.findall(r"```\n\$ (python -m minipar [^\n]*)\n((?!```).+?)```", TEXT, re.S)
    assert len(shown) == 3
    for line, output in shown:
        assert squeezed(run(line)) == squeezed(output), line


def squeezed(text):
    """Without the width of columns, which comes from the longest path in them."""
    return re.sub(r"  +", "  ", text)


def test_every_training_of_the_page_ends_with_the_same_loss(run):
    lines = re.findall(r"^\$ (python -m minipar\.train (?:(?!--trace).)*)$", TEXT, re.M)
    assert len(lines) == 4
    ends = [run(line).splitlines()[-1] for line in lines]
    found = {re.match(r"test accuracy \S+, loss (\S+),", end)[1] for end in ends[:3]}
    assert len({loss[:5] for loss in found}) == 1, ends
    assert re.match(r"\S+: bubble 0\.\d+, predicted 0\.3333, 3 steps", ends[3])


def test_the_picture_of_the_page_is_what_its_command_draws(run, tmp_path):
    line, = re.findall(r"^\$ (python -m minipar draw .* --output schedules.svg)$", TEXT, re.M)
    run(line)
    there = (ROOT / "docs" / "pictures" / "schedules.svg").read_text(encoding="utf-8")
    assert (tmp_path / "schedules.svg").read_text(encoding="utf-8") == there


def test_a_recorded_run_is_drawn_below_its_prediction(run, tmp_path):
    for line in re.findall(r"^\$ (python .* run\.json.*)$", TEXT, re.M):
        run(line)
    found = (tmp_path / "both.svg").read_text(encoding="utf-8")
    assert "waves: bubble 33.3 %" in found and "waves, recorded: bubble " in found
