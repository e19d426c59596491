"""Compressed gradients: limits, error feedback, bytes, bits, convergence, and the main job."""

import json
import math
from functools import lru_cache

import numpy as np
import pytest

from hook_cases import TINY, assert_same_bits, drawn, exchange, keep
from minipar import options, train
from minipar.comm import run_threads, world
from minipar.options import UsageError
from minipar.parallel.hooks import (COMPRESSIONS, PowerSGDState, QuantiseState, SignState,
                                    TopKState, allreduce_hook, bf16_compress_hook, compression,
                                    fp16_compress_hook, powerSGD_hook, quantise_hook, sign_hook,
                                    topk_hook)
from minipar.trace import Recorder
from refusals import assert_refused

LONG = ((300, 200), (1024,), (64, 7))  # 61,472 elements, of whole lines in every type


def whole_numbers(shapes, rank, step, dtype):
    rng = np.random.default_rng((rank, step))
    return [rng.integers(-30, 31, shape).astype(dtype) for shape in shapes]


# Limits


def full_rank():
    return PowerSGDState(None, 1000, start_powerSGD_iter=0, min_compression_rate=0), powerSGD_hook


@pytest.mark.parametrize("gradient", ["sum", "mean"])
@pytest.mark.parametrize("make, given, exact", [
    (lambda: (TopKState(ratio=1), topk_hook), drawn, True),
    (full_rank, drawn, False),
    (lambda: (PowerSGDState(start_powerSGD_iter=9), powerSGD_hook), drawn, True),
    (lambda: (None, fp16_compress_hook), whole_numbers, True),
    (lambda: (None, bf16_compress_hook), whole_numbers, True),
], ids=["all of topk", "full rank", "before powerSGD starts", "fp16", "bf16"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_compression_at_its_limit_is_data_parallelism(n, make, given, exact, gradient):
    results = exchange(n, make, given=given, gradient=gradient, steps=3, cap=TINY)
    expected = exchange(n, given=given, gradient=gradient, steps=3)
    assert_same_bits(results)
    for (ours, *_), (theirs, *_) in zip(results[0], expected[0], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            if exact and (n <= 2 or given is whole_numbers):
                np.testing.assert_array_equal(a, b)
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


# Error feedback


def quantised_debts(state):
    debts = state.sent[0].copy()
    debts[world().rank] += state.summed[0]  # of this rank's block of the result
    return debts.reshape(-1)


DEBTS = {
    "int8": (lambda: (QuantiseState(bits=8, block=64), quantise_hook), quantised_debts),
    "int4": (lambda: (QuantiseState(bits=4, block=32), quantise_hook), quantised_debts),
    "sign": (lambda: (SignState(), sign_hook), lambda state: state.residuals[0].copy()),
    "topk": (lambda: (TopKState(ratio=0.05), topk_hook), lambda state: state.residuals[0].copy()),
    "powersgd": (lambda: (PowerSGDState(None, 2, 0), powerSGD_hook),
                 lambda state: state.errors[0][0].reshape(-1)),
}


@pytest.mark.parametrize("name", DEBTS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_what_was_sent_and_what_is_owed_is_the_sum_of_all_gradients(n, name):
    make, debts = DEBTS[name]
    results = exchange(n, make, ((40, 24),), steps=5, after=debts)
    assert_same_bits(results)
    given = sent = 0
    for step in range(5):
        given = given + sum(drawn(((40, 24),), r, step, "float64")[0] for r in range(n))
        sent = sent + results[0][step][0][0]
        owed = sum(result[step][2] for result in results)[:960].reshape(40, 24)
        assert np.abs(owed).max() > 1e-6  # something was lost on the way
        np.testing.assert_allclose(sent + owed, given, rtol=0, atol=1e-12 * np.abs(given).max())


@pytest.mark.parametrize("name", DEBTS)
def test_a_gradient_that_is_not_finite_is_passed_on_and_not_owed(name):
    make, debts = DEBTS[name]

    def given(shapes, rank, step, dtype):
        out = drawn(shapes, rank, step, dtype)
        if step == 1 and rank == 0:
            out[0][3, 5] = np.nan
        return out
    with np.errstate(all="ignore"):
        results = exchange(2, make, ((40, 24),), steps=3, given=given, after=debts)
    assert not np.isfinite(results[1][1][0][0]).all()
    for result in results:
        assert np.isfinite(result[1][2]).all() and np.isfinite(result[2][0][0]).all()
    if not name.startswith("int"):  # where only the block that holds it is left out
        np.testing.assert_array_equal(results[0][1][2], results[0][0][2])


def test_without_error_feedback_nothing_is_owed():
    def make():
        return QuantiseState(bits=4, error_feedback=False), quantise_hook
    results = exchange(2, make, steps=2, given=lambda s, r, _, d: drawn(s, r, 0, d),
                       after=lambda state: (state.sent, state.summed))
    for a, b in zip(results[0][0][0], results[0][1][0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert results[0][1][2] == ({}, {})


# What each step makes of the gradients, by other words


def test_signs_have_the_mean_magnitude_of_gradient_and_residual():
    given = [drawn(((64,),), r, 0, "float64")[0] for r in range(3)]
    found = exchange(3, lambda: (SignState(), sign_hook), ((64,),), gradient="mean")
    expected = sum(np.where(g < 0, -1, 1) * np.abs(g).mean() for g in given) / 3
    np.testing.assert_allclose(found[0][0][0][0], expected, rtol=1e-12)


def test_the_largest_elements_of_each_rank_are_summed_and_the_others_wait():
    def given(shapes, rank, step, dtype):
        return [np.array([[5.0, 1, -6, 2, 0, 0, 0, 0], [2, 1, -7, 3, 0, 0, 0, 0]][rank])
                * (step == 0)]
    results = exchange(2, lambda: (TopKState(ratio=0.25), topk_hook), ((8,),), steps=3, given=given)
    steps = [gradients[0].tolist() for gradients, *_ in results[0]]
    assert steps == [[5, 0, -13, 3, 0, 0, 0, 0], [2, 2, 0, 2, 0, 0, 0, 0], [0] * 8]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_power_iteration_finds_the_best_approximation_of_the_mean(n):
    rng = np.random.default_rng(0)
    base = rng.standard_normal((30, 3)) * [100, 10, 0.1] @ rng.standard_normal((3, 20))
    values = [base + rng.standard_normal((30, 20)) for _ in range(4)]
    mean = sum(values[:n]) / n

    def make():
        return PowerSGDState(None, 2, 0, use_error_feedback=False), powerSGD_hook
    results = exchange(n, make, ((30, 20),), steps=30, gradient="mean",
                       given=lambda s, rank, *_: [values[rank]])
    u, s, v = np.linalg.svd(mean)
    best = u[:, :2] * s[:2] @ v[:2]
    np.testing.assert_allclose(results[0][-1][0][0], best, rtol=0, atol=1e-6 * np.abs(best).max())


# Bytes


def halves(n, p, itemsize):
    return 2 * (p - 1) * 2 * n


def integers(bits):
    def total(n, p, itemsize):
        shard = -(-n // p)
        return p * 2 * (p - 1) * (-(-shard * bits // 8) + itemsize * -(-shard // 256))
    return total


def low_rank(n, p, itemsize):
    return 2 * (p - 1) * itemsize * (16 * (300 + 200) + n - 300 * 200)  # the rest goes whole


BYTES = {
    "fp16": halves, "bf16": halves, "int8": integers(8), "int4": integers(4),
    "sign": lambda n, p, itemsize: p * (p - 1) * (n // 8 + itemsize),
    "topk:0.03": lambda n, p, itemsize: p * (p - 1) * math.ceil(0.03 * n) * (4 + itemsize),
    "powersgd:16": low_rank,
}


def sent(make, p, dtype):
    """Bytes of all ranks in the third step: before, they agree on the memory that they share."""
    return sum(rank[2][1] for rank in exchange(p, make, LONG, dtype=dtype, steps=3))


@lru_cache
def sent_otherwise(p, dtype):
    """(bytes of the used flags, bytes of an all-reduce without compression)."""
    flags = sent(lambda: (None, keep), p, dtype)
    return flags, sent(lambda: (None, allreduce_hook), p, dtype) - flags


@pytest.mark.parametrize("p, dtype", [(2, "float32"), (3, "float64"), (4, "float32")])
@pytest.mark.parametrize("name", BYTES)
def test_the_bytes_that_are_counted_are_those_of_the_formula(name, p, dtype):
    n, itemsize = sum(math.prod(s) for s in LONG), np.dtype(dtype).itemsize
    flags, whole = sent_otherwise(p, dtype)
    counted = sent(lambda: compression(name), p, dtype) - flags
    assert counted == BYTES[name](n, p, itemsize)
    assert whole == 2 * (p - 1) * n * itemsize
    if name == "int8" and dtype == "float32":
        assert whole / counted == pytest.approx(4 / (1 + 4 / 256), rel=1e-2)


def test_the_bytes_counted_are_those_of_the_messages_that_a_trace_shows():
    def work():
        comm, x = world(), np.ones(5000)
        comm.all_reduce(x, algorithm="ring")  # makes what is made once
        with Recorder() as recorder:
            before = comm.bytes_sent
            comm.all_reduce(x, algorithm="ring")
            comm.broadcast(x, 1, algorithm="binomial")
            comm.split(0).all_to_all(np.ones((3, 700)), algorithm="pairwise")
            if comm.rank:
                comm.send(x[:7], 0, tag=comm.rank)
            else:
                comm.recv(x[:7], 1, tag=1)
                comm.recv(x[:7], 2, tag=2)
            sent = comm.bytes_sent - before
        assert sent == recorder.summary()["bytes_sent"] > 0
    run_threads(work, 3)


# PyTorch


@pytest.mark.peer
@pytest.mark.parametrize("hook, name", [(fp16_compress_hook, "float16"),
                                        (bf16_compress_hook, "bfloat16")])
def test_halves_are_rounded_divided_and_summed_as_in_pytorch(hook, name):
    torch = pytest.importorskip("torch")
    results = exchange(2, lambda: (None, hook), ((999,),), dtype="float32", gradient="mean")
    halves = [torch.tensor(drawn(((999,),), r, 0, "float32")[0]).to(getattr(torch, name)).div_(2)
              for r in range(2)]
    np.testing.assert_array_equal(results[0][0][0][0], (halves[0] + halves[1]).float().numpy())


@pytest.mark.peer
def test_powersgd_goes_on_from_pytorchs_state_as_pytorch_does():
    torch = pytest.importorskip("torch")
    from torch import distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as theirs
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(
            torch.nn.Linear(20, 30, bias=False, dtype=torch.float64))
        peer = theirs.PowerSGDState(None, 2, start_powerSGD_iter=2)
        model.register_comm_hook(peer, theirs.powerSGD_hook)
        kept = []
        for step in range(6):
            model.zero_grad()
            gradient = torch.tensor(drawn(((30, 20),), 0, step, "float64")[0])
            if step > 2:
                kept.append((peer.q_memory_dict[0].reshape(20, 2).numpy().copy(),
                             peer.error_dict[0].reshape(30, 20).numpy().copy()))
            # of sum(y * g) for y = I w^T the gradient of w (30, 20) is g
            (model(torch.eye(20, dtype=torch.float64)) * gradient.T).sum().backward()
            kept[-1:] = [(*k, model.module.weight.grad.numpy().copy()) for k in kept[-1:]]
    finally:
        dist.destroy_process_group()
    for step, (q, error, expected) in zip(range(3, 6), kept, strict=True):
        def make(q=q, error=error):
            state = PowerSGDState(None, 2, 0)
            state.qs[0], state.errors[0] = [q], [error]
            return state, powerSGD_hook
        found = exchange(1, make, ((30, 20),), gradient="mean",
                         given=lambda s, r, _, d, step=step: drawn(s, r, step, d))
        np.testing.assert_allclose(found[0][0][0][0], expected, rtol=0, atol=1e-12)


# The main job


def job(n, *more):
    o = options.parse(["--quiet", *more], n)
    return run_threads(lambda: train.run(o, world()), n)[0]


# Digits, 6 epochs: 96.9 % without compression. (Least accuracy, with a margin for another BLAS;
# most bytes, of those that the ranks send without it.)
BUDGET = {"fp16": (0.955, 0.51), "bf16": (0.955, 0.51), "int8": (0.955, 0.26),
          "int4": (0.95, 0.135), "sign": (0.91, 0.033), "topk:0.01": (0.91, 0.022),
          "powersgd:4": (0.95, 0.06)}


@pytest.mark.parametrize("name", BUDGET)
def test_the_default_job_learns_the_digits_within_a_budget_of_bytes(name):
    accuracy, share = BUDGET[name]
    end = job(2, "--epochs", "6", "--compress", name)
    assert end["test_accuracy"] >= accuracy
    whole = 2 * 4 * 85002 * end["steps"]  # float32, each of 2 ranks sends n of them
    assert 0 < end["bytes_sent"] <= share * whole


def test_the_end_of_the_metrics_tells_the_bytes_that_all_ranks_sent(tmp_path):
    path = tmp_path / "m.jsonl"
    for n in (1, 3):
        end = job(n, "--steps", "4", "--metrics", str(path), "--hidden", "32")
        written = json.loads(path.read_text().splitlines()[-1])
        assert written["bytes_sent"] == end["bytes_sent"]
        parameters = 64 * 32 + 32 * 32 + 32 * 10 + 32 + 32 + 16  # the last bias on a whole line
        assert end["bytes_sent"] >= 4 * 2 * (n - 1) * 4 * parameters
        assert end["bytes_sent"] <= 1.1 * 4 * 2 * (n - 1) * 4 * parameters


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_every_compression_has_a_default_and_trains_with_microbatches_and_clipping(name):
    end = job(3, "--steps", "3", "--compress", name, "--microbatches", "2", "--clip", "1",
              "--hidden", "16", "--dtype", "float64")
    assert math.isfinite(end["loss"]) and end["bytes_sent"] > 0


@pytest.mark.parametrize("argv, message", [
    (["--compress", "topkk"], "argument --compress: no 'topkk': did you mean topk"),
    (["--compress", "sign:2"], "sign takes no argument, and '2' was given"),
    (["--compress", "topk:0"], r"topk: a part in \(0, 1\] of the elements is sent, not 0.0"),
    (["--compress", "topk:nan"], r"topk: a part in \(0, 1\] .* not nan"),
    (["--compress", "topk:1.5"], r"topk: a part in \(0, 1\] .* not 1.5"),
    (["--compress", "topk:"], "topk:: '' is not a number"),
    (["--compress", "powersgd:0"], "PowerSGD: the rank is 1 or more, not 0"),
    (["--compress", "powersgd:2.5"], "powersgd:2.5: '2.5' is not a whole number"),
    (["--compress", "int8", "--codec", "float16"], "both encode gradients"),
    (["--compress", "int8", "--algorithm", "swing"], "--algorithm swing would not serve"),
    (["--compress", "fp16", "--device", "cuda"], "CPU's memory: not with --device cuda"),
    (["--compress", "int8", "--pp", "2", "--sync", "zero1"], "is for --sync ddp, not for zero1"),
    (["--compress", "int8", "--sync", "zero1"], "is for --sync ddp, not for zero1"),
    (["--compress", "sign", "--amp", "float16"], "--amp bfloat16 does not"),
])
def test_what_cannot_be_compressed_is_refused_in_one_line(argv, message):
    assert_refused(lambda: options.parse(argv, 2), message)
    with pytest.raises(UsageError):
        options.parse(argv, 2)


def test_wrong_states_are_refused():
    assert_refused(lambda: QuantiseState(bits=3), "bits is 8 or 4, not 3")
    assert_refused(lambda: QuantiseState(block=3), "block")
    assert_refused(lambda: TopKState(ratio=-1), "not -1")
    assert_refused(lambda: exchange(1, lambda: (None, fp16_compress_hook), dtype="float16"),
                   "codec float16 encodes float32 and float64, not float16")
