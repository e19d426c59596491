"""The page for lectures: self-contained, and it says what the task graph says."""

import json
import re
from html.parser import HTMLParser

import pytest

from minipar.comm import algorithms  # noqa: F401  (registers them)
from minipar.comm.program import ALGORITHMS
from minipar.draw import draw
from minipar.draw.flow import Flow

RING = ALGORITHMS["all_reduce"]["ring"]
PROGRAMS = {"ring": RING, "shared": ALGORITHMS["all_reduce"]["shared"],
            "tree": ALGORITHMS["all_reduce"]["double_binary_tree"],
            "barrier": ALGORITHMS["barrier"]["dissemination"]}


class Elements(HTMLParser):
    """All elements of a page as (tag, {attribute: value}); raises AssertionError if tags cross."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page(program, p, tmp_path):
    """(the text of a program's page, the data in it)."""
    path = tmp_path / "page \u00e9.html"
    assert draw(program, p, path=path) is None
    text = path.read_text(encoding="utf-8")
    return text, json.loads(re.search(r"^const data = (.*);$", text, re.M)[1])


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_page_refers_to_nothing_outside_of_it(name, tmp_path):
    text, _ = page(PROGRAMS[name], 4, tmp_path)
    assert set(re.findall(r"\w+://[^\s\"'<]+", text)) == {"http://www.w3.org/2000/svg"}
    for tag, attributes in Elements(text).found:
        assert tag not in ("link", "img", "iframe", "object") and not (
            {"src", "href", "xlink:href", "action"} & set(attributes)), tag
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|@[A-Z]+@", text)
    assert "prefers-color-scheme: dark" in text


def test_everything_that_is_operated_has_a_name_for_who_cannot_see_it(tmp_path):
    elements = Elements(page(RING, 3, tmp_path)[0]).found
    for tag, attributes in elements:
        if tag in ("button", "input", "svg"):
            assert attributes.get("aria-label"), (tag, attributes)
    assert ("html", {"lang": "en"}) in elements
    assert any(attributes.get("aria-live") for _, attributes in elements)
    assert [a["max"] for tag, a in elements if tag == "input"] == ["4"]


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("p", [1, 2, 5])
def test_what_changes_adds_up_to_the_states(name, p, tmp_path):
    flow = Flow(PROGRAMS[name], p)
    _, data = page(PROGRAMS[name], p, tmp_path)
    assert (data["steps"], data["ranks"], data["chunks"]) == (flow.steps, p, len(flow.chunks))
    table = [[0] * len(flow.chunks) for _ in range(p)]
    for changes, state in zip(data["changes"], flow.states(), strict=True):
        for rank, chunk, count, _ in changes:
            table[rank][chunk] = count
        assert table == [[held.total() for held in row] for row in state]


def test_whose_contributions_they_are_is_told(tmp_path):
    _, data = page(RING, 4, tmp_path)
    assert data["changes"][0][:2] == [[0, 0, 1, "rank 0"], [0, 1, 1, "rank 0"]]
    assert {whose for *_, whose in data["changes"][3]} == {"ranks 0-3"}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_move_has_its_lines_and_they_are_in_the_source_text(name, tmp_path):
    _, data = page(PROGRAMS[name], 4, tmp_path)
    shown = {f"{part['file']}:{part['first'] + i}": line for part in data["source"]
             for i, line in enumerate(part["lines"])}
    told = {line for moves in data["moves"] for _, lines in moves for line in lines}
    assert told and told <= set(shown)
    for line in told:
        assert re.search(r"send|recv|put|get|fence|copy|reduce", shown[line]), shown[line]
    assert any(f"def {PROGRAMS[name].function.__name__}(" in line for line in shown.values())


def test_moves_are_told_in_words_and_those_that_reduce_say_so(tmp_path):
    _, data = page(RING, 3, tmp_path)
    assert data["moves"][0][0][0] == "rank 0 sends c0 to rank 1, which adds it"
    assert data["moves"][3][0][0] == "rank 0 sends c0 to rank 1"
    _, data = page(PROGRAMS["shared"], 3, tmp_path)
    assert [words for words, _ in data["moves"][0]] == ["all ranks pass a fence"]
    assert data["moves"][1][0][0] == "rank 2 gets c2 from rank 0's memory, and adds it"


def test_a_source_text_cannot_end_the_script(tmp_path):
    path = tmp_path / "odd.py"
    path.write_text("from minipar.comm import collective, send, recv\n@collective('broadcast')\n"
                    "def odd(rank, size, x, root=0):\n    '''</script><b> & @DATA@'''\n"
                    "    yield send(x, 1) if rank == 0 else recv(x, 0)\n", encoding="utf-8")
    from minipar.commands.programs import programs_of
    text, data = page(programs_of(path)[0], 2, tmp_path)
    assert text.count("</script>") == 1 and "<b>" not in text
    assert "    '''</script><b> & @DATA@'''" in data["source"][0]["lines"]
