"""The mesh: which rank does which share of the work. Arithmetic only: no message, no tensor.

A job of dp x pp x tp ranks has three coordinates: its share of the batch (dp), its share of the
layers (pp), its share of each layer (tp). Ranks of one tp group talk most and lie side by side,
then those of one dp group; stages of a pipeline, which talk least, lie farthest apart:

    rank = (pp * DP + dp) * TP + tp
"""

from dataclasses import dataclass

AXES = ("pp", "dp", "tp")  # slowest first


@dataclass(frozen=True)
class Mesh:
    """The sizes along the three axes. Every group of ranks derives from this one object."""

    dp: int = 1
    pp: int = 1
    tp: int = 1

    def __post_init__(self):
        for axis in AXES:
            if getattr(self, axis) < 1:
                raise ValueError(f"a mesh has at least 1 rank along {axis}, "
                                 f"not {getattr(self, axis)}")

    @classmethod
    def of(cls, size, dp=None, pp=None, tp=None):
        """The mesh of `size` ranks; dp is what is left if it is None, pp and tp are 1.

        Raises ValueError, with the arithmetic, if the product is not the number of ranks.
        """
        pp, tp = pp or 1, tp or 1
        words = f"dp {dp} x pp {pp} x tp {tp}" if dp else f"dp x pp {pp} x tp {tp}"
        if size % (pp * tp) or (dp and dp * pp * tp != size):
            raise ValueError(f"world size {size} != {words}" + (
                f" = {dp * pp * tp}" if dp else f": {size} is no multiple of {pp * tp}"))
        return cls(size // (pp * tp), pp, tp)

    @property
    def size(self):
        """The number of ranks."""
        return self.dp * self.pp * self.tp

    def coordinates(self, rank):
        """{"dp", "pp", "tp"} of a rank."""
        rest, tp = divmod(rank, self.tp)
        pp, dp = divmod(rest, self.dp)
        return {"dp": dp, "pp": pp, "tp": tp}

    def share(self, rank):
        """(replica, replicas): which part of each batch a rank has; (None, replicas) beyond the
        mesh, where ranks have none."""
        return (self.coordinates(rank)["dp"] if rank < self.size else None), self.dp

    def rank(self, dp=0, pp=0, tp=0):
        """The rank at these coordinates."""
        return (pp * self.dp + dp) * self.tp + tp

    def group(self, rank, *axes):
        """The ranks that differ from `rank` in nothing but `axes`, in order."""
        own = self.coordinates(rank)
        return [r for r in range(self.size) if all(
            value == own[axis] for axis, value in self.coordinates(r).items()
            if axis not in axes)]

    def split(self, comm, *axes):
        """The communicator of the calling rank's group along `axes`. Collective over `comm`."""
        members = self.group(comm.rank, *axes)
        return comm if len(members) == comm.size else comm.split(members[0])

    def __str__(self):
        return f"dp {self.dp} x pp {self.pp} x tp {self.tp}"
