"""How a communicator chooses algorithms: by one table on all ranks; what served is remembered."""

from ..topology import host_names
from .table import Table, select
from .table_file import agreed_source, entries_from


class Choosing:
    """The choices of a communicator, on top of its `size` and collectives.

    source: where the table comes from, (name, text, problem) as in table_file; None if the ranks
            have not agreed yet.
    chosen: {kind: {algorithm: bytes of the largest buffer that it has served}}, so far.
    """

    source = _table = _node = None

    @property
    def node_size(self):
        """How many ranks stand on one machine, at most. Collective when first asked."""
        if self._node is None:
            found = host_names(self)
            self._node = max(found.count(name) for name in found)
        return self._node

    @property
    def table(self):
        """What `auto` selects by (select.Table), the same on all ranks. Collective when first
        asked, if whoever made the communicator has not called `agree`."""
        if self._table is None:
            if self.source is None:
                self.agree()
            self._table = Table(entries_from(self.source))
        return self._table

    def agree(self, path=None):
        """Get rank 0's file of a table: that at `path`, or $MINIPAR_ALGORITHMS. Collective.

        Raises nothing: what is wrong with it is raised, on every rank, when it is first needed.
        """
        chosen, self.chosen = self.chosen, {}  # how the table comes is no choice
        self.source, self._table = agreed_source(self, path), None
        self.chosen = chosen

    def read_table(self, path=None):
        """Select by the table in rank 0's file `path` from now on; None: the one that
        $MINIPAR_ALGORITHMS names there, else minipar's. Collective. Raises ValueError, in one line
        and on every rank, for what is no table. Groups made by `split` later inherit it.
        """
        self.agree(path)
        return self.table

    def choose(self, kind, nbytes, algorithm, shared):
        """What serves a collective: a Program, or LIBRARY. Arguments and errors as in select."""
        if algorithm == "auto":
            program = select(kind, self.size, nbytes, algorithm, self.table, shared,
                             lambda: self.node_size)
        else:
            program = select(kind, self.size, nbytes, algorithm)
        served = self.chosen.setdefault(kind, {})
        if served.get(program.name, -1) < nbytes:
            served[program.name] = nbytes
        return program
