"""Threads of compiled kernels: how many, that they are there, and that no bit depends on them."""

import os
import re
import shutil
import sys

import numpy as np
import pytest
from kernel_cases import CASES, Out
from kernel_cases_images import CASES as MORE_CASES
from launch import ROOT, mpirun, python
from test_emulator_kernels import KERNELS

import minipar
from minipar import context, execution
from minipar.context import current
from minipar.execution import compiled, kernels_folder, signatures, threads
from minipar.execution.source import ELEMENTS

needs_openmp = pytest.mark.skipif(
    execution.compiler() is None or not compiled._openmp(" ".join(execution.compiler())),
    reason="there is no OpenMP")


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    monkeypatch.setattr(threads, "_default", {})
    monkeypatch.setattr(threads, "_alone", True)
    for name in ("MINIPAR_NUM_THREADS", *threads._BLAS):
        monkeypatch.delenv(name, raising=False)
    before = current().threads
    current().threads = None
    yield
    current().threads = before


SPIN = """#include "common.cuh"
#include <atomic>
#include <chrono>
static std::atomic<int> arrived;
// Each block waits for another one to have begun, for 20 s; together[b]: whether one has.
__global__ void meet(int *together, int *blocks, int64 n) {
    arrived++;
    auto begin = std::chrono::steady_clock::now();
    while (arrived < 2 && std::chrono::steady_clock::now() - begin < std::chrono::seconds(20)) {}
    together[blockIdx.x] = arrived >= 2;
    blocks[blockIdx.x] = gridDim.x;
}
"""


@needs_openmp
def test_blocks_of_a_large_launch_run_side_by_side_and_a_small_one_is_one_block(tmp_path):
    (tmp_path / "meet.cu").write_text(SPIN)
    shutil.copy(ROOT / "kernels" / "common.cuh", tmp_path)
    meet = compiled.Library(tmp_path / "meet.cu", "float").function(
        execution.Kernel("meet.cu", "meet"))
    minipar.set_num_threads(2)
    for blocks, elements in [(2, 2 * compiled.GRAIN), (8, 100 * compiled.GRAIN)]:
        together, counts = np.zeros((2, elements), np.int32)
        meet(together, counts, elements)
        assert together[:blocks].all() and not together[blocks:].any()
        assert (counts[:blocks] == blocks).all()
    for n, elements in [(2, 2 * compiled.GRAIN - 1), (1, 100 * compiled.GRAIN)]:
        minipar.set_num_threads(n)
        together, counts = np.zeros((2, elements), np.int32)
        meet(together, counts, elements)
        assert counts[0] == 1 and not counts[1:].any()


def arguments_of(name, rows, n):
    """(arguments of a kernel for float32, those of them that it writes, as they are before)."""
    source = kernels_folder() / KERNELS[name].file
    parameters, arguments, outs = signatures(source.read_text(encoding="utf-8"))[name], [], []
    made = (CASES | MORE_CASES)[name](np.random.default_rng(n), rows, n)
    for p, value in zip(parameters, made, strict=True):
        kind = ELEMENTS[p.plain("float")] if p.pointer else None
        if isinstance(value, Out):
            outs.append(np.empty(value.expected.shape, kind))
            outs[-1][...] = getattr(value, "before", 7)
            value = outs[-1]
        arguments.append(value.astype(kind, copy=False) if p.pointer else value)
    return arguments, outs


@needs_openmp
@pytest.mark.parametrize("rows, n", [(700, 101), (3, 33333)])
@pytest.mark.parametrize("name", sorted(CASES | MORE_CASES))
def test_a_kernel_gives_the_same_bits_with_one_thread_two_and_three(name, rows, n):
    arguments, outs = arguments_of(name, rows, n)
    run, before = KERNELS[name].build(np.dtype(np.float32)), [out.copy() for out in outs]
    results = []
    for number in (1, 2, 3):
        for out, was in zip(outs, before):
            out[...] = was
        minipar.set_num_threads(number)
        run(*arguments)
        results.append([out.tobytes() for out in outs])
    assert results[0] == results[1] == results[2]


@needs_openmp
@pytest.mark.parametrize("causal", [False, True])
def test_attention_gives_the_same_bits_with_one_thread_and_two(causal):
    from minipar.nn import functional as F
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 3, 300, 64), np.float32)
    results = []
    for number in (1, 2):
        minipar.set_num_threads(number)
        leaves = [minipar.Tensor(a, requires_grad=True) for a in (q, k, v)]
        out = F.scaled_dot_product_attention(*leaves, is_causal=causal)
        (out * out).sum().backward()
        results.append([a.tobytes() for a in (out.array, *(t.grad.array for t in leaves))])
    assert results[0] == results[1]


@needs_openmp
def test_training_gives_the_same_bits_with_one_thread_and_two():
    from minipar import nn, optim
    from minipar.nn import functional as F
    weights = []
    for number in (1, 2):
        minipar.set_num_threads(number)
        minipar.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 256), nn.LayerNorm(256), nn.GELU(), nn.Dropout(0.1),
                              nn.Linear(256, 300))
        optimizer = optim.AdamW(model.parameters(), lr=1e-3)
        x = minipar.Tensor(np.random.default_rng(0).standard_normal((512, 64), np.float32))
        y = minipar.Tensor(np.arange(512) % 300)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        weights.append([p.array.tobytes() for p in model.parameters()])
    assert weights[0] == weights[1]


def test_a_lone_process_takes_the_threads_that_blas_takes(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    for setting, expected in [({}, 6), ({"OMP_NUM_THREADS": "3,2"}, 3),
                              ({"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "4"}, 2),
                              ({"OMP_NUM_THREADS": "64"}, 6), ({"MKL_NUM_THREADS": "many"}, 6),
                              ({"OMP_NUM_THREADS": "2", "MINIPAR_NUM_THREADS": "9"}, 9)]:
        with monkeypatch.context() as m:
            for name, value in setting.items():
                m.setenv(name, value)
            m.setattr(threads, "_default", {})
            assert minipar.get_num_threads() == expected
    minipar.set_num_threads(5)
    assert minipar.get_num_threads() == 5


def test_ranks_and_helper_threads_take_one_unless_told(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    minipar.set_num_threads(4)
    assert minipar.launch(minipar.get_num_threads, 2, how="threads") == [1, 1]
    with context.use(current().copy()):
        assert minipar.get_num_threads() == 1
    current().threads = None
    assert minipar.get_num_threads() == 6
    threads.share_cores()
    assert minipar.get_num_threads() == 1
    monkeypatch.setattr(threads, "_default", {})
    monkeypatch.setenv("MINIPAR_NUM_THREADS", "3")
    assert minipar.get_num_threads() == 3
    assert minipar.launch(minipar.get_num_threads, 2, how="threads") == [3, 3]


RANK = ("import os\nfor name in {names!r}: os.environ.pop(name, None)\n"
        "import minipar, minipar.comm\nbefore = minipar.get_num_threads()\n"
        "rank = minipar.comm.world().rank\n"
        "with open(f'{{__file__}}.{{rank}}', 'w') as file:\n"
        "    print(before, minipar.get_num_threads(), file=file)")


def test_a_rank_of_mpi_takes_one_thread(tmp_path):
    (tmp_path / "rank.py").write_text(RANK.format(names=threads._BLAS))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for start, said in [((mpirun, 2), [f"{cores} 1\n"] * 2),
                        ((python,), [f"{cores} {cores}\n"])]:
        done = start[0](*start[1:], tmp_path / "rank.py")
        assert done.returncode == 0, done.stderr
        assert [(tmp_path / f"rank.py.{r}").read_text() for r in range(len(said))] == said


def test_a_number_of_threads_that_cannot_be_is_refused(monkeypatch):
    for n in (0, -1, 1.5):
        with pytest.raises(ValueError, match=f"1 thread or more, not {n}"):
            minipar.set_num_threads(n)
    for text in ("0", "many", "-2"):
        monkeypatch.setenv("MINIPAR_NUM_THREADS", text)
        with pytest.raises(ValueError, match=f"1 or more, not '{text}'"):
            minipar.get_num_threads()
    done = python("-m", "minipar.train", "--steps", 1, MINIPAR_NUM_THREADS="many")
    assert (done.returncode, done.stderr) == (2, "minipar: error: MINIPAR_NUM_THREADS is a number "
                                                 "of threads, 1 or more, not 'many'\n")


FORK = """
import os, sys, warnings
import numpy as np
import minipar
warnings.simplefilter("ignore")  # Python's, about forking where there are threads
minipar.set_num_threads(2)
x = minipar.Tensor(np.random.default_rng(0).standard_normal((512, 512), np.float32))
y = minipar.softmax(x, 1)
if os.fork() == 0:
    assert minipar.get_num_threads() == 1
    assert (minipar.softmax(x, 1).array == y.array).all()
    try:
        minipar.set_num_threads(2)
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_goes_on_with_one_thread():
    done = python("-c", FORK, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"kernels run on 1 thread, not 2, in a process that was forked: .*\n0\n",
                        done.stdout)


@needs_openmp
def test_ranks_are_started_after_threads_have_run():
    code = ("import numpy as np, minipar\nminipar.set_num_threads(2)\n"
            "minipar.softmax(minipar.Tensor(np.ones((512, 512), 'f')), 1)\n"
            "for how in 'processes', 'threads':\n"
            "    print(minipar.launch(minipar.get_num_threads, 2, how=how, timeout=30))")
    done = python("-c", code)
    assert done.stdout == "[1, 1]\n[1, 1]\n", done.stderr


@pytest.mark.skipif(os.name != "posix" or execution.compiler() is None, reason="no shell or no C++")
def test_a_compiler_without_openmp_builds_kernels_that_run_on_one_thread(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\nfor a; do [ \"$a\" = -fopenmp ] && exit 1; done\n"
                     f"exec {' '.join(execution.compiler())} \"$@\"\n")
    plain.chmod(0o755)
    code = ("import os, numpy as np, minipar\nminipar.set_num_threads(2)\n"
            "y = minipar.softmax(minipar.Tensor(np.ones((512, 512), 'f')), 1).array\n"
            "print((y == np.float32(1 / 512)).all(), open('/proc/self/maps').read().count('gomp')"
            " if os.path.exists('/proc/self/maps') else 0)")
    done = python("-c", code, CXX=str(plain), MINIPAR_CACHE=str(tmp_path))
    assert (done.stdout, done.stderr) == ("True 0\n", "") and list(tmp_path.glob("softmax*.so"))


ATTENTION = "F.scaled_dot_product_attention(*[minipar.ones((1, 2, n, n // 4))] * 3)"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@needs_openmp
@pytest.mark.parametrize("op", ["minipar.softmax(minipar.ones((n, n)), 1)", ATTENTION])
def test_small_launches_start_no_thread_and_large_ones_do(op):
    code = (f"""import os, minipar
from minipar.nn import functional as F
minipar.set_num_threads(2)
counts = [len(os.listdir('/proc/self/task'))]
for n in (8, 200, 512):
    {op}
    counts += [len(os.listdir('/proc/self/task'))]
print([c - counts[0] for c in counts])""")
    done = python("-c", code)
    assert done.stdout == "[0, 0, 0, 1]\n", (done.stdout, done.stderr)
