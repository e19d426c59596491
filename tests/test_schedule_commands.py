"""`minipar simulate schedule` and `minipar verify` of schedules: output, exit status, refusals."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minipar.cli import main
from minipar.commands.schedules import schedule_of
from minipar.options import UsageError
from minipar.parallel.schedule import SCHEDULES

ROOT = Path(__file__).parent.parent
MINE = """
from minipar.parallel.schedule import B, F, schedule

@schedule("one-ahead")
def one_ahead(rank, ranks, microbatches):
    '''Every rank is as many forwards ahead as the first one of 1F1B.'''
    ahead = min(ranks - 1, microbatches)
    yield from (F(rank, m) for m in range(ahead))
    for m in range(microbatches):
        if ahead + m < microbatches:
            yield F(rank, ahead + m)
        yield B(rank, m)
"""


def run(capsys, *argv):
    """(exit status, standard output, standard error) of a command."""
    status = main(list(map(str, argv)))
    out, err = capsys.readouterr()
    return status, out, err


def file(folder, text, name="mine.py"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def simulated(capsys, *argv):
    status, out, err = run(capsys, "simulate", "schedule", *argv, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


def test_json_has_the_published_rate_and_the_peaks(capsys):
    found = simulated(capsys, "--schedule", "zb-h1", "--stages", 8, "--microbatches", 24,
                      "--times", "18.522,18.086,9.337,0.601")
    assert round(found["bubble_rate"], 4) == .1585 and found["peak_activations"] == [8] * 8
    assert round(found["makespan"], 3) == 1310.405


def test_options_go_to_the_schedules_that_take_them(capsys):
    found = simulated(capsys, "--schedule", "1f1b,interleaved,auto", "--stages", 2,
                      "--microbatches", 4, "--chunks", 3, "--memory-limit", 2)
    assert [f["schedule"] for f in found] == ["1f1b", "interleaved", "auto"]
    assert [f["stages"] for f in found] == [2, 6, 2]
    assert found[2]["peak_activations"] == [2, 2]


def test_schedules_stand_side_by_side_files_of_the_user_too(tmp_path, capsys):
    table = file(tmp_path, str(SCHEDULES["gpipe"](2, 4)), "my.csv")
    own = f"{file(tmp_path, MINE)}:one-ahead"
    status, out, _ = run(capsys, "simulate", "schedule", "--schedule", f"gpipe,{table},{own}",
                         "--stages", 2, "--microbatches", 4)
    head, first, second, third = out.splitlines()
    assert status == 0 and head.split() == [
        "schedule", "ranks", "micro-batches", "bubble", "cost", "makespan", "kept", "by", "a",
        "rank"]
    assert first.split() == ["gpipe", "2", "4", "0.2000", "15", "15", "4"]
    assert second.split()[1:] == first.split()[1:]
    assert third.split()[1:] == ["2", "4", "0.4286", "21", "21", "2"]


def test_unequal_stages_are_given_one_by_one(capsys):
    found = simulated(capsys, "--schedule", "1f1b", "--stages", 2, "--microbatches", 2, "--times",
                      "1:3,1:3,1:3,0")
    assert found["makespan"] == 21


@pytest.mark.parametrize("argv, words", [
    ([], "the following arguments are required: what, --schedule"),
    (["schedule", "--schedule", "zbh1"], "zbh1 is for any number of stages: give --stages"),
    (["schedule", "--schedule", "zbh1", "--stages", 2, "--microbatches", 4],
     "no schedule 'zbh1': did you mean zb-h1"),
    (["schedule", "--schedule", "1f1b", "--stages", 2], "for any number of microbatches: give --m"),
    (["schedule", "--schedule", "1f1b", "--stages", 0], "'0' is not a number from 1"),
    (["schedule", "--schedule", "interleaved", "--stages", 4, "--microbatches", 9],
     "9 micro-batches are no multiple of 4 ranks"),
    (["schedule", "--schedule", "zb-v", "--stages", 4, "--microbatches", 9, "--chunks", 3],
     "zb-v has 2 chunks a rank, not 3"),
    (["schedule", "--schedule", "1f1b", "--stages", 4, "--microbatches", 9, "--memory-limit", 3],
     "1f1b takes no memory limit"),
    (["schedule", "--schedule", "1f1b", "--stages", 2, "--microbatches", 2, "--times", "1,2"],
     "'1,2' is not F,B,W or F,B,W,COMM"),
    (["schedule", "--schedule", "1f1b", "--stages", 2, "--microbatches", 2, "--times", "1,2,-1"],
     "'1,2,-1' is not F,B,W or F,B,W,COMM"),
    (["schedule", "--schedule", "1f1b", "--stages", 2, "--microbatches", 2, "--times",
      "1:2:3,1,1"], "3 times F for 2 stages"),
    (["schedule", "--schedule", "1f1b", "--stages", 2, "--microbatches", 2, "--kept", "2"],
     "'2' is not a number from 0 to 1"),
    (["schedule", "--schedule", "nowhere.csv"], "no file nowhere.csv"),
    (["schedule", "--schedule", "nowhere.py:f", "--stages", 2, "--microbatches", 2],
     "no file nowhere.py"),
    (["collective", "--schedule", "1f1b"], "invalid choice: 'collective'"),
])
def test_what_cannot_be_simulated_is_one_line_and_status_2(capsys, argv, words):
    status, out, err = run(capsys, "simulate", *argv)
    assert status == 2 and out == "" and words in err
    assert err.startswith("minipar: error: ") and err.count("\n") == 1


def test_a_right_csv_is_right_and_a_wrong_one_shows_its_grid(tmp_path, capsys):
    text = str(SCHEDULES["zb-h1"](3, 4))
    path = file(tmp_path, text, "my.csv")
    status, out, err = run(capsys, "verify", path)
    assert (status, err) == (0, "") and out.startswith(f"right  schedule {path}")
    assert "3 ranks, 3 stages, 4 micro-batches: bubble 0.1429 if F = B = W, a rank keeps" in out
    file(tmp_path, text.replace("1I2,", ""), "my.csv")
    status, out, err = run(capsys, "verify", path)
    assert (status, err) == (1, "") and out.startswith(f"WRONG  schedule {path}\nmy.csv, 3 ranks")
    assert "rank 1: stage 1 has no I, only a W of micro-batch 2" in out and "[1W2]" in out


@pytest.mark.parametrize("text, words", [
    ("0F0,0X0,0B0\n1F0,1B0", """my.csv: line 1, cell 2: no action '0X0': an action is like 0F2, a \
stage, one of F, B, I, W, and a micro-batch

  action  0     1     2
  rank 0  0F0  [0X0]  0B0
  rank 1  1F0   1B0
"""),
    ("0F0,0B0\n,1F0,,0F1\n", """my.csv: line 2, cell 4: 0F1: stage 0 is on rank 0 already

  action  0     1
  rank 0  0F0   0B0
  rank 1  1F0  [0F1]
"""),
    ("0F0,0B0\n2F0,2B0", "my.csv: stages go from 0 to 2, but stage 1 has no action\n"),
    ("", "my.csv: a schedule has at least one action\n"),
])
@pytest.mark.parametrize("command", ["verify", "draw", "simulate schedule --schedule"])
def test_a_csv_that_is_no_schedule_is_status_2_and_shows_its_cells(tmp_path, capsys, monkeypatch,
                                                                   command, text, words):
    file(tmp_path, text, "my.csv")
    monkeypatch.chdir(tmp_path)
    assert run(capsys, *command.split(), "my.csv") == (2, "", f"minipar: error: {words}")


def test_a_csv_with_a_byte_order_mark_and_empty_cells_is_read(tmp_path, capsys):
    path = file(tmp_path, "\ufeff0F0, ,0B0\n,1F0,1B0,\n", "with space \u00e9.csv")
    assert run(capsys, "verify", path)[0] == 0


@pytest.mark.parametrize("text, words", [
    ("", "a schedule has at least one action"), (b"\xff\xfe\x00", "cannot be read")])
def test_a_csv_that_cannot_be_read_is_one_line_and_status_2(tmp_path, capsys, text, words):
    path = tmp_path / "my.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    status, out, err = run(capsys, "verify", path)
    assert status == 2 and out == "" and words in err and err.count("\n") == 1


def test_schedules_of_a_file_are_proved_for_many_numbers(tmp_path, capsys):
    status, out, _ = run(capsys, "verify", file(tmp_path, MINE))
    assert status == 0
    assert out.startswith("right  schedule one-ahead") and "ranks 1-9,16-17; on 17, of 34" in out
    assert "a rank keeps at most 17" in out


@pytest.mark.parametrize("old, new, words", [
    ("m in range(ahead)", "m in range(1, ahead)", "has no forward of micro-batch 0"),
    ("yield B(rank, m)", "yield B(rank + 1, m)", "there is no stage 1: stages are 0 to 0"),
    ("yield B(rank, m)", "yield B(rank, m // 0)", "ZeroDivisionError"),
    ("ranks - 1, m", "rank, m", "deadlock, even if sends never wait"),
    ("yield B(rank, m)", "yield m", "TypeError: one-ahead: rank 0 yields 0, which is no Action"),
])
def test_a_wrong_schedule_of_a_file_shows_where_and_status_1(tmp_path, capsys, old, new, words):
    assert old in MINE
    status, out, err = run(capsys, "verify", file(tmp_path, MINE.replace(old, new)))
    assert (status, err) == (1, "") and out.startswith("WRONG  schedule one-ahead\n")
    assert words in out


def test_a_schedule_of_a_file_takes_no_other_ones_place(tmp_path, capsys):
    path = file(tmp_path, MINE.replace("one-ahead", "gpipe"))
    assert simulated(capsys, "--schedule", f"gpipe,{path}:gpipe,gpipe", "--stages", 2,
                     "--microbatches", 4)[2]["peak_activations"] == [4, 4]
    assert run(capsys, "verify", path, "--all", "--ranks", "2")[1].count("schedule gpipe") == 2


def test_schedule_of_proves_what_comes_from_a_file(tmp_path):
    path = file(tmp_path, MINE)
    assert schedule_of(f"{path}:one-ahead", 2, 4).microbatches == 4
    table = file(tmp_path, "0F0,0B0\n1B0,1F0", "my.csv")
    with pytest.raises(UsageError) as caught:
        schedule_of(str(table), 2, 1)
    assert "1B0 comes before 1F0" in str(caught.value) and "[1B0]" in str(caught.value)


@pytest.mark.parametrize("asked, words", [
    (dict(ranks=4), "my.csv has 2 ranks, not 4"),
    (dict(microbatches=8), "my.csv has 3 micro-batches, not 8"),
    (dict(chunks=2), "my.csv has 1 stage a rank, not 2")])
def test_a_csv_is_for_its_own_numbers(tmp_path, asked, words):
    path = file(tmp_path, str(SCHEDULES["1f1b"](2, 3)), "my.csv")
    with pytest.raises(UsageError, match=words):
        schedule_of(str(path), **asked)


@pytest.mark.parametrize("text, name, words", [
    (MINE, "two-ahead", "no schedule 'two-ahead' in .*: there are one-ahead"),
    ("x = 1", "f", "no schedule 'f' in .*: there are none: decorate a generator with @schedule"),
    ("import nothing_of_this_name", "f", "cannot be run: ModuleNotFoundError"),
    (MINE.replace("min(", "mni("), "one-ahead", "NameError: name 'mni' is not defined")])
def test_a_file_without_the_schedule_is_refused(tmp_path, text, name, words):
    path = file(tmp_path, text)
    with pytest.raises(UsageError, match=words):
        schedule_of(f"{path}:{name}", 2, 4)


def test_both_are_commands_of_minipar():
    done = subprocess.run([sys.executable, "-m", "minipar", "simulate", "schedule", "--schedule",
                           "gpipe", "--stages", "2", "--microbatches", "2"], cwd=ROOT,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "0.3333" in done.stdout, done
    shown = subprocess.run([sys.executable, "-m", "minipar", "--help"], cwd=ROOT,
                           capture_output=True, text=True, timeout=60).stdout
    assert "simulate" in shown


def test_the_page_about_schedules_shows_what_its_commands_print(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    file(tmp_path, next(b for b in blocks if b.startswith("# eager.py\n")), "eager.py")
    wrong = next(b for b in blocks if b.startswith('WRONG = """'))
    file(tmp_path, wrong.split('"""')[1].removeprefix("\\\n"), "wrong.csv")
    monkeypatch.chdir(tmp_path)
    shown = re.findall(r"```\n\$ python -m minipar (.*?)\n(.*?)```", text, re.S)
    assert len(shown) == 6
    for command, output in shown:
        assert run(capsys, *command.split()) == ("WRONG" in output, output, ""), command
