"""The grid of pipeline schedules, on timelines made by hand."""

import xml.etree.ElementTree as ET

import pytest

from minipar.draw import Span, Timeline, draw_schedule
from minipar.draw.colours import action_roles
from minipar.draw.grid import schedule_scene

SVG = "{http://www.w3.org/2000/svg}"

# GPipe with 2 stages and 2 micro-batches, B twice as long as F: 6 of 18 are bubbles.
GPIPE = [Span(0, 0, 1, "F", 0), Span(0, 1, 2, "F", 1), Span(1, 1, 2, "F", 0), Span(1, 2, 3, "F", 1),
         Span(1, 3, 5, "B", 0), Span(1, 5, 7, "B", 1), Span(0, 5, 7, "B", 0), Span(0, 7, 9, "B", 1)]

GPIPE_TEXT = """\
gpipe: bubble 33.3 %
stage 0  F0 F1 .........B0--- B1---
stage 1  ...F0 F1 B0--- B1--- ......

         0              5

F forward, B backward, . nothing"""


def gpipe():
    return Timeline("gpipe", 2, GPIPE, bubble=6 / 18)


def groups(path, name):
    return [g for g in ET.parse(path).iter(f"{SVG}g") if g.get("class") == name]


def test_a_schedule_as_text():
    assert draw_schedule(gpipe(), width=38) == GPIPE_TEXT


def test_actions_are_as_wide_as_they_are_long_and_labels_are_whole():
    spans = [Span(0, 0, 3, "F", 11), Span(0, 3, 4, "I", 3), Span(0, 5, 6, "W", 3, 1),
             Span(0, 6, 8, "B", 12, 0, 1)]
    row = draw_schedule(Timeline("t", 1, spans), width=60).splitlines()[1]
    assert row == "stage 0  F11----- I3 ...w3 B12'-"


def test_what_is_too_long_for_a_line_is_cut_into_blocks_of_equal_times():
    spans = [Span(0, i, i + 1, "F", i) for i in range(30)]
    text = draw_schedule(Timeline("t", 1, spans), width=49)
    rows = [line for line in text.splitlines() if line.startswith("stage")]
    assert len(rows) == 3 and all(len(row) <= 49 for row in rows)
    assert [row.removeprefix("stage 0  ") for row in rows] == [
        "".join(f"F{i}".ljust(3) for i in part).rstrip()
        for part in (range(13), range(13, 26), range(26, 30))]
    assert "t (from time 13 on)" in text and "t (from time 26 on)" in text


def test_times_that_are_no_whole_numbers_keep_their_proportions():
    spans = [Span(0, 0.0, 0.25, "F", 0), Span(0, 0.25, 0.75, "B", 0)]
    row = draw_schedule(Timeline("t", 1, spans), width=40).splitlines()[1].removeprefix("stage 0  ")
    assert row.index("B0") * 2 == pytest.approx(len(row) - row.index("B0"), abs=2)


def test_svg_has_a_cell_for_each_action_and_a_hatched_one_for_each_gap(tmp_path):
    path = tmp_path / "gpipe.svg"
    assert draw_schedule(gpipe(), path) is None
    actions, bubbles = groups(path, "action"), groups(path, "bubble")
    assert len(actions) == len(GPIPE)
    assert [(g.get("data-row"), g.find(f"{SVG}title").text.split("from")[1]) for g in bubbles] == [
        ("0", " 2 to 5"), ("1", " 0 to 1"), ("1", " 7 to 9")]
    assert all("url(#hatching)" in ET.tostring(g, "unicode") for g in bubbles)
    numbers = [g.findall(f"{SVG}text")[-1].text for g in actions]
    assert sorted(numbers) == sorted(str(span.microbatch) for span in GPIPE)
    assert "gpipe: bubble 33.3 %" in path.read_text(encoding="utf-8")


def test_cells_lie_where_their_times_are_and_within_the_frame(tmp_path):
    path = tmp_path / "gpipe.svg"
    draw_schedule(gpipe(), path)
    boxes = [g.find(f"{SVG}rect") for g in groups(path, "action")]
    spans = [(float(b.get("x")), float(b.get("width"))) for b in boxes]
    unit = spans[0][1]
    assert unit > 20
    for (x, width), span in zip(spans, GPIPE):
        assert x - spans[0][0] == pytest.approx(span.start * unit, abs=0.1)
        assert width == pytest.approx((span.end - span.start) * unit, abs=0.1)
    assert max(x + width for x, width in spans) < float(ET.parse(path).getroot().get("width"))


def test_a_prediction_and_a_record_stand_on_one_time_axis(tmp_path):
    slower = Timeline("recorded", 2, [Span(s.row, 2 * s.start, 2 * s.end, s.kind, s.microbatch)
                                      for s in GPIPE], names=("rank 0", "rank 1"))
    text = draw_schedule([gpipe(), slower], width=80)
    assert text.count("\n\n") == 3 and "rank 1   ......F0--- F1---" in text
    path = tmp_path / "both.svg"
    draw_schedule([gpipe(), slower], path)
    boxes = [g.find(f"{SVG}rect") for g in groups(path, "action")]
    first, second = boxes[0], boxes[len(GPIPE)]
    assert first.get("x") == second.get("x") and float(first.get("y")) < float(second.get("y"))
    assert float(second.get("width")) == pytest.approx(2 * float(first.get("width")), abs=0.1)
    assert len(groups(path, "axis")) == 1


def test_virtual_stages_differ_in_lightness_and_kinds_in_hue():
    roles = action_roles(3)
    assert len({light for light, _ in roles.values()}) == 12

    def lightness(role):
        colour = roles[role][0]
        return sum(w * int(colour[i:i + 2], 16) for w, i in ((0.2, 1), (0.7, 3), (0.1, 5)))
    for kind in "FBIW":
        assert lightness(f"{kind}0") < lightness(f"{kind}1") < lightness(f"{kind}2")


def test_the_legend_names_what_occurs_and_no_more():
    def words(timeline):
        legend = schedule_scene([timeline]).groups[-1]
        return [shape.text for shape in legend.shapes if hasattr(shape, "text")]
    assert words(gpipe()) == ["F forward", "B backward", "bubble"]
    both_ways = Timeline("t", 1, [Span(0, 0, 1, "I", 0, 1, 1)])
    assert words(both_ways) == ["I input gradient", "bubble", "2 virtual stages a row, the first "
                                "one darkest", "underlined: the second replica"]


def test_an_empty_timeline_is_drawn():
    assert "t\nstage 0" in draw_schedule(Timeline("t", 1))
    assert schedule_scene([Timeline("t", 1)]).height > 50


@pytest.mark.parametrize("spans, words", [
    ([Span(0, 0, 1, "X", 0)], "no kind 'X': there are F, B, I, W"),
    ([Span(2, 0, 1, "F", 0)], "no row 2 among 2"), ([Span(0, 1, 0, "F", 0)], "from 1 to 0"),
    ([Span(0, 0, 2, "F", 0), Span(0, 1, 3, "B", 0)], "starts before"),
])
def test_what_is_no_timeline_is_refused(spans, words):
    with pytest.raises(ValueError, match=words):
        Timeline("t", 2, spans)


def test_formats_that_schedules_have_not_are_refused_and_the_others_written(tmp_path):
    with pytest.raises(ValueError, match=r"\.html is no format of pictures: there are .svg, .png"):
        draw_schedule(gpipe(), tmp_path / "a.html")
    draw_schedule(gpipe(), tmp_path / "a.txt", width=38)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == GPIPE_TEXT + "\n"
    pytest.importorskip("matplotlib")
    draw_schedule(gpipe(), tmp_path / "a.png", theme="dark")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
