"""Adam, AMSGrad, maximisation, closures and groups that come later, beside PyTorch's."""

import numpy as np
import pytest

from minipar import nn, optim
from minipar.nn.flat import flatten
from minipar.tensor import Tensor

SHAPES = [(3, 4), (5,), (), (1,), (7, 3)]


def values(seed):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s) for s in SHAPES]


def parameters():
    return [nn.Parameter(Tensor(a)) for a in values(0)]


def twins(torch):
    return [torch.nn.Parameter(torch.tensor(a)) for a in values(0)]


def train(optimizer, ps, make, steps=8, first=0):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        for i, (p, g) in enumerate(zip(ps, values(1 + step))):
            p.grad = None if (step, i) in ((0, 1), (3, 0)) else make(g)
        optimizer.step()


def assert_equal(ours, theirs, relative=1e-12):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.array, b.detach().numpy(), rtol=relative, atol=1e-14)


CASES = [
    ("Adam", dict()),
    ("Adam", dict(lr=0.02, weight_decay=0.3)),
    ("Adam", dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3, amsgrad=True)),
    ("Adam", dict(lr=0.02, weight_decay=0.1, maximize=True)),
    ("Adam", dict(lr=0.02, weight_decay=0.3, decoupled_weight_decay=True)),
    ("AdamW", dict(lr=0.02, amsgrad=True, betas=(0.5, 0.6))),
    ("AdamW", dict(lr=0.02, maximize=True)),
    ("SGD", dict(lr=0.02, maximize=True, momentum=0.9, weight_decay=0.2)),
    ("SGD", dict(lr=0.02, maximize=True, nesterov=True, momentum=0.9)),
]


@pytest.mark.peer
@pytest.mark.parametrize("name, options", CASES, ids=str)
def test_steps_are_those_of_pytorch(name, options):
    torch = pytest.importorskip("torch")
    ours, theirs = parameters(), twins(torch)
    train(getattr(optim, name)(ours, **options), ours, np.array)
    train(getattr(torch.optim, name)(theirs, **options), theirs, torch.tensor)
    assert_equal(ours, theirs)


def test_adam_with_weight_decay_is_the_textbook_loop():
    lr, b1, b2, eps, decay = 0.02, 0.8, 0.95, 1e-6, 0.2
    p = nn.Parameter(Tensor(values(0)[0]))
    optimizer = optim.Adam([p], lr, (b1, b2), eps, decay)
    x, m, v = values(0)[0], 0.0, 0.0
    for t in range(1, 8):
        p.grad = values(t)[0]
        optimizer.step()
        g = values(t)[0] + decay * x
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        x = x - lr * (m / (1 - b1 ** t)) / (np.sqrt(v / (1 - b2 ** t)) + eps)
    np.testing.assert_allclose(p.array, x, rtol=1e-12)


@pytest.mark.parametrize("scale", [1 / 7, 3.0])
def test_a_scaled_gradient_is_decayed_after_it_was_scaled(scale):
    one, two = nn.Parameter(Tensor(values(0)[0])), nn.Parameter(Tensor(values(0)[0]))
    a, b = (optim.Adam([p], 0.02, weight_decay=0.5) for p in (one, two))
    for t in range(3):
        one.grad, two.grad = values(t)[0], values(t)[0] * scale
        a.step(scale=scale)
        b.step()
    np.testing.assert_allclose(one.array, two.array, rtol=1e-12)


@pytest.mark.peer
def test_a_group_that_is_added_later_starts_its_own_count_of_steps():
    torch = pytest.importorskip("torch")
    ours, theirs = parameters(), twins(torch)
    a, b = optim.Adam(ours[:2], 0.01), torch.optim.Adam(theirs[:2], 0.01)
    train(a, ours[:2], np.array, 3)
    train(b, theirs[:2], torch.tensor, 3)
    a.add_param_group({"params": ours[2:4], "lr": 0.1})
    b.add_param_group({"params": theirs[2:4], "lr": 0.1})
    a.add_param_group({"params": ours[4]})
    b.add_param_group({"params": theirs[4]})
    train(a, ours, np.array, 4, first=3)
    train(b, theirs, torch.tensor, 4, first=3)
    assert_equal(ours, theirs)
    assert [len(g["params"]) for g in a.param_groups] == [2, 2, 1]


def test_a_group_that_is_added_may_lie_in_flat_memory_that_the_optimizer_has():
    ps = parameters()
    flatten(ps)
    optimizer, reference = optim.SGD(ps[:2], 1.0, momentum=0.5), parameters()
    other = optim.SGD(reference, 1.0, momentum=0.5)
    optimizer.add_param_group({"params": ps[2:]})
    for step in range(3):
        for p, q, g in zip(ps, reference, values(step)):
            p.grad, q.grad = g, g
        optimizer.step()
        other.step()
    for p, q in zip(ps, reference):
        np.testing.assert_array_equal(p.array, q.array)


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    ps = parameters()
    optimizer = optim.SGD(ps[:2], 1.0)
    for bad in ({"params": ps[1:]}, {"params": ps[2:], "lr": -1}, {"params": ps[2:], "x": 1},
                {"params": [nn.Parameter(ps[0].detach())]}):
        with pytest.raises(ValueError):
            optimizer.add_param_group(bad)
    assert len(optimizer.param_groups) == 1
    ps[0].grad = np.ones(SHAPES[0])
    optimizer.step()
    np.testing.assert_array_equal(ps[0].array, values(0)[0] - 1)


def test_named_parameters_are_taken_and_their_names_kept():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optimizer = optim.SGD(model.named_parameters(), 0.1)
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert optimizer.param_groups[0]["params"] == list(model.parameters())
    optimizer = optim.SGD([{"params": model[0].named_parameters(), "lr": 1.0},
                           {"params": model[1].named_parameters()}])
    assert [g["param_names"] for g in optimizer.param_groups] == [["weight", "bias"]] * 2
    for bad in ([*model[0].named_parameters(), *model[1].parameters()],
                [{"params": model[0].named_parameters()}, {"params": model[1].parameters()}]):
        with pytest.raises(ValueError, match="have names"):
            optim.SGD(bad)


def test_a_closure_is_called_with_gradients_on_and_its_loss_returned():
    import minipar as mp
    p = nn.Parameter(Tensor(np.array([3.0])))
    optimizer = optim.SGD([p], 0.1)

    def closure():
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss
    with mp.no_grad():
        assert optimizer.step(closure).item() == 9
    assert p.tolist() == [pytest.approx(2.4)] and optimizer.step() is None


def test_gradients_can_be_set_to_zero_instead_of_none():
    ps = parameters()
    optimizer = optim.SGD(ps, 0.1)
    ps[0].grad = np.ones(SHAPES[0])
    optimizer.zero_grad(set_to_none=False)
    assert (ps[0].grad.array == 0).all() and ps[1].grad is None


@pytest.mark.parametrize("make, error, message", [
    (lambda p: optim.Adam([p], betas=(1.0, 0.5)), ValueError, r"betas\[0\] = 1.0"),
    (lambda p: optim.AdamW([{"params": p, "betas": (0.5, -1)}]), ValueError, r"betas\[1\] = -1"),
    (lambda p: optim.Adam([{"params": p, "amsgrad": True}]), ValueError, "made without"),
    (lambda p: optim.SGD([{"params": p, "nesterov": True}]), ValueError, "nesterov"),
    (lambda p: optim.SGD(p), TypeError, "not a tensor"),
    (lambda p: optim.AdamW([p], eps=float("nan")), ValueError, "eps = nan"),
])
def test_what_cannot_be_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(nn.Parameter(Tensor(np.ones(2))))
