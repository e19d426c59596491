"""`minipar draw`: what it prints and writes, its exit status, and what it refuses."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from minipar.cli import main

ROOT = Path(__file__).parent.parent

OWN = """
from minipar.comm import collective, recv, recv_reduce, send

@collective("all_reduce", ranks="even")
def swap_halves(rank, size, x):
    '''Nobody & Somebody 2020. Two rounds between neighbours.'''
    half, peer = x.split(2), rank ^ 1
    yield send(half[1 - rank % 2], peer), recv_reduce(half[rank % 2], peer)
    yield send(half[rank % 2], peer), recv(half[1 - rank % 2], peer)

@collective("broadcast")
def divides(rank, size, x):
    yield 1 // (size - 2)
"""


def run(capsys, *argv):
    """(exit status, standard output, standard error) of `minipar draw ...`."""
    status = main(["draw", *map(str, argv)])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_name_is_drawn_in_the_terminal(capsys):
    status, out, err = run(capsys, "ring", "-n", 6)
    assert (status, err) == (0, "")
    assert out.startswith("all_reduce ring (Patarasuk & Yuan 2009) on 6 ranks\n")
    assert "10 rounds, 60 messages" in out and out.count("\n\n") >= 2


def test_kinds_roots_topologies_and_elements_are_those_that_are_asked_for(capsys):
    assert run(capsys, "ring", "--kind", "all_gather")[1].startswith("all_gather ring")
    out = run(capsys, "binomial", "--kind", "gather", "--root", 2, "--elements", 40)[1]
    assert "on 4 ranks, root 2" in out and "n = 40 elements" in out
    assert "topology 4 x 2" in run(capsys, "hierarchical", "-n", 8)[1]
    assert "topology 2 x 4" in run(capsys, "hierarchical", "-n", 8, "--topology", "2x4")[1]


def test_the_view_of_chunks_ends_with_everything_everywhere(capsys):
    status, out, _ = run(capsys, "rabenseifner", "-n", 4, "--view", "chunks", "--width", 60)
    assert status == 0 and "rank 3    4  4  4  4" in out and max(map(len, out.split("\n"))) <= 60


@pytest.mark.parametrize("ending, start", [
    (".svg", "<?xml"), (".html", "<!DOCTYPE html>"), (".txt", "all_reduce ring")])
def test_the_ending_of_the_output_is_its_format(capsys, tmp_path, ending, start):
    path = tmp_path / f"a b \u00e9{ending}"
    assert run(capsys, "ring", "-n", 3, "--output", path) == (0, "", "")
    assert path.read_text(encoding="utf-8").startswith(start)


def test_a_file_of_the_users_is_drawn_with_its_paper(capsys, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN, encoding="utf-8")
    status, out, _ = run(capsys, f"{path}:swap_halves", "-n", 2)
    assert status == 0 and out.startswith("all_reduce swap_halves (Nobody & Somebody 2020) on 2")
    for argv, words in (([path], "has swap_halves, divides: say which with"),
                        ([f"{path}:swap_half"], "did you mean swap_halves?"),
                        ([f"{path}:swap_halves", "-n", "3"], "serves an even number of ranks, not"),
                        ([f"{path}:divides", "-n", "2"], "divides fails: ZeroDivisionError"),
                        ([tmp_path / "no.py"], "no file")):
        status, out, err = run(capsys, *argv)
        assert (status, out, err.count("\n")) == (2, "", 1) and words in err, err


@pytest.mark.parametrize("argv, words", [
    (["rign"], "no program 'rign' in minipar: did you mean ring?"),
    (["zzz"], "no program 'zzz' in minipar: there are"),
    (["ring", "--kind", "all_reduced"], "no kind 'all_reduced': there are"),
    (["swing", "--kind", "broadcast"], "no program 'swing' of kind broadcast"),
    (["binomial"], "binomial is a program of broadcast, reduce, gather, scatter: say which"),
    (["swing", "-n", "3"], "swing serves 2^k ranks, not 3"),
    (["ring", "-n", "0"], "'0' is no whole number from 1 on"), (["ring", "-n", "x"], "'x'"),
    (["ring", "--root", "1"], "--root: all_reduce has no root"),
    (["chain", "--root", "4"], "--root 4: there are ranks 0 to 3"),
    (["ring", "--topology", "2x2"], "--topology: ring wants none"),
    (["hierarchical", "-n", "6", "--topology", "2x2"], "topology 2 x 2 = 4 != 6 ranks"),
    (["bruck", "--kind", "all_to_all", "--elements", "7"], "7 elements do not divide into 4"),
    (["ring", "-n", "3000"], "a picture shows at most 20,000"),
    (["ring", "--output", "ring.gif"], ".gif is no format of pictures: there are .svg"),
    (["ring", "--output", "ring"], "a name without ending is no format"),
    (["ring", "--output", "/nowhere/at/all.svg"], "/nowhere/at is no folder"),
    (["ring", "--view", "both"], "invalid choice"), ([], "required: PROGRAM"),
])
def test_what_cannot_be_drawn_is_one_line_and_status_2(capsys, argv, words):
    status, out, err = run(capsys, *argv)
    assert (status, out) == (2, "")
    assert err.startswith("minipar: error: ") and words in err and err.count("\n") == 1, err


def test_an_output_that_cannot_be_written_is_one_line_and_status_2(capsys, tmp_path):
    folder = tmp_path / "folder.svg"
    folder.mkdir()
    status, out, err = run(capsys, "ring", "--output", folder)
    assert (status, out, err.count("\n")) == (2, "", 1) and "or it is one itself" in err


def test_png_without_matplotlib_says_what_to_install(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("minipar.draw.png.find_spec", lambda name: None)
    status, _, err = run(capsys, "ring", "--output", tmp_path / "ring.png")
    assert status == 2 and "pip install 'minipar[viz]'" in err
    assert not (tmp_path / "ring.png").exists()


def test_it_is_a_command_of_minipar_and_imports_no_matplotlib_for_svg(tmp_path):
    code = ("import sys; from minipar.cli import main\n"
            "assert main(['draw', 'ring', '-n', '3', '--output', sys.argv[1]]) == 0\n"
            "assert not {'matplotlib', 'mpi4py.MPI'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "ring.svg")], cwd=ROOT,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done
    assert "draw" in subprocess.run([sys.executable, "-m", "minipar", "--help"], cwd=ROOT,
                                    capture_output=True, text=True, timeout=60).stdout


def commands_of(page):
    """(arguments, what the page shows beneath) of every `minipar draw` in a page's blocks."""
    for block in re.findall(r"```\n(\$ .*?)```", page.read_text(encoding="utf-8"), re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, shown = part.partition("\n")
            assert command.startswith("python -m minipar draw ")
            yield command.split()[4:], shown


def test_the_page_about_drawing_shows_what_its_commands_print(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = list(commands_of(ROOT / "docs" / "drawing.md"))
    assert len(found) > 5
    for argv, shown in found:
        if ".png" in " ".join(argv):
            pytest.importorskip("matplotlib")
        assert run(capsys, *argv) == (0, shown, ""), argv
    written = {argv[argv.index("--output") + 1] for argv, _ in found if "--output" in argv}
    assert {path.name for path in tmp_path.iterdir()} == written


def test_the_pictures_of_the_page_are_there_and_pictures():
    text = (ROOT / "docs" / "drawing.md").read_text(encoding="utf-8")
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert ET.parse(ROOT / "docs" / name).getroot().get("aria-label")
