"""What compression owes is in checkpoints: interrupted runs lose nothing of the gradients."""

import itertools

import numpy as np
import pytest
from wish import Wish

import minipar as mp
from minipar import nn, optim, options, train
from minipar.checkpoint import CheckpointFolder
from minipar.comm import run_threads, world
from minipar.data import GlobalBatchSampler
from minipar.interrupt import Interrupt
from minipar.parallel import Mesh, Replicated
from minipar.parallel.hooks import COMPRESSIONS, PowerSGDState, compression, powerSGD_hook
from minipar.tensor import Tensor
from minipar.train import loss_and_count

OWING = ["int8", "int4", "sign", "topk:0.1", "powersgd:1"]
JOB = ["--steps", "9", "--batch-size", "40", "--hidden", "33", "--clip", "1", "--optimizer", "sgd",
       "--quiet"]


def run(n, *args, after=None):
    """The hash of the parameters that the main job ends with on n threads, or None."""
    o = options.parse([*JOB, *map(str, args)], n)
    ends = run_threads(lambda: train.run(o, world(), Wish(after) if after else Interrupt()), n)
    return ends[0] and ends[0]["params_sha256"]


@pytest.fixture(autouse=True)
def a_short_test_part(monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda trainer, dataset, batch_size: (0.0, 0.0))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", [*OWING, "fp16"])
def test_interrupted_and_resumed_twice_the_bits_are_those_of_an_uninterrupted_run(
        name, n, tmp_path):
    expected = run(n, "--compress", name)
    resumed = ["--compress", name, "--checkpoint", tmp_path]
    assert run(n, *resumed, after=3) is None
    assert run(n, *resumed, "--resume", after=2) is None
    assert run(n, *resumed, "--resume") == expected
    assert expected != run(n)


def test_on_other_ranks_and_with_another_compression_a_run_goes_on(tmp_path, capsys):
    assert run(3, "--compress", "topk:0.1", "--checkpoint", tmp_path, after=3) is None
    assert run(2, "--compress", "topk:0.1", "--checkpoint", tmp_path, "--resume", after=2) is None
    assert capsys.readouterr().err == ""
    assert run(2, "--compress", "sign", "--checkpoint", tmp_path, "--resume") is not None
    assert capsys.readouterr().err == ("minipar: the checkpoint is of --compress topk:0.1: what "
                                       "that owed is dropped\n")
    assert run(3, "--sync", "zero3", "--checkpoint", tmp_path, "--resume", "--steps", 11)
    assert capsys.readouterr().err.startswith("minipar: the checkpoint is of --compress sign: ")
    _, _, arrays = CheckpointFolder(tmp_path).load()
    assert not [name for name in arrays if name.startswith("compress")]


# The sum of what is sent and owed

rng = np.random.default_rng(0)
X, Y = rng.standard_normal((24, 30)), rng.integers(0, 4, 24)


def trainer(hook):
    mp.set_default_dtype("float64")
    mp.manual_seed(5)
    comm = world()
    model = nn.Sequential(nn.Linear(30, 21), nn.GELU(), nn.Linear(21, 4))
    return Replicated(model, lambda m: optim.SGD(m.parameters(), 0.0), loss_and_count, comm,
                      Mesh(dp=comm.size), hook=hook and hook())


def sent(hook, state, count):
    """({name: sum of the gradients that `count` steps left}, the trainer's state afterwards),
    by parameters that stay as they are."""
    t, total = trainer(hook), {}
    t.load({}, state if t.comm.rank == 0 else {})
    sampler = GlobalBatchSampler(24, 24, rank=t.comm.rank, num_replicas=t.comm.size)
    for shard in itertools.islice(itertools.cycle(sampler.shards(0)), count):
        t.step((Tensor(X[shard.indices]), Tensor(Y[shard.indices])), shard, 0)
        for name, p in t.module.named_parameters():
            total[name] = total.get(name, 0) + p.grad.array
    return total, t.state()[1]


def debts(state):
    """{name: sum over the replicas of what they owe}, from the arrays of a checkpoint."""
    out = {}
    for key, array in state.items():
        if key.startswith(("compress/owed", "compress/summed")):
            name = key.rpartition("/")[2]
            out[name] = out.get(name, 0) + array
    return out


def powersgd_with_a_start(whole, rate=2):
    """PowerSGD that sends everything whole for some steps."""
    return PowerSGDState(None, 1, start_powerSGD_iter=whole, min_compression_rate=rate), \
        powerSGD_hook


@pytest.mark.parametrize("name", OWING)
@pytest.mark.parametrize("before, after", [(3, 2), (1, 4), (4, 1), (2, 2)])
def test_what_was_sent_before_and_after_and_is_owed_is_the_sum_of_all_gradients(
        before, after, name):
    def hook():
        return compression(name)
    first, state = run_threads(sent, before, hook, {}, 3)[0]
    owed = debts(state)
    assert max(np.abs(a).max() for a in owed.values()) > 1e-6
    second, state = run_threads(sent, after, hook, state, 3)[0]
    owed = debts(state)
    whole, _ = run_threads(sent, 1, None, {}, 6)[0]
    assert whole.keys() == first.keys() >= owed.keys()
    for key, value in whole.items():
        np.testing.assert_allclose(first[key] + second[key] + owed.get(key, 0), value, rtol=0,
                                   atol=1e-12 * np.abs(value).max())


def test_powersgd_sends_what_is_owed_of_a_matrix_that_goes_whole_now():
    first, state = run_threads(sent, 2, lambda: powersgd_with_a_start(0), {}, 3)[0]
    assert set(debts(state)) == {"0.weight", "2.weight"}
    second, state = run_threads(sent, 3, lambda: powersgd_with_a_start(0, 1e9), state, 1)[0]
    whole, _ = run_threads(sent, 1, None, {}, 4)[0]
    assert not debts(state)
    for key, value in whole.items():
        np.testing.assert_allclose(first[key] + second[key], value, rtol=0,
                                   atol=1e-12 * np.abs(value).max())


def test_powersgd_counts_its_backwards_on():
    _, state = run_threads(sent, 2, lambda: powersgd_with_a_start(5), {}, 3)[0]
    assert not debts(state)
    _, state = run_threads(sent, 2, lambda: powersgd_with_a_start(5), state, 2)[0]
    assert not debts(state)
    _, state = run_threads(sent, 2, lambda: powersgd_with_a_start(5), state, 1)[0]
    assert debts(state)


def test_every_compression_is_tested_here():
    assert {name.partition(":")[0] for name in OWING} | {"fp16", "bf16"} == set(COMPRESSIONS)
