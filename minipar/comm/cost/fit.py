"""A machine's parameters from measured times: least squares on relative errors.

The model takes the longest path, so what a program costs is linear in the prices only as long as
the path stays the same. Each step therefore prices every sample with the machine found so far,
in numbers that remember how much of each price is in them, and solves the linear problem that
this leaves, with no price below 0 (Gauss-Newton).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .machine import PRICES, Machine
from .model import predict

FIXED = ("run", "round", "call", "fence")  # the same for small buffers and large ones


@dataclass(frozen=True)
class Sample:
    """`seconds` that `program` took on p ranks for n elements of `itemsize` bytes."""
    program: Any
    p: int
    n: int
    seconds: float
    itemsize: int = 4
    topo: Any = None

    def predicted(self, machine):
        """What the model says of it, in seconds."""
        return predict(self.program, self.p, self.n, machine, self.itemsize, topo=self.topo)


class Tally:
    """A number of seconds that knows its derivatives by the prices, a vector of `counts`."""

    __slots__ = ("seconds", "counts")

    def __init__(self, seconds, counts):
        self.seconds, self.counts = seconds, counts

    def __add__(self, other):
        if isinstance(other, Tally):
            return Tally(self.seconds + other.seconds, self.counts + other.counts)
        return self if other == 0 else Tally(self.seconds + other, self.counts)

    __radd__ = __add__

    def __mul__(self, factor):
        return Tally(self.seconds * factor, self.counts * factor)

    def __truediv__(self, factor):
        return self * (1 / factor)

    def __gt__(self, other):
        return self.seconds > (other.seconds if isinstance(other, Tally) else other)

    def __lt__(self, other):
        return self.seconds < (other.seconds if isinstance(other, Tally) else other)


def fit(samples, start, cores, limits=()):
    """The Machine that predicts the samples best: least squares on relative errors.

    start:  a Machine to begin from.
    cores:  that the ranks of a sample share; None if each has its own.
    limits: increasing bytes of buffers at which beta and the other prices that are not FIXED may
            change, because a cache ends there.
    A price that no sample depends on is that of the nearest sizes, and if there are none either,
    that of `start`. Raises ValueError without samples.
    """
    if not samples:
        raise ValueError("a machine cannot be fitted to no samples")
    columns = [(name, None) for name in FIXED] + [
        (name, level) for level in range(len(limits) + 1)
        for name in PRICES if name not in FIXED]
    seconds = np.array([s.seconds for s in samples])
    values = _from_start(columns, start, limits)
    best, best_error = values, np.inf
    for _ in range(12):
        machine = _tallied(columns, values, cores, limits)
        priced = [s.predicted(machine) for s in samples]
        error = float(np.sum(np.square(np.array([t.seconds for t in priced]) / seconds - 1)))
        if error >= best_error * (1 - 1e-6):
            break
        best, best_error = values, error
        rows = np.stack([t.counts for t in priced]) / seconds[:, None]
        used = rows.any(axis=0)
        values = values.copy()
        values[used] = nonnegative_least_squares(rows[:, used], np.ones(len(samples)))
        _fill(columns, values, used)
    return _machine(columns, list(map(float, best)), cores, limits)


def _fill(columns, values, used):
    """Give the columns that are not used what the nearest smaller sizes have, else larger ones."""
    at = {column: i for i, column in enumerate(columns)}
    for (name, level), own in at.items():
        if level is not None and not used[own]:
            others = {of: i for (word, of), i in at.items() if word == name and used[i]}
            if others:
                smaller = [of for of in others if of < level]
                values[own] = values[others[max(smaller) if smaller else min(others)]]


def _from_start(columns, start, limits):
    """The prices of `start` for the columns."""
    sizes = [0, *(limit + 1 for limit in limits)]
    return np.array([getattr(start.at(sizes[level or 0]), name) for name, level in columns])


def _machine(columns, values, cores, limits):
    """The Machine that has these values, one for each column."""
    made = None
    for level in reversed(range(len(limits) + 1)):
        prices = {name: value for (name, of), value in zip(columns, values) if of in (None, level)}
        made = Machine(**prices, cores=cores, far=made,
                       cache=limits[level] if level < len(limits) else None)
    return made


def _tallied(columns, values, cores, limits):
    """That Machine in numbers that know which columns they come from."""
    unit = np.eye(len(columns))
    return _machine(columns, [Tally(v, unit[i]) for i, v in enumerate(values)], cores, limits)


def nonnegative_least_squares(a, b):
    """The x >= 0 with the least |a x - b|: a of shape (m, n), b of shape (m,).

    Lawson & Hanson 1974, "Solving least squares problems", chapter 23.
    """
    scale = np.linalg.norm(a, axis=0)
    a = a / scale
    x, free = np.zeros(a.shape[1]), np.zeros(a.shape[1], bool)
    for _ in range(10 * a.shape[1]):
        gradient = a.T @ (b - a @ x)
        gradient[free] = -np.inf
        if free.all() or gradient.max() <= 1e-10:
            break
        free[int(gradient.argmax())] = True
        while True:
            step = np.zeros_like(x)
            step[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            if (step[free] > 0).all():
                x = step
                break
            low = free & (step <= 0)
            t = (x[low] / (x[low] - step[low] + 1e-300)).min()
            x = x + t * (step - x)
            free &= x > 1e-14
            x[~free] = 0
    return x / scale


def errors(samples, machine):
    """The relative error of each prediction: |predicted - measured| / measured."""
    return np.array([abs(s.predicted(machine) / s.seconds - 1) for s in samples])
