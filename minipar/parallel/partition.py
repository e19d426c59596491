"""Cutting a model into stages: which blocks go where, and what of the model a rank keeps.

The model is built whole but without memory (parameters are recipes), cut, and then materialised:
what lives elsewhere is never made here. Initial values depend on names alone, which the cut leaves
as they are.
"""

import math
from functools import lru_cache

from ..nn import Module
from ..nn.blocks import blocks_of, keep


def balanced(weights, stages, speeds=None):
    """How many consecutive blocks each stage gets, so that the slowest stage is as fast as can be.

    weights: of each block: parameters, or measured seconds. speeds: of each stage's device,
    relative; 1 if None. Every stage gets at least one block. Among equals the front stages get
    fewer. ValueError, with the arithmetic, for fewer blocks than stages or speeds that do not fit.
    """
    count, speeds = len(weights), speeds or [1] * stages
    if stages > count:
        raise ValueError(f"{count} blocks do not make {stages} stages")
    if len(speeds) != stages or min(speeds) <= 0:
        raise ValueError(f"speeds {', '.join(map(str, speeds))} for {stages} stages: one for "
                         f"each is needed, all > 0")
    sums = [0, *(sum(weights[:i + 1]) for i in range(count))]

    @lru_cache(maxsize=None)
    def best(first, stage):
        """(time of the slowest, counts) of blocks from `first` on stages from `stage`."""
        left = stages - stage
        if left == 1:
            return (sums[count] - sums[first]) / speeds[stage], (count - first,)
        found = (math.inf, ())
        for take in range(1, count - first - left + 2):
            own = (sums[first + take] - sums[first]) / speeds[stage]
            rest, counts = best(first + take, stage + 1)
            found = min(found, (max(own, rest), (take, *counts)))
        return found
    return list(best(0, 0)[1])


def parameter_counts(model):
    """The number of parameters of each block: what `balanced` weighs by if nothing is measured.

    Those of the whole, also where they are cut: all ranks weigh alike.
    """
    return [sum(math.prod(p.whole_shape) for p in block.parameters(model))
            for block in blocks_of(model)]


class Stage:
    """Consecutive blocks of a model. Calling it runs them one after another."""

    def __init__(self, index, blocks, parameters):
        self.index, self.blocks, self.parameters = index, blocks, parameters

    def __call__(self, x):
        for block in self.blocks:
            x = block.forward(x)
        return x

    def __repr__(self):
        return f"<stage {self.index}: {', '.join(block.name for block in self.blocks)}>"


class Part(Module):
    """What one rank keeps of a model that is cut into stages.

    model:   the whole one, not yet materialised; all but this rank's blocks are taken out of it.
    counts:  how many blocks each stage has.
    rank_of: for each stage the rank that holds it. rank: this one.
    stages:  {index: Stage} of this rank.
    tied:    [(name, parameter, ranks)] of what several ranks hold, the same list on every rank;
             the parameter is None where this rank is none of them. The first one counts it.
    Parameters have the names that they have in the whole: a tied one its first.
    """

    names_children = False

    def __init__(self, model, counts, rank_of, rank):
        super().__init__()
        model.assign_names()
        blocks = blocks_of(model)
        if sum(counts) != len(blocks) or min(counts) < 1 or len(counts) != len(rank_of):
            raise ValueError(f"stages of {' + '.join(map(str, counts))} blocks for "
                             f"{len(blocks)} blocks and {len(rank_of)} stages")
        holders, self.stages, at = {}, {}, 0
        for stage, count in enumerate(counts):
            mine, at = blocks[at:at + count], at + count
            held = {id(p): p for block in mine for p in block.parameters(model)}
            for p in held.values():
                holders.setdefault(id(p), (p, []))[1].append(rank_of[stage])
            if rank_of[stage] == rank:
                self.stages[stage] = Stage(stage, mine, list(held.values()))
        self.tied = []
        for p, ranks in holders.values():
            if len(set(ranks)) > 1:
                self.tied.append((p.name, p if rank in ranks else None,
                                  sorted(set(ranks), key=ranks.index)))
                p.counted = p.counted and ranks[0] == rank
        kept = {path for stage in self.stages.values() for b in stage.blocks for path in b.owns}
        keep(model, kept)
        self.model = model

    def named_parameters(self, prefix="", recurse=True):
        for path, p in self.model.named_parameters():
            yield f"{prefix}.{p.name}" if prefix else p.name, p

    def named_state(self):
        """This rank's part of the whole model's state, under the same names."""
        return self.model.named_state()

    def named_buffers(self, prefix="", recurse=True):
        return self.model.named_buffers(prefix, recurse)
