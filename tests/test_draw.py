"""Pictures of collectives: what they show is what the task graph has, in every format."""

import re
import xml.etree.ElementTree as ET
from collections import Counter

import pytest

from minipar.comm import algorithms  # noqa: F401  (registers them)
from minipar.comm import both, collective, copy, recv, recv_reduce, send
from minipar.comm.graph import lower
from minipar.comm.program import ALGORITHMS
from minipar.draw import draw
from minipar.draw.colours import ROLES, chunk_roles, contrast, oklch, share_roles
from minipar.draw.flow import Flow
from minipar.draw.spacetime import space_time
from minipar.draw.svg import to_svg

SVG = "{http://www.w3.org/2000/svg}"
PROGRAMS = [program for table in ALGORITHMS.values() for program in table.values()]
RING = ALGORITHMS["all_reduce"]["ring"]

RING_OF_3 = """\
all_reduce ring (Patarasuk & Yuan 2009) on 3 ranks
2(p-1) rounds; each rank sends 2n(p-1)/p bytes and reduces n(p-1)/p.
n = 3 elements of 4 bytes; 4 rounds, 12 messages, 6 reductions, 48 bytes; a rank sends at most 4
messages, 16 bytes (1.333 n), and reduces 8 bytes

 round  rank 0         rank 1         rank 2
     0  >1 c0  +<2 c2  >2 c1  +<0 c0  >0 c2  +<1 c1
     1  >1 c2  +<2 c1  >2 c0  +<0 c2  >0 c1  +<1 c0
     2  >1 c1  <2 c0   >2 c2  <0 c1   >0 c0  <1 c2
     3  >1 c0  <2 c2   >2 c1  <0 c0   >0 c2  <1 c1

>r c send chunk c to rank r   <r c receive it from r   +<r c receive and add
c0 x[0:1]   c1 x[1:2]   c2 x[2:3]"""

RING_OF_3_CHUNKS = """\
before              after round 0       after round 1       after round 2
         c0 c1 c2            c0 c1 c2            c0 c1 c2            c0 c1 c2
rank 0    1  1  1   rank 0    1  1  2   rank 0    1  3  2   rank 0    3  3  2
rank 1    1  1  1   rank 1    2  1  1   rank 1    2  1  3   rank 1    2  3  3
rank 2    1  1  1   rank 2    1  2  1   rank 2    3  2  1   rank 2    3  2  3"""


def serving(p):
    return [program for program in PROGRAMS if program.refusal(p) is None]


def name(program):
    return f"{program.kind.name}-{program.name}"


def counts(svg):
    """How many groups of each class an SVG text has, and the parsed tree."""
    tree = ET.fromstring(svg)
    return Counter(g.get("class") for g in tree.iter(f"{SVG}g")), tree


def test_the_ring_of_three_as_text():
    assert draw(RING, 3, 3) == RING_OF_3


def test_what_is_done_alike_with_several_ranks_is_told_once():
    text = draw(ALGORITHMS["all_reduce"]["all_gather_reduce"], 5, width=150)
    assert "     0  >1-4 c0  <1-4 c0  >0,2-4 c0  <0,2-4 c0  >0-1,3-4 c0" in text
    barrier = draw(ALGORITHMS["barrier"]["dissemination"], 3)
    assert "     0  >1  <2  >2  <0  >0  <1\n" in barrier


def test_the_chunks_of_the_ring_of_three_as_text():
    assert RING_OF_3_CHUNKS in draw(RING, 3, 3, view="chunks", width=80)


def test_what_is_too_wide_for_a_line_is_stacked_and_then_cut_into_tables():
    narrow = draw(RING, 3, 3, width=40)
    assert " round  rank 0  rank 1  rank 2\n     0  >1 c0   >2 c1   >0 c2\n" in narrow
    assert "\n        +<2 c2  +<0 c0  +<1 c1\n" in narrow
    cut = draw(RING, 3, 3, width=25)
    assert " round  rank 0  rank 1\n" in cut and "\n round  rank 2\n" in cut
    wide = draw(RING, 17, width=100).splitlines()
    assert max(map(len, wide)) <= 100 and sum(line.startswith(" round") for line in wide) > 1


@pytest.mark.parametrize("p", [1, 2, 3, 4, 6])
def test_there_is_an_arrow_for_each_message_and_a_mark_for_each_reduction(p):
    for program in serving(p):
        flow = Flow(program, p)
        tasks = lower(program, p, flow.n, **flow.options)
        found, _ = counts(to_svg(space_time(flow)))
        kinds = Counter(task.kind for task in tasks)
        moved = sum(kinds[k] for k in ("send", "put", "get", "get_reduce"))
        assert found["arrow"] == moved, program
        assert found["reduction"] == sum(kinds[k] for k in ("recv_reduce", "reduce", "get_reduce"))
        assert found["copy"] == kinds["copy"] and found["fence"] * p == kinds["fence"]


@pytest.mark.parametrize("view", ["space-time", "chunks"])
@pytest.mark.parametrize("theme", ["auto", "light", "dark"])
def test_svg_is_well_formed_refers_to_nothing_outside_and_stays_within_its_frame(
        view, theme, tmp_path):
    for program, p in ((RING, 4), (ALGORITHMS["all_to_all"]["bruck"], 6),
                       (ALGORITHMS["all_reduce"]["shared"], 4),
                       (ALGORITHMS["all_gather"]["bruck"], 9)):
        path = tmp_path / "it.svg"
        assert draw(program, p, path=path, view=view, theme=theme) is None
        text = path.read_text(encoding="utf-8")
        _, tree = counts(text)
        assert re.findall(r"https?://[^\s\"']+", text) == ["http://www.w3.org/2000/svg"]
        assert ("prefers-color-scheme" in text) == (theme == "auto")
        width, height = (float(tree.get(key)) for key in ("width", "height"))
        xs = [float(e.get(key)) for e in tree.iter() for key in ("x", "cx") if e.get(key)]
        ys = [float(e.get(key)) for e in tree.iter() for key in ("y", "cy") if e.get(key)]
        for e in tree.iter():
            for point in (e.get("points") or "").split():
                xs.append(float(point.split(",")[0]))
                ys.append(float(point.split(",")[1]))
        assert 0 <= min(xs) and max(xs) <= width and 0 <= min(ys) and max(ys) <= height


@pytest.mark.parametrize("program", ALGORITHMS["all_reduce"].values(), ids=name)
def test_every_rank_ends_with_everything_from_everyone_once(program):
    *_, last = Flow(program, 4).states()
    assert last and all(held == dict.fromkeys(range(4), 1) for row in last for held in row)


def test_states_of_other_kinds_end_as_the_kinds_promise():
    def last(kind, algorithm, **options):
        *_, table = Flow(ALGORITHMS[kind][algorithm], 4, **options).states()
        return [[sorted(held) for held in row] for row in table]
    everyone = [0, 1, 2, 3]
    assert last("broadcast", "binomial", root=2) == [[[2]]] * 4
    assert last("all_gather", "bruck") == [[[0], [1], [2], [3]]] * 4
    scattered = last("reduce_scatter", "ring")
    assert [scattered[r][r] for r in range(4)] == [everyone] * 4
    exchanged = last("all_to_all", "bruck")
    assert [exchanged[r][r] for r in range(4)] == [everyone] * 4
    assert last("reduce", "binomial", root=1)[1] == [everyone]


def test_a_chunk_is_named_by_what_it_is_wherever_it_lies():
    flow = Flow(ALGORITHMS["all_to_all"]["bruck"], 4)
    assert flow.chunks == [("input", 2 * i, 2 * i + 2) for i in range(4)] and flow.n == 8
    for move in flow.moves[-1]:  # the last round copies blocks home, from scratch
        assert move.kind == "copy" and move.chunks == (move.target,)


def test_a_step_is_when_both_ends_have_come():
    flow = Flow(ALGORITHMS["all_reduce"]["naive"], 4)
    assert not flow.in_step and flow.steps == 6
    assert [(m.step, m.source, m.target, m.reduces) for m in flow.messages] == [
        (0, 1, 0, True), (1, 2, 0, True), (2, 3, 0, True),
        (3, 0, 1, False), (4, 0, 2, False), (5, 0, 3, False)]
    assert "  step  rank 0" in draw(ALGORITHMS["all_reduce"]["naive"], 4)
    assert Flow(RING, 4).in_step


def test_what_is_added_twice_is_counted_twice():
    @collective("all_reduce")
    def twice(rank, size, x):
        if rank == 0:
            yield send(x, 1)
            yield send(x, 1)
        elif rank == 1:
            yield recv_reduce(x, 0)
            yield recv_reduce(x, 0)
    *_, last = Flow(twice, 2, 1).states()
    assert last[1][0] == {0: 2, 1: 1} and last[0][0] == {0: 1}


def test_channels_are_told_apart():
    @collective("broadcast")
    def halves(rank, size, x, root):
        def part(x):
            yield send(x, 1 - root) if rank == root else recv(x, root)
        yield from both(*(part(half) for half in x.split(2)))
    assert ">1 c0  >1 c1 #1" in draw(halves, 2) and "#k on channel k" in draw(halves, 2)
    assert "c0-1 #0,1" in to_svg(space_time(Flow(halves, 2)))


def test_ranks_that_all_send_equally_far_around_do_so_without_crossing_the_picture():
    _, tree = counts(to_svg(space_time(Flow(RING, 6))))
    lines = [e for g in tree.iter(f"{SVG}g") if g.get("class") == "arrow"
             for e in g.iter(f"{SVG}polyline")]
    assert len(lines) == 60 + 10  # those from the last rank to the first are in two parts
    spans = [abs(float(a.split(",")[0]) - float(b.split(",")[0]))
             for a, b in (line.get("points").split() for line in lines)]
    assert max(spans) <= 80


def test_what_waits_in_a_circle_or_is_too_much_is_refused():
    @collective("barrier")
    def circle(rank, size, x):
        yield recv(x[0:0], (rank - 1) % size)
        yield send(x[0:0], (rank + 1) % size)
    with pytest.raises(ValueError, match="in a circle: rank 0 in its round 0"):
        Flow(circle, 3)
    with pytest.raises(ValueError, match="on the first 6 of 1000 ranks: a picture shows at most"):
        Flow(RING, 1000)
    with pytest.raises(ValueError, match="no view 'spacetime'"):
        draw(RING, 2, view="spacetime")


def test_copies_in_the_middle_of_messages_move_what_stood_before_the_round():
    @collective("broadcast")
    def detour(rank, size, x, scratch, root=0):
        away = scratch(len(x))
        if rank == 0:
            yield copy(x, away)
            yield send(away, 1)
        else:
            yield recv(away, 0)
            yield copy(away, x)
    flow = Flow(detour, 2, 4)
    assert [(m.kind, m.chunks) for row in flow.moves for m in row] == [
        ("copy", (0,)), ("message", (0,)), ("copy", (0,))]


def test_png_is_a_picture_of_the_scenes_size_and_shows_the_ground_of_the_theme(tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    program = ALGORITHMS["all_gather"]["shared"]
    for theme, ground in (("light", (255, 255, 255)), ("dark", (20, 23, 28))):
        path = tmp_path / f"{theme}.png"
        draw(program, 2, path=path, theme=theme)
        scene = space_time(Flow(program, 2))
        with image.open(path) as picture:
            assert picture.convert("RGB").getpixel((2, 2)) == ground
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
            assert picture.size == pytest.approx((2 * scene.width, 2 * scene.height), abs=2)


def test_colours_are_those_of_the_colour_spaces_definition():
    assert oklch(1.0, 0.0, 0.0) == "#ffffff" and oklch(0.0, 0.0, 0.0) == "#000000"
    assert oklch(0.6279, 0.2577, 29.23) == "#ff0000"  # sRGB's red, as Ottosson gives it
    for count in (1, 8, 9, 17, 64):
        roles = chunk_roles(count)
        assert len({pair for role, pair in roles.items() if role[0] == "c"}) == count
        for ground in (0, 1):  # letters of their colours are read, on rows of either shade
            for under in ("paper", "band"):
                assert min(contrast(pair[ground], ROLES[under][ground])
                           for role, pair in roles.items() if role[0] == "t") >= 4.5


def test_ink_is_read_on_every_shade_of_contributions():
    for count in (1, 2, 17):
        for light, dark in share_roles(count).values():
            assert contrast(light, ROLES["ink"][0]) >= 4.5 <= contrast(dark, ROLES["ink"][1])
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_blocks_of_unequal_lengths_are_chunks_of_their_own():
    counts = ((1, 2, 0), (0, 3, 1), (2, 2, 2))
    flow = Flow(ALGORITHMS["all_to_all"]["pairwise"], 3, 0, counts=counts)
    *_, last = flow.states()
    for rank, row in enumerate(last):
        for other in {0, 1, 2} - {rank}:  # what is here of the other's elements
            assert sum(stop - start for (_, start, stop), held in zip(flow.chunks, row)
                       if other in held) == counts[other][rank]
    assert all(m.elements == counts[m.source][m.target] for m in flow.messages)
