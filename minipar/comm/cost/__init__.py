"""What a collective costs: counted on its task graph, and predicted for a machine."""

from .machine import Machine  # noqa: F401
from .model import cost, lower_bounds, predict  # noqa: F401
