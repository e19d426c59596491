"""Schedules of the learning rate, under PyTorch's names (torch.optim.lr_scheduler).

A scheduler sets `lr` of each of the optimizer's groups when it is made, and at each `step()`,
from the value it finds there: so several may act on one optimizer, and each multiplies in what
it has to say.
"""

import math
from bisect import bisect_right
from collections import Counter
from types import FunctionType

from .optimizer import Optimizer


class LRScheduler:
    """Base class. Sub-classes give `get_lr`: the next rates, from `last_epoch` and the groups.

    last_epoch: the number of steps so far; -1 for a new schedule. With another number every
    group must have its "initial_lr", as a loaded optimizer state has it.
    """

    _is_initial = False

    def __init__(self, optimizer, last_epoch=-1):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")
        self.optimizer = optimizer
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise KeyError(f"param_groups[{i}] has no initial_lr to resume from at "
                               f"last_epoch = {last_epoch}")
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._start()

    def _start(self):
        """The step that every scheduler takes as it is made."""
        self._step_count, self._is_initial = 0, True
        self.step()
        self._is_initial = False

    def _rates(self):
        return [group["lr"] for group in self.optimizer.param_groups]

    def get_lr(self):
        """The rate of each group at `last_epoch`, which has just been counted up."""
        raise TypeError(f"{type(self).__name__} defines no get_lr()")

    def first_lr(self):
        """The rate of each group at the start, whatever stands there now."""
        return self.get_lr()

    def get_last_lr(self):
        """The rates that the last step set, one per group."""
        return self._last_lr

    def step(self):
        """Count up `last_epoch` and set the rates; call it after the optimizer's step."""
        self._step_count += 1
        self.last_epoch += 1
        self._set(self.get_lr())

    def restart(self):
        """Set the rates of the start, as if the optimizer had been made now."""
        self.last_epoch = 0
        self._set(self.first_lr())

    def _set(self, rates):
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = self._rates()

    def state_dict(self):
        """All that the scheduler remembers, but for the optimizer."""
        return {k: v for k, v in self.__dict__.items() if k != "optimizer"}

    def load_state_dict(self, state_dict):
        """Take over what `state_dict` returned. The rates themselves are in the optimizer's."""
        self.__dict__.update(state_dict)


class LambdaLR(LRScheduler):
    """The initial rate times lr_lambda(last_epoch): one function, or one per group."""

    def __init__(self, optimizer, lr_lambda, last_epoch=-1):
        groups = len(optimizer.param_groups)
        self.lr_lambdas = (list(lr_lambda) if isinstance(lr_lambda, (list, tuple)) else
                           [lr_lambda] * groups)
        if len(self.lr_lambdas) != groups:
            raise ValueError(f"{len(self.lr_lambdas)} functions for {groups} parameter groups")
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        return [base * function(self.last_epoch)
                for function, base in zip(self.lr_lambdas, self.base_lrs)]

    def state_dict(self):
        """As of every scheduler, without the functions; objects that are called keep theirs."""
        return {**super().state_dict(), "lr_lambdas": [
            None if isinstance(f, FunctionType) else dict(f.__dict__) for f in self.lr_lambdas]}

    def load_state_dict(self, state_dict):
        functions = self.lr_lambdas
        super().load_state_dict(state_dict)
        for function, saved in zip(functions, self.lr_lambdas, strict=True):
            if saved is not None:
                function.__dict__.update(saved)
        self.lr_lambdas = functions


class StepLR(LRScheduler):
    """Times gamma every step_size steps."""

    def __init__(self, optimizer, step_size, gamma=0.1, last_epoch=-1):
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        due = self.last_epoch and self.last_epoch % self.step_size == 0
        return [rate * self.gamma for rate in self._rates()] if due else self._rates()

    def first_lr(self):
        return self.base_lrs


class MultiStepLR(LRScheduler):
    """Times gamma at each milestone."""

    def __init__(self, optimizer, milestones, gamma=0.1, last_epoch=-1):
        self.milestones, self.gamma = Counter(milestones), gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        factor = self.gamma ** self.milestones[self.last_epoch]
        return [rate * factor for rate in self._rates()]

    def first_lr(self):
        return [base * self.gamma ** self.milestones[0] for base in self.base_lrs]


class ConstantLR(LRScheduler):
    """Times `factor` for the first total_iters steps."""

    def __init__(self, optimizer, factor=1 / 3, total_iters=5, last_epoch=-1):
        if not 0 <= factor <= 1:
            raise ValueError(f"factor = {factor} is not between 0 and 1")
        self.factor, self.total_iters = factor, total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        if self.last_epoch == 0:
            return [rate * self.factor for rate in self._rates()]
        if self.last_epoch != self.total_iters:
            return self._rates()
        return [rate * (1 / self.factor) for rate in self._rates()]

    def first_lr(self):
        return [base * (self.factor if self.total_iters > 0 else 1) for base in self.base_lrs]


class LinearLR(LRScheduler):
    """Times a factor that goes from start_factor to end_factor in total_iters equal steps."""

    def __init__(self, optimizer, start_factor=1 / 3, end_factor=1.0, total_iters=5,
                 last_epoch=-1):
        if not 0 < start_factor <= 1:
            raise ValueError(f"start_factor = {start_factor} is not in (0, 1]")
        if not 0 <= end_factor <= 1:
            raise ValueError(f"end_factor = {end_factor} is not between 0 and 1")
        self.start_factor, self.end_factor = start_factor, end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        if self.last_epoch == 0:
            return [rate * self.start_factor for rate in self._rates()]
        if self._is_initial or self.last_epoch > self.total_iters:
            return self._rates()
        change = self.end_factor - self.start_factor
        before = self.total_iters * self.start_factor + (self.last_epoch - 1) * change
        return [rate * (1 + change / before) for rate in self._rates()]

    def first_lr(self):
        return [base * self.start_factor for base in self.base_lrs]


class ExponentialLR(LRScheduler):
    """Times gamma every step."""

    def __init__(self, optimizer, gamma, last_epoch=-1):
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        return self._rates() if self._is_initial else [r * self.gamma for r in self._rates()]

    def first_lr(self):
        return self.base_lrs


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the initial rate to eta_min in T_max steps, and back in as many
    (Loshchilov & Hutter 2017, equation 5, without restarts).
    """

    def __init__(self, optimizer, T_max, eta_min=0.0, last_epoch=-1):
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        if self._is_initial:
            return self._rates()
        n, turn, low = self.last_epoch, self.T_max, self.eta_min
        if self._step_count == 1 and n > 0:
            return self._closed_form()
        if (n - 1 - turn) % (2 * turn) == 0:  # the rate is eta_min: nothing to multiply
            return [rate + (base - low) * (1 - math.cos(math.pi / turn)) / 2
                    for rate, base in zip(self._rates(), self.base_lrs)]
        ratio = (1 + math.cos(math.pi * n / turn)) / (1 + math.cos(math.pi * (n - 1) / turn))
        return [ratio * (rate - low) + low for rate in self._rates()]

    def _closed_form(self):
        half = (1 + math.cos(math.pi * self.last_epoch / self.T_max)) / 2
        return [self.eta_min + (base - self.eta_min) * half for base in self.base_lrs]

    def first_lr(self):
        return self._closed_form()


class SequentialLR(LRScheduler):
    """One scheduler after another: the next one starts at each milestone (a step count)."""

    def __init__(self, optimizer, schedulers, milestones, last_epoch=-1):
        if len(milestones) != len(schedulers) - 1:
            raise ValueError(f"{len(schedulers)} schedulers need {len(schedulers) - 1} "
                             f"milestones, not {len(milestones)}")
        if any(s.optimizer is not optimizer for s in schedulers):
            raise ValueError("the schedulers are not all of this optimizer")
        self.optimizer, self._schedulers, self._milestones = optimizer, schedulers, milestones
        self.last_epoch = last_epoch + 1
        for group in optimizer.param_groups:  # each has taken its first step: undo them
            group["lr"] = group["initial_lr"]
        _undo(self)
        first = schedulers[bisect_right(milestones, 0)]
        first._start()
        self._last_lr = first.get_last_lr()

    def step(self):
        self.last_epoch += 1
        i = bisect_right(self._milestones, self.last_epoch)
        scheduler = self._schedulers[i]
        if i > 0 and self._milestones[i - 1] == self.last_epoch:
            scheduler.restart()
        else:
            scheduler.step()
        self._last_lr = scheduler.get_last_lr()

    def restart(self):
        self.last_epoch = 0
        first = self._schedulers[bisect_right(self._milestones, 0)]
        first.restart()
        self._last_lr = first.get_last_lr()

    def state_dict(self):
        return {**super().state_dict(), "_schedulers": [s.state_dict() for s in self._schedulers]}

    def load_state_dict(self, state_dict):
        schedulers = self._schedulers
        super().load_state_dict(state_dict)
        for scheduler, saved in zip(schedulers, self._schedulers, strict=True):
            scheduler.load_state_dict(saved)
        self._schedulers = schedulers


def _undo(scheduler):
    """Take back the first step of every scheduler inside a SequentialLR."""
    for inner in scheduler._schedulers:
        if isinstance(inner, SequentialLR):
            _undo(inner)
        else:
            inner.last_epoch -= 1
