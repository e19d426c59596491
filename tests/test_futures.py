"""Futures: values that come later, callbacks in the order of waiting, PyTorch's names."""

import threading

import numpy as np
import pytest

from minipar.comm import run_threads, world
from minipar.futures import Future
from minipar.tensor import Tensor


def test_a_value_is_there_once_it_is_set():
    future = Future()
    assert not future.done()
    with pytest.raises(RuntimeError, match="before it is done"):
        future.value()
    future.set_result(3)
    assert future.done() and future.value() == 3 and future.wait() == 3


def test_a_value_is_set_once():
    future = Future()
    future.set_result(3)
    for again in (lambda: future.set_result(4), lambda: future.set_exception(ValueError()),
                  lambda: future.then(lambda f: 5).set_result(6)):
        with pytest.raises(RuntimeError, match="once"):
            again()
    assert future.wait() == 3


def test_callbacks_get_the_future_and_run_once_when_somebody_waits():
    calls, future = [], Future()

    def call(f):
        calls.append(f.value())
        return f.value() + 1
    first = future.then(call)
    second = first.then(call)
    assert not second.done()
    future.set_result(1)
    assert calls == [] and second.wait() == 3 and calls == [1, 2]
    assert first.wait() == 2 and second.value() == 3 and calls == [1, 2]


def test_who_asks_whether_it_is_done_has_callbacks_run_that_are_due():
    future = Future()
    after = future.then(lambda f: -f.value())
    assert not after.done()
    future.set_result(1)
    assert after.done() and after.value() == -1


def test_errors_are_raised_by_whoever_waits_and_pass_through_callbacks_that_ask():
    future, asked = Future(), []
    future.set_exception(KeyError("lost"))
    with pytest.raises(KeyError, match="lost"):
        future.then(lambda f: f.value()).then(lambda f: f.value()).wait()
    assert future.then(lambda f: asked.append(f) or 7).wait() == 7 and asked == [future]
    with pytest.raises(ZeroDivisionError):
        Future.after(world().all_reduce(np.ones(1), async_op=True), lambda: 1 / 0).wait()


def test_another_thread_may_set_what_one_waits_for():
    future = Future()
    thread = threading.Timer(0.01, future.set_result, ["late"])
    thread.start()
    assert future.then(lambda f: f.value() * 2).wait() == "latelate"
    thread.join()


@pytest.mark.parametrize("n", [1, 3])
def test_the_future_of_a_collective_has_a_list_of_its_result(n):
    def work():
        comm, r = world(), world().rank
        x, y, z = np.full(5, r + 1.0), Tensor(np.full(3, r)), np.full(2, r)
        gathered, exchanged = np.empty((n, 2), z.dtype), np.empty((n, 1))
        works = [comm.all_reduce(x, async_op=True), comm.broadcast(y, 0, async_op=True),
                 comm.all_gather(z, out=gathered, async_op=True),
                 comm.all_to_all(np.full((n, 1), float(r)), out=exchanged, async_op=True),
                 comm.reduce(np.full(2, r + 1.0), 0, async_op=True)]
        values = [work.get_future().wait() for work in works]
        assert [len(v) for v in values] == [1] * 5
        assert values[0][0] is x and values[1][0] is y and values[2][0] is gathered
        np.testing.assert_array_equal(x, np.full(5, n * (n + 1) / 2))
        np.testing.assert_array_equal(y.array, np.zeros(3))
        np.testing.assert_array_equal(gathered, np.arange(n)[:, None] * [1, 1])
        np.testing.assert_array_equal(values[3][0][:, 0], np.arange(n))
        assert r or (values[4][0] == n * (n + 1) / 2).all()
    run_threads(work, n)


@pytest.mark.peer
def test_a_program_with_futures_does_the_same_with_pytorch():
    torch = pytest.importorskip("torch")

    def program(make):
        said, future = [], make()
        chain = future.then(lambda f: f.value() + 1).then(lambda f: f.wait() * 10)
        said.append((future.done(), chain.done()))
        future.set_result(4)
        said += [chain.wait(), chain.value(), future.value(), chain.done()]
        failed = make()
        failed.set_exception(ValueError("no"))
        try:
            failed.then(lambda f: f.value()).wait()
        except Exception as error:  # PyTorch wraps it
            said.append("no" in str(error))
        with pytest.raises(RuntimeError):
            future.set_result(5)
        return said
    assert program(Future) == program(torch.futures.Future)
