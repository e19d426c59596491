"""The optimizers' kernels: values, independence of how memory was cut, odd numbers, bounds."""

import math

import numpy as np
import pytest

from minipar import execution, nn, optim
from minipar.context import KERNELS, set_kernels
from minipar.execution import Kernel
from minipar.nn.flat import flatten
from minipar.nn.utils import clip_grad_norm_, sum_of_squares
from minipar.tensor import Tensor

needs_compiler = pytest.mark.skipif(execution.compiler() is None, reason="there is no C++ compiler")
SHAPES = [(3, 4), (), (1,), (0, 2), (7, 5), (33,)]
CASES = [
    ("SGD", dict(lr=0.1)),
    ("SGD", dict(lr=0.1, weight_decay=0.1, maximize=True)),
    ("SGD", dict(lr=0.02, momentum=0.9, dampening=0.4, weight_decay=0.1)),
    ("SGD", dict(lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1)),
    ("Adam", dict(lr=0.02)),
    ("Adam", dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3, amsgrad=True)),
    ("Adam", dict(lr=0.02, betas=(0.0, 0.0), weight_decay=0.3, maximize=True)),
    ("AdamW", dict(lr=0.02, weight_decay=0.2)),
    ("AdamW", dict(lr=0.02, weight_decay=0.2, amsgrad=True, betas=(0.5, 0.6))),
]


@pytest.fixture(params=KERNELS)
def kernels(request):
    set_kernels(request.param)
    yield request.param
    set_kernels("compiled")


def values(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]


def train(name, options, dtype, steps, scale=1.0):
    ps = [nn.Parameter(Tensor(a)) for a in values(0, dtype)]
    optimizer = getattr(optim, name)(ps, **options)
    for step in range(steps):
        for p, g in zip(ps, values(1 + step, dtype)):
            p.grad = g
        optimizer.step(scale=scale)
    return [p.array for p in ps], optimizer


def textbook(name, o, dtype, steps, scale=1.0):
    """The formulas of the papers, in float64, of all parameters as one vector."""
    def flat(arrays):
        return np.concatenate([np.ravel(a) for a in arrays]).astype(np.float64)
    x, m, v, top = flat(values(0, dtype)), 0.0, 0.0, 0.0
    lr, decay, momentum = o["lr"], o.get("weight_decay", 0.0), o.get("momentum", 0.0)
    b1, b2 = o.get("betas", (0.9, 0.999))
    for t in range(1, steps + 1):
        g = flat(values(t, dtype)) * scale * (-1 if o.get("maximize") else 1)
        if name == "AdamW":
            x = x * (1 - lr * decay)
        else:
            g = g + decay * x
        if name == "SGD":
            m = g if t == 1 else momentum * m + (1 - o.get("dampening", 0.0)) * g
            x = x - lr * (g + momentum * m if o.get("nesterov") else m if momentum else g)
        else:
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            top = np.maximum(top, v) if o.get("amsgrad") else v
            root = np.sqrt(top / (1 - b2 ** t))
            x = x - lr * m / (1 - b1 ** t) / (root + o.get("eps", 1e-8))
    return np.split(x, np.cumsum([math.prod(s) for s in SHAPES])[:-1])


def assert_close(ours, theirs, relative, least=0.0):
    """Equal to `relative` times the largest number of an array, or `least` if that is larger."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        worst = np.abs(np.ravel(a) - np.ravel(b)).max(initial=0)
        assert worst <= relative * np.abs(b).max(initial=least), f"array {i} is off by {worst}"


@pytest.mark.parametrize("dtype, relative", [(np.float32, 3e-6), (np.float64, 1e-13)],
                         ids=["float32", "float64"])
@pytest.mark.parametrize("name, options", CASES, ids=str)
def test_50_steps_are_those_of_the_papers(kernels, name, options, dtype, relative):
    steps = 5 if kernels == "emulated" else 50
    ours, _ = train(name, options, dtype, steps, scale=1 / 3)
    assert {a.dtype for a in ours} == {np.dtype(dtype)}
    assert_close(ours, textbook(name, options, dtype, steps, scale=1 / 3), relative, 1.0)


@pytest.mark.peer
@pytest.mark.parametrize("dtype, relative", [(np.float32, 3e-6), (np.float64, 1e-13)],
                         ids=["float32", "float64"])
@pytest.mark.parametrize("name, options", CASES, ids=str)
def test_50_steps_are_those_of_pytorchs_fused_optimizers(name, options, dtype, relative):
    torch = pytest.importorskip("torch")
    theirs = [torch.nn.Parameter(torch.tensor(a)) for a in values(0, dtype)]
    optimizer = getattr(torch.optim, name)(theirs, fused=True, **options)
    for step in range(50):
        for p, g in zip(theirs, values(1 + step, dtype)):
            p.grad = torch.tensor(g)
        optimizer.step()
    ours, _ = train(name, options, dtype, 50)
    assert_close(ours, [p.detach().numpy() for p in theirs], relative, 1.0)


@pytest.mark.parametrize("name, options", CASES, ids=str)
def test_one_step_of_a_kernel_is_that_of_numpy_to_the_rounding(name, options):
    for dtype, relative in ((np.float32, 1e-6), (np.float64, 1e-14)):
        steps = []
        for kind in KERNELS:
            set_kernels(kind)
            arrays, optimizer = train(name, options, dtype, 2)
            states = [s for f in optimizer._flats for s in optimizer._state[id(f)]]
            steps.append([*arrays, *states])
        set_kernels("compiled")
        for other in steps[1:]:  # the executions of one source agree to the bit
            assert_close(other, steps[0], relative)
            for a, b in zip(other, steps[1]):
                np.testing.assert_array_equal(a, b)


# Kernels called by themselves: (name, arrays that are written, scalars after the length)
STEPS = [
    ("sgd", 1, (0.5, 0.0, 0.1)),
    ("sgd", 1, (0.5, 0.3, 0.1)),
    ("sgd_momentum", 2, (0.5, 0.3, 0.1, 0.9, 0.7, 0)),
    ("sgd_momentum", 2, (0.5, 0.0, 0.1, 0.9, 1.0, 1)),
    ("adam", 3, (0.5, 0.3, 0.0, 0.9, 0.1, 0.99, 0.1, 1e-8, 0.02)),
    ("adam", 3, (-0.5, 0.0, 0.01, 0.9, 0.1, 0.99, 0.1, 1e-8, 0.02)),
    ("amsgrad", 4, (0.5, 0.0, 0.01, 0.9, 0.1, 0.99, 0.1, 1e-8, 0.02)),
]


def memory(n, written, dtype, seed=0):
    """[p, gradient, state ...] for n elements; all states but the first are not negative."""
    rng = np.random.default_rng(seed)
    p, grad, *states = rng.standard_normal((written + 1, n)).astype(dtype)
    for s in states[1:]:
        np.abs(s, out=s)
    return [p, grad, *states]


@needs_compiler
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name, written, scalars", STEPS, ids=str)
def test_a_buffer_and_its_pieces_give_the_same_bits(name, written, scalars, dtype):
    run = Kernel("optimizer.cu", name).build(np.dtype(dtype))
    odd = [np.nan, np.inf, -np.inf, 0.0, -0.0, np.finfo(dtype).tiny / 4, np.finfo(dtype).max]
    n = 1000
    whole = memory(n, written, dtype)
    for i, a in enumerate(whole):
        a[i:i + 7 * 11:11] = odd if i < 3 else np.abs(odd)
    for cuts in ([0, 500, n], [0, 1, 16, 33, 50, 997, n], [0, *range(3, n, 61), n]):
        pieces = [a.copy() for a in whole]
        for start, stop in zip(cuts, cuts[1:]):
            run(*(a[start:stop] for a in pieces), stop - start, *scalars)
        once = [a.copy() for a in whole]
        run(*once, n, *scalars)
        for a, b in zip(once, pieces):
            np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


@needs_compiler
@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17, 63, 65, 1023])
@pytest.mark.parametrize("name, written, scalars", STEPS, ids=str)
def test_nothing_outside_of_the_arrays_is_touched(name, written, scalars, n):
    run = Kernel("optimizer.cu", name).build(np.dtype(np.float32))
    arrays = memory(n + 40, written, np.float32)
    before = [a.copy() for a in arrays]
    run(*(a[20:20 + n] for a in arrays), n, *scalars)
    for a, b in zip(arrays, before):
        changed = a != b
        assert not changed[:20].any() and not changed[20 + n:].any()
    assert (arrays[0] != before[0]).sum() == n and (arrays[1] == before[1]).all()


# Numbers that are not ordinary


@pytest.mark.parametrize("name, options", CASES, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_gradient_spoils_its_own_element_and_no_other(kernels, name, options, bad):
    results = []
    for spoilt in (False, True):
        p = nn.Parameter(Tensor(np.linspace(-1, 1, 40, dtype=np.float32)))
        optimizer = getattr(optim, name)([p], **options)
        g = np.linspace(1, 2, 40, dtype=np.float32)
        g[17] = bad if spoilt else g[17]
        for _ in range(2):
            p.grad = g
            optimizer.step()
        results.append(p.array)
    good, spoilt = results
    assert not np.isfinite(spoilt[17])
    for state in optimizer.state_dict()["state"].get(0, {}).values():
        assert state.ndim == 0 or not np.isfinite(state.array[17])
    others = np.arange(40) != 17
    np.testing.assert_array_equal(good[others], spoilt[others])


def test_an_infinite_parameter_without_weight_decay_has_ordinary_state(kernels):
    for name, options in (("SGD", dict(momentum=0.9)), ("Adam", {}),
                          ("AdamW", dict(weight_decay=0.0))):
        p = nn.Parameter(Tensor(np.array([np.inf, -np.inf, 1.0])))
        optimizer = getattr(optim, name)([p], 0.1, **options)
        p.grad = np.ones(3)
        optimizer.step()
        np.testing.assert_array_equal(p.array[:2], [np.inf, -np.inf])
        for state in optimizer.state_dict()["state"][0].values():
            assert np.isfinite(state.array).all()


def test_subnormal_numbers_are_not_lost(kernels):
    small = np.float32(1e-40)
    p = nn.Parameter(Tensor(np.array([0, small, 3 * small], np.float32)))
    optimizer = optim.SGD([p], lr=1.0)
    p.grad = np.full(3, small)
    optimizer.step()
    np.testing.assert_array_equal(p.array, np.array([-small, 0, 2 * small], np.float32))


@pytest.mark.parametrize("name, options", CASES, ids=str)
def test_zeros_stay_zeros_even_without_eps(kernels, name, options):
    if name != "SGD":
        options = {**options, "eps": 0.0}
    p = nn.Parameter(Tensor(np.zeros(20, np.float32)))
    optimizer = getattr(optim, name)([p], **options)
    for _ in range(2):
        p.grad = np.zeros(20, np.float32)
        optimizer.step()
    assert (p.array == 0).all()


# Stretches


@needs_compiler
def test_a_step_of_all_parameters_is_one_launch(monkeypatch):
    ps = [nn.Parameter(Tensor(a)) for a in values(0, np.float32)]
    optimizer, launches = optim.AdamW(ps, 0.1), []
    whole = optimizer._launch
    monkeypatch.setattr(optimizer, "_launch", lambda p, *args: launches.append(len(p)) or whole(
        p, *args))
    monkeypatch.setattr(optimizer, "_in_blocks", None)  # NumPy must have nothing to do
    for _ in range(2):
        for p in ps:
            p.grad = np.ones(p.shape, np.float32)
        optimizer.step(max_norm=1.0)
    assert launches == [optimizer._flats[0].stops[-1]] * 2


def test_types_without_a_kernel_are_updated_by_numpy(kernels):
    p = nn.Parameter(Tensor(np.ones(5, np.float16)))
    optimizer = optim.AdamW([p], 0.125)
    p.grad = np.ones(5, np.float16)
    optimizer.step(max_norm=100.0)
    assert p.array.dtype == np.float16
    np.testing.assert_allclose(p.array, 1 - 0.125 - 0.125 * 0.01, atol=2e-3)


def test_one_optimizer_over_all_and_one_for_each_parameter_give_the_same_bits(kernels):
    for name, options in CASES[2:]:
        together, _ = train(name, options, np.float32, 4)
        ps = [nn.Parameter(Tensor(a)) for a in values(0, np.float32)]
        flatten(ps)
        each = [getattr(optim, name)([p], **options) for p in ps]
        for step in range(4):
            for p, g in zip(ps, values(1 + step, np.float32)):
                p.grad = g
            for optimizer in each:
                optimizer.step()
        for a, p in zip(together, ps):
            np.testing.assert_array_equal(a, p.array)


def test_steps_that_were_loaded_cut_the_stretches_anew(kernels):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).double()
    twin = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).double()
    twin.load_state_dict(model.state_dict())
    optimizer = optim.Adam(model.parameters(), 0.1)
    late, early = (optim.Adam(twin[i].parameters(), 0.1) for i in (1, 0))

    def step(nets, optimizers, seed):
        for net in nets:
            for i, p in enumerate(net.parameters()):
                p.grad = np.random.default_rng([seed, *p.shape]).standard_normal(p.shape)
        for each in optimizers:
            each.step()
    for seed in range(3):
        step([model, twin[0]], [optimizer, early], seed)
    twin[1].load_state_dict(model[1].state_dict())
    state = {k: np.copy(v) for k, v in optimizer.named_state(model).items() if k[0] == "0"}
    optimizer.load_named_state(model, state)  # the second layer begins anew
    step([model, twin], [optimizer, early, late], 3)
    for p, q in zip(model.parameters(), twin.parameters()):
        np.testing.assert_array_equal(p.array, q.array)


# Sums of squares


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 4095, 4096, 4097, 20011])
def test_the_sum_of_squares_is_exact_to_the_rounding_of_float64(kernels, n):
    for dtype in (np.float32, np.float64):
        x = (np.random.default_rng(n).standard_normal(n) * 1e18).astype(dtype)
        expected = math.fsum(float(v) * float(v) for v in x)
        assert sum_of_squares(x) == pytest.approx(expected, rel=2e-15, abs=0)
        assert sum_of_squares(x[::-1]) == pytest.approx(expected, rel=2e-15, abs=0)
    assert type(sum_of_squares(np.ones(n, np.float16))) is float


def test_the_sum_of_squares_of_bad_numbers_is_bad(kernels):
    for bad in (np.nan, np.inf, -np.inf):
        for at in (0, 4095, 4096, 4999):
            x = np.ones(5000, np.float32)
            x[at] = bad
            assert math.isnan(sum_of_squares(x)) if np.isnan(bad) else sum_of_squares(x) == np.inf
    assert sum_of_squares(np.full(9000, 1e200)) == np.inf


def test_the_norm_of_a_step_is_that_of_clip_grad_norm(kernels):
    ps = [nn.Parameter(Tensor(a)) for a in values(0, np.float32)]
    optimizer = optim.SGD(ps, 0.1)
    for p, g in zip(ps, values(1, np.float32)):
        p.grad = g
    optimizer.step(max_norm=1.0)
    assert clip_grad_norm_(ps, 1.0).item() == np.float32(optimizer.grad_norm)
