"""`minipar emulate` as a student uses it; how their text is prepared."""

import sys

import numpy as np
import pytest
from launch import python

from minipar import execution
from minipar.cli import main
from minipar.execution import BuildError, EmulationError
from minipar.execution.emulated import LIMITS, Library
from minipar.execution.rewrite import shared_declarations

needs_compiler = pytest.mark.skipif(
    execution.compiler() is None or sys.platform != "linux",
    reason="kernels are emulated with a C++ compiler, on Linux")

STUDENT = r"""
#include <cuda_runtime.h>
#include <cstdio>
#define TILE 16
// y = a x + y; `last` is n - 1 where it is right
__global__ void saxpy(int last, float a, const float* __restrict__ x, float *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= last) y[i] = a * x[i] + y[i];
}
__global__ void matmul(const float *a, const float *b, float *c, unsigned int n) {
    __shared__ float ta[TILE][TILE], tb[TILE][TILE + 1];
    int row = blockIdx.y * TILE + threadIdx.y, col = blockIdx.x * TILE + threadIdx.x;
    float sum = 0.f;
    for (int t = 0; t < n / TILE; t++) {
        ta[threadIdx.y][threadIdx.x] = a[row * n + t * TILE + threadIdx.x];
        tb[threadIdx.y][threadIdx.x] = b[(t * TILE + threadIdx.y) * n + col];
        __syncthreads();
#pragma unroll
        for (int k = 0; k < TILE; k++) sum += ta[threadIdx.y][k] * tb[k][threadIdx.x];
        __syncthreads();
    }
    c[row * n + col] = sum;
}
extern "C" __global__ void __launch_bounds__(256)
histogram(const unsigned char *x, unsigned *h, size_t n) {
    extern __shared__ unsigned bins[];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) bins[i] = 0;
    __syncthreads();
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(&bins[x[i]], 1);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x) atomicAdd(&h[i], bins[i]);
}
__global__ void ticket(int *next, int *y) { y[atomicAdd(next, 1)] = threadIdx.x; }
"""


@pytest.fixture
def student(tmp_path):
    (tmp_path / "mine.cu").write_text(STUDENT)
    return tmp_path / "mine.cu"


def emulate(capsys, *words):
    """(exit status, standard output, standard error) of `minipar emulate *words`."""
    status = main(["emulate", *map(str, words)])
    return status, *capsys.readouterr()


@needs_compiler
def test_a_kernel_that_is_right_is_summarised(student, capsys, tmp_path):
    status, out, err = emulate(capsys, student, "saxpy", "--grid", 4, "--block", 256, "--arg",
                               "last=999", "a=2", "x=arange(1000)", "y=ones(1000)", "--out",
                               tmp_path / "out.npz")
    assert (status, err) == (0, "") and out.splitlines() == [
        "saxpy: 4 blocks of 256 threads, in ascending and in descending order",
        "  x     float32 (1000,)  unchanged  0  1  2  3  4  5  ...",
        "  y     float32 (1000,)  changed    1  3  5  7  9  11  ...",
        "0 barriers a block, 0 bytes of shared memory a block, 0 atomic operations, 0 of warps",
        "no race, no divergence, nothing out of bounds, nothing uninitialised"]
    assert (np.load(tmp_path / "out.npz")["y"] == 2 * np.arange(1000) + 1).all()


@needs_compiler
def test_a_kernel_that_is_wrong_is_reported_with_its_line(student, capsys):
    status, out, err = emulate(capsys, student, "saxpy", "--grid", 4, "--block", 256, "--arg",
                               "last=1000", "a=2", "x=arange(1000)", "y=ones(1000)")
    line = STUDENT.split("\n").index("    if (i <= last) y[i] = a * x[i] + y[i];") + 1
    assert (status, out) == (1, "") and "out of bounds: x[1000]" in err
    assert f"thread 232 of block 3 reads it at mine.cu:{line}\n" in err


@needs_compiler
def test_tiles_in_two_dimensions_and_dynamic_shared_memory(student, capsys, tmp_path):
    a, b = np.random.default_rng(0).standard_normal((2, 32, 32)).astype(np.float32)
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", b)
    status, out, _ = emulate(
        capsys, student, "matmul", "--grid", "2x2", "--block", "16,16", "--arg", "n=32",
        f"a=@{tmp_path / 'a.npy'}", f"b=@{tmp_path / 'b.npy'}", "--arg", "c=zeros(32,32)",
        "--out", tmp_path / "out.npz")
    assert status == 0 and "4 barriers a block, 2112 bytes of shared memory" in out
    assert np.abs(np.load(tmp_path / "out.npz")["c"] - a.astype("d") @ b).max() < 1e-5
    words = (student, "histogram", "--grid", 3, "--arg", "n=1000", "x=random(1000)", "h=zeros(256)")
    status, out, _ = emulate(capsys, *words, "--shared", 1024)
    assert status == 0 and "and 1024 dynamic, 1768 atomic operations" in out
    status, _, err = emulate(capsys, *words)
    assert status == 1 and "byte 0 of `bins`, where `bins` has 0 bytes" in err


@needs_compiler
def test_what_depends_on_the_order_of_atomic_operations_is_said(student, capsys):
    status, out, _ = emulate(capsys, student, "ticket", "--arg", "next=zeros(1)", "y=zeros(128)")
    assert status == 0 and "\ny depends on the order of the atomic operations\n" in out


@needs_compiler
def test_a_kernel_prints_once(tmp_path, capfd):
    (tmp_path / "hello.cu").write_text("""__global__ void hello() {
        printf("thread %d of block %d\\n", threadIdx.x, blockIdx.x); }""")
    assert main(["emulate", str(tmp_path / "hello.cu"), "--grid", "2", "--block", "2"]) == 0
    assert capfd.readouterr().out.splitlines()[:4] == [
        f"thread {t} of block {b}" for b in (0, 1) for t in (0, 1)]


@needs_compiler
@pytest.mark.parametrize("words, said", [
    (["missing.cu"], "missing.cu: No such file"),
    (["FILE"], "which kernel of FILE? There are saxpy, matmul, histogram, ticket"),
    (["FILE", "saxpi"], "FILE has no kernel saxpi: there are saxpy, matmul, histogram, ticket"),
    (["FILE", "saxpy", "--arg", "last=9", "a=1"],
     "saxpy takes 4 arguments, 2 are given: x, y missing"),
    (["FILE", "saxpy", "--arg", "z=1"], "saxpy has no parameter z: it has last, a, x, y"),
    (["FILE", "saxpy", "--arg", "last=1.5", "a=1", "x=ones(9)", "y=ones(9)"],
     "last=1.5: the kernel takes int"),
    (["FILE", "saxpy", "--arg", "last=3000000000", "a=1", "x=ones(9)", "y=ones(9)"],
     "last=3000000000 does not fit into int"),
    (["FILE", "saxpy", "--arg", "last=1", "a=1", "x=twos(9)", "y=ones(9)"],
     "x=twos(9): an array is @FILE.npy or one of zeros(1000), ones(1000), random(1000), "
     "arange(1000)"),
    (["FILE", "saxpy", "--arg", "last=1", "a=1", "x=@none.npy", "y=ones(9)"], "No such file"),
    (["FILE", "saxpy", "--block", "32x64"],
     "--block 32 x 64 = 2048 threads > 1024 that a block can have"),
    (["FILE", "saxpy", "--grid", "0"], "'0' is not one to three numbers"),
    (["FILE", "ticket", "--shared", "300000"], "'300000' is not a number of bytes <= 232,448")])
def test_what_cannot_be_run_is_one_line_and_status_2(student, capsys, words, said):
    status, out, err = emulate(capsys, *(student if w == "FILE" else w for w in words))
    assert (status, out, err.count("\n")) == (2, "", 1) and err.startswith("minipar: error: ")
    assert said.replace("FILE", str(student)) in err.replace("@FILE", f"@{student}")


@needs_compiler
def test_text_that_is_no_kernel_file_is_named_with_its_line(tmp_path, capsys):
    file = tmp_path / "host.cu"
    file.write_text("__global__ void k(int *x) {}\n// <<<1, 2>>>\n"
                    "int main() {\n  k<<<1, 2>>>(0);\n}")
    status, _, err = emulate(capsys, file, "--arg", "x=zeros(1)")
    assert status == 1 and err.startswith("host.cu:4: `<<<...>>>` is code for the host")
    file.write_text("__global__ void k(int *x) {\n    x[0] = y;\n}")
    status, _, err = emulate(capsys, file, "--arg", "x=zeros(1)")
    assert status == 1 and "host.cu does not compile:" in err and "\nhost.cu:2:12: error:" in err


def test_without_a_compiler_it_says_so_in_one_line(student):
    done = python("-m", "minipar", "emulate", student, "ticket", "--arg", "next=zeros(1)",
                  "y=zeros(9)", PATH="/nonexistent", CXX="")
    assert (done.returncode, done.stdout, done.stderr) == (
        2, "", "minipar: error: there is no C++ compiler (c++, g++ or clang++)\n")


@pytest.mark.parametrize("text, expected", [
    ("__shared__ float s[32];", "SHARED(s, float[32]);"),
    ("__shared__ float a[4][N + 1], b, *c[2];",
     "SHARED(a, float[4][N + 1]); SHARED(b, float); SHARED(c, float *[2]);"),
    ("volatile __shared__ int v;", "SHARED(v, volatile int);"),
    ("__shared__ __align__(16) char raw[M];", "SHARED(raw, char[M]);"),
    ("alignas(64) __shared__ acc q[2];", "SHARED(q, acc[2]);"),
    ("extern __shared__ __align__(8) unsigned char d[];", "SHARED_DYNAMIC(d, unsigned char);"),
    ("__shared__ Pair<int, float> p[2];", "SHARED(p, Pair<int, float>[2]);"),
    ("__shared__ float x[2], // of a row\n  y[2];", "SHARED(x, float[2]); SHARED(y, float[2]);\n"),
    ("extern __shared__ float d[];", "SHARED_DYNAMIC(d, float);"),
    ("// __shared__ float s[32];", "// __shared__ float s[32];"),
    ('printf("__shared__ a;");', 'printf("__shared__ a;");')])
def test_shared_declarations_become_the_emulators(text, expected):
    assert shared_declarations(text, "f.cu") == expected


def test_shared_memory_that_is_declared_in_another_way_is_refused_with_its_line():
    with pytest.raises(BuildError, match=r"^f.cu:2: shared memory is declared as"):
        shared_declarations("int a;\n__shared__ struct { int a; } s;", "f.cu")
    with pytest.raises(BuildError, match=r"^f.cu:1: .*, not 'd'$"):
        shared_declarations("extern __shared__ float d[4];", "f.cu")


def test_a_launch_has_several_rounds_of_its_loops_and_whole_warps():
    sizes = (0, 1), (1, 31), (5, 33), (50, 1023), (None, 7)
    assert [LIMITS.shape(r, n, None) for r, n in sizes] == [
        (1, 32), (1, 32), (5, 64), (6, 256), (1, 32)]
    assert [LIMITS.shape(None, None, e) for e in (0, 1, 33, 1000, 10**6)] == [
        (1, 32), (1, 32), (1, 64), (6, 128), (6, 128)]
    assert LIMITS.shape(3, None, None) == (3, 128)


@needs_compiler
def test_a_launch_that_fails_leaves_its_arrays_as_they_were(tmp_path):
    (tmp_path / "order.cu").write_text("""
        __global__ void all_blocks(int *y) { y[0] = 0; }
        __global__ void of_its_address(int *y) { y[0] = (int)((size_t)y >> 12); }""")
    library, y = Library(tmp_path / "order.cu"), np.ones(1, np.int32)
    with pytest.raises(EmulationError, match="race on `y`, (.|\n)*run in any order"):
        library.launch("all_blocks", [y], 2, 1)
    with pytest.raises(EmulationError, match="kernel of_its_address, grid 1, block 1: y depends on "
                                             "the order of threads or blocks"):
        library.launch("of_its_address", [y], 1, 1)
    assert y[0] == 1
    library.launch("all_blocks", [y], 1, 1)
    assert y[0] == 0


@needs_compiler
def test_a_launch_that_cannot_be_is_refused_with_the_arithmetic(student):
    library = Library(student)
    x = np.zeros(4, np.int32)
    with pytest.raises(ValueError, match="ticket: a block of 64 x 64 x 1 = 4096 threads > 1024"):
        library.launch("ticket", [x, x], 1, (64, 64))
    with pytest.raises(TypeError, match="ticket takes 2 arguments, not 1"):
        library.launch("ticket", [x], 1, 1)
    with pytest.raises(TypeError, match="ticket: next is a int, not an ndarray"):
        library.launch("ticket", [1, x], 1, 1)


@needs_compiler
def test_views_are_followed_where_a_kernel_takes_strides(tmp_path):
    (tmp_path / "strided.cu").write_text("""
        __global__ void copy(const float *x, float *y, const long long *strides) {
            y[threadIdx.x * strides[1]] = x[threadIdx.x * strides[0]]; }
        __global__ void copy_rows(const float *x, float *y) {
            y[2 * threadIdx.x] = x[2 * threadIdx.x]; }""")
    library, x = Library(tmp_path / "strided.cu"), np.arange(8, dtype=np.float32).reshape(4, 2)
    y, strides = np.zeros((2, 4), np.float32), np.array([2, 1])
    library.launch("copy", [x[0, :1], y[1, :1], strides], 1, 4)
    assert y.tolist() == [[0] * 4, [0, 2, 4, 6]]
    with pytest.raises(EmulationError, match=r"out of bounds: x\[8\], where `x` has 8 elements"):
        library.launch("copy", [x[0, :1], y[1, :1], strides], 1, 5)
    with pytest.raises(EmulationError, match=r"out of bounds: x\[2\], where `x` has 1 elements"):
        library.launch("copy_rows", [x[0, :1], y[0, :1]], 1, 4)


@needs_compiler
def test_padding_may_be_read_if_the_file_says_so_and_is_nan(tmp_path):
    text = """__global__ void k(float *y) {
        __shared__ float s[32];
        if (threadIdx.x < 3) s[threadIdx.x] = 1;
        __syncthreads();
        y[threadIdx.x] = s[threadIdx.x]; }"""
    (tmp_path / "k.cu").write_text(text)
    with pytest.raises(EmulationError, match="uninitialised shared memory: `s`, element 3 of 32"):
        Library(tmp_path / "k.cu").launch("k", [np.zeros(5, np.float32)], 1, 5)
    (tmp_path / "k.cu").write_text(f"// uninitialised: the last ones are dropped\n{text}")
    y = np.zeros(5, np.float32)
    Library(tmp_path / "k.cu").launch("k", [y], 1, 5)
    assert y[:3].tolist() == [1, 1, 1] and np.isnan(y[3:]).all()
