"""The algorithms that come with minipar: importing this package registers them."""

from . import direct, levels, pipelined, recursive, ring, shared, swing, tree  # noqa: F401
