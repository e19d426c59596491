"""The algorithms that come with minipar: importing this package registers them."""

from . import ring, tree  # noqa: F401
