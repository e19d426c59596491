"""How many blocks a launch has, and how many threads a block: for the emulator and for GPUs."""

from typing import NamedTuple

WARP = 32


class Limits(NamedTuple):
    """threads: of a block that shares out all elements; width: the most threads for one row;
    blocks: the most of a launch. Kernels loop over what is more than that.
    """

    threads: int
    width: int
    blocks: int

    def shape(self, rows, width, elements):
        """(grid, block) of a launch with this many rows, elements in a row, or elements in all."""
        if elements is not None:
            block = min(self.threads, _warps(elements))
            return max(1, min(self.blocks, -(-elements // block))), block
        block = self.threads if width is None else min(self.width, _warps(width))
        return 1 if rows is None else max(1, min(self.blocks, rows)), block


def _warps(count):
    """So many threads, rounded up to whole warps."""
    return -(-max(1, count) // WARP) * WARP
