"""What only a GPU shows; `python benchmarks/gpu.py --stages tests` runs it and keeps the outcome.

The same tables that the emulator and the stand-in go through, on the device: every kernel against
float64, every operation against the CPU, whole training, and what ranks that share a GPU say to
each other. Elsewhere the file is skipped, in one line.
"""

import json

import numpy as np
import pytest

import minipar as mp
from minipar import cuda, execution, optim, train
from minipar.comm import launch, run_threads, world
from minipar.comm.gpu import staging
from minipar.context import current, set_kernels
from minipar.data.prefetch import on_device
from minipar.device import import_cupy, resolve
from minipar.execution.source import element

pytestmark = pytest.mark.gpu
if not cuda.is_available():
    pytest.skip("there is no GPU here", allow_module_level=True)

import test_device_half  # noqa: E402
import test_device_ops  # noqa: E402
import test_device_train  # noqa: E402
import test_emulator_kernels as table  # noqa: E402
from kernel_cases import Out  # noqa: E402

TOLERANCES = table.TOLERANCES | {"float32": 1e-5, "float64": 1e-12}


@pytest.fixture(params=("compiled", "reference"))
def kernels(request):
    before = current().kernels
    set_kernels(request.param)
    yield request.param
    set_kernels(before)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", table.CASES)
def test_a_kernel_agrees_with_float64(name, dtype):
    cupy, kernel, kind = import_cupy(), table.KERNELS[name], table.storage(dtype)
    run, real = kernel.build(cupy.empty(0, kind)), execution.REAL[dtype]
    source = (execution.kernels_folder() / kernel.file).read_text(encoding="utf-8")
    types = [element(p.plain(real)) for p in execution.signatures(source)[name]]
    for rows, n in [*table.SHAPES, (300, 257)]:
        arguments, outs = [], []
        case = table.CASES[name](table.Rounded(n, kind), rows, n)
        for type_, value in zip(types, case, strict=True):
            if isinstance(value, Out):
                # With 16 elements after the end that must stay as they are.
                whole, size = cupy.full(value.expected.size + 16, 7, type_), value.expected.size
                before = np.broadcast_to(value.before, value.expected.shape).reshape(-1)
                whole[:size] = cupy.asarray(before.astype(type_))
                arguments.append(whole[:size].reshape(value.expected.shape))
                outs.append((arguments[-1], value.expected, whole))
            elif isinstance(value, np.ndarray):
                arguments.append(cupy.asarray(np.ascontiguousarray(value.astype(type_))))
            else:
                arguments.append(value)
        run(*arguments)
        for ours, expected, whole in outs:
            assert (whole[expected.size:].get() == 7).all(), "it writes after the end"
            error = np.abs(ours.get().astype(np.float64) - expected).max(initial=0)
            assert error <= TOLERANCES[dtype] * max(1, np.abs(expected).max(initial=0)), (rows, n)


@pytest.mark.parametrize("name", test_device_ops.CASES)
def test_an_operation_gives_what_it_gives_on_the_cpu(name, kernels):
    expected, slopes = test_device_ops.outcome(name, "cpu")
    found, gradients = test_device_ops.outcome(name, "cuda:0")
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, 2e-4, 2e-4)
    for gradient, slope in zip(gradients, slopes):
        assert (gradient is None) == (slope is None)
        if slope is not None:
            np.testing.assert_allclose(gradient, slope, 2e-4, 2e-4)


@pytest.mark.parametrize("dtype", test_device_half.DTYPES)
@pytest.mark.parametrize("name", test_device_half.CASES)
def test_an_operation_on_16_bits_gives_what_it_gives_on_the_cpu(name, dtype, kernels):
    expected = test_device_half.outcome(name, dtype, "cpu")
    for ours, theirs in zip(test_device_half.outcome(name, dtype, "cuda:0"), expected):
        np.testing.assert_allclose(ours, theirs, 2e-2, 2e-2)


@pytest.mark.parametrize("model", test_device_train.SMALL)
@pytest.mark.parametrize("ranks", (1, 2))
def test_training_is_training_on_the_cpu(model, ranks, tmp_path):
    args = [*test_device_train.SMALL[model], "--steps", "4", "--batch-size", "8", "--clip", "1"]
    _, expected = test_device_train.job(tmp_path / "cpu.jsonl", *args)
    status, found = test_device_train.job(tmp_path / "gpu.jsonl", *args, "--device", "cuda",
                                          ranks=ranks)
    assert status == [0] * ranks
    for ours, theirs in zip(test_device_train.losses(found), test_device_train.losses(expected)):
        np.testing.assert_allclose(ours, theirs, 1e-3)


def test_two_processes_share_the_gpu_and_train_alike(tmp_path):
    path = tmp_path / "m.jsonl"
    argv = [*test_device_train.SMALL["mlp"], "--steps", "4", "--batch-size", "8", "--quiet"]
    assert train.main([*argv, "--metrics", str(tmp_path / "cpu.jsonl")]) == 0
    assert train.main([*argv, "--metrics", str(path), "--device", "cuda", "--ranks", "2"]) == 0
    ends = [json.loads((tmp_path / name).read_text().splitlines()[-1])
            for name in ("cpu.jsonl", "m.jsonl")]
    assert ends[1]["loss"] == pytest.approx(ends[0]["loss"], rel=1e-3)
    assert ends[1]["world_size"] == 2


def test_results_are_the_same_from_run_to_run():
    def gradients():
        mp.manual_seed(0)
        x = mp.randn(64, 40, device="cuda", requires_grad=True)
        index = mp.randint(40, size=(500,), device="cuda")
        table = mp.randn(40, 33, device="cuda", requires_grad=True)
        loss = mp.nn.functional.embedding(index, table).sum() + mp.softmax(x, -1).norm()
        loss.backward()
        return [t.grad.cpu().numpy() for t in (x, table)]
    first, second = gradients(), gradients()
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a, b)


def _sum_of_ramps(algorithm, n):
    comm = world()
    x = mp.arange(n, dtype="float32", device="cuda").array
    plan = comm.plan("all_reduce", x, algorithm=algorithm)
    for _ in range(20):  # what computes the array, and what reads it, has to be waited for
        x[...] = 0
        for _ in range(10):
            x += 0.1 * (comm.rank + 1)
        plan.start()
        plan.wait()
        assert abs(float(x.max()) - 3) < 1e-4 and abs(float(x.min()) - 3) < 1e-4
    return isinstance(plan, staging.StagedPlan) and len(plan._segments)


@pytest.mark.parametrize("n, segments", ((1000, 1), (5_000_000, 4)))
def test_staging_waits_for_what_computes_and_is_waited_for(n, segments):
    assert run_threads(_sum_of_ramps, 2, "ring", n) == [segments] * 2
    assert launch(_sum_of_ramps, 2, args=("ring", n)) == [segments] * 2


def test_processes_map_each_others_memory_of_the_gpu():
    assert launch(_sum_of_ramps, 2, args=("shared", 100_003)) == [False] * 2
    assert run_threads(_sum_of_ramps, 2, "shared", 100_003) == [False] * 2


def test_batches_arrive_whole_while_the_gpu_is_busy():
    work = mp.randn(2000, 2000, device="cuda")
    batches = (mp.full((500_000,), float(i)) for i in range(50))
    for i, (_, batch) in enumerate(on_device(range(50), lambda _: [next(batches)],
                                             resolve("cuda"))):
        x, = batch()
        total = (x + (work @ work)[0, 0] * 0).sum()
        assert total.item() == i * 500_000


def test_an_optimizer_of_many_parameters_is_one_launch_and_right():
    rng, ends = np.random.default_rng(0), []
    values = [rng.standard_normal(n).astype(np.float32) for n in (3, 1000, 70_001)]
    for device in ("cpu", "cuda"):
        parameters = [mp.nn.Parameter(mp.tensor(v, device=device)) for v in values]
        optimizer = optim.AdamW(parameters, 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            sum((p * p).sum() for p in parameters).backward()
            optimizer.step(max_norm=1.0)
        ends.append(np.concatenate([p.detach().cpu().numpy() for p in parameters]))
    np.testing.assert_allclose(ends[1], ends[0], 1e-4, 1e-5)
