"""The schedules that come with minipar: importing this registers them by their names."""

from . import (  # noqa: F401
    gpipe, one_forward_one_backward, interleaved, breadth_first, zero_bubble, zb_v, dualpipev, auto)
