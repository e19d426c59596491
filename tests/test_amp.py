"""Mixed precision: which operation computes in what, and scaled gradients."""

import json
import shutil

import numpy as np
import pytest

import minipar as mp
from minipar import amp, execution, nn, optim
from minipar.comm import run_threads, world
from minipar.context import Context, set_kernels, use
from minipar.nn import functional as F
from minipar.parallel import DistributedDataParallel
from minipar.train import main

pytest.importorskip("ml_dtypes")
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True, params=["compiled", "reference"])
def context(request):
    """Each test has a fresh context: seed 0, float32."""
    if request.param == "compiled" and execution.compiler() is None:
        pytest.skip("there is no C++ compiler")
    with use(Context()) as fresh:
        set_kernels(request.param)
        yield fresh


def refused(kind, message, function, *args, **kwargs):
    """The call raises `kind` with exactly this message."""
    with pytest.raises(kind) as info:
        function(*args, **kwargs)
    assert str(info.value) == message


# ------------------------------------------------------------------ autocast

X, W = mp.tensor([[1.0, 2.0], [3.0, 4.5]]), mp.tensor([[0.5, -1.0], [2.0, 0.25]])
TARGET = mp.tensor([0, 1])
IMAGE, FILTER = mp.ones(1, 1, 3, 3), mp.ones(1, 1, 2, 2)
LOW = {"matmul": lambda x, w: x @ w, "linear": lambda x, w: F.linear(x, w),
       "mm": lambda x, w: mp.mm(x, w), "einsum": lambda x, w: mp.einsum("ij,jk", x, w),
       "conv2d": lambda x, w: F.conv2d(x[None, None], w[None, None]),
       "attention": lambda x, w: F.scaled_dot_product_attention(x[None], w[None], w[None])}
WIDE = {"softmax": lambda x: F.softmax(x, -1), "log_softmax": lambda x: F.log_softmax(x, -1),
        "cross_entropy": lambda x: F.cross_entropy(x, TARGET), "sum": lambda x: x.sum(),
        "mse": lambda x: F.mse_loss(x, x * 2), "layer_norm": lambda x: F.layer_norm(x, (2,)),
        "exp": lambda x: x.exp(), "pow": lambda x: x**2, "norm": lambda x: x.norm()}
SAME = {"relu": lambda x: F.relu(x), "add": lambda x: x + x, "gelu": lambda x: F.gelu(x),
        "max": lambda x: x.max(), "reshape": lambda x: x.reshape(4)}


@pytest.mark.parametrize("dtype", [mp.float16, mp.bfloat16], ids=str)
def test_autocast_multiplies_in_16_bits_and_sums_in_float32(dtype):
    with amp.autocast("cpu", dtype=dtype):
        for name, function in LOW.items():
            assert function(X, W).dtype is function(X.to(dtype), W).dtype is dtype, name
        for name, function in WIDE.items():
            assert function(X).dtype is function(X.to(dtype)).dtype is mp.float32, name
        for name, function in SAME.items():
            assert function(X).dtype is mp.float32 and function(X.to(dtype)).dtype is dtype, name
        assert (X.double() @ W.double()).dtype is mp.float64
        assert (X + X.to(dtype)).dtype is mp.float32
        with amp.autocast("cpu", enabled=False):
            assert (X @ W).dtype is mp.float32
        assert (X @ W).dtype is dtype
    assert (X @ W).dtype is mp.float32
    rounded = X.to(dtype).float() @ W.to(dtype).float()
    with amp.autocast("cpu", dtype=dtype):
        np.testing.assert_array_equal((X @ W).float().array, rounded.to(dtype).float().array)


@pytest.mark.peer
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_a_model_under_autocast_has_the_types_and_nearly_the_values_of_pytorchs(name):
    torch = pytest.importorskip("torch")

    def make(nn):
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                             nn.Linear(64, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 5))
    torch.manual_seed(0)
    theirs, ours = make(torch.nn), make(nn)
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    x, target = np.random.default_rng(0).normal(size=(6, 1, 6, 6)).astype("f"), np.arange(6) % 5
    with torch.autocast("cpu", dtype=getattr(torch, name)):
        logits = theirs(torch.tensor(x))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(target))
    loss.backward()
    with amp.autocast("cpu", dtype=name):
        own_logits = ours(mp.tensor(x))
        own = F.cross_entropy(own_logits, mp.tensor(target))
    own.backward()
    assert own_logits.dtype.name == name == str(logits.dtype).split(".")[1]
    assert own.dtype is mp.float32 and loss.dtype == torch.float32
    assert abs(own.item() - loss.item()) < 0.02
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters()):
        assert p.grad.dtype is mp.float32
        scale = q.grad.abs().max().item()
        if scale > 1e-3:  # the bias before a normalisation has none but of rounding
            assert np.abs(p.grad.array - q.grad.numpy()).max() < 0.1 * scale, key
    assert np.allclose(ours[1].running_mean.array, theirs[1].running_mean.numpy(), atol=0.01)


def test_autocast_decorates_functions_nests_and_ends_with_an_error():
    @amp.autocast("cuda")
    def product(x):
        """Documented."""
        return x @ x
    assert product(X).dtype is mp.float16 and product.__doc__ == "Documented."
    block = amp.autocast("cpu")
    with pytest.raises(ZeroDivisionError):
        with block, block:
            assert (X @ X).dtype is mp.bfloat16
            1 / 0
    assert (X @ X).dtype is mp.float32
    refused(ValueError, "autocast: no device 'tpu': there are cpu, cuda", amp.autocast, "tpu")
    refused(TypeError, "autocast: float16 or bfloat16, not float32", amp.autocast, "cpu",
            mp.float32)


# ------------------------------------------------------------------ scaled gradients


def parameter(*gradient, dtype="float32"):
    p = nn.Parameter(mp.zeros(len(gradient), dtype=dtype))
    p.grad = mp.tensor(list(gradient), dtype=dtype)
    return p


def test_gradients_are_those_of_the_unscaled_loss_and_small_ones_survive():
    for scaled in (False, True):
        p = nn.Parameter(mp.full((3,), 1.0))
        scaler = amp.GradScaler(init_scale=2.0**14, enabled=scaled)
        loss = (p.half() * 1e-4).sum().float() * 1e-4  # the gradient in float16: 1e-4 * 1e-4 * 2^14
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer := optim.SGD([p], 1.0))
        assert np.allclose(p.grad.array, 1e-8, rtol=0.01, atol=0) is scaled
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_step_with_a_gradient_that_is_not_finite_is_skipped(bad):
    for dtype in ("float32", "float16", "bfloat16", "float64"):
        p, q = parameter(1, 2, dtype=dtype), parameter(*[4.0] * 5000, bad, dtype=dtype)
        optimizer, scaler = optim.SGD([p, q], 1.0), amp.GradScaler(init_scale=8.0)
        scaler.step(optimizer)
        assert p.tolist() == [0, 0]
        scaler.update()
        assert scaler.get_scale() == 4.0
        p.grad, q.grad = mp.tensor([4.0, 8.0]).to(p.dtype), mp.zeros(5001, dtype=dtype)
        assert scaler.step(optimizer, lambda: "closed") == "closed"
        assert p.tolist() == [-1, -2]


def test_the_factor_grows_after_steps_that_succeed_and_shrinks_after_one_that_does_not():
    p = parameter(1)
    optimizer = optim.SGD([p], 0.0)
    scaler = amp.GradScaler(init_scale=16.0, growth_factor=4.0, backoff_factor=0.25,
                            growth_interval=2)
    scales = []
    for gradient in (1, 1, 1, np.inf, 1, 1, 1, 1):
        p.grad = mp.tensor([float(gradient)])
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    assert scales == [16, 64, 64, 16, 16, 64, 64, 256]
    scaler.update(2.0)
    assert scaler.get_scale() == 2.0
    other = amp.GradScaler()
    other.load_state_dict(scaler.state_dict())
    assert other.state_dict() == scaler.state_dict() == {
        "scale": 2.0, "growth_factor": 4.0, "backoff_factor": 0.25, "growth_interval": 2,
        "_growth_tracker": 0}


@pytest.mark.peer
def test_the_scaler_does_what_pytorchs_does():
    torch = pytest.importorskip("torch")
    gradients = np.random.default_rng(3).choice([1.0, np.inf, 2.0, 3.0], 40)
    histories = []
    for library, scaler, make, tensor in (
            (mp, amp.GradScaler("cpu", 8.0, growth_interval=3), optim.SGD, mp.tensor),
            (torch, torch.amp.GradScaler("cpu", 8.0, growth_interval=3), torch.optim.SGD,
             torch.tensor)):
        p = (nn if library is mp else torch.nn).Parameter(tensor([0.0, 0.0]))
        optimizer, history = make([p], lr=0.5), []
        for g in gradients:
            optimizer.zero_grad()
            scaler.scale((p * tensor([float(g), 1.0])).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            history.append((scaler.get_scale(), *p.tolist()))
        histories.append(history)
        state = {k: float(v) for k, v in scaler.state_dict().items()}
        histories.append(state)
    assert histories[0] == histories[2] and histories[1] == histories[3]


def test_wrong_orders_of_calls_are_refused_and_a_disabled_scaler_does_nothing():
    p = parameter(1)
    optimizer, scaler = optim.SGD([p], 1.0), amp.GradScaler()
    refused(RuntimeError, "update() without a step() or unscale_() before it", scaler.update)
    scaler.unscale_(optimizer)
    refused(RuntimeError, "unscale_() has already been called on this optimizer since the last "
            "update()", scaler.unscale_, optimizer)
    scaler.step(optimizer)
    refused(RuntimeError, "step() has already been called since the last update()", scaler.step,
            optimizer)
    refused(RuntimeError, "unscale_() is called after step()", scaler.unscale_, optimizer)
    refused(ValueError, "growth_factor = 1 is not > 1", amp.GradScaler, growth_factor=1)
    refused(ValueError, "backoff_factor = 1 is not between 0 and 1", amp.GradScaler,
            backoff_factor=1)
    off = amp.GradScaler(enabled=False)
    p.grad = mp.tensor([np.inf])
    assert off.scale(X) is X and off.get_scale() == 1.0 and off.state_dict() == {}
    off.unscale_(optimizer)
    off.step(optimizer)
    off.update()
    assert np.isinf(p.tolist()[0]) and not off.is_enabled()
    refused(RuntimeError, "the state of a GradScaler is empty: it was saved from a disabled one",
            scaler.load_state_dict, {})


@pytest.mark.parametrize("size", [2, 3])
def test_an_overflow_on_one_rank_skips_the_step_of_all(size):
    def train(shared):
        comm = world()
        model = nn.Sequential(nn.Linear(2, 1, bias=False))
        wrapped = DistributedDataParallel(model, process_group=comm) if shared else model
        optimizer = optim.SGD(model.parameters(), 0.1)
        scaler = amp.GradScaler(init_scale=4.0, comm=None if shared else comm)
        history = []
        for step in range(4):
            optimizer.zero_grad()
            x = mp.ones(3, 2) * (np.inf if step == comm.rank == 1 else 1.0)
            with amp.autocast("cpu", mp.float16):
                loss = wrapped(x).sum()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            history.append((scaler.get_scale(), model[0].weight.array.tobytes()))
        return history
    for shared in (True, False):
        for history in (histories := run_threads(lambda: train(shared), size)):
            assert history == histories[0]
            assert [scale for scale, _ in history] == [4, 2, 2, 2]
            assert history[0][1] == history[1][1] != history[2][1]


# ------------------------------------------------------------------ the main job


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_main_job_learns_as_much_in_mixed_precision_and_resumes_with_its_bits(dtype, tmp_path):
    if mp.context.current().kernels == "reference":
        pytest.skip("slow, and the job is the same")

    def job(folder, *more, ranks="2"):
        path = tmp_path / f"{folder}.jsonl"
        assert main(["--ranks", ranks, "--launcher", "threads", "--steps", "60", "--hidden", "64",
                     "--checkpoint", str(tmp_path / folder), "--checkpoint-every", "30",
                     "--metrics", str(path), "--quiet", *more]) == 0
        return [json.loads(line) for line in path.read_text().splitlines()]
    wide, mixed = job("wide")[-1], job("mixed", "--amp", dtype)[-1]
    assert mixed["test_accuracy"] > wide["test_accuracy"] - 0.02 > 0.85
    assert mixed["params_sha256"] != wide["params_sha256"]
    shutil.rmtree(tmp_path / "mixed" / "step-00000060")
    again = job("mixed", "--amp", dtype, "--resume")[-1]
    assert again["params_sha256"] == mixed["params_sha256"]
    if dtype == "float16":
        state = json.loads((tmp_path / "mixed" / "step-00000030" / "state.json").read_text())
        assert state["state"]["scaler"]["_growth_tracker"] > 0
