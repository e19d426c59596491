"""The interface of communication hooks: what they are given, what they may return, and when."""

import numpy as np
import pytest

import minipar as mp
from hook_cases import TINY, Given, assert_same_bits, drawn, exchange, keep
from minipar import nn
from minipar.comm import run_threads, world
from minipar.futures import Future
from minipar.parallel import DistributedDataParallel
from minipar.parallel.hooks import allreduce_hook, compression
from minipar.tensor import Tensor

SHAPES = ((40, 30), (17,), (), (5, 6, 7))


def done(value):
    future = Future()
    future.set_result(value)
    return future


@pytest.mark.parametrize("gradient", ["sum", "mean"])
@pytest.mark.parametrize("cap", [25, 1e-3, TINY])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_all_reduce_hook_does_what_no_hook_does(n, cap, gradient):
    with_it = exchange(n, lambda: (None, allreduce_hook), cap=cap, gradient=gradient, steps=2)
    without = exchange(n, cap=cap, gradient=gradient, steps=2)
    assert_same_bits(with_it)
    for (ours, *_), (theirs, *_) in zip(with_it[0], without[0], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            if n <= 2:
                np.testing.assert_array_equal(a, b)
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max())


def test_a_hook_written_for_pytorch_runs_when_its_imports_are_changed():
    def hook(process_group, bucket):
        tensor = bucket.buffer().div_(process_group.size)
        fut = process_group.all_reduce(tensor, async_op=True).get_future()
        return fut.then(lambda fut: fut.value()[0])
    found = exchange(4, lambda: (world(), hook), gradient="mean", cap=TINY)
    expected = exchange(4, gradient="mean")
    for a, b in zip(found[0][0][0], expected[0][0][0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max())


@pytest.mark.parametrize("cap, counts", [(25, [4]), (TINY, [1, 1, 1, 1])])
def test_a_bucket_tells_its_place_parameters_and_gradients(cap, counts):
    seen = []

    def hook(state, bucket):
        assert state == "mine"
        buffer, parameters, gradients = bucket.buffer(), bucket.parameters(), bucket.gradients()
        seen.append((bucket.index(), bucket.is_last(), [tuple(p.shape) for p in parameters]))
        expected = dict(zip(SHAPES, drawn(SHAPES, 0, 0, "float64"), strict=True))
        at = 0
        for p, g in zip(parameters, gradients, strict=True):
            np.testing.assert_array_equal(g.array, expected[tuple(p.shape)])
            assert np.shares_memory(g.array, buffer.array) and g.array.shape == tuple(p.shape)
            np.testing.assert_array_equal(buffer.array[at:at + g.array.size], g.array.reshape(-1))
            at += -(-g.array.size // 8) * 8  # float64 on lines of 64 bytes
        assert buffer.shape == (at,)
        bucket.set_buffer(Tensor(2 * buffer.array))
        return done(bucket.buffer())
    (gradients, *_), = exchange(1, lambda: ("mine", hook), cap=cap)[0]
    assert [index for index, *_ in seen] == list(range(len(counts)))
    assert [last for _, last, _ in seen] == [False] * (len(counts) - 1) + [True]
    assert [len(shapes) for *_, shapes in seen] == counts
    in_order = [shape for *_, shapes in reversed(seen) for shape in shapes]
    assert in_order == [*SHAPES]
    for g, given in zip(gradients, drawn(SHAPES, 0, 0, "float64"), strict=True):
        np.testing.assert_array_equal(g, 2 * given)


def test_what_a_hook_writes_between_parameters_is_no_gradient():
    def hook(state, bucket):
        return done(np.ones(bucket.buffer().shape))

    def work():
        mp.set_default_dtype("float64")
        model = DistributedDataParallel(Given(SHAPES))
        model.register_comm_hook(None, hook)
        model(drawn(SHAPES, 0, 0, "float64")).backward()
        flat = next(iter(model.parameters())).storage.owner
        assert flat.grad.sum() == sum(p.numel() for p in model.parameters()) < len(flat.grad)
    run_threads(work, 2)


@pytest.mark.parametrize("name", ["sign", "int8", "topk", "powersgd:1", "fp16"])
@pytest.mark.parametrize("cap", [25, TINY])
def test_which_parameters_had_a_gradient_is_told_exactly(cap, name):
    def given(shapes, rank, step, dtype):  # the first nobody uses, the second rank 1 alone
        out = drawn(shapes, rank, step, dtype)
        return [None, out[1] if rank == 1 else None, *out[2:]]
    results = exchange(3, lambda: compression(name), cap=cap, steps=2, given=given)
    assert_same_bits(results)
    for gradients, *_ in results[0]:
        assert [g is None for g in gradients] == [True, False, False, False]


def test_collectives_inside_backward_do_not_meet_those_of_hooks():
    # Rank 0 does not use the last parameter: its first bucket starts at the end, those of other
    # ranks in the middle of backward, before a collective that backward itself calls.
    shapes = ((3, 2), (4,), (5,))

    def work():
        mp.set_default_dtype("float64")
        model = DistributedDataParallel(Given(shapes), bucket_cap_mb=TINY, gradient="sum")
        model.register_comm_hook(*compression("int8"))
        first = next(iter(model.parameters()))
        totals = []

        def sum_up(gradient):
            total = np.array(1.0)
            world().all_reduce(total)
            totals.append(float(total))
        first.register_hook(sum_up)
        for step in range(3):
            gradients = drawn(shapes, world().rank, step, "float64")
            if world().rank == 0:
                gradients[2] = None
            model.zero_grad()
            model(gradients).backward()
        return totals
    assert run_threads(work, 3) == [[3.0] * 3] * 3


class Chain(nn.Module):
    """A product of five numbers, multiplied in the order that forward is given."""

    def __init__(self):
        super().__init__()
        for i in range(5):
            self.register_parameter(f"p{i}", nn.Parameter(mp.full((1,), i + 2.0)))

    def forward(self, order):
        out = Tensor(np.ones(1))
        for i in order:
            out = out * getattr(self, f"p{i}")
        return out.sum()


@pytest.mark.parametrize("hooked", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_buckets_start_in_the_order_in_which_rank_0_completed_them_in_the_first_step(n, hooked):
    # Bucket 0 holds p4, and so on to bucket 4 with p0, which is in front and goes last.
    orders = [[1, 4, 2, 3, 0], [0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]  # backward goes from their ends

    def work():
        mp.set_default_dtype("float64")
        model = DistributedDataParallel(Chain(), bucket_cap_mb=TINY, gradient="sum")
        calls = []

        def hook(state, bucket):
            calls.append((bucket.index(), bucket.is_last()))
            return allreduce_hook(state, bucket)
        if hooked:
            model.register_comm_hook(None, hook)
        for _ in range(3):
            model.zero_grad()
            model(orders[world().rank]).backward()
            for i, p in enumerate(model.parameters()):
                assert p.grad.item() == n * 720 / (i + 2)
        return calls
    first, then = [0, 1, 2, 3, 4], [1, 2, 0, 3, 4] if n > 1 else [0, 1, 2, 3, 4]
    for calls in run_threads(work, n):
        assert [i for i, _ in calls] == ([*first, *then, *then] if hooked else [])
        assert [last for _, last in calls] == [False, False, False, False, True] * 3 * hooked


def test_under_no_sync_no_hook_is_called_and_the_next_backward_gives_it_the_sum():
    calls = []

    def hook(state, bucket):
        calls.append(bucket.buffer().array.copy())
        return keep(state, bucket)

    def work():
        mp.set_default_dtype("float64")
        model = DistributedDataParallel(Given(((4,),)))
        model.register_comm_hook(None, hook)
        with model.no_sync():
            model([np.arange(4.0)]).backward()
        assert not calls
        model([np.ones(4)]).backward()
    run_threads(work, 1)
    np.testing.assert_array_equal(calls[0][:4], np.arange(4.0) + 1)


@pytest.mark.parametrize("returned, error, message", [
    (lambda b: done(np.zeros(3)), TypeError,
     r"communication hook hook returned float64 \(3,\) for bucket 0 of float64 \(24,\)"),
    (lambda b: done(b.buffer().array.astype(np.float32)), TypeError,
     r"returned float32 \(24,\) for bucket 0 of float64 \(24,\)"),
    (lambda b: done(b.buffer().array.reshape(4, 6)), TypeError, r"float64 \(4, 6\) for .* \(24,\)"),
    (lambda b: done(None), TypeError, r"returned NoneType for bucket 0 of float64 \(24,\)"),
    (lambda b: b.buffer(), TypeError, "communication hook hook returned a Tensor, not a Future"),
    (lambda b: None, TypeError, "returned a NoneType, not a Future"),
    (lambda b: b.set_buffer(np.zeros(2)), TypeError, r"set_buffer was given float64 \(2,\)"),
    (lambda b: done(1 / 0), ZeroDivisionError, "division"),
    (lambda b: done(0).then(lambda f: 1 / f.value()), ZeroDivisionError, "division"),
])
def test_what_a_hook_must_not_return_is_refused_in_one_line(returned, error, message):
    def work():
        mp.set_default_dtype("float64")
        model = DistributedDataParallel(Given(((17,),)))
        bad = [True]

        def hook(state, bucket):
            return returned(bucket) if bad[0] else keep(state, bucket)
        model.register_comm_hook(None, hook)
        with pytest.raises(error, match=message) as info:
            model([np.ones(17)]).backward()
        assert "\n" not in str(info.value)
        bad[0] = False  # and the next backward is as if nothing had been
        model.zero_grad()
        model([np.full(17, 2.0)]).backward()
        np.testing.assert_array_equal(next(iter(model.parameters())).grad.array, np.full(17, 2.0))
    run_threads(work, 2)


def test_a_second_hook_and_what_is_no_function_are_refused():
    def work():
        model = DistributedDataParallel(nn.Linear(2, 2))
        with pytest.raises(TypeError, match="a communication hook is a function .*, not 3"):
            model.register_comm_hook(None, 3)
        model.register_comm_hook(None, keep)
        with pytest.raises(RuntimeError, match="already"):
            model.register_comm_hook(None, keep)
    run_threads(work, 1)
