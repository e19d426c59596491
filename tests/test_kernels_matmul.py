"""The matrix products of kernels/matmul.cu in every execution that the file declares."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from minipar import execution
from minipar.cli import main
from minipar.context import set_kernels
from minipar.execution import EmulationError, Kernel, executions, kernels_folder
from minipar.execution.emulated import Library
from minipar.execution.gpu import cubin
from minipar.execution.source import BuildError

pytestmark = pytest.mark.skipif(
    execution.compiler() is None or sys.platform != "linux",
    reason="kernels are emulated with a C++ compiler, on Linux")

FILE = kernels_folder() / "matmul.cu"
REAL = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}
NAMES = ["matmul_naive", "matmul_shared", "matmul_registers"]
SHAPES = [(1, 1, 1), (16, 16, 16), (1, 31, 33), (33, 1, 31), (31, 33, 1), (17, 65, 40),
          (65, 129, 130), (0, 5, 3), (5, 0, 3), (3, 4, 0)]  # m, n, k


def run(way, name, a, b, c, grid=(2, 2)):
    """c[:m * n] = a b by a kernel; c is flat, and may be longer."""
    sizes = len(a), b.shape[1], len(b)
    if way == "compiled":
        set_kernels("compiled")
        Kernel(FILE.name, name).build(a.dtype)(a, b, c, *sizes)
    else:
        Library(FILE, REAL[a.dtype]).launch(name, [a, b, c, *sizes], grid, (16, 16))


def matrices(m, n, k, dtype):
    rng = np.random.default_rng([m, n, k])
    return rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)


def product(way, name, a, b, grid=(2, 2)):
    """a b, from poisoned memory with a guard after it."""
    size = len(a) * b.shape[1]
    c = np.full(size + 9, np.nan, a.dtype)
    c[size:] = 99
    run(way, name, a, b, c, grid)
    assert (c[size:] == 99).all()
    return c[:size].reshape(len(a), b.shape[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("way", ["compiled", "emulated"])
@pytest.mark.parametrize("name", NAMES)
def test_a_product_agrees_with_float64_for_every_shape(name, way, dtype):
    assert way in executions(FILE.read_text(encoding="utf-8"))
    for m, n, k in SHAPES:
        a, b = matrices(m, n, k, dtype)
        exact = a.astype(np.longdouble) @ b.astype(np.longdouble)
        bound = (k + 1) * np.finfo(dtype).eps * (np.abs(a).astype("d") @ np.abs(b).astype("d"))
        assert (np.abs(product(way, name, a, b) - exact) <= bound).all(), (m, n, k)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_steps_give_the_same_bits_on_any_grid(dtype):
    a, b = matrices(65, 70, 37, dtype)
    expected = product("compiled", "matmul_naive", a, b)
    for name in NAMES:
        assert (product("compiled", name, a, b) == expected).all()
        for grid in (1, (3, 1), (1, 2)):
            assert (product("emulated", name, a, b, grid) == expected).all(), (name, grid)


@pytest.mark.parametrize("way", ["compiled", "emulated"])
@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity_reach_their_row_or_column_and_no_other(name, way):
    a, b = matrices(19, 21, 18, np.float32)
    a[3, 17], b[5, 20] = np.nan, np.inf
    a[7, 5] = 0
    with np.errstate(invalid="ignore"):
        exact = a.astype("d") @ b.astype("d")
    ours = product(way, name, a, b)
    assert np.isnan(ours[3]).all() and np.isnan(ours[7, 20]) and np.isinf(ours[0, 20])
    assert (np.isnan(ours) == np.isnan(exact)).all() and (np.isinf(ours) == np.isinf(exact)).all()


def test_the_fetches_are_as_many_as_the_file_says():
    a, b = matrices(64, 64, 64, np.float32)
    reads = {}
    for name in NAMES:
        c = np.empty((64, 64), np.float32)
        report = Library(FILE).launch(name, [a, b, c, 64, 64, 64], (4, 4), (16, 16))
        reads[name] = report.accesses / 64**3
    # From shared memory, and a read of memory and a write of shared memory for each fetch; the rest
    # are the results, and each thread's look at its own number.
    assert reads["matmul_naive"] == pytest.approx(2, abs=0.1)
    assert reads["matmul_shared"] == pytest.approx(2 + 2 * 2 / 16, abs=0.1)
    assert reads["matmul_registers"] == pytest.approx(0.5 + 2 * 2 / 64, abs=0.1)


@pytest.mark.parametrize("name, block", [("matmul_naive", "32"), ("matmul_shared", "16x16"),
                                         ("matmul_registers", "16x16")])
def test_the_steps_run_from_the_command_line(name, block, tmp_path, capsys):
    a, b = matrices(33, 20, 17, np.float32)
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", b)
    assert main(["emulate", str(FILE), name, "--grid", "2x2", "--block", block, "--arg", "m=33",
                 "n=20", "k=17", f"a=@{tmp_path / 'a.npy'}", f"b=@{tmp_path / 'b.npy'}",
                 "c=zeros(33,20)", "--out", str(tmp_path / "out.npz")]) == 0
    assert np.abs(np.load(tmp_path / "out.npz")["c"] - a.astype("d") @ b).max() < 1e-4
    assert "no race, no divergence, nothing out of bounds" in capsys.readouterr().out


@pytest.mark.parametrize("text, found", [
    ("__syncthreads();  // both tiles are whole", "race on `tile_[ab]`"),
    ("__syncthreads();  // and are no longer read", "race on `tile_[ab]`")])
def test_each_barrier_of_the_tiles_is_needed(text, found, tmp_path):
    source = FILE.read_text(encoding="utf-8")
    assert source.count(text) == 1
    (tmp_path / "matmul.cu").write_text(source.replace(text, ""))
    a, b = matrices(16, 16, 32, np.float32)
    with pytest.raises(EmulationError, match=found):
        Library(tmp_path / "matmul.cu").launch(
            "matmul_shared", [a, b, np.empty((16, 16), np.float32), 16, 16, 32], 1, (16, 16))


CORES = kernels_folder() / "matmul_tensor_cores.cu"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tensor_cores_get_the_right_parts_of_the_matrices(dtype, tmp_path):
    text = CORES.read_text(encoding="utf-8")
    assert executions(text) == ("gpu",)
    (tmp_path / "cores.cu").write_text(text.replace("#include <mma.h>", '#include "fake_mma.h"'))
    (tmp_path / "fake_mma.h").write_text((Path(__file__).parent / "fake_mma.h").read_text())
    library = Library(tmp_path / "cores.cu", REAL[np.dtype(dtype)])
    for m, n, k in [(1, 1, 1), (65, 33, 17), (64, 70, 16), (0, 3, 2), (3, 2, 0)]:
        a, b = matrices(m, n, k, dtype)
        c = np.full(m * n + 9, 99, dtype)
        c[:m * n] = np.nan
        library.launch("matmul_tensor_cores", [a, b, c, m, n, k], (1, 2), 128)
        tolerance = 2**-10 if dtype == np.float32 else 1e-15
        bound = (tolerance + k * np.finfo(dtype).eps) * (np.abs(a).astype("d") @ np.abs(b))
        assert (np.abs(c[:m * n].reshape(m, n) - a.astype("d") @ b) <= bound).all(), (m, n, k)
        assert (c[m * n:] == 99).all()


@pytest.mark.parametrize("file", [FILE, CORES], ids=lambda path: path.name)
def test_products_of_double_compile_for_a_gpu_too(file):
    try:
        assert cubin(file, "sm_80", "double").startswith(b"\x7fELF")
    except BuildError as error:
        if "there is no CUDA compiler" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("name", [*NAMES, "matmul_tensor_cores"])
def test_a_product_on_a_gpu_agrees_with_float64(name, tmp_path):
    cupy = pytest.importorskip("cupy", reason="there is no CuPy")
    if not cupy.cuda.is_available():
        pytest.skip("there is no GPU")
    file, block, error = ((CORES, (128,), 2**-10) if name == "matmul_tensor_cores" else
                          (FILE, (16, 16), 0))
    code = cubin(file, f"sm_{cupy.cuda.Device().compute_capability}")
    (tmp_path / "kernels.cubin").write_bytes(code)
    kernel = cupy.RawModule(path=str(tmp_path / "kernels.cubin")).get_function(in_cubin(code, name))
    for m, n, k in [(1000, 900, 1100), *SHAPES]:
        a, b = matrices(m, n, k, np.float32)
        c = cupy.full(m * n + 9, cupy.nan, np.float32)
        c[m * n:] = 99
        kernel((2, 3), block, (cupy.asarray(a), cupy.asarray(b), c, *map(np.int64, (m, n, k))))
        ours, bound = c.get(), np.abs(a).astype("d") @ np.abs(b)
        bound *= (k + 1) * np.finfo(np.float32).eps + error
        assert (np.abs(ours[:m * n].reshape(m, n) - a.astype("d") @ b) <= bound).all(), (m, n, k)
        assert (ours[m * n:] == 99).all()


def in_cubin(code, name):
    """The name of a kernel as the compiler has it: with its length before and types after it."""
    return re.search(rf"_Z{len(name)}{name}\w+".encode(), code)[0].decode()


@pytest.mark.parametrize("name", NAMES)
def test_kernels_are_found_in_machine_code_by_their_name(name):
    try:
        found = in_cubin(cubin(FILE, "sm_80"), name)
    except BuildError as error:
        if "there is no CUDA compiler" in str(error):
            pytest.skip(str(error))
        raise
    assert found == f"_Z{len(name)}{name}PKfS0_Pfxxx"
