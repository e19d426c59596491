"""Random numbers for single samples: a function of seed, epoch and sample, not of who makes it.

While a DataLoader makes a sample, in the rank's own thread or in a worker, the current context is
a copy of the rank's, whose `generator` (from which random transforms draw) is

    random.generator(seed, "sample", epoch, index)

seed:  of the rank's context, `manual_seed`; equal on all ranks.
epoch: what `set_epoch` told the loader's sampler; else how often the loader was iterated before.
index: of the sample in its data set. A `Subset` counts as in the data set that it is of, so that
       ranks with a part each draw what one rank with all would.

So the same sample is transformed in the same way in an epoch, whichever rank, batch or worker has
it, and in another way in the next epoch. A sample that occurs twice in an epoch looks equal twice.
"""

from contextlib import contextmanager

import numpy as np

from .. import random
from ..context import BatchPosition, Context, current, use


class SampleContext(Context):
    """A copy of a rank's context for making samples of one epoch; `at` says which one is next."""

    __slots__ = ("epoch", "index")

    def __init__(self, rank, epoch):
        super().__init__(rank.seed, rank.default_dtype)
        self.grad_enabled = rank.grad_enabled
        self.batch = BatchPosition(rank.batch.step, rank.batch.start)
        self.epoch, self.index = epoch, None

    @property
    def generator(self):
        """The generator of the sample; made when it is asked for, as most samples need none."""
        if self._generator is None:
            self._generator = random.generator(self.seed, "sample", self.epoch, self.index)
        return self._generator

    def at(self, index):
        """The sample that is made next is number `index` of its data set."""
        self.index = int(index) if isinstance(index, np.integer) else index
        self._generator = None


@contextmanager
def sample_draws(epoch):
    """Make the samples of the block as a DataLoader does in `epoch`; see `at_sample`."""
    with use(SampleContext(current(), epoch)):
        yield


def at_sample(index):
    """Say that sample `index` is made next, where a DataLoader or `sample_draws` is at work.

    DataLoader says it before each sample, and before a `get_batch` for the first one: a data set
    whose `get_batch` makes random samples says it before each of these.
    """
    context = current()
    if isinstance(context, SampleContext):
        context.at(index)
