"""The emulator: planted bugs are found, with the lines they stand in; their twins pass."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from minipar import execution
from minipar.execution import EmulationError
from minipar.execution.emulated import Library
from minipar.execution.source import signatures

pytestmark = pytest.mark.skipif(
    execution.compiler() is None or sys.platform != "linux",
    reason="kernels are emulated with a C++ compiler, on Linux")

FOLDER = Path(__file__).parent / "emulator"

# The kernels with a bug: what the report says. Launched as 2 blocks of 64 threads unless told.
BUGS = {
    "missing_barrier": r"race on `s`, element \d+ of 64\n",
    "missing_second_barrier": "race on `s`",
    "barrier_in_a_branch": r"threads 0-31: at __syncthreads\(\), .*\n    threads 32-63: returned",
    "two_barriers": r"threads 0, 2, 4, \.\.\., 62: at __syncthreads\(\), .*\n    threads 1, 3",
    "barrier_by_two_calls": r"divergent __syncthreads\(\): it is reached in different places",
    "early_return": r"threads 40-63: returned",
    "barrier_in_a_loop": r"threads 0-35: at .*\n    threads 36-63: returned",
    "warp_in_lockstep": r"no __syncthreads\(\) or __syncwarp\(\) lies between",
    "race_between_warps": r"race on `s`(.|\n)* no __syncthreads\(\) lies between",
    "shuffle_orders_nothing": r"race on `s`(.|\n)*or __syncwarp\(\) lies between",
    "lanes_that_never_come": r"divergent __shfl_xor_sync in warp 0",
    "wrong_mask": r"__shfl_sync with mask 0xffff, which leaves out lane (16|31)",
    "lane_outside_the_mask": r"__shfl_down_sync with mask 0xffff reads lane 16, which is not in",
    "lanes_that_returned": r"mask 0xffffffff reads lane 16, which has returned\n"
                           r"    thread 32 of block 0, lane 0,",
    "active_mask": r"__shfl_xor_sync with mask 0x1 reads lane 1, which is not in the mask",
    "two_operations": r"divergent (__syncwarp|a vote) in warp 0",
    "shared_off_by_one": r"s\[64\], where `s` has 64 elements\n    thread 63 of block 0 writes",
    "dynamic_off_by_one": r"byte 256 of `d`, where `d` has 256 bytes",
    "uninitialised": r"`partial`, element 2 of 32\n    thread \d+ of block 0 reads",
    "left_by_another_block": r"`s`, element 0 of 1\n    thread 0 of block 1 reads",
    "global_out_of_bounds": r"y\[64\], where `y` has 64 elements\n    thread 0 of block 1 writes",
    "null_pointer": r"address 0x0 \(null\), which is in no array",
    "atomics_missing": r"race on `y`",
    "atomics_missing_between_blocks": r"race on `y`, element 0 of 64(.|\n)*thread 0 of block 0 has"
                                      r"(.|\n)* blocks run in any order",
    "plain_beside_atomic": r"race on `sum`(.|\n)* updated it atomically",
    "last_block": r"race on `y`(.|\n)*blocks run in any order",
    "writes_an_input": r"`x`, element 5 of 64 is written, but",
    "misaligned": r"16 bytes at byte 4 of `x`",
    "waits_for_ever": "waits for ever",
    "lock_without_fence": r"race on `y`, element 0 of 64",
    "device_variable": r"race on a __device__ variable\n    thread 1 of block 0",
    "local_of_another_thread": r"local variable of thread 0 is used by .*\n    thread 1 of",
    "fails_an_assertion": r"assertion failed: x\[threadIdx.x\] < 63\n    thread 63 of block 0",
    "divides_by_zero": r"an integer is divided by zero\n    thread 0 of block 0",
    "endless_recursion": r"local variables need more than 131,072 bytes\n.* at memory.cu:\d+",
    "stride_wrong": r"memory: `s`, element 8 of 72\n    thread 1 of block 0 reads",
    "two_results": r"race on `y`, element 0 of 64\n    thread 32 of block 0 writes(.|\n)*thread 0 ",
    "loop_stride_wrong": r"race on `y`, element 32 of 64\n    thread 32 of block 0 writes",
    "too_much_shared": r"51,200 bytes of __shared__ variables > 49,152",
}


def kernels_of_this_folder():
    return {name: path for path in FOLDER.glob("*.cu")
            for name in signatures(path.read_text(encoding="utf-8"))}


def run(name, grid=2, block=64, dynamic=256):
    path = kernels_of_this_folder()[name]
    library = Library(path)
    first = library.signatures[name][0]
    x = np.zeros(64, np.int32) if first.type == "int" else np.arange(64, dtype=np.float32)
    if name == "divides_by_zero_fixed":
        x += 2
    if first.name == "lock":
        x = x[:1]
    y = np.zeros(64, np.float32)
    return library.launch(name, [x, y], grid, block, dynamic), x, y


def test_every_kernel_here_has_a_twin_and_an_expectation():
    assert set(kernels_of_this_folder()) == set(BUGS) | {f"{name}_fixed" for name in BUGS}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found_with_its_lines_and_its_twin_is_accepted(name):
    grid = 1 if name in ONE_BLOCK else 2
    with pytest.raises(EmulationError) as error:
        run(name, grid)
    report = str(error.value)
    assert report.startswith(f"kernel {name}, grid {grid}, block 64, threads in ascending order:\n")
    assert re.search(BUGS[name], report), report
    path = kernels_of_this_folder()[name]
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if re.search(rf"// !.*\b{name}\b", line):
            assert re.search(rf"{path.name}:{number}\b", report), (number, report)
    run(f"{name}_fixed", grid)


WARPS = """
__global__ void shuffles(int *y, int by, int width) {
    int t = threadIdx.x, n = blockDim.x;
    y[t] = __shfl_sync(0xffffffff, t, by, width);
    y[n + t] = __shfl_up_sync(0xffffffff, t, by, width);
    y[2 * n + t] = __shfl_down_sync(0xffffffff, t, by, width);
    y[3 * n + t] = (int)__shfl_xor_sync(0xffffffff, t + 0.25, by, width);
}
__global__ void votes(int *y) {
    int t = threadIdx.x, n = blockDim.x;
    unsigned third = 0x49249249, mine = t % 3 == 0 ? third : ~third;
    if (t < 32) y[t] = __ballot_sync(t % 3 == 0 ? third : ~third, t % 2);
    else y[t] = __match_any_sync(0xffffffff, t % 4);
    y[n + t] = t < 32 ? __any_sync(mine, t == 31) : __all_sync(0xffffffff, t < 64);
    y[2 * n + t] = __syncthreads_or(t == 40);
    y[3 * n + t] = __syncthreads_and(t != 40);
    y[4 * n + t] = __syncthreads_count(t > 40);
}
"""


def ptx_shuffle(kind, lane, by, width):
    """The lane that is read, as the PTX manual writes shfl.sync down."""
    segment, b = 32 - width, by & 31
    clamp = 0 if kind == "up" else 31
    highest = (lane & segment) | (clamp & ~segment & 31)
    j = {"idx": (lane & segment) | (b & ~segment), "up": lane - b, "down": lane + b,
         "bfly": lane ^ b}[kind]
    return j if (j >= highest if kind == "up" else j <= highest) else lane


def test_shuffles_are_those_of_the_ptx_manual(tmp_path):
    (tmp_path / "warps.cu").write_text(WARPS)
    library = Library(tmp_path / "warps.cu")
    for width in (1, 2, 8, 16, 32):
        for by in (0, 1, 3, 7, 8, 31, 33):
            y = np.empty((4, 64), np.int32)
            library.launch("shuffles", [y, by, width], 1, 64)
            assert y.tolist() == [[t - t % 32 + ptx_shuffle(kind, t % 32, by, width)
                                   for t in range(64)] for kind in ("idx", "up", "down", "bfly")]


def test_votes_count_the_lanes_of_their_mask(tmp_path):
    (tmp_path / "warps.cu").write_text(WARPS)
    y = np.empty((5, 64), np.int32)
    Library(tmp_path / "warps.cu").launch("votes", [y], 1, 64)
    thirds = [sum(1 << t for t in range(32) if t % 2 and (t % 3 == 0) == side)
              for side in (False, True)]
    same = [sum(1 << t for t in range(32) if t % 4 == k) for k in range(4)]
    expected = [thirds[t % 3 == 0] if t < 32 else same[t % 4] for t in range(64)]
    assert y[0].view(np.uint32).tolist() == expected
    assert y[1].tolist() == [int(t % 3 != 0) if t < 32 else 1 for t in range(64)]
    assert [set(row) for row in y[2:].tolist()] == [{1}, {0}, {23}]


# Those whose result is one block's: several would race.
ONE_BLOCK = {name for name in BUGS if not name.startswith((
    "global", "atomics", "left", "last", "waits", "null", "misaligned", "writes", "divides"))}
