"""The local work of a plan's rounds, merged: the same with fewer calls and fewer passes.

A round is (messages, before, after, peers, whether it is a fence). `before` is a list of (function,
view, one, other): view = function(one, other), or a copy of `one` if function is None.
"""

import numpy as np

from .window import address_of


def merge(rounds, ops):
    """(rounds, their operations): local rounds joined with those that follow them."""
    merged, work, done = [], [], ()
    for number, (messages, before, after, peers, fence) in enumerate(rounds):
        work, done = work + before, (*done, *ops[number])
        if messages or after or fence or number == len(rounds) - 1:
            merged.append(((messages, _fused(work), after, peers, fence), done))
            work, done = [], ()
    return [r for r, _ in merged], [o for _, o in merged]


def _fused(work):
    """Copies that something is at once reduced into, as one pass: view = function(one, other)."""
    out = []
    for step in work:
        function, view, one, other = step
        if (function is not None and one is view and out and out[-1][0] is None
                and place_of(out[-1][1]) == place_of(view)
                and not np.may_share_memory(view, other)):
            step = function, view, out.pop()[2], other
        out.append(step)
    return out


def place_of(view):
    """(address, elements) of a contiguous array: equal for two of the same memory."""
    return address_of(view), view.size
