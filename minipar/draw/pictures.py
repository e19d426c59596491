"""One door to the pictures of a collective: which view, in which format."""

from . import text
from .chunks import chunks
from .flow import Flow
from .page import to_page
from .spacetime import space_time
from .write import check, write_scene

# {view: (its Scene, its text)}
VIEWS = {"space-time": (space_time, text.space_time_text), "chunks": (chunks, text.chunks_text)}


def draw(program, size, n=None, *, path=None, view="space-time", theme=None, width=100, **options):
    """Draw a Program on `size` ranks.

    n: elements; if None as few as make chunks of one length. path: a file that ends in .svg, .png,
    .html (a page with a slider, of both views) or .txt, which is written; None: returns the text
    for a terminal of `width` letters. view: "space-time" or "chunks". theme: "light", "dark", or
    "auto" for SVG, as the reader's system has it. options: root, topo; by default root 0, and the
    levels that are nearest to a square.
    Raises ValueError for what cannot be drawn or written.
    """
    if view not in VIEWS:
        raise ValueError(f"no view {view!r}: there are {', '.join(VIEWS)}")
    if path is not None:
        check(path, theme=theme)
    flow = Flow(program, size, n, **options)
    scene, words = VIEWS[view]
    if path is None:
        return words(flow, width)
    write_scene(path, lambda: scene(flow), theme, lambda: words(flow, width),
                lambda: to_page(flow))
