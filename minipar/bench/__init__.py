"""`minipar bench KIND`: collectives timed, size by size, algorithms side by side.

Sizes, bandwidths and columns are those of nccl-tests: size is the buffer's, for kinds where each
rank has a block the total of all, and for an exchange what a rank sends; algbw = size / time, with
1 GB = 1e9 bytes; busbw = algbw times what a rank must move for each byte, 2(n-1)/n for an
all-reduce. Results are checked before and after they are timed. Two cadences, which differ by a
factor of two for the same code: `streaming` times runs back to back; `isolated` times each run
alone, after a barrier that is not counted.

What is compared is measured in one run on the same buffers, in turn, for several rounds: A B A B;
a ratio is the median over the rounds of the ratio within a round, which what else the machine does
changes little. Kinds work in place on one buffer, but those that end in `_into` and all_to_all,
which go from an input to an output. `cases.py` holds the values that are checked,
`contestants.py` what can be timed, `timing.py` the loop, `command.py` the options and the table.
"""

from .cases import BUS, Case
from .command import main, parser, run
from .picture import plot
from .sizes import parse_size, sizes_between
from .timing import compare, measure

__all__ = ["BUS", "Case", "compare", "main", "measure", "parse_size", "parser", "plot", "run",
           "sizes_between"]
