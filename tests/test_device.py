"""Devices: names, placement, refusals; collectives on arrays of a GPU. By a stand-in for CuPy
(fake_cupy.py), but for the tests of what is said where there is none.
"""

import ast
import copy
import importlib.util
import pickle
from pathlib import Path

import fake_cupy
import numpy as np
import pytest

import minipar as mp
from minipar import cuda, nn, optim
from minipar.comm import run_threads, world
from minipar.comm.gpu import staging
from minipar.context import set_kernels
from minipar.data.prefetch import on_device
from minipar.device import import_cupy, resolve
from minipar.execution import Kernel
from minipar.nn import functional as F
from minipar.parallel import DistributedDataParallel
from minipar.tensor import Tensor

PACKAGE = Path(mp.__file__).parent


@pytest.fixture
def gpu():
    with fake_cupy.installed() as fake:
        yield fake


# Names

def test_a_device_has_pytorchs_forms():
    assert str(mp.device("cuda", 1)) == "cuda:1" == str(mp.device("cuda:1"))
    assert repr(mp.device("cuda:1")) == "device(type='cuda', index=1)"
    assert mp.device(mp.device("cpu")) == mp.device("cpu") != mp.device("cuda")
    assert mp.device("cuda").index is None and mp.tensor(1.0).device == mp.device("cpu")
    assert pickle.loads(pickle.dumps(mp.device("cuda:3"))) == mp.device("cuda:3")


@pytest.mark.parametrize("name", ("tpu", "cuda:", "cuda:x", "cuda:-1", "cpu:1", ""))
def test_another_device_is_refused_in_one_line(name):
    with pytest.raises(ValueError, match="^no device ") as error:
        mp.device(name)
    assert "\n" not in str(error.value)


# What is missing

def test_without_cupy_one_line_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    monkeypatch.setitem(import_cupy.__globals__, "_cupy", None)
    with pytest.raises(RuntimeError, match="needs CuPy, which is missing") as error:
        mp.zeros(2).cuda()
    assert "\n" not in str(error.value)
    assert not cuda.is_available() and cuda.device_count() == 0


@pytest.mark.parametrize("status, words", ((35, "no NVIDIA driver"), (100, "but no GPU"),
                                           (999, "cudaError 999")))
def test_without_a_driver_or_a_gpu_one_line_says_so(gpu, monkeypatch, status, words):
    monkeypatch.setattr(gpu, "COUNT", -status)
    with pytest.raises(RuntimeError, match=words) as error:
        mp.zeros(2).cuda()
    assert "\n" not in str(error.value) and not cuda.is_available()


def test_with_no_gpu_the_main_job_refuses_in_one_line(gpu, monkeypatch, capsys):
    from minipar import train
    monkeypatch.setattr(gpu, "COUNT", -100)
    assert train.main(["--device", "cuda", "--steps", "1"]) == 2
    assert capsys.readouterr().err == (
        "minipar: error: device 'cuda': CuPy and a driver are there, but no GPU\n")


# Placement

def test_sharded_training_on_a_gpu_is_refused_in_one_line(capsys):
    from minipar import train
    assert train.main(["--device", "cuda", "--sync", "zero1"]) == 2
    assert capsys.readouterr().err == ("minipar: error: --sync zero1 is for the CPU's memory: "
                                       "not with --device cuda\n")


def test_tensors_are_made_on_and_moved_to_a_gpu(gpu):
    made = [mp.zeros(2, device="cuda"), mp.ones(2, device="cuda:0"), mp.full((2,), 3, device=0),
            mp.empty(2, device="cuda"), mp.arange(3, device="cuda"), mp.eye(2, device="cuda"),
            mp.linspace(0, 1, 3, device="cuda"), mp.tensor([1.0], device="cuda"),
            mp.randn(2, device="cuda"), mp.rand(2, device="cuda"),
            mp.randint(5, size=(2,), device="cuda"), mp.randperm(3, device="cuda"),
            mp.as_tensor([1, 2], device="cuda"), mp.zeros(2).cuda(), mp.zeros(2).to("cuda"),
            mp.zeros(2).to(mp.zeros(1, device="cuda"))]
    for t in made:
        assert str(t.device) == "cuda:0" and t.is_cuda
        assert t.cpu().device == mp.device("cpu") and not t.cpu().is_cuda
        assert t.to("cuda") is t and t.cuda() is t and t.cpu().cpu().numpy().shape == t.shape
        for alike in (mp.zeros_like(t), mp.tensor(t), t.detach(), mp.full_like(t, 1)):
            assert alike.device == t.device
    assert str(mp.zeros(2, device="cuda:1").device) == "cuda:1"
    assert mp.zeros(2, device="cuda").to("cuda:1").to("cpu", "float64").dtype is mp.float64
    with pytest.raises(ValueError, match="^no device 'cuda:2': there are 2 GPUs$"):
        mp.zeros(2).to("cuda:2")


def test_random_numbers_do_not_depend_on_the_device(gpu):
    mp.manual_seed(3)
    expected = mp.randn(4)
    mp.manual_seed(3)
    assert mp.randn(4, device="cuda").tolist() == expected.tolist()
    assert mp.randn_like(mp.zeros(2, device="cuda")).is_cuda


def test_a_tensor_on_a_gpu_reads_as_one(gpu):
    t = mp.tensor([1.0, 2.0], device="cuda", requires_grad=True)
    assert repr(t) == "tensor([1., 2.], device='cuda:0', requires_grad=True)"
    assert t.tolist() == [1, 2] and float(t[1]) == 2 and t.sum().item() == 3
    with pytest.raises(TypeError, match="cuda:0: use .cpu"):
        t.detach().numpy()
    with pytest.raises(TypeError):
        np.asarray(t.detach())
    assert str(pickle.loads(pickle.dumps(t)).device) == str(copy.deepcopy(t).device) == "cuda:0"


def test_gradients_flow_back_to_where_a_tensor_was(gpu):
    x = mp.tensor([1.0, 2.0], requires_grad=True)
    (x.cuda() * 3).cpu().sum().backward()
    assert x.grad.device == mp.device("cpu") and x.grad.tolist() == [3, 3]


def test_modules_move_with_parameters_buffers_and_gradients(gpu):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    lazy = model[0].weight
    assert model.cuda() is model and not lazy.is_materialized and str(lazy.device) == "cuda:0"
    model(mp.ones(2, 1, 2, 2, device="cuda")).sum().backward()
    for t in (*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())):
        assert str(t.device) == "cuda:0"
    model.to("cpu", "float64")
    for t in (*model.parameters(), *(p.grad for p in model.parameters())):
        assert str(t.device) == "cpu" and t.dtype is mp.float64
    mp.manual_seed(0)
    assert nn.Linear(2, 2).cuda().weight.tolist() == (mp.manual_seed(0), nn.Linear(2, 2))[
        1].weight.tolist()


def test_hooks_of_modules_see_gradients_on_the_gpu(gpu):
    layer, seen = nn.Linear(3, 2).cuda(), []
    layer.register_full_backward_hook(lambda module, gx, gy: seen.extend([*gx, *gy]))
    x = mp.ones(4, 3, device="cuda", requires_grad=True)
    layer(x).sum().backward()
    assert [tuple(t.shape) for t in seen] == [(4, 3), (4, 2)]
    assert {str(t.device) for t in seen} == {"cuda:0"}


def test_parameters_in_flat_memory_do_not_move(gpu):
    layer = nn.Linear(2, 2)
    optim.SGD(layer.parameters())
    with pytest.raises(RuntimeError, match="convert it to cuda:0 before making them"):
        layer.cuda()


@pytest.mark.parametrize("kernels", ("compiled", "reference"))
@pytest.mark.parametrize("make", (lambda p: optim.SGD(p, 0.1, momentum=0.9),
                                  lambda p: optim.Adam(p, 0.1, amsgrad=True),
                                  lambda p: optim.AdamW(p, 0.1)))
def test_an_optimizer_steps_on_the_gpu_and_its_state_travels(gpu, make, kernels):
    set_kernels(kernels)
    try:
        ends = []
        for devices in (("cpu", "cpu"), ("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")):
            mp.manual_seed(0)
            model, state, x = nn.Linear(3, 2), None, mp.ones(2, 3)
            for device in devices:
                weights = model.state_dict()
                model = nn.Linear(3, 2).to(device)
                model.load_state_dict(weights)
                optimizer = make(model.parameters())
                if state:
                    optimizer.load_state_dict(state)
                for _ in range(3):
                    optimizer.zero_grad()
                    (model(x.to(device)) ** 2).sum().backward()
                    optimizer.step(max_norm=1.0)
                state = optimizer.state_dict()
            ends.append(model.weight.detach().cpu().numpy())
        for end in ends[1:]:
            np.testing.assert_allclose(end, ends[0], 1e-5)
    finally:
        set_kernels("compiled")


# Operands on two devices

@pytest.mark.parametrize("op", (
    lambda a, b: a + b, lambda a, b: a < b, lambda a, b: a @ b, lambda a, b: F.linear(a, b),
    lambda a, b: mp.cat([a, b]), lambda a, b: mp.stack([a, b]), lambda a, b: mp.maximum(a, b),
    lambda a, b: F.embedding(mp.tensor([0]), b), lambda a, b: F.mse_loss(a, b),
    lambda a, b: F.layer_norm(a, (2,), b[0]), lambda a, b: F.cross_entropy(b, mp.tensor([0, 1])),
    lambda a, b: F.conv2d(a[None, None], b[None, None]),
    lambda a, b: F.scaled_dot_product_attention(a, b, b)))
def test_operands_on_two_devices_are_refused_in_one_line(gpu, op):
    a, b = mp.ones(2, 2), mp.ones(2, 2, device="cuda")
    with pytest.raises(RuntimeError, match="on one device, but there are c.* and c") as error:
        op(a, b)
    assert "\n" not in str(error.value)


def test_a_kernel_names_what_lies_elsewhere(gpu):
    relu = Kernel("activation.cu", "relu_forward", elements="n")
    x = mp.ones(4, device="cuda").array
    run = relu.build(x)
    with pytest.raises(ValueError, match="^relu_forward: y is on the CPU, not on cuda:0$"):
        run(x, np.zeros(4, np.float32), 4)
    with pytest.raises(TypeError, match="^relu_forward: x is of float64, not float32$"):
        run(x.astype(np.float64), x, 4)
    with pytest.raises(ValueError, match=r"^relu_forward: x of shape \(2,\) is not contiguous$"):
        run(x[::2], x, 2)
    with pytest.raises(TypeError, match="^relu_forward: x is a list, not an ndarray$"):
        run([1.0], x, 1)
    other = mp.ones(4, device="cuda:1").array
    with pytest.raises(ValueError, match="^relu_forward: x is on cuda:1, and the current GPU is "
                                         r"cuda:0: minipar.cuda.set_device\(1\)$"):
        run(other, other, 4)


def test_launches_have_a_gpus_blocks_and_pass_the_emulator(gpu, monkeypatch):
    monkeypatch.setattr(gpu.RawModule, "EXECUTION", "emulated")
    gpu.RawModule.launches.clear()
    x = mp.randn(3, 40, device="cuda", requires_grad=True)
    F.cross_entropy(mp.softmax(F.gelu(F.layer_norm(x, (40,))), -1),
                    mp.tensor([1, 2, 3], device="cuda")).backward()
    found = {name: (grid, block) for name, grid, block in gpu.RawModule.launches}
    assert found["softmax_forward"] == ((3,), (64,))  # a row a block, whole warps
    assert found["gelu_none_slope"] == ((1,), (128,))
    assert found["layer_norm_backward"] == ((1,), (64,))


def test_a_kernel_that_does_not_compile_falls_back_and_says_so(gpu, monkeypatch, capsys):
    def broken(self, name):
        raise gpu.cuda.compiler.CompileException("expected a ;")
    monkeypatch.setattr(gpu.RawModule, "get_function", broken)
    monkeypatch.setattr("minipar.execution._libraries", {})
    kernel = Kernel("activation.cu", "relu_forward", elements="n")
    assert kernel.build(mp.ones(1, device="cuda").array) is None
    assert "activation.cu does not compile" in capsys.readouterr().err


# Streams

def test_streams_and_events_have_pytorchs_methods(gpu):
    stream, start, end = cuda.Stream(), cuda.Event(enable_timing=True), cuda.Event(True)
    start.record()
    stream.wait_stream(cuda.current_stream())
    with stream:
        assert cuda.current_stream().stream is stream.stream
        end.record(stream)
    end.synchronize()
    assert end.query() and stream.query() and start.elapsed_time(end) >= 0
    cuda.synchronize()
    assert cuda.device_count() == 2 and cuda.is_available()
    with cuda.device(1):
        assert cuda.current_device() == 1 and str(mp.zeros(1, device="cuda").device) == "cuda:1"
    assert cuda.current_device() == 0 and cuda.get_device_name() == "stand-in"


def test_the_next_batch_is_read_before_the_step_and_none_twice(gpu):
    reads = []

    def read(shard):
        reads.append(shard)
        return [mp.full((2, 3), float(shard)), mp.tensor([shard])]
    for device in ("cpu", "cuda"):
        for count in (0, 1, 4):
            reads.clear()
            seen = []
            for shard, batch in on_device(range(count), read, resolve(device)):
                values, labels = batch()
                assert values.device.type == labels.device.type == device
                assert reads == list(range(min(count, shard + 1 + (device == "cuda"))))
                seen.append((shard, values[1, 2].item(), labels.tolist()))
            assert seen == [(i, float(i), [i]) for i in range(count)]
    shards = on_device(range(4), read, resolve("cuda"))  # left before its end, as by --steps
    reads.clear()
    next(shards)[1]()
    shards.close()
    assert reads == [0, 1]


# Communication

def _collectives():
    comm = world()
    x = mp.arange(6, dtype="float32", device="cuda") + comm.rank
    comm.all_reduce(x)
    y = mp.full((3,), float(comm.rank), device="cuda")
    comm.broadcast(y, root=1)
    parts = comm.reduce_scatter(mp.arange(4, dtype="float32", device="cuda"))
    rows = comm.all_gather(mp.full((2,), float(comm.rank), device="cuda"))
    turned = comm.all_to_all(mp.arange(2, device="cuda") + 10 * comm.rank)
    mean = mp.full((2, 2), float(comm.rank), device="cuda").t()
    comm.all_reduce(mean, "mean", async_op=True).wait()
    if comm.rank == 0:
        comm.send(mp.ones(2, device="cuda"), 1)
    else:
        landing = mp.zeros(2, device="cuda")
        comm.recv(landing, 0)
        assert landing.tolist() == [1, 1]
    assert {str(t.device) for t in (x, y, parts, rows, turned, mean)} == {"cuda:0"}
    return [t.cpu().tolist() for t in (x, y, parts, rows, turned, mean)]


@pytest.mark.parametrize("aware", (False, True))
def test_collectives_take_arrays_of_a_gpu(gpu, aware, monkeypatch):
    if aware:  # as if messages took a GPU's memory: threads copy whatever it is
        monkeypatch.setattr("minipar.comm.transport.base.Transport.takes_device_memory", True)
        monkeypatch.setattr(gpu.ndarray, "__array_interface__", property(
            lambda a: a.host.__array_interface__), raising=False)
    before = getattr(gpu.Stream, "waits", 0)
    results = run_threads(_collectives, 2)
    assert gpu.Stream.waits > before  # nothing goes out that the GPU may still be computing
    for rank, got in enumerate(results):
        assert got == [[1, 3, 5, 7, 9, 11], [1, 1, 1], [[0, 2], [4, 6]][rank],
                       [[0, 0], [1, 1]], [[0, 10], [1, 11]][rank], [[0.5, 0.5], [0.5, 0.5]]]


def _mapped(n):
    comm, out = world(), []
    x = mp.arange(n, dtype="float32", device="cuda").array
    plan = comm.plan("all_reduce", x, algorithm="shared")
    for k in range(3):
        x[...] = comm.rank + k
        plan.start()
        plan.wait()
        out.append(x.get())
    y = mp.full((2, 3), float(comm.rank), device="cuda")
    for _ in range(3):  # single ones, which take turns
        comm.all_reduce(y, algorithm="shared")
    z = np.full(6, comm.rank, np.float32)
    comm.all_reduce(z, algorithm="shared")  # of the same form, in the memory of the host
    assert not isinstance(plan, staging.StagedPlan)
    return out, y.tolist(), z.tolist()


@pytest.mark.parametrize("n", (1, 1000, 100_003))
def test_programs_in_shared_memory_work_in_memory_of_gpus_too(gpu, n):
    for out, y, z in run_threads(_mapped, 3, n):
        for k, x in enumerate(out):
            np.testing.assert_array_equal(x, np.full(n, 3.0 + 3 * k))
        assert y == [[27.0] * 3] * 2 and z == [3.0] * 6


def _by_nccl(shared):
    comm, out = world(), []
    cuda.set_device(0 if shared else comm.rank)
    x = mp.full((5,), comm.rank + 1.0, device="cuda")
    plan = comm.plan("all_reduce", x.array, algorithm="nccl")
    for _ in range(2):
        plan.start()
        plan.wait()
    comm.broadcast(y := mp.full((2,), float(comm.rank), device="cuda"), 1, algorithm="nccl")
    comm.reduce(z := mp.full((2,), float(comm.rank), device="cuda"), 1, "max", algorithm="nccl")
    for kind, array, wrong in (("all_gather", x.array, "no all_gather here"),
                               ("all_reduce", np.ones(2), "on GPUs, not on the CPU")):
        with pytest.raises(ValueError, match=wrong):
            comm.plan(kind, array, algorithm="nccl")
    return x.tolist(), y.tolist(), z.tolist()


def test_nccl_serves_ranks_with_a_gpu_each(gpu):
    for rank, got in enumerate(run_threads(_by_nccl, 2, False)):
        assert got == ([6.0] * 5, [1.0] * 2, [float(rank)] * 2)
    with pytest.raises(ValueError, match="^nccl: ranks 0 and 1 share a GPU"):
        run_threads(_by_nccl, 2, True)


def _kept(algorithm, n):
    comm = world()
    x = mp.arange(n, dtype="float64", device="cuda").array * (comm.rank + 1)
    plan = comm.plan("all_reduce", x, algorithm=algorithm)
    first = x.get()
    for _ in range(2):
        x.set(first)
        plan.start()
        plan.wait()
    pieces = len(getattr(plan, "_segments", "1"))
    comm.free(plan)
    return pieces, x.get()


@pytest.mark.parametrize("algorithm", ("auto", "ring", "rabenseifner"))
@pytest.mark.parametrize("n, pieces", ((0, 1), (1, 1), (100, 1), (1000, 3), (9999, 8)))
def test_a_kept_plan_goes_through_the_host_in_segments(gpu, algorithm, n, pieces, monkeypatch):
    monkeypatch.setattr(staging, "SEGMENT", 2500)
    for count, x in run_threads(_kept, 3, algorithm, n):
        assert count == pieces
        np.testing.assert_array_equal(x, np.arange(n) * 6.0)


def test_a_group_of_one_rank_copies_nothing(gpu):
    def alone():
        plan = world().plan("all_reduce", mp.ones(3, device="cuda").array)
        assert not isinstance(plan, staging.StagedPlan)
        plan.start()
        plan.wait()
    run_threads(alone, 1)


def _ddp(device):
    comm = world()
    mp.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).to(device)
    unused = nn.Linear(1, 1).to(device)
    model.add_module("unused", unused)
    model.forward = lambda x: model[2](model[1](model[0](x)))
    ddp = DistributedDataParallel(model, bucket_cap_mb=1e-4)
    optimizer = optim.SGD(ddp.parameters(), 0.1, momentum=0.9)
    x = np.random.default_rng(2).standard_normal((3, 2, 4, 6)).astype(np.float32)
    for step in range(3):
        optimizer.zero_grad()
        (ddp(Tensor(x[step, comm.rank]).to(device)) ** 2).sum().backward()
        optimizer.step()
    assert unused.weight.grad is None
    return {k: t.cpu().numpy() for k, t in ddp.state_dict().items()}


def test_data_parallelism_has_its_buckets_on_the_gpu(gpu):
    expected = run_threads(_ddp, 2, "cpu")
    found = run_threads(_ddp, 2, "cuda")
    for name, value in found[0].items():
        np.testing.assert_allclose(value, expected[0][name], 1e-5, 1e-6)
        if "running" not in name and "num" not in name:
            np.testing.assert_array_equal(value, found[1][name])


# The real CuPy

def _used(path):
    """Chains of attributes of CuPy in a source file, as "cuda.runtime.getDevice"."""
    def chain(node):
        if isinstance(node, ast.Attribute):
            rest = chain(node.value)
            return None if rest is None else [*rest, node.attr]
        is_cupy = isinstance(node, ast.Name) and node.id in ("cupy", "_cupy") or (
            isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_cupy")
        return [] if is_cupy else None
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {".".join(c) for c in map(chain, nodes) if c}


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
@pytest.mark.filterwarnings("ignore")
def test_every_attribute_of_cupy_that_is_used_is_one_of_the_real_package():
    import cupy
    used = set().union(*map(_used, PACKAGE.rglob("*.py")))
    assert len(used) > 15
    for name in sorted(used):
        found = cupy
        for part in name.split("."):
            assert hasattr(found, part), f"cupy.{name}"
            found = getattr(found, part)
    for owner, names in ((cupy.ndarray, ["set", "get", "data", "device", *fake_cupy.METHODS]),
                         (cupy.cuda.MemoryPointer, ["copy_to_host_async", "copy_from_host_async",
                                                  "copy_from_device_async", "ptr"]),
                         (cupy.cuda.Stream, ["wait_event", "synchronize", "done", "record"]),
                         (cupy.cuda.Event, ["record", "synchronize", "done"])):
        assert not [n for n in names if not hasattr(owner, n)]
    assert not [n for n in fake_cupy.MISSING if hasattr(cupy, n)]
