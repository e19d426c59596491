"""The kernels of kernels/ emulated, with real block sizes, and compiled for GPUs."""

import importlib
import itertools
import pkgutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from kernel_cases import CASES, Out
from kernel_cases_images import CASES as MORE_CASES

import minipar.ops
import minipar.optim
from minipar import dtypes, execution
from minipar.context import current, set_kernels
from minipar.execution import BuildError, Kernel, executions, gpu, kernels_folder, signatures
from minipar.execution.gpu import ARCHITECTURES, cubin
from minipar.execution.source import ACCUMULATE, element

needs_compiler = pytest.mark.skipif(
    execution.compiler() is None or sys.platform != "linux",
    reason="kernels are emulated with a C++ compiler, on Linux")


def kernels():
    """{name: Kernel} of all kernels that Python code holds."""
    names = [module.name for package in (minipar.ops, minipar.optim)
             for module in pkgutil.iter_modules(package.__path__, package.__name__ + ".")]
    found = {}
    for name in (*names, "minipar.amp", "minipar.comm.reduction"):
        for value in vars(importlib.import_module(name)).values():
            held = value.values() if isinstance(value, dict) else (value,)
            found.update({k.name: k for k in held if isinstance(k, Kernel)})
    return found


KERNELS = kernels()
CASES = CASES | MORE_CASES
FILES = sorted(p.name for p in kernels_folder().glob("*.cu"))


@pytest.fixture
def emulated():
    before = current().kernels
    set_kernels("emulated")
    yield
    set_kernels(before)


def test_the_table_of_cases_names_kernels_that_there_are():
    assert set(CASES) <= set(KERNELS)


# {type: the largest error, of the largest result or of 1}
TOLERANCES = {"float32": 3e-6, "float64": 1e-13, "float16": 4e-3, "bfloat16": 3e-2}
SHAPES = [(r, n) for r in (0, 1, 5) for n in (1, 31, 33, 1023)] + [(9, 40)]


def storage(name):
    """The NumPy dtype of that name; the test is skipped where its package is not installed."""
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes")
    return dtypes.dtype(name).storage


class Rounded:
    """A generator whose floating numbers are some of `dtype`: cases then have exact inputs."""

    def __init__(self, seed, dtype):
        self._rng, self._dtype = np.random.default_rng(seed), dtype

    def __getattr__(self, name):
        def draw(*arguments):
            out = getattr(self._rng, name)(*arguments)
            return out.astype(self._dtype).astype(np.float64) if out.dtype.kind == "f" else out
        return draw


def check(name, dtype, shapes):
    """Run a kernel on its case for each shape, and compare what it writes with float64."""
    kernel, dtype = KERNELS[name], storage(dtype)
    run, real = kernel.build(dtype), execution.REAL[dtype.name]
    if run is None:
        pytest.skip(f"{kernel.file} has no {current().kernels} execution")
    source = kernels_folder() / kernel.file
    parameters = signatures(source.read_text(encoding="utf-8"))[name]
    for rows, n in shapes:
        arguments, outs = [], []
        for p, value in zip(parameters, CASES[name](Rounded(n, dtype), rows, n), strict=True):
            if isinstance(value, Out):
                arguments.append(np.empty(value.expected.shape, element(p.plain(real))))
                arguments[-1][...] = value.before
                outs.append((p.name, arguments[-1], value.expected))
            else:
                arguments.append(value.astype(element(p.plain(real))) if p.pointer else value)
        run(*arguments)
        for which, ours, expected in outs:
            error = np.abs(ours.astype(np.float64) - expected).max(initial=0)
            assert error <= TOLERANCES[dtype.name] * max(1, np.abs(expected).max(initial=0)), (
                which, rows, n, error)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", KERNELS)
def test_an_emulated_kernel_has_no_error_and_agrees_with_float64(name, dtype, emulated):
    if name not in CASES:
        pytest.skip("has no case in kernel_cases.py")
    check(name, dtype, SHAPES)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_of_16_bit_numbers_agree_with_float64(name, dtype, emulated):
    if name not in CASES:
        pytest.skip("has no case in kernel_cases.py")
    check(name, dtype, [(5, 33)])
    set_kernels("compiled")
    check(name, dtype, SHAPES)


@needs_compiler
def test_an_operation_runs_emulated(emulated, monkeypatch):
    from minipar.execution.emulated import Library
    launches = []
    launch_ = Library.launch
    monkeypatch.setattr(Library, "launch",
                        lambda self, *a: launches.append(a[0]) or launch_(self, *a))
    x = minipar.tensor([[0.0, 1.0, 2.0]] * 9, requires_grad=True)
    y = minipar.softmax(x, 1)
    (y * y).sum().backward()
    e = np.exp([0.0, 1.0, 2.0])
    assert launches == ["softmax_forward", "softmax_backward"]
    assert np.allclose(y.array, e / e.sum()) and np.allclose(x.grad.array.sum(1), 0, atol=1e-7)


@needs_compiler
def test_emulated_kernels_refuse_what_compiled_ones_refuse(emulated):
    run = KERNELS["softmax_forward"].build(np.dtype(np.float32))
    x, y = np.zeros((4, 6), np.float32), np.empty((4, 6), np.float32)
    with pytest.raises(TypeError, match="softmax_forward: x is of float64, not float32"):
        run(x.astype(np.float64), y, 4, 6)
    with pytest.raises(TypeError, match="x is of >f4, not float32"):
        run(x.astype(">f4"), y, 4, 6)
    with pytest.raises(ValueError, match=r"x of shape \(6, 4\) is not contiguous"):
        run(x.T, y, 4, 6)
    y.flags.writeable = False
    with pytest.raises(ValueError, match=r"y of shape \(4, 6\) is read-only"):
        run(x, y, 4, 6)
    run(y, x, 4, 6)  # reading is no writing


@needs_compiler
def test_an_array_may_be_input_and_output_at_once(emulated):
    x = np.array([[1, 2, 3], [3, 2, 1]], np.float32)
    e = np.exp(x.astype(np.float64))
    KERNELS["softmax_forward"].build(x.dtype)(x, x, 2, 3)
    assert np.abs(x - e / e.sum(1, keepdims=True)).max() < 1e-6


def test_a_file_says_which_executions_it_has():
    assert executions("__global__ void k() {}") == ("gpu", "compiled", "emulated")
    assert executions("// A kernel\n// executions: gpu, compiled\n") == ("gpu", "compiled")
    with pytest.raises(BuildError, match="executions are gpu, compiled, emulated, not cpu"):
        executions("// executions: cpu\n")


def test_a_kernel_without_the_execution_asked_for_leaves_it_to_numpy(
        emulated, monkeypatch, tmp_path, capsys):
    (tmp_path / "twice.cu").write_text("// executions: gpu, compiled\n"
                                       "__global__ void twice(real *x) {}")
    monkeypatch.setattr(execution, "kernels_folder", lambda: tmp_path)
    for _ in range(2):
        assert Kernel("twice.cu", "twice").build(np.dtype(np.float32)) is None
    assert capsys.readouterr().err == ("minipar: kernels run as NumPy reference: twice.cu has no "
                                       "emulated execution, only gpu, compiled\n")


def compile_for_gpus(file, builds):
    """Compile a file of kernels for each (architecture, type); all its kernels must be there."""
    source = kernels_folder() / file
    with ThreadPoolExecutor() as pool:  # compilers are processes
        builds = [pool.submit(cubin, source, arch, real) for arch, real in builds]
    for build in builds:
        try:
            code = build.result()
        except BuildError as error:
            if "there is no CUDA compiler" in str(error):
                pytest.skip(str(error))
            raise
        assert code.startswith(b"\x7fELF")
        assert all(name.encode() in code for name in signatures(source.read_text(encoding="utf-8")))


@pytest.mark.parametrize("file", FILES)
def test_a_kernel_compiles_for_a_gpu_in_every_type(file):
    """Architectures take turns: with the next file, each has the other's types."""
    archs = itertools.cycle(ARCHITECTURES[::(-1) ** FILES.index(file)])
    compile_for_gpus(file, zip(archs, ACCUMULATE))


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_a_kernel_compiles_for_every_gpu_in_every_type(file):
    compile_for_gpus(file, itertools.product(ARCHITECTURES, ACCUMULATE))


@pytest.mark.parametrize("file", FILES)
def test_a_kernel_compiles_by_nvrtc_which_is_what_cupy_uses(file, monkeypatch):
    if gpu.nvrtc_library() is None:
        pytest.skip("there is no NVRTC: pip install nvidia-cuda-nvrtc-cu12")
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)  # no nvcc
    try:
        assert cubin(kernels_folder() / file, "sm_80").startswith(b"\x7fELF")
    except BuildError as error:
        if "there is no CUDA compiler" in str(error):
            pytest.skip(str(error))
        raise
