"""16-bit numbers on a GPU, as the stand-in of fake_cupy.py sees it: operations, mixed precision,
collectives; and models that are cut, by layers, tensors, sequence or experts.
"""

from importlib.util import find_spec

import fake_cupy
import numpy as np
import pytest
from test_device_train import SMALL, job, losses

import minipar as mp
from minipar import nn, optim
from minipar.amp import GradScaler, autocast
from minipar.comm import compressed, run_threads, world
from minipar.comm.codecs import float16
from minipar.comm.program import ALGORITHMS
from minipar.comm.gpu.staging import StagedPlan
from minipar.context import current, set_kernels
from minipar.nn import functional as F
from minipar.parallel.experts import MixtureOfExperts
from minipar.parallel.ring_attention import ring_attention

DTYPES = ["float16", *["bfloat16"] * (find_spec("ml_dtypes") is not None)]


@pytest.fixture
def gpu():
    with fake_cupy.installed() as fake:
        fake.RawModule.launches.clear()
        yield fake


@pytest.fixture(params=("compiled", "reference"))
def kernels(request):
    before = current().kernels
    set_kernels(request.param)
    yield request.param
    set_kernels(before)


def _attention(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


CASES = {
    "attention": (_attention, [(2, 3, 5, 4)] * 3),
    "linear": (F.linear, [(5, 7), (3, 7), (3,)]),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (7,), w, b), [(5, 7), (7,), (7,)]),
    "rms_norm": (lambda x, w: F.rms_norm(x, (7,), w), [(5, 7), (7,)]),
    "softmax": (lambda x: F.softmax(x, -1), [(5, 7)]),
    "logsumexp": (lambda x: x.logsumexp(1), [(5, 7)]),
    "gelu": (F.gelu, [(5, 7)]),
    "sigmoid": (lambda x: x.sigmoid(), [(5, 7)]),
    "sum": (lambda x: x.sum(0), [(5, 7)]),
    "conv2d": (lambda x, w: F.conv2d(x, w, padding=1), [(2, 3, 5, 4), (4, 3, 3, 3)]),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), [(2, 3, 4, 6)]),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), [(2, 3, 4, 6)]),
    "mul": (lambda x, y: x * y + 1.5, [(5, 7), (7,)]),
    "einsum": (lambda x, y: mp.einsum("ij,kj->ik", x, y), [(5, 7), (3, 7)]),
    "embedding": (lambda w: F.embedding(
        mp.tensor([1, 3, 1, 1], device=w.device), w), [(5, 7)]),
    "mse_loss": (lambda x, y: F.mse_loss(x, y), [(5, 7), (5, 7)]),
}


def outcome(name, dtype, device):
    """The result of an operation and the gradients of what went in, as float32."""
    function, shapes = CASES[name]
    rng = np.random.default_rng(1)
    inputs = [mp.tensor(rng.standard_normal(shape), dtype=dtype, device=device)
              .requires_grad_() for shape in shapes]
    out = function(*inputs)
    out.sum().backward()
    assert {str(t.device) for t in (out, *(x.grad for x in inputs))} == {device}
    assert {t.dtype.name for t in (out, *(x.grad for x in inputs))} == {dtype}
    return [t.detach().cpu().float().numpy() for t in (out, *(x.grad for x in inputs))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_an_operation_on_16_bits_gives_what_it_gives_on_the_cpu(name, dtype, gpu, kernels):
    for ours, expected in zip(outcome(name, dtype, "cuda:0"), outcome(name, dtype, "cpu")):
        np.testing.assert_allclose(ours, expected, 2e-2, 2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ((), (0,), (3, 1), (2, 3, 5)))
def test_conversion_runs_on_the_gpu_in_any_layout(dtype, shape, gpu, kernels):
    x = mp.tensor(np.random.default_rng(2).standard_normal(shape), dtype="float32", device="cuda")
    for t in (x, x.permute(*reversed(range(x.ndim)))):
        low = t.to(dtype)
        assert str(low.device) == "cuda:0" and low.dtype.name == dtype
        assert low.float().tolist() == t.cpu().to(dtype).float().tolist()
    if kernels == "compiled":
        assert {"from_float", "to_float"} <= {name for name, *_ in gpu.RawModule.launches}


def test_the_gradient_scaler_divides_on_the_gpu_and_skips_a_step_with_an_inf(gpu, kernels):
    x = mp.ones(5000, device="cuda").requires_grad_()
    optimizer, scaler = optim.SGD([nn.Parameter(x.detach())], lr=1.0), GradScaler(init_scale=4.0)
    p = optimizer.param_groups[0]["params"][0]
    for factor, left in ((1.0, 0.0), (np.inf, 0.0), (1.0, -1.0)):
        optimizer.zero_grad()
        scaler.scale((p * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert set(p.tolist()) == {left}
    assert scaler.get_scale() == 2.0


def test_autocast_multiplies_in_16_bits_on_the_gpu(gpu):
    x = mp.ones(2, 3, device="cuda")
    with autocast("cuda"):
        assert (x @ x.t()).dtype is mp.float16 and F.softmax(x, -1).dtype is mp.float32


def _reduced(algorithm, progress):
    comm = world()
    comm.progress = progress
    if algorithm == "ring_float16":
        algorithm = compressed(ALGORITHMS["all_reduce"]["ring"], float16)
    dtype = "float32" if not isinstance(algorithm, str) else "float16"
    x = mp.full((1001,), comm.rank + 0.5, dtype=dtype, device="cuda").array
    plan = comm.plan("all_reduce", x, algorithm=algorithm)
    for _ in range(2):
        x[...] = comm.rank + 0.5
        plan.start()
        plan.wait()
    staged = isinstance(plan, StagedPlan)
    comm.free(plan)
    rows = comm.all_gather(mp.full((4000,), float(comm.rank), device="cuda"))
    part = comm.reduce_scatter(mp.full((4000,), float(comm.rank), device="cuda"))
    return staged, set(x.tolist()), rows[:, 1].tolist(), set(part.tolist())


@pytest.mark.parametrize("progress", ("hooks", "thread"))
@pytest.mark.parametrize("algorithm", ("auto", "ring", "shared", "ring_float16"))
def test_collectives_take_16_bits_codecs_and_a_thread(algorithm, progress, gpu):
    for staged, x, rows, part in run_threads(_reduced, 3, algorithm, progress):
        assert staged == (algorithm != "shared" or progress == "thread")
        assert x == {4.5} and rows == [0.0, 1.0, 2.0] and part == {3.0}


@pytest.mark.parametrize("args", [*(["--amp", dtype] for dtype in DTYPES),
                                  ["--codec", "float16", "--progress", "thread"]])
def test_mixed_precision_and_codecs_train_on_a_gpu(args, tmp_path):
    args = [*SMALL["mlp"], "--steps", "4", "--batch-size", "8", *args]
    _, expected = job(tmp_path / "cpu.jsonl", *args, ranks=2)
    with fake_cupy.installed():
        status, found = job(tmp_path / "gpu.jsonl", *args, "--device", "cuda", ranks=2)
    assert status == [0, 0]
    np.testing.assert_allclose(losses(found)[0], losses(expected)[0], 1e-2)


@pytest.mark.parametrize("model, cut", [
    *((model, ["--pp", "2", "--microbatches", "2"]) for model in SMALL),
    ("mlp", ["--tp", "2"]), ("gpt", ["--tp", "2"]), ("gpt", ["--tp", "2", "--sequence-parallel"])])
def test_a_model_that_is_cut_trains_on_gpus(model, cut, tmp_path):
    args = [*SMALL[model], "--steps", "4", "--batch-size", "8", *cut, "--clip", "1"]
    _, expected = job(tmp_path / "cpu.jsonl", *args, ranks=2)
    with fake_cupy.installed():
        status, found = job(tmp_path / "gpu.jsonl", *args, "--device", "cuda", "--checkpoint",
                            str(tmp_path / "c"), ranks=2)
    assert status == [0, 0]
    np.testing.assert_allclose(losses(found)[0], losses(expected)[0], 1e-4)


def _around_the_ring(device):
    comm, rng = world(), np.random.default_rng(5)
    q, k, v = (mp.tensor(rng.standard_normal((2, 3, 4, 5)), dtype="float32", device=device)
               .requires_grad_() for _ in range(3))
    out = ring_attention(q, k, v, comm, is_causal=True)
    out.square().sum().backward()
    return [t.detach().cpu().numpy() for t in (out, q.grad, k.grad, v.grad)]


def test_ring_attention_goes_round_ranks_with_gpus(gpu):
    for found, expected in zip(run_threads(_around_the_ring, 3, "cuda"),
                               run_threads(_around_the_ring, 3, "cpu")):
        for ours, theirs in zip(found, expected):
            np.testing.assert_allclose(ours, theirs, 1e-5, 1e-6)


def _experts(device):
    comm, rng = world(), np.random.default_rng(world().rank)
    mp.manual_seed(1)
    module = MixtureOfExperts(6, 4, 2, lambda: nn.Linear(6, 6), comm)
    module.assign_names()
    module.to(device)
    x = mp.tensor(rng.standard_normal((5, 6)), dtype="float32", device=device).requires_grad_()
    out = module(x)
    out.square().sum().backward()
    return [t.detach().cpu().numpy() for t in (out, x.grad, module.gate.weight.grad)]


def test_rows_go_to_experts_on_other_ranks_gpus(gpu):
    for found, expected in zip(run_threads(_experts, 2, "cuda"), run_threads(_experts, 2, "cpu")):
        for ours, theirs in zip(found, expected):
            np.testing.assert_allclose(ours, theirs, 1e-5, 1e-6)
