"""Which algorithm serves a collective: tables of them, and what a communicator makes of one."""

from .table import Table, names, select  # noqa: F401
