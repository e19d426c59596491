"""Kernels: how their sources are read, built, cached and called."""

import os
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from launch import ROOT, python

import minipar as mp
from minipar import execution
from minipar.context import KERNELS, set_kernels
from minipar.execution import BuildError, Kernel, Parameter, compiled, signatures

needs_compiler = pytest.mark.skipif(execution.compiler() is None, reason="there is no C++ compiler")


def test_signatures_are_read_from_the_source():
    text = """
    // __global__ void not_me(int n)
    __global__ void a(const real *x, real *__restrict__ y,
                      int64 n, /* of rows */ acc eps) { }
    static __device__ float f(float x) { return x; }
    __global__ void __launch_bounds__(256) b(uint8* p) {}
    __global__ void nothing() {}"""
    assert signatures(text) == {
        "a": [Parameter("x", "real", True, True), Parameter("y", "real", True, False),
              Parameter("n", "int64", False, False), Parameter("eps", "acc", False, False)],
        "b": [Parameter("p", "uint8", True, False)], "nothing": []}
    assert signatures("""template <class T> __global__ void c(T *x) {}
        extern "C" __global__ void d(const unsigned long n, float x[], unsigned char *y) {}""") == {
        "d": [Parameter("n", "uint64", False, True), Parameter("x", "float", True, False),
              Parameter("y", "uint8", True, False)]}
    with pytest.raises(BuildError, match=r"not ' float \*\*rows'"):
        signatures("__global__ void c(int a, float **rows) {}")


def test_every_kernel_that_an_operation_names_is_in_its_file():
    named = set()
    for path in (ROOT / "minipar").rglob("*.py"):
        named |= set(re.findall(r'Kernel\("(\w+\.cu)", "(\w+)"', path.read_text()))
    for file, name in named:
        assert name in signatures((ROOT / "kernels" / file).read_text()), (file, name)


@needs_compiler
def test_an_array_that_does_not_fit_is_refused_naming_kernel_and_parameter():
    run = Kernel("softmax.cu", "softmax_forward").build(np.dtype(np.float32))
    x, y = np.zeros((4, 6), np.float32), np.empty((4, 6), np.float32)
    run(x, y, 4, 6)
    assert (y == np.float32(1 / 6)).all()
    with pytest.raises(TypeError, match="softmax_forward: x is of float64, not float32"):
        run(x.astype(np.float64), y, 4, 6)
    with pytest.raises(ValueError, match=r"x of shape \(6, 4\) is not contiguous"):
        run(x.T, y, 4, 6)
    with pytest.raises(TypeError, match="x is of >f4, not float32"):
        run(x.astype(">f4"), y, 4, 6)
    for other in (np.float32(1), 1.0, None, np.memmap):  # whose memory is of another form
        with pytest.raises(TypeError, match=f"x is a {type(other).__name__}, not an ndarray"):
            run(other, y, 4, 6)
    y.flags.writeable = False
    with pytest.raises(ValueError, match=r"y of shape \(4, 6\) is read-only"):
        run(x, y, 4, 6)
    run(y, x, 4, 6)  # reading is no writing


@needs_compiler
def test_arguments_are_converted_as_python_does_and_refused_as_it_does():
    run = Kernel("cross_entropy.cu", "cross_entropy_gradient").build(np.dtype(np.float32))
    x, t, loss = np.zeros((1, 4), np.float32), np.zeros(1, np.int64), np.empty(1, np.float32)
    for scale in (2, 2.0, np.float32(2), np.float64(2), np.int64(2)):
        gx = np.empty_like(x)
        assert run(x, t, loss, gx, scale, 1, np.int64(4)) is None
        assert gx.tolist() == [[-1.5, 0.5, 0.5, 0.5]]
    with pytest.raises(TypeError, match="real number, not str"):
        run(x, t, loss, gx, "2", 1, 4)
    for wrong in (1.5, None):
        with pytest.raises(TypeError, match="integer"):
            run(x, t, loss, gx, 1.0, wrong, 4)
    with pytest.raises(OverflowError):
        run(x, t, loss, gx, 1.0, 2**70, 4)
    with pytest.raises(TypeError, match="cross_entropy_gradient: 2 arguments for 7 parameters"):
        run(x, t)


WAIT = """#include "common.cuh"
#include <chrono>
// Waits for another thread to set flag[0], for 20 s; flag[1] tells whether it did.
__global__ void wait_for(int *flag) {
    auto begin = std::chrono::steady_clock::now();
    while (!((volatile int *)flag)[0]
           && std::chrono::steady_clock::now() - begin < std::chrono::seconds(20)) {}
    flag[1] = flag[0];
}
"""


@needs_compiler
def test_other_threads_run_python_while_a_large_kernel_runs(tmp_path):
    (tmp_path / "wait.cu").write_text(WAIT)
    shutil.copy(ROOT / "kernels" / "common.cuh", tmp_path)
    run = compiled.Library(tmp_path / "wait.cu", "float").function(Kernel("wait.cu", "wait_for"))
    flag = np.zeros(5000, np.int32)

    def set_flag():
        flag[0] = 1
    timer = threading.Timer(0.1, set_flag)
    timer.start()
    run(flag)
    timer.join()
    assert flag[1] == 1


def test_kernels_are_chosen_by_name():
    x = mp.tensor([[1.0, 2.0]])
    results = set()
    for kernels in KERNELS:
        set_kernels(kernels)
        results.add(tuple(np.round(mp.softmax(x, 1).tolist()[0], 6)))
    set_kernels("compiled")
    assert len(results) == 1
    with pytest.raises(ValueError, match="no kernels 'fast': there are reference, compiled"):
        set_kernels("fast")


SOFTMAX = ("import minipar as mp, numpy as np\n"
           "x = np.linspace(-3, 3, 12, dtype='f').reshape(3, 4)\n"
           "y = mp.softmax(mp.Tensor(x), 1).array\n"
           "e = np.exp(x.astype('d')); print(abs(y - e / e.sum(1, keepdims=True)).max() < 1e-6)")


@pytest.mark.parametrize("setting, said", [
    ({"PATH": "/nonexistent", "CXX": ""}, "there is no C++ compiler"),
    ({"CXX": "false"}, "softmax.cu does not compile"),
    ({"MINIPAR_CACHE": "/dev/null/cache"}, "cannot be written"),
    ({"MINIPAR_KERNELS": "reference", "CXX": "false"}, "")],
    ids=["no compiler", "a compiler that fails", "a cache that cannot be written", "reference"])
def test_where_kernels_cannot_be_built_or_kept_the_result_is_the_same(tmp_path, setting, said):
    if said == "cannot be written" and execution.compiler() is None:
        pytest.skip("there is no C++ compiler")
    done = python("-c", SOFTMAX, **{"MINIPAR_CACHE": str(tmp_path), **setting})
    assert done.stdout.strip() == "True" and said in done.stderr
    assert done.stderr.count("minipar:") == (said != "")


@needs_compiler
def test_many_processes_that_start_at_once_build_a_kernel_once(tmp_path):
    environment = {**os.environ, "MINIPAR_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen([sys.executable, "-c", SOFTMAX], env=environment, text=True,
                                  stdout=subprocess.PIPE) for _ in range(6)]
    assert [p.communicate(timeout=60)[0].strip() for p in processes] == ["True"] * 6
    assert len(list(tmp_path.glob("*.so"))) == 1 and not list(tmp_path.glob("*.new"))


@needs_compiler
def test_loading_a_kernel_leaves_the_float_mode_alone():
    Kernel("softmax.cu", "softmax_forward").build(np.dtype(np.float32))
    assert np.array([1e-310]) * 0.5 > 0 and np.float32(1e-45) * np.float32(1) > 0


@needs_compiler
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 31, 33, 100, 1023, 1024])
def test_softmax_kernels_agree_with_a_float64_reference(n):
    rng = np.random.default_rng(n)
    x, g = rng.standard_normal((2, 5, n)) * 10
    for name in ("softmax", "log_softmax"):
        e = np.exp(x - x.max(1, keepdims=True))
        y = e / e.sum(1, keepdims=True)
        gx = y * (g - (g * y).sum(1, keepdims=True))
        if name == "log_softmax":
            gx = g - y * g.sum(1, keepdims=True)
            y = np.log(e / e.sum(1, keepdims=True))
        for dtype, tolerance in ((np.float32, 2e-6), (np.float64, 1e-14)):
            a, out, back = x.astype(dtype), *np.full((2, 6, n), 7, dtype)  # a guard row each
            Kernel("softmax.cu", f"{name}_forward").build(a.dtype)(a, out, 5, n)
            Kernel("softmax.cu", f"{name}_backward").build(a.dtype)(
                y.astype(dtype), g.astype(dtype), back, 5, n)
            for ours, expected in ((out, y), (back, gx)):
                assert np.abs(ours[:5] - expected).max() <= tolerance * max(1, abs(expected).max())
                assert (ours[5] == 7).all()


@needs_compiler
def test_softmax_passes_nan_and_infinity_on():
    nan, inf = np.nan, np.inf
    x = np.array([[nan, 0, 1], [inf, 0, 1], [-inf, 0, 1], [-inf] * 3, [1e-40, -1e-40, 0]], "f")
    for kernels in KERNELS:
        set_kernels(kernels)
        y = mp.softmax(mp.Tensor(x), 1).array
        assert np.isnan(y[[0, 1, 3]]).all() and y[2, 0] == 0 and (y[4] == np.float32(1 / 3)).all()
    set_kernels("compiled")
