"""`minipar draw` of pipeline schedules: simulated, and drawn as they were simulated."""

import xml.etree.ElementTree as ET

import pytest

from minipar.cli import main
from minipar.commands.draw_schedule import timeline
from minipar.parallel.schedule import SCHEDULES, Times
from minipar.sim.schedule import simulate


def run(capsys, *argv):
    """(exit status, standard output, standard error) of `minipar draw ...`."""
    status = main(["draw", *map(str, argv)])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_schedule_is_drawn_in_the_terminal_with_its_bubble(capsys):
    assert run(capsys, "gpipe", "--stages", 2, "--microbatches", 2, "--width", 40) == (0, """\
gpipe: bubble 33.3 %
rank 0  F0 F1 .........B0--- B1---
rank 1  ...F0 F1 B0--- B1--- ......

        0              5

F forward, B backward, . nothing
""", "")


def test_several_stand_below_each_other_and_files_among_them(tmp_path, capsys):
    table, picture = tmp_path / "my.csv", tmp_path / "both.svg"
    table.write_text(str(SCHEDULES["zb-h1"](3, 4)))
    assert run(capsys, f"1f1b,{table}", "--stages", 3, "--microbatches", 4, "--times",
               "2,2,1,0.5", "--output", picture) == (0, "", "")
    label = ET.parse(picture).getroot().get("aria-label")
    assert "1f1b: bubble" in label and "my.csv: bubble" in label


def test_spans_are_those_of_the_simulation_and_chunks_are_counted_on_each_rank():
    made = SCHEDULES["zb-v"](2, 3)
    line = timeline("zb-v", made, simulate(made, Times(2, 2, 2)))
    assert len(line.spans) == 2 * 2 * 3 * 3 and line.names == ("rank 0", "rank 1")
    assert {(s.row, s.chunk) for s in line.spans} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    first = [s for s in line.spans if s.row == 0][3]
    assert (first.kind, first.microbatch, first.chunk, first.start) == ("F", 0, 1, 3.0)


@pytest.mark.parametrize("argv, words", [
    (["zb-h1"], "zb-h1 is for any number of stages: give --stages"),
    (["zbh1", "--stages", 2, "--microbatches", 2], "no schedule 'zbh1': did you mean zb-h1"),
    (["nowhere.csv"], "no file nowhere.csv"),
    (["gpipe", "--stages", 2, "--microbatches", 2, "--output", "x.foo"], ".foo is no format"),
    (["gpipe", "--stages", 2, "--microbatches", 2, "--view", "chunks"], "unrecognized arguments")])
def test_what_cannot_be_drawn_is_one_line_and_status_2(capsys, argv, words):
    status, out, err = run(capsys, *argv)
    assert status == 2 and out == "" and words in err and err.count("\n") == 1
