"""docs/methods.md: its commands are run as they stand; its table has methods that there are."""

import re

from launch import ROOT, python
from minipar.commands.reports.compare import options_of
from minipar.options import parse

PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page_run_and_write_what_they_say(tmp_path):
    lines = re.findall(r"^\$ minipar (.*)$", PAGE, re.M)
    assert [line.split()[1] for line in lines] == ["scaling", "compare", "strategies"]
    for line in lines:
        words = [str(tmp_path / w) if before == "--output" else w
                 for before, w in zip(["", *line.split()], line.split())]
        done = python("-m", "minipar", *words)
        assert (done.returncode, done.stderr) == (0, ""), line
    assert re.search(r"^Take dp \d x pp \d x tp \d.*: [\d,]+ samples/s, ", done.stdout, re.M)
    written = {path.name for path in tmp_path.glob("*/*.*")}
    assert {"scaling.json", "scaling.csv", "scaling.png", "training.png", "compare.csv",
            "loss-bytes.png", "loss-samples.png", "loss-seconds.png"} <= written


def test_the_table_has_a_row_for_each_method_of_its_command():
    command = re.search(r"report compare (.*?) --ranks 4", PAGE, re.S)[1]
    methods = command.replace("\\\n", " ").split()
    assert re.findall(r"^\| `([^`]+)`", PAGE, re.M) == methods
    for method in methods:
        parse(options_of(method, ["--ranks", "4"]), 1)  # refuses what there is not
