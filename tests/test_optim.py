"""Optimizers beside PyTorch's and the formulas; flat memory, shared with data parallelism."""

import math

import numpy as np
import pytest

from minipar import nn, optim
from minipar.comm import run_threads, world
from minipar.nn.flat import FlatParameters
from minipar.parallel import DistributedDataParallel
from minipar.tensor import Tensor

SHAPES = [(3, 4), (5,), (2, 2, 2), (1,), (7, 3), (9,)]


def values(shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def parameters(arrays):
    return [nn.Parameter(Tensor(a.copy())) for a in arrays]


def gradients(step, shapes=SHAPES):
    """Gradients of one step: a function of the step; some parameters have none in some steps."""
    return [g * 10.0 ** (i % 3 - 1) for i, g in enumerate(values(shapes, 100 + step))]


def assert_close(ours, theirs, relative=1e-12):
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape
        worst = np.abs(a - b).max()
        assert worst <= relative * max(1e-3, np.abs(b).max()), f"parameter {i} is off by {worst}"


def absent(step, i):
    """Which parameters are without a gradient in a step: some late, some in between."""
    return (i == 1 and step < 3) or (i == 4 and step % 3 == 1) or (i == 2 and step == 5)


def run_ours(make, arrays, steps=10, skip=None, max_norm=None, scale=1.0):
    ps = parameters(arrays)
    optimizer = make(ps)
    norms = []
    for step in range(steps):
        optimizer.zero_grad()
        for i, (p, g) in enumerate(zip(ps, gradients(step, [a.shape for a in arrays]))):
            p.grad = None if skip and skip(step, i) else g
        optimizer.step(scale=scale, max_norm=max_norm)
        norms.append(optimizer.grad_norm)
    return [p.array for p in ps], norms


def run_torch(torch, make, arrays, steps=10, skip=None, max_norm=None, scale=1.0):
    ps = [torch.nn.Parameter(torch.tensor(a)) for a in arrays]
    optimizer = make(ps)
    norms = []
    for step in range(steps):
        optimizer.zero_grad()
        for i, (p, g) in enumerate(zip(ps, gradients(step, [a.shape for a in arrays]))):
            p.grad = None if skip and skip(step, i) else torch.tensor(g) * scale
        if max_norm is not None:
            norms.append(float(torch.nn.utils.clip_grad_norm_(ps, max_norm)))
        optimizer.step()
    return [p.detach().numpy() for p in ps], norms


SGD_CASES = [
    dict(lr=0.1),
    dict(lr=0.1, weight_decay=0.3),
    dict(lr=0.1, momentum=0.9),
    dict(lr=0.1, momentum=0.9, dampening=0.4, weight_decay=0.1),
    dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
]
ADAMW_CASES = [
    dict(),
    dict(lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.2),
    dict(lr=0.02, weight_decay=0.0),
    dict(lr=0.02, betas=(0.0, 0.0)),
]


@pytest.mark.peer
@pytest.mark.parametrize("skip", [None, absent], ids=["all", "some_absent"])
@pytest.mark.parametrize("options", SGD_CASES, ids=str)
def test_sgd_takes_the_steps_of_pytorch(options, skip):
    torch = pytest.importorskip("torch")
    ours, _ = run_ours(lambda ps: optim.SGD(ps, **options), values(), skip=skip)
    theirs, _ = run_torch(torch, lambda ps: torch.optim.SGD(ps, **options), values(), skip=skip)
    assert_close(ours, theirs)


@pytest.mark.peer
@pytest.mark.parametrize("skip", [None, absent], ids=["all", "some_absent"])
@pytest.mark.parametrize("options", ADAMW_CASES, ids=str)
def test_adamw_takes_the_steps_of_pytorch(options, skip):
    torch = pytest.importorskip("torch")
    ours, _ = run_ours(lambda ps: optim.AdamW(ps, **options), values(), skip=skip)
    theirs, _ = run_torch(torch, lambda ps: torch.optim.AdamW(ps, **options), values(), skip=skip)
    assert_close(ours, theirs)


def interleaved(ps):
    """Groups whose members alternate in memory, so that every stretch is cut."""
    return [{"params": ps[0::3], "lr": 0.05, "weight_decay": 0.3},
            {"params": ps[1::3], "lr": 0.001, "weight_decay": 0.0},
            {"params": ps[2::3]}]


@pytest.mark.peer
@pytest.mark.parametrize("skip", [None, absent], ids=["all", "some_absent"])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_groups_have_their_own_rates_and_decays(name, skip):
    torch = pytest.importorskip("torch")
    options = dict(momentum=0.9) if name == "SGD" else {}
    ours, _ = run_ours(lambda ps: getattr(optim, name)(interleaved(ps), lr=0.01, **options),
                       values(), skip=skip)
    theirs, _ = run_torch(torch, lambda ps: getattr(torch.optim, name)(
        interleaved(ps), lr=0.01, **options), values(), skip=skip)
    assert_close(ours, theirs)


@pytest.mark.peer
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_scale_and_max_norm_are_clip_grad_norm_and_then_a_step(max_norm):
    torch = pytest.importorskip("torch")
    kwargs = dict(skip=absent, max_norm=max_norm, scale=1 / 7)
    ours, norms = run_ours(lambda ps: optim.AdamW(ps, 0.02), values(), **kwargs)
    theirs, expected = run_torch(torch, lambda ps: torch.optim.AdamW(ps, 0.02), values(), **kwargs)
    assert_close(ours, theirs)
    np.testing.assert_allclose(norms, expected, rtol=1e-12)


def test_a_step_leaves_the_gradients_as_they_were():
    p = parameters([np.ones(4)])[0]
    optimizer = optim.SGD([p], 0.1)
    p.grad = np.arange(4.0)
    optimizer.step(scale=0.5, max_norm=0.1)
    np.testing.assert_array_equal(p.grad.array, np.arange(4.0))


def test_sgd_is_the_textbook_loop():
    lr, momentum, dampening, decay = 0.1, 0.9, 0.3, 0.2
    ps = values()
    buffers = [None] * len(ps)
    for step in range(10):
        for i, g in enumerate(gradients(step)):
            if absent(step, i):
                continue
            g = g + decay * ps[i]
            buffers[i] = g if buffers[i] is None else momentum * buffers[i] + (1 - dampening) * g
            ps[i] = ps[i] - lr * buffers[i]
    ours, _ = run_ours(lambda p: optim.SGD(p, lr, momentum, dampening, decay), values(),
                       skip=absent)
    assert_close(ours, ps)


def test_adamw_is_the_textbook_loop():
    lr, b1, b2, eps, decay = 0.02, 0.8, 0.95, 1e-6, 0.2
    ps = values()
    m, v, count = [0.0] * len(ps), [0.0] * len(ps), [0] * len(ps)
    for step in range(10):
        for i, g in enumerate(gradients(step)):
            if absent(step, i):
                continue
            count[i] += 1
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * g * g
            m_hat, v_hat = m[i] / (1 - b1 ** count[i]), v[i] / (1 - b2 ** count[i])
            ps[i] = ps[i] - lr * (m_hat / (np.sqrt(v_hat) + eps) + decay * ps[i])
    ours, _ = run_ours(lambda p: optim.AdamW(p, lr, (b1, b2), eps, decay), values(), skip=absent)
    assert_close(ours, ps)


def test_a_changed_learning_rate_counts_from_the_next_step():
    p = parameters([np.zeros(3)])[0]
    optimizer = optim.SGD([p], 0.1)
    for rate in (0.1, 0.5):
        optimizer.param_groups[0]["lr"] = rate
        p.grad = np.ones(3)
        optimizer.step()
    np.testing.assert_allclose(p.array, -0.6, rtol=1e-15)


def test_a_parameter_without_a_gradient_neither_moves_nor_decays():
    first, second = parameters([np.ones(3), np.ones(3)])
    optimizer = optim.AdamW([first, second], 0.1, weight_decay=0.5)
    first.grad = np.ones(3)
    optimizer.step()
    assert (second.array == 1).all() and (first.array != 1).all()
    assert optimizer.grad_norm is None


def test_zero_grad_gives_none():
    ps = parameters(values())
    optimizer = optim.SGD(ps, 0.1)
    for p in ps:
        p.grad = np.ones(p.shape)
    optimizer.zero_grad()
    assert all(p.grad is None for p in ps)


def test_a_long_parameter_is_updated_to_its_last_element():
    n = 2 * optim.BLOCK + 5
    arrays = [np.linspace(-1, 1, n), np.linspace(1, 2, 3), np.linspace(-2, 1, optim.BLOCK)]
    ours, _ = run_ours(lambda ps: optim.AdamW(ps, 0.02), arrays, steps=3, max_norm=1.0)
    # In 3 steps an element sees only its own gradients: short parameters are the oracle.
    at = [0, 1, optim.BLOCK - 1, optim.BLOCK, 2 * optim.BLOCK, n - 1]
    ps = parameters([arrays[0][at]])
    optimizer = optim.AdamW(ps, 0.02)
    for step in range(3):
        everything = gradients(step, [a.shape for a in arrays])
        norm = math.sqrt(sum((g * g).sum() for g in everything))
        ps[0].grad = everything[0][at] * min(1.0, 1.0 / (norm + 1e-6))
        optimizer.step()
    assert_close([ours[0][at]], [ps[0].array])


def test_float32_and_float64_parameters_are_updated_in_one_optimizer():
    low = nn.Parameter(Tensor(np.ones(3, np.float32)))
    high = nn.Parameter(Tensor(np.ones(3)))
    optimizer = optim.SGD([low, high], 0.5)
    low.grad, high.grad = np.ones(3, np.float32), np.full(3, 2.0)
    optimizer.step(max_norm=100.0)
    assert low.array.dtype == np.float32 and high.array.dtype == np.float64
    np.testing.assert_array_equal(low.array, np.float32(0.5))
    np.testing.assert_array_equal(high.array, 0.0)
    assert optimizer.grad_norm == pytest.approx(math.sqrt(15), rel=1e-12)


def test_a_norm_that_is_not_a_number_reaches_the_parameters():
    first, second = parameters([np.ones(2), np.ones(2)])
    optimizer = optim.SGD([first, second], 0.1)
    first.grad, second.grad = np.array([np.nan, 1.0]), np.ones(2)
    optimizer.step(max_norm=1.0)
    assert math.isnan(optimizer.grad_norm)
    assert np.isnan(first.array).all() and np.isnan(second.array).all()


def test_a_graph_that_saved_a_parameter_refuses_backward_after_a_step():
    p = parameters([np.ones(3)])[0]
    optimizer = optim.SGD([p], 0.1)
    loss = (p * p).sum()
    loss.backward(retain_graph=True)
    before = p.storage.version
    optimizer.step()
    assert p.storage.version > before
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_a_step_counts_up_only_the_versions_of_what_it_changed():
    first, second = parameters([np.ones(3), np.ones(3)])
    optimizer = optim.SGD([first, second], 0.1)
    first.grad = np.ones(3)
    before = second.storage.version
    optimizer.step()
    assert second.storage.version == before


# Flat memory


def small_model():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def assert_flat(model, names):
    flats = {id(p.storage.owner): p.storage.owner for p in model.parameters()}
    assert len(flats) == 1
    flat, = flats.values()
    assert isinstance(flat, FlatParameters)
    for name, p in model.named_parameters():
        start, stop = flat.range_of(p)
        assert np.shares_memory(p.array, flat.data[start:stop])
        assert np.shares_memory(p.sink.buffer, flat.grad[start:stop])
        assert p.array.ctypes.data % 64 == 0
    assert list(model.state_dict()) == names
    return flat


def test_flattening_keeps_values_gradients_and_names():
    model = small_model().materialize()
    before = {k: v.array.copy() for k, v in model.state_dict().items()}
    model(Tensor(np.ones((2, 4), np.float32))).sum().backward()
    grads = {k: p.grad.array.copy() for k, p in model.named_parameters()}
    optim.SGD(model.parameters(), 0.1)
    assert_flat(model, list(before))
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.array, before[name])
        np.testing.assert_array_equal(p.grad.array, grads[name])


def test_an_infinite_gradient_passes_without_a_warning():
    p = parameters([np.ones(2)])[0]
    optimizer = optim.AdamW([p], 0.1)
    p.grad = np.array([np.inf, 1e200])
    optimizer.step(max_norm=1.0)
    assert np.isnan(p.array[0])


@pytest.mark.parametrize("ddp_first", [True, False])
def test_an_optimizer_and_ddp_share_one_flat_memory_whoever_comes_first(ddp_first):
    def work():
        model = small_model()
        names = [k for k, _ in model.named_parameters()]
        if ddp_first:
            wrapped = DistributedDataParallel(model)
        optimizer = optim.AdamW(model.parameters(), 0.1)
        if not ddp_first:
            wrapped = DistributedDataParallel(model)
        flat = assert_flat(model, names)
        assert optimizer._flats == [flat] and wrapped._buckets.flats == [flat]
        x = Tensor(np.full((2, 4), 1.0 + world().rank, np.float32))
        wrapped(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return flat.data.copy()
    a, b = run_threads(work, 2)
    np.testing.assert_array_equal(a, b)


def test_loading_a_state_dict_after_flattening_changes_what_the_optimizer_sees():
    model, other = small_model(), small_model()
    optimizer = optim.SGD(model.parameters(), 0.5)
    state = {k: np.full(p.shape, float(i)) for i, (k, p) in enumerate(other.named_parameters())}
    model.load_state_dict(state)
    for p in model.parameters():
        p.grad = np.ones(p.shape, np.float32)
    optimizer.step()
    for i, (name, tensor) in enumerate(model.state_dict().items()):
        np.testing.assert_array_equal(tensor.array, np.float32(i - 0.5), err_msg=name)


def test_two_optimizers_over_one_flat_memory_each_update_their_own():
    model = small_model()
    ddp = DistributedDataParallel(model)
    head, body = optim.SGD(model[2].parameters(), 1.0), optim.SGD(model[0].parameters(), 1.0)
    before = [p.array.copy() for p in model.parameters()]
    ddp(Tensor(np.ones((1, 4), np.float32))).sum().backward()
    head.step()
    after = [p.array.copy() for p in model.parameters()]
    assert all((a == b).all() for a, b in zip(before[:2], after[:2]))
    assert not (before[3] == after[3]).all()
    body.step()
    assert not (model[0].weight.array == before[0]).all()


def test_what_lies_between_an_optimizers_parameters_is_left_alone():
    model = small_model()
    DistributedDataParallel(model)  # lays them all out in one memory
    ps = list(model.parameters())
    optimizer = optim.SGD(ps[0::2], 1.0)
    before = [p.array.copy() for p in ps]
    for p in ps:
        p.grad = np.ones(p.shape, np.float32)
    optimizer.step()
    for i, (p, old) in enumerate(zip(ps, before)):
        np.testing.assert_array_equal(p.array, old - 1 if i % 2 == 0 else old)


def test_a_parameter_that_shares_the_memory_of_another_is_refused():
    p = parameters([np.ones(3)])[0]
    with pytest.raises(ValueError, match="shares its memory"):
        optim.SGD([p, nn.Parameter(p.detach())], 0.1)


def test_padding_between_parameters_stays_zero():
    model = small_model()
    optimizer = optim.AdamW(model.parameters(), 0.1, eps=0.0)
    flat, = optimizer._flats
    for _ in range(2):
        for p in model.parameters():
            p.grad = np.ones(p.shape, np.float32)
        optimizer.step()
    inside = np.zeros(len(flat.data), bool)
    for p in model.parameters():
        inside[slice(*flat.range_of(p))] = True
    assert not inside.all() and (flat.data[~inside] == 0).all() and (flat.grad[~inside] == 0).all()


# Refusals


def one():
    return parameters([np.ones(2)])[0]


@pytest.mark.parametrize("make, error, message", [
    (lambda p: optim.SGD([]), ValueError, "no parameters"),
    (lambda p: optim.SGD([p, p]), ValueError, "twice"),
    (lambda p: optim.AdamW([{"params": [p]}, {"params": p}]), ValueError, "more than one group"),
    (lambda p: optim.SGD([{"params": [p], "rate": 1}]), ValueError, "no option rate"),
    (lambda p: optim.SGD([Tensor(np.ones(2))]), TypeError, "nn.Parameter"),
    (lambda p: optim.SGD([p], lr=-1.0), ValueError, "lr = -1.0"),
    (lambda p: optim.SGD([p], lr=float("nan")), ValueError, "lr = nan"),
    (lambda p: optim.SGD([p], momentum=-0.1), ValueError, "momentum"),
    (lambda p: optim.SGD([p], weight_decay=-0.1), ValueError, "weight_decay"),
    (lambda p: optim.SGD([p], nesterov=True), ValueError, "nesterov"),
    (lambda p: optim.SGD([p], momentum=0.9, dampening=0.1, nesterov=True), ValueError, "nesterov"),
    (lambda p: optim.SGD([{"params": [p], "momentum": 0.9}]), ValueError, "momentum"),
    (lambda p: optim.AdamW([p], lr=-1.0), ValueError, "lr"),
    (lambda p: optim.AdamW([p], eps=-1.0), ValueError, "eps"),
    (lambda p: optim.AdamW([p], betas=(0.9, 1.0)), ValueError, r"betas\[1\] = 1.0"),
    (lambda p: optim.AdamW([p], weight_decay=-1.0), ValueError, "weight_decay"),
    (lambda p: optim.SGD([{"params": [p], "lr": -1.0}]), ValueError, "lr = -1.0"),
])
def test_what_cannot_be_is_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make(one())
