"""Pictures: of collectives, from their task graphs, and of pipeline schedules.

    draw(ring, 6)                               # text, for a terminal
    draw(ring, 6, path="ring.svg")              # or .png, .html (a page with a slider), .txt
    draw_schedule(timeline, path="1f1b.svg")    # see grid.py

Stands at the side, as the trace does: it reads graphs and schedules, and nothing below knows of it.
"""

from .grid import Span, Timeline, draw_schedule
from .pictures import VIEWS, draw

__all__ = ["Span", "Timeline", "VIEWS", "draw", "draw_schedule"]
