"""Reduction of 16-bit numbers: kernels beside NumPy, and all-reduces by every algorithm."""

from pathlib import Path

import numpy as np
import pytest

import half_cases
from launch import mpirun
from minipar import dtypes, execution
from minipar.comm import run_threads, world
from minipar.comm.reduction import OPS, reducer
from minipar.context import Context, use
from minipar.execution import Kernel

pytest.importorskip("ml_dtypes")
pytestmark = pytest.mark.filterwarnings("error")
needs_compiler = pytest.mark.skipif(execution.compiler() is None, reason="there is no C++ compiler")
TYPES = ["float16", "bfloat16"]


def hard_numbers(dtype, n, seed):
    """n numbers of every size, among them NaN, Inf, zeros of both signs and subnormal ones."""
    bits = np.random.default_rng(seed).integers(0, 2**16, n, np.uint16)
    x = bits.view(dtype)
    x[:6] = [np.nan, np.inf, -np.inf, 0, -0.0, 1]
    return x


@needs_compiler
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", TYPES)
def test_kernels_reduce_as_numpy_does_and_touch_no_neighbour(dtype, op):
    storage = dtypes.dtype(dtype).storage
    for n in (0, 1, 15, 16, 17, 31, 33, 1023):
        buffer, b = np.full(n + 6, 77, storage), hard_numbers(storage, n + 6, n)[6:].copy()
        a = buffer[3:n + 3]  # an odd address
        a[...] = hard_numbers(storage, n + 6, n + 1)[:n]
        with np.errstate(all="ignore"):
            expected = OPS[op](a.astype(np.float32), b.astype(np.float32)).astype(storage)
        with use(Context()):
            reduce = reducer(op, storage)
            assert reduce is not OPS[op]
            reduce(a, b, out=a)
        nan = np.isnan(expected)
        assert (np.isnan(a) == nan).all()
        if op in ("max", "min"):  # of 0 and -0 either
            np.testing.assert_array_equal(a[~nan].astype("f"), expected[~nan].astype("f"))
        else:
            np.testing.assert_array_equal(a[~nan].view("u2"), expected[~nan].view("u2"))
        assert (buffer[:3] == 77).all() and (buffer[n + 3:] == 77).all()


@needs_compiler
@pytest.mark.parametrize("op", OPS)
def test_the_kernels_of_wider_types_reduce_as_numpy_does(op):
    for dtype in (np.float32, np.float64):
        a, b = np.random.default_rng(0).normal(size=(2, 1000)).astype(dtype)
        a[5], b[6] = np.nan, np.nan
        expected = OPS[op](a, b)
        Kernel("reduce.cu", f"reduce_{op}").build(np.dtype(dtype))(a, b, 1000)
        np.testing.assert_array_equal(a, expected)


def test_numpy_reduces_where_it_is_as_fast_and_where_no_kernel_is_to_run():
    assert reducer("sum", np.dtype(np.float32)) is np.add
    assert reducer("max", np.dtype(np.uint8)) is np.maximum
    context = Context()
    context.kernels = "reference"
    with use(context):
        x = np.full(2, np.nan, np.float16)
        reducer("max", x.dtype)(x, np.ones(2, np.float16), out=x)
        assert np.isnan(x).all()
    with pytest.raises(KeyError):
        reducer("average", np.dtype(np.float32))


@pytest.mark.parametrize("kernels", ["compiled", "reference"])
@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_every_all_reduce_of_16_bits_is_right_on_threads(p, kernels):
    context = Context()
    context.kernels = kernels
    with use(context):
        run_threads(lambda: half_cases.sixteen_bits(world()), p)


def test_the_same_holds_between_processes():
    done = mpirun(3, Path(__file__).parent / "mpi_programs" / "sixteen_bits.py", timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
