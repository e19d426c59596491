"""Data sets made of others: parts, random parts, and several in a row. PyTorch's names."""

import bisect
import itertools
import math

from ..context import current
from .draws import at_sample
from .loader import Dataset


class Subset(Dataset):
    """The samples of `dataset` at `indices`, a sequence of integers, in that order."""

    def __init__(self, dataset, indices):
        self.dataset, self.indices = dataset, indices
        for name in "get_batch", "__getitems__":  # what makes a batch at once, if the data set can
            if hasattr(dataset, name):
                setattr(self, name, self._many(getattr(dataset, name)))

    def _many(self, method):
        return lambda indices: method([self.indices[i] for i in indices])

    def __getitem__(self, index):
        index = self.indices[index]
        at_sample(index)
        return self.dataset[index]

    def __len__(self):
        return len(self.indices)


class ConcatDataset(Dataset):
    """The samples of several data sets, one set after the other."""

    def __init__(self, datasets):
        self.datasets = list(datasets)
        if not self.datasets:
            raise ValueError("datasets should not be an empty iterable")
        self.cumulative_sizes = list(itertools.accumulate(map(len, self.datasets)))

    def __len__(self):
        return self.cumulative_sizes[-1]

    def __getitem__(self, index):
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        which = bisect.bisect_right(self.cumulative_sizes, index)
        start = self.cumulative_sizes[which] - len(self.datasets[which])
        return self.datasets[which][index - start]


def random_split(dataset, lengths, generator=None):
    """Cut a data set into random parts that share no sample: a list of Subsets.

    lengths:   how many samples each part gets, their sum being len(dataset); or fractions of sum
               1: each part gets floor(len(dataset) * fraction), and the first ones one more each
               until all samples are dealt out.
    generator: `numpy.random.Generator`; the rank's own, which `manual_seed` seeds, if None.
    Raises ValueError if the lengths do not add up.
    """
    total, lengths = len(dataset), list(lengths)
    if math.isclose(sum(lengths), 1) and sum(lengths) <= 1:
        for i, fraction in enumerate(lengths):
            if not 0 <= fraction <= 1:
                raise ValueError(f"Fraction at index {i} is not between 0 and 1: {fraction}")
        lengths = [math.floor(total * fraction) for fraction in lengths]
        for i in range(total - sum(lengths)):
            lengths[i % len(lengths)] += 1
    if sum(lengths) != total or min(lengths, default=0) < 0:
        raise ValueError(f"lengths {lengths} of sum {sum(lengths)} for a data set of {total} "
                         "samples")
    order = (current().generator if generator is None else generator).permutation(total).tolist()
    ends = list(itertools.accumulate(lengths))
    return [Subset(dataset, order[end - length:end]) for end, length in zip(ends, lengths)]
