"""Everything that needs a GPU, in one command: its tests, and its benchmarks.

    python benchmarks/gpu.py [--stages copy,kernels,...] [--seconds 540] [--out FILE]

Stages, each saved to FILE (benchmarks/results/gpu.json) as it ends, so that a run may be cut in
several: `tests` (pytest -m gpu), `copy` (the device's own copy bandwidth), `kernels` (memory-bound
kernels at 256 MiB an array, against that), `gpt2` (a GPT-2 124M training step, T = 1,024, against
PyTorch eager with SDPA and fused AdamW, with float32, TF32 and bfloat16 products), `all_reduce` (2
ranks that share the GPU: staged through the host, or mapped). What is timed has been compared with
float64, or with PyTorch, before. --seconds: no stage begins later.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

STAGES = ("tests", "copy", "kernels", "gpt2", "all_reduce")
ELEMENTS = 64 * 2**20  # float32 numbers: 256 MiB
WIDTH = 1024


def about(cupy):
    """Hardware and versions."""
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    found = {"device": properties["name"].decode(), "memory_bytes": properties["totalGlobalMem"],
             "multiprocessors": properties["multiProcessorCount"],
             "driver": runtime.driverGetVersion(), "cuda": runtime.runtimeGetVersion(),
             "cupy": cupy.__version__, "numpy": np.__version__,
             "python": platform.python_version(),
             "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    try:
        import torch
        found["torch"] = torch.__version__
    except ImportError:
        pass
    return found


def median_ms(cupy, function, repeats=15, warm=3):
    """The median time of a function's work on the GPU, by its own clock."""
    for _ in range(warm):
        function()
    times = []
    for _ in range(repeats):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end))
    return statistics.median(times)


def run_tests(results):
    """pytest -m gpu, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"],
                          cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    print("\n".join(lines[-40:]))
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"status": done.returncode, "summary": lines[-1] if lines else "", "failed": failed}


def run_copy(results):
    """Bytes read and written by a copy of 2 GiB, a second."""
    from minipar.device import import_cupy
    cupy = import_cupy()
    source = cupy.arange(2**29, dtype=np.float32)
    target = cupy.empty_like(source)
    ms = median_ms(cupy, lambda: target.data.copy_from_device_async(
        source.data, source.nbytes, cupy.cuda.get_current_stream()))
    assert bool((target[-1000:] == source[-1000:]).all())
    print(f"copy: {2 * source.nbytes / ms / 1e6:,.0f} GB/s")
    return {"GB_per_s": 2 * source.nbytes / ms / 1e6, "ms": ms}


def kernel_cases(cupy):
    """Yields (kernel, launch, arrays of 256 MiB read and written, check of its first result).

    Those without a check are compared with float64 by the tests alone.
    """
    sys.path.insert(0, str(ROOT / "tests"))
    import test_emulator_kernels as table
    rng = cupy.random.default_rng(1)
    rows = ELEMENTS // WIDTH
    x, g, out, more = (rng.standard_normal(ELEMENTS, dtype=np.float32) for _ in range(4))
    w = rng.standard_normal(WIDTH, dtype=np.float32)
    small = [cupy.empty(rows, np.float32) for _ in range(3)]
    target = rng.integers(0, WIDTH, rows)
    mask = rng.integers(0, 2, ELEMENTS, dtype=np.uint8)
    partial = cupy.empty(rows // 32 * 2 * WIDTH, np.float32)

    def run(name, *arguments):
        kernel = table.KERNELS[name].build(x)
        if kernel is None:
            raise SystemExit(f"{name} is not there")
        return lambda: kernel(*arguments)

    def agrees(what, expected):
        """The first and the last rows of `out`, against NumPy in float64."""
        def check():
            for part in (slice(0, 4 * WIDTH), slice(ELEMENTS - 4 * WIDTH, ELEMENTS)):
                arrays = [a[part].get().astype(np.float64) for a in what]
                want, got = expected(*arrays), out[part].get()
                worst = np.abs(got - want).max() / max(1, np.abs(want).max())
                assert worst < 1e-5, worst
        return check

    def by_rows(function):
        return lambda *arrays: function(*(a.reshape(-1, WIDTH) for a in arrays)).reshape(-1)

    def softmax(a):
        e = np.exp(a - a.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    def layer_norm(a):
        unit = (a - a.mean(1, keepdims=True)) / np.sqrt(a.var(1, keepdims=True) + 1e-5)
        return unit * w.get() + w.get()
    n = ELEMENTS
    yield "relu_forward", run("relu_forward", x, out, n), 2, agrees([x], lambda a: np.maximum(a, 0))
    yield ("relu_backward", run("relu_backward", x, g, out, n), 3,
           agrees([x, g], lambda a, b: np.where(a == 0, 0, b)))
    yield "silu_slope", run("silu_slope", x, out, more, n), 3, agrees(
        [x], lambda a: a / (1 + np.exp(-a)))
    yield ("gelu_tanh_slope", run("gelu_tanh_slope", x, out, more, n), 3, agrees(
        [x], lambda a: 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))))
    yield ("masked_scale", run("masked_scale", x, mask, out, 1.25, n), 2.25,
           agrees([x, mask], lambda a, m: a * m * 1.25))
    yield ("softmax_forward", run("softmax_forward", x, out, rows, WIDTH), 2,
           agrees([x], by_rows(softmax)))
    yield ("softmax_backward", run("softmax_backward", x, g, out, rows, WIDTH), 3,
           agrees([x, g], by_rows(lambda a, b: a * (b - (a * b).sum(1, keepdims=True)))))
    yield ("log_softmax_forward", run("log_softmax_forward", x, out, rows, WIDTH), 2,
           agrees([x], by_rows(lambda a: np.log(softmax(a)))))
    yield ("cross_entropy_gradient", run("cross_entropy_gradient", x, target, small[0], out, 1.0,
                                         rows, WIDTH), 2, lambda: None)
    yield ("layer_norm_forward", run("layer_norm_forward", x, w, w, out, *small[:2], rows, WIDTH,
                                     1e-5), 2, agrees([x], by_rows(layer_norm)))
    yield ("layer_norm_backward", run("layer_norm_backward", x, g, w, *small[:2], out, partial,
                                      rows, WIDTH, rows // 32), 3, lambda: None)
    yield ("rms_norm_forward", run("rms_norm_forward", x, w, out, small[2], rows, WIDTH, 1e-5), 2,
           agrees([x], by_rows(lambda a: a / np.sqrt((a * a).mean(1, keepdims=True) + 1e-5)
                               * w.get())))
    yield ("rms_norm_backward", run("rms_norm_backward", x, g, w, small[2], out, partial, rows,
                                    WIDTH, rows // 32), 3, lambda: None)
    out[...] = x
    yield "sgd", run("sgd", out, g, n, 1.0, 0.0, 0.1), 3, agrees([x, g], lambda a, b: a - 0.1 * b)
    v = cupy.abs(more)
    yield ("adam", run("adam", out, g, x, v, n, 1.0, 0.0, 0.0, 0.9, 0.1, 0.999, 0.0316, 1e-8, 0.0),
           7, lambda: None)


def run_kernels(results):
    """Each kernel's bytes a second, as a share of the copy's."""
    from minipar.device import import_cupy
    cupy = import_cupy()
    if "copy" not in results:
        results["copy"] = run_copy(results)
    peak, rows = results["copy"]["GB_per_s"], {}
    for name, launch, arrays, check in kernel_cases(cupy):
        launch()
        check()
        ms = median_ms(cupy, launch)
        rate = arrays * ELEMENTS * 4 / ms / 1e6
        rows[name] = {"ms": ms, "GB_per_s": rate, "of_copy": rate / peak}
        print(f"{name:24} {ms:8.3f} ms {rate:8,.0f} GB/s {rate / peak:6.1%} of the copy",
              flush=True)
    return {"target": 0.85, "cases": rows}


def run_gpt2(results):
    """A process for each kind of products: CuPy reads CUPY_TF32 when it is imported."""
    found = {}
    for kind in ("float32", "tf32", "bfloat16"):
        environment = {**os.environ, "CUPY_TF32": "1" if kind == "tf32" else "0"}
        done = subprocess.run([sys.executable, __file__, "--gpt2", kind], text=True,
                              capture_output=True, env=environment)
        if done.returncode:
            print(done.stderr[-2000:])
            found[kind] = {"failed": done.stderr.strip().splitlines()[-1:]}
            continue
        found[kind] = json.loads(done.stdout.strip().splitlines()[-1])
        print(kind, found[kind], flush=True)
    return {"target": {"float32": 1.0, "tf32": 1.0, "bfloat16": 1.5}, **found}


def gpt2_step(kind, batch=8, steps=5):
    """The times of a step in minipar and in PyTorch, with equal weights and equal losses."""
    import peers
    import torch

    import minipar
    from minipar import amp, models, nn, optim
    sizes = dict(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, sizes["vocab_size"], (batch, 1025))
    x, y = tokens[:, :-1].copy(), tokens[:, 1:].reshape(-1).copy()
    minipar.manual_seed(0)
    ours = models.GPT(models.GPTConfig(**sizes)).materialize()
    torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    theirs = peers.torch_gpt(sizes)
    theirs.load_state_dict({k: torch.from_numpy(v.array.copy())
                            for k, v in ours.state_dict().items()})
    ours, theirs = ours.cuda(), theirs.cuda()
    optimizer = optim.AdamW(ours.parameters(), 1e-4)
    their_optimizer = torch.optim.AdamW(theirs.parameters(), 1e-4, fused=True)
    a, b = minipar.tensor(x).cuda(), minipar.tensor(y).cuda()
    their_a, their_b = torch.from_numpy(x).cuda(), torch.from_numpy(y).cuda()

    def our_step():
        optimizer.zero_grad()
        with amp.autocast("cuda", minipar.bfloat16, enabled=kind == "bfloat16"):
            logits = ours(a)
            loss = nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), b)
        loss.backward()
        optimizer.step()
        return loss.item()

    def their_step():
        their_optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=kind == "bfloat16"):
            logits = theirs(their_a)
            loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), their_b)
        loss.backward()
        their_optimizer.step()
        return loss.item()

    def median(step):
        times, losses = [], []
        for _ in range(steps + 2):
            begin = time.perf_counter()
            losses.append(step())  # item() waits for the GPU, but for the optimizer
            times.append(time.perf_counter() - begin)
        return statistics.median(times[2:]), losses
    their_s, their_losses = median(their_step)
    del theirs, their_optimizer
    torch.cuda.empty_cache()
    our_s, our_losses = median(our_step)
    worst = max(abs(p - q) / q for p, q in zip(our_losses, their_losses))
    within = {"float32": 5e-4, "tf32": 2e-3, "bfloat16": 2e-2}[kind]
    assert worst < within, (our_losses, their_losses)
    return {"batch": batch, "ours_ms": our_s * 1e3, "theirs_ms": their_s * 1e3,
            "ratio": our_s / their_s, "losses_differ_by": worst}


def all_reduce_times(sizes, ways):
    """{way: [ms]} on one of 2 ranks, the slower of both."""
    import minipar
    from minipar.comm import world
    from minipar.device import import_cupy
    cupy, comm, found = import_cupy(), world(), {}
    for way in ways:
        for n in sizes:
            x = minipar.full((n,), comm.rank + 1.0, device="cuda").array
            plan = comm.plan("all_reduce", x, algorithm=way)
            plan.start()
            plan.wait()
            assert float(x.min()) == float(x.max()) == 3
            times = []
            for _ in range(15):
                comm.barrier()
                begin = time.perf_counter()
                plan.start()
                plan.wait()
                cupy.cuda.get_current_stream().synchronize()
                times.append(time.perf_counter() - begin)
            longest = np.array(statistics.median(times))
            comm.all_reduce(longest, "max")
            found.setdefault(way, []).append(float(longest) * 1e3)
            comm.free(plan)
    return found


def run_all_reduce(results):
    """2 processes on one GPU, 1 to 256 MiB."""
    from minipar.comm import launch
    sizes = [2**k for k in (10, 18, 22, 24, 26)]
    times = launch(all_reduce_times, 2, args=(sizes, WAYS), timeout=300)[0]
    for way, row in times.items():
        print(f"{way:12}", *(f"{4 * n / 2**20:g} MiB {ms:.2f} ms;" for n, ms in zip(sizes, row)))
    return {"bytes": [4 * n for n in sizes], "ms": times}


WAYS = ("ring", "shared")  # staged through the host; mapped by inter-process handles


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stages", default=",".join(STAGES), help="some of " + ", ".join(STAGES))
    parser.add_argument("--seconds", type=float, default=540, help="no stage begins later")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "gpu.json"))
    parser.add_argument("--gpt2", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.gpt2:
        print(json.dumps(gpt2_step(o.gpt2)))
        return 0
    stages = o.stages.split(",")
    if wrong := set(stages) - set(STAGES):
        parser.error(f"no stage {', '.join(sorted(wrong))}: there are {', '.join(STAGES)}")
    from minipar.device import DeviceError, import_cupy
    try:
        cupy = import_cupy()
    except DeviceError as error:
        print(f"benchmarks/gpu.py: {error}", file=sys.stderr)
        return 2
    begin, path = time.monotonic(), Path(o.out)
    results = json.loads(path.read_text()) if path.exists() else {}
    results["about"] = about(cupy)
    run = {"tests": run_tests, "copy": run_copy, "kernels": run_kernels, "gpt2": run_gpt2,
           "all_reduce": run_all_reduce}
    status = 0
    for stage in stages:
        if time.monotonic() - begin > o.seconds:
            print(f"not begun, for lack of time: {stage}")
            status = 1
            continue
        print(f"== {stage}", flush=True)
        try:
            results[stage] = run[stage](results)
            status = status or int(bool(results[stage].get("status")))
        except Exception as error:  # the other stages are still worth their time
            print(f"{stage} failed: {type(error).__name__}: {error}")
            results[stage], status = {"failed": f"{type(error).__name__}: {error}"}, 1
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        cupy.get_default_memory_pool().free_all_blocks()
    return status


if __name__ == "__main__":
    sys.exit(main())
