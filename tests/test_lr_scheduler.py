"""Schedules of the learning rate beside PyTorch's, over 50 steps."""

import copy
import math

import numpy as np
import pytest

from minipar import nn, optim
from minipar.optim import lr_scheduler
from minipar.tensor import Tensor

STEPS = 50


def decay(step):
    return 0.9 ** step


def wave(step):
    return 1 + 0.5 * math.sin(step)


SCHEDULES = {
    "step": lambda L, o: [L.StepLR(o, 7, 0.3)],
    "multistep": lambda L, o: [L.MultiStepLR(o, [3, 10, 10, 41], 0.5)],
    "constant": lambda L, o: [L.ConstantLR(o, 0.25, 8)],
    "linear": lambda L, o: [L.LinearLR(o, 0.1, 0.9, 20)],
    "linear default": lambda L, o: [L.LinearLR(o)],
    "exponential": lambda L, o: [L.ExponentialLR(o, 0.93)],
    "cosine": lambda L, o: [L.CosineAnnealingLR(o, 13, 0.001)],
    "cosine long": lambda L, o: [L.CosineAnnealingLR(o, 100)],
    "lambda": lambda L, o: [L.LambdaLR(o, decay)],
    "lambdas": lambda L, o: [L.LambdaLR(o, [decay, wave])],
    "chained": lambda L, o: [L.StepLR(o, 9, 0.5), L.ExponentialLR(o, 0.97)],
    "warm-up chained": lambda L, o: [L.LinearLR(o, 0.1, total_iters=10),
                                     L.CosineAnnealingLR(o, 40), L.ConstantLR(o, 0.5, 30)],
    "sequential": lambda L, o: [L.SequentialLR(
        o, [L.LinearLR(o, 0.01, total_iters=6), L.CosineAnnealingLR(o, 20, 0.01),
            L.StepLR(o, 3), L.MultiStepLR(o, [2, 5])], [6, 26, 40])],
    "sequential of others": lambda L, o: [L.SequentialLR(
        o, [L.ConstantLR(o, 0.1, 4), L.ExponentialLR(o, 0.9), L.LambdaLR(o, wave),
            L.LinearLR(o, 0.5, 0.1, 7)], [5, 12, 30])],
    "sequential from the second": lambda L, o: [L.SequentialLR(
        o, [L.ConstantLR(o, 0.1, 4), L.ExponentialLR(o, 0.9)], [0])],
    "sequential and chained": lambda L, o: [
        L.SequentialLR(o, [L.ConstantLR(o, 0.1, 2), L.ExponentialLR(o, 0.9)], [4]),
        L.StepLR(o, 10, 0.5)],
}


def optimizer():
    ps = [nn.Parameter(Tensor(np.ones(2))) for _ in range(2)]
    return optim.SGD([{"params": ps[0]}, {"params": ps[1], "lr": 0.02}], lr=0.3)


def torch_optimizer(torch):
    ps = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    return torch.optim.SGD([{"params": ps[0]}, {"params": ps[1], "lr": 0.02}], lr=0.3)


def rates(o, schedulers, steps):
    """The rates in the groups, and those that each scheduler tells, at each step."""
    found = []
    for _ in range(steps):
        found.append([*(g["lr"] for g in o.param_groups),
                      *(r for s in schedulers for r in s.get_last_lr())])
        o.step()
        for s in schedulers:
            s.step()
    return np.array(found)


@pytest.mark.peer
@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_rates_are_pytorchs(make):
    torch = pytest.importorskip("torch")
    a, b = optimizer(), torch_optimizer(torch)
    ours = rates(a, make(lr_scheduler, a), STEPS)
    theirs = rates(b, make(torch.optim.lr_scheduler, b), STEPS)
    np.testing.assert_allclose(ours, theirs, rtol=1e-14, atol=0)
    assert len(np.unique(ours[:, 0])) > 1


@pytest.mark.parametrize("at", [0, 1, 6, 13, 27])
@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_that_is_saved_and_loaded_goes_on_as_if_nothing_had_been(make, at):
    whole = optimizer()
    expected = rates(whole, make(lr_scheduler, whole), STEPS)
    first = optimizer()
    schedulers = make(lr_scheduler, first)
    rates(first, schedulers, at)
    states = copy.deepcopy([s.state_dict() for s in schedulers])
    options = copy.deepcopy(first.state_dict())
    second = optimizer()
    resumed = make(lr_scheduler, second)
    second.load_state_dict(options)
    for s, state in zip(resumed, states):
        s.load_state_dict(state)
    np.testing.assert_array_equal(rates(second, resumed, STEPS - at), expected[at:])


@pytest.mark.peer
@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_that_pytorch_saved_goes_on_here(make):
    torch = pytest.importorskip("torch")
    theirs = torch_optimizer(torch)
    before = make(torch.optim.lr_scheduler, theirs)
    rates(theirs, before, 11)
    ours = optimizer()
    resumed = make(lr_scheduler, ours)
    ours.load_state_dict(theirs.state_dict())
    for s, old in zip(resumed, before):
        s.load_state_dict(copy.deepcopy(old.state_dict()))
    np.testing.assert_allclose(rates(ours, resumed, 30), rates(theirs, before, 30), rtol=1e-14)


@pytest.mark.peer
@pytest.mark.parametrize("make", [
    lambda L, o, n: L.CosineAnnealingLR(o, 13, 0.01, last_epoch=n),
    lambda L, o, n: L.StepLR(o, 4, last_epoch=n),
    lambda L, o, n: L.ExponentialLR(o, 0.9, last_epoch=n),
    lambda L, o, n: L.LinearLR(o, 0.1, 1.0, 9, last_epoch=n),
], ids=["cosine", "step", "exponential", "linear"])
def test_resuming_by_last_epoch_is_pytorchs(make):
    torch = pytest.importorskip("torch")
    found = []
    for L, o in ((lr_scheduler, optimizer()), (torch.optim.lr_scheduler, torch_optimizer(torch))):
        rates(o, [make(L, o, -1)], 5)
        found.append(rates(o, [make(L, o, 4)], 20))
    np.testing.assert_allclose(*found, rtol=1e-14)


class Offset:
    """A function with a state."""

    def __init__(self, value):
        self.value = value

    def __call__(self, step):
        return 1 / (1 + self.value + step)


def test_the_state_of_called_objects_is_saved_and_functions_are_not():
    one, two = optimizer(), optimizer()
    a = lr_scheduler.LambdaLR(one, [Offset(5), decay])
    b = lr_scheduler.LambdaLR(two, [Offset(9), decay])
    state = a.state_dict()
    assert state["lr_lambdas"] == [{"value": 5}, None] and "optimizer" not in state
    b.load_state_dict(state)
    assert b.lr_lambdas[0].value == 5 and b.lr_lambdas[1] is decay
    assert state["lr_lambdas"] == [{"value": 5}, None]


def test_a_schedule_of_ones_own_needs_get_lr_alone():
    class Half(lr_scheduler.LRScheduler):
        def get_lr(self):
            return [base / (1 + self.last_epoch) for base in self.base_lrs]
    o = optimizer()
    s = Half(o)
    np.testing.assert_allclose(rates(o, [s], 3)[:, 0], [0.3, 0.15, 0.1])
    o = optimizer()
    both = lr_scheduler.SequentialLR(o, [lr_scheduler.ConstantLR(o, 0.5, 99), Half(o)], [2])
    np.testing.assert_allclose(rates(o, [both], 4)[:, 0], [0.15, 0.15, 0.3, 0.15])


def test_sequences_may_stand_in_sequences():
    o, L = optimizer(), lr_scheduler
    inner = L.SequentialLR(o, [L.ConstantLR(o, 0.5, 9), L.ExponentialLR(o, 0.1)], [2])
    outer = L.SequentialLR(o, [L.ConstantLR(o, 0.2, 9), inner], [3])
    np.testing.assert_allclose(rates(o, [outer], 7)[:, 0],
                               [0.06, 0.06, 0.06, 0.15, 0.15, 0.3, 0.03], rtol=1e-12)


@pytest.mark.parametrize("make, error, message", [
    (lambda L, o: L.StepLR(3, 1), TypeError, "int is not an Optimizer"),
    (lambda L, o: L.StepLR(o, 3, last_epoch=4), KeyError, r"\[0\] has no initial_lr"),
    (lambda L, o: L.LambdaLR(o, [decay]), ValueError, "1 functions for 2 parameter groups"),
    (lambda L, o: L.LinearLR(o, 0), ValueError, "start_factor = 0"),
    (lambda L, o: L.LinearLR(o, 0.5, 2), ValueError, "end_factor = 2"),
    (lambda L, o: L.ConstantLR(o, 1.5), ValueError, "factor = 1.5"),
    (lambda L, o: L.SequentialLR(o, [L.ConstantLR(o)], [3]), ValueError, "1 schedulers need 0"),
    (lambda L, o: L.SequentialLR(o, [L.ConstantLR(optimizer())], []), ValueError, "not all"),
    (lambda L, o: L.LRScheduler(o), TypeError, "defines no get_lr"),
])
def test_what_cannot_be_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(lr_scheduler, optimizer())
