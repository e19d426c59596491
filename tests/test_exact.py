"""--exact: the same parameters, to the last bit, on any number of ranks and by any all-reduce."""

import json
import math

import numpy as np
import pytest
from launch import mpirun, python
from wish import Wish

import minipar as mp
from minipar import nn, optim, options, train
from minipar.comm import run_threads, world
from minipar.data import GlobalBatchSampler
from minipar.data.sampler import Shard
from minipar.execution.threads import get_num_threads
from minipar.interrupt import Interrupt
from minipar.models import MLP
from minipar.options import UsageError
from minipar.parallel import Diverged, Exact, Mesh
from minipar.start import one_blas_thread
from minipar.tensor import Tensor
from minipar.train import loss_and_count

GPT = ["--model", "gpt", "--layers", "2", "--heads", "2", "--embedding", "16", "--block-size", "8",
       "--dropout", "0.2", "--clip", "0.5", "--batch-size", "25"]
MODELS = {
    "mlp": ["--hidden", "24", "--batch-size", "45"],
    "cnn": ["--model", "cnn", "--batch-size", "21", "--optimizer", "sgd", "--lr", "0.05"],
    "gpt": GPT,
    "gpt, float64": [*GPT, "--dtype", "float64", "--optimizer", "adam"],
}


def job(n, *args, steps=4, after=None):
    """Runs the main job on n threads; returns the last metrics, which all ranks have alike."""
    o = options.parse(["--quiet", "--steps", str(steps), *map(str, args)], n)

    def rank():
        told = after is not None and world().rank == n - 1
        return train.run(o, world(), Wish(after) if told else Interrupt())
    with one_blas_thread():
        ends = run_threads(rank, n)
    assert len({end and end["params_sha256"] for end in ends}) == 1
    return ends[0]


def digest(*args, **more):
    return job(*args, **more)["params_sha256"]


@pytest.fixture
def no_test_part(monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda trainer, dataset, batch_size: (0.0, 0.0))


@pytest.mark.parametrize("model", MODELS)
def test_any_number_of_ranks_ends_with_the_same_bits(no_test_part, model):
    expected = digest(1, *MODELS[model], "--exact")
    for n in (2, 3, 4, 7):
        assert digest(n, *MODELS[model], "--exact") == expected


@pytest.mark.parametrize("algorithm", ["recursive_doubling", "binomial_reduce_broadcast", "shared",
                                       "auto", "double_binary_tree", "naive"])
def test_any_algorithm_ends_with_the_same_bits(no_test_part, algorithm):
    for model in ("mlp", "cnn", "gpt, float64"):
        args = [*MODELS[model], "--exact"]
        assert digest(3, *args, "--algorithm", algorithm) == digest(1, *args)


def test_without_it_the_bits_depend_on_the_number_of_ranks(no_test_part):
    assert digest(1, *MODELS["mlp"]) != digest(3, *MODELS["mlp"])


@pytest.mark.parametrize("model", MODELS)
def test_one_virtual_shard_on_one_rank_is_training_as_usual(no_test_part, model):
    assert digest(1, *MODELS[model], "--exact", "1") == digest(1, *MODELS[model])


def test_another_number_of_virtual_shards_is_another_computation(no_test_part):
    assert len({digest(2, *MODELS["mlp"], "--exact", v) for v in (2, 3, 16)}) == 3


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_virtual_shards_without_samples_do_not_matter(no_test_part, n, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "few.npz", x=rng.standard_normal((36, 5)), y=np.arange(36) % 3)
    args = ["--data", tmp_path / "few.npz", "--hidden", "6", "--batch-size", "10"]
    steps = 9  # 4 an epoch or fewer: the last of them is of a short batch
    assert digest(n, *args, "--exact", steps=steps) == digest(4, *args, "--exact", steps=steps)
    assert digest(n, *args, "--exact", "10", steps=1) == digest(1, *args, "--exact", "10", steps=1)


def test_losses_of_all_steps_are_the_same_and_near_those_of_ordinary_sums(
        no_test_part, tmp_path):
    def losses(n, *more):
        job(n, *MODELS["gpt, float64"], *more, "--metrics", tmp_path / "m", steps=5)
        lines = map(json.loads, (tmp_path / "m").read_text().splitlines())
        return [(e["loss"], e["grad_norm"]) for e in lines if e["event"] == "step"]
    exact = losses(1, "--exact")
    assert losses(5, "--exact") == exact and len(exact) == 5
    np.testing.assert_allclose(exact, losses(1), rtol=1e-12)


def test_a_run_goes_on_from_rank_count_to_rank_count_as_if_it_had_never_stopped(
        no_test_part, tmp_path):
    for model in ("gpt", "mlp"):
        args = [*MODELS[model], "--exact", "8"]
        expected = digest(1, *args, steps=7)
        args += ["--checkpoint", tmp_path / model]
        assert job(3, *args, steps=7, after=2) is None
        assert job(1, *args, "--resume", steps=7, after=1) is None
        found = digest(8, *args, "--algorithm", "auto", "--resume", steps=7)
        assert found == expected


def test_a_checkpoint_of_other_sums_is_refused(tmp_path):
    args = [*MODELS["mlp"], "--checkpoint", tmp_path]
    job(2, *args, "--exact", "4", steps=1)
    for more, mine in (([], "None"), (["--exact"], "16")):
        with pytest.raises(UsageError, match=f"has exact 4, not {mine}"):
            job(2, *args, *more, "--resume", steps=2)


BIG = ["--batch-size", "256", "--exact", "3", "--steps", "4", "--quiet", "--metrics"]


def end_of(path):
    return json.loads(path.read_text().splitlines()[-1])


@pytest.fixture(scope="module")
def of_big(tmp_path_factory):
    """The hash of a run with products that BLAS, and kernels that OpenMP, cut among threads."""
    return digest(2, *BIG, tmp_path_factory.mktemp("exact") / "m")


def test_one_rank_with_many_threads_has_the_same_bits(of_big, tmp_path):
    done = python("-m", "minipar.train", *BIG, tmp_path / "m", MINIPAR_NUM_THREADS="2",
                  OPENBLAS_NUM_THREADS="2", OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    assert end_of(tmp_path / "m")["params_sha256"] == of_big


def test_ranks_that_are_processes_have_the_same_bits(of_big, tmp_path):
    done = python("-m", "minipar.train", "--ranks", "3", "--algorithm", "auto", *BIG,
                  tmp_path / "m")
    assert done.returncode == 0, done.stderr
    assert end_of(tmp_path / "m")["params_sha256"] == of_big


@pytest.mark.parametrize("algorithm", ["ring", "mpi"])
def test_ranks_under_mpi_have_the_same_bits(of_big, algorithm, tmp_path):
    done = mpirun(3, "-m", "minipar.train", "--algorithm", algorithm, *BIG, tmp_path / "m")
    assert done.returncode == 0, done.stderr
    assert end_of(tmp_path / "m")["params_sha256"] == of_big


# The trainer alone


def trainer_of(module, shards, loss=loss_and_count, **options):
    return Exact(module, lambda m: optim.SGD(m.parameters(), 1.0), loss, world(),
                 Mesh(world().size), shards, **options)


def test_the_gradient_is_the_nearest_float_to_the_sum_over_the_virtual_shards():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((13, 6)), rng.integers(0, 4, 13)

    def grads(module):
        return {name: p.grad.array.copy() for name, p in module.named_parameters()}

    def work():
        mp.set_default_dtype("float64")
        mp.manual_seed(3)
        trainer = trainer_of(MLP([6, 5, 4]), 5)
        shard = next(GlobalBatchSampler(13, 13, rank=world().rank, num_replicas=world().size,
                                        shuffle=False, virtual_shards=5).shards(0))
        args = x[shard.indices], y[shard.indices], shard, 0, world().rank
        assert get_num_threads() == 1
        return trainer.gradients(*args).tolist(), grads(trainer.module)

    def alone():
        mp.set_default_dtype("float64")
        mp.manual_seed(3)
        module = MLP([6, 5, 4]).materialize()
        for v in range(5):
            part = slice(v * 13 // 5, (v + 1) * 13 // 5)
            for p in module.parameters():
                p.grad = None
            loss, count = loss_and_count(module(Tensor(x[part])), Tensor(y[part]))
            loss.backward()
            yield loss.item(), count, grads(module)
    losses, counts, terms = zip(*run_threads(lambda: list(alone()), 1)[0])
    for found, gradients in run_threads(work, 3):
        assert found == [math.fsum(losses), sum(counts), 3]
        for name, gradient in gradients.items():
            expected = [math.fsum(column) for column in zip(*(t[name].flat for t in terms))]
            assert gradient.ravel().tolist() == expected


def test_a_parameter_that_no_virtual_shard_used_has_no_gradient():
    class Choosing(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.never = (nn.Linear(2, 1) for _ in range(3))

        def forward(self, x):
            return (self.left if x.array[0, 0] < 2 else self.right)(x)

    def work():
        module = Choosing()
        trainer = trainer_of(module, 4, lambda out, y: (out.sum(), len(y)))
        n, r = world().size, world().rank
        start, stop = (4 * r // n, 4 * (r + 1) // n)
        x = np.repeat(np.arange(start, stop, dtype=np.float32)[:, None], 2, 1)
        trainer.gradients(x, x, Shard(0, start, 4, np.arange(start, stop)), 0, False)
        grads = [layer.weight.grad for layer in (module.left, module.right, module.never)]
        return [None if grad is None else grad.array[0].tolist() for grad in grads]
    for n in (1, 3):
        assert run_threads(work, n) == [[[1.0, 1.0], [5.0, 5.0], None]] * n


def test_a_loss_that_is_not_finite_ends_the_run():
    with pytest.raises(Diverged, match="loss is (nan|inf) at step .*first bad: "):
        job(3, *MODELS["mlp"], "--exact", "--optimizer", "sgd", "--lr", "1e30", "--warmup", "0")


def test_a_sum_of_gradients_beyond_the_largest_float_ends_the_run():
    def work():
        module = nn.Linear(1, 1, bias=False)
        module.weight.array[...] = 0
        trainer = trainer_of(module, 4, lambda out, y: (out.sum(), len(y)))
        n, r = world().size, world().rank
        x = np.full((4 // n, 1), 3e38, np.float32)
        trainer.step((Tensor(x), Tensor(x)), Shard(0, r * len(x), 4, np.arange(len(x))), 6)
    for n in (1, 2):
        with pytest.raises(Diverged, match="step 7 the loss is finite, 0.0, .* gradient of weight"):
            run_threads(work, n)


def test_memory_counts_the_gradients_of_virtual_shards():
    def work():
        trainer, sampler = trainer_of(MLP([6, 5, 4]), 8), GlobalBatchSampler(
            16, 16, rank=world().rank, num_replicas=world().size, virtual_shards=8)
        shard = next(sampler.shards(0))
        x = np.ones((len(shard.indices), 6), np.float32)
        before = trainer.memory()["gradients"]
        trainer.step((Tensor(x), Tensor(np.zeros(len(x), int))), shard, 0)
        return trainer.flats[0].reduced.nbytes, before, trainer.memory()["gradients"]
    for n, mine in ((1, 8), (2, 4), (8, 1)):
        (one, before, after), *_ = run_threads(work, n)
        words = one + (one // 4) * (8 + 2)  # the total, words and exponents
        assert words < before < words + 100
        rows = after - before - mine * one
        assert 0 < rows < 500  # of the losses


# What cannot be


def test_modules_with_statistics_of_batches_are_refused():
    with pytest.raises(ValueError, match="1.running_mean has no exact sum"):
        trainer_of(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), 4)
    with pytest.raises(UsageError, match="running_mean has no exact sum"):
        job(1, "--model", "resnet18", "--exact")


def test_ranks_without_a_virtual_shard_are_refused():
    with pytest.raises(ValueError, match="3 ranks > 2 virtual shards"):
        run_threads(lambda: trainer_of(nn.Linear(2, 2), 2), 3)


def test_a_batch_that_is_cut_otherwise_is_refused():
    trainer, x = trainer_of(nn.Linear(2, 2), 2), np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match=r"samples \[0, 3\), not those of virtual shards: \[0, 4"):
        trainer.gradients(x, x, Shard(0, 0, 4, np.arange(3)), 0, False)


@pytest.mark.parametrize("args, n, message", [
    (["--exact", "4"], 5, "world size 5 > 4 virtual shards of --exact"),
    (["--exact", "--batch-size", "64"], 17, "world size 17 > 16 virtual shards"),
    (["--exact", "0"], 1, "0 is not >= 1"),
    (["--exact", "many"], 1, "'many' is not a number"),
    (["--exact", "65537"], 1, "--exact 65537 > 65536 virtual shards"),
    (["--exact", "--pp", "2"], 4, "not with --pp 2"),
    (["--exact", "--tp", "2"], 4, "not with --tp 2"),
    (["--exact", "--sync", "zero1"], 2, "not with --sync zero1"),
    (["--exact", "--sync", "local:8"], 2, "not with --sync local:8"),
    (["--exact", "--sync", "ps"], 2, "not with --sync ps"),
    (["--exact", "--compress", "fp16"], 2, "not with --compress fp16"),
    (["--exact", "--codec", "float16"], 2, "not with --codec float16"),
    (["--exact", "--amp", "bfloat16"], 2, "not with --amp bfloat16"),
    (["--exact", "--device", "cuda"], 2, "not with --device cuda"),
    (["--exact", "--microbatches", "2"], 2, "16 virtual shards already: not with --microbatches"),
])
def test_what_cannot_be_is_refused_in_one_line(args, n, message):
    with pytest.raises(UsageError, match=message) as info:
        options.parse(args, n)
    assert "\n" not in str(info.value)
