"""ZeRO on threads: what ranks keep in slices trains as replicas do, in less memory."""

import itertools
import weakref

import numpy as np
import pytest

import minipar as mp
from minipar import nn, optim, options, train
from minipar.amp import GradScaler
from minipar.comm import run_threads, world
from minipar.data import GlobalBatchSampler
from minipar.models import CNN, GPT, MLP, GPTConfig
from minipar.parallel import Diverged, Mesh, Pipelined, Replicated, Zero
from minipar.parallel.schedule import SCHEDULES
from minipar.tensor import Tensor
from minipar.train import loss_and_count

rng = np.random.default_rng(0)
X, Y = rng.standard_normal((36, 6)), rng.integers(0, 4, 36)
TOKENS, NEXT = rng.integers(0, 11, (2, 36, 8))
IMAGES = rng.standard_normal((36, 1, 8, 8))
STAGES = [1, 2, 3, "shared"]


def mlp():
    return MLP([6, 7, 5, 4])


def gpt(layers=2):  # a weight in two blocks; dropout
    return GPT(GPTConfig(11, 8, layers, 2, 8, 0.1))


def adamw(module):
    return optim.AdamW(module.parameters(), 0.01, eps=1e-3)


def two_groups(module):
    """Weight decay for matrices alone."""
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim < 2]
    return optim.SGD([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "lr": 0.02}],
                     0.05, momentum=0.9)


DATA = {mlp: (X, Y), gpt: (TOKENS, NEXT)}


def trainer(stage, make, make_optimizer=adamw, microbatches=1, **options):
    """A trainer on all ranks: replicas if stage is 0."""
    mp.set_default_dtype("float64")
    mp.manual_seed(5)
    comm = world()
    module = make()
    args = module, make_optimizer, loss_and_count, comm, Mesh(dp=comm.size)
    options = {"microbatches": microbatches, "algorithm": "ring", **options}
    if not stage:
        return Replicated(*args, **options)
    shared = stage == "shared"
    return Zero(*args, 1 if shared else stage, **{"shared": shared, **options})


def steps(t, first, last, x, y, max_norm=None):
    """Take steps [first, last) with batches of 12."""
    sampler = GlobalBatchSampler(len(x), 12, rank=t.mesh.coordinates(t.comm.rank)["dp"],
                                 num_replicas=t.mesh.dp)
    shards = itertools.chain.from_iterable(sampler.shards(epoch) for epoch in range(last))
    for step, shard in enumerate(itertools.islice(shards, last)):
        if step >= first:
            batch = Tensor(x[shard.indices]), Tensor(y[shard.indices])
            t.step(batch, shard, step, max_norm=max_norm)


def copies(arrays):
    return {name: np.array(a) for name, a in arrays.items()}


def trained(n, stage, make=mlp, max_norm=None, count=20, **options):
    """Rank 0's parameters after so many steps, and the last norm of the gradients."""
    def work():
        t = trainer(stage, make, **options)
        steps(t, 0, count, *DATA.get(make, (X, Y)), max_norm)
        return copies(t.parameters()), t.optimizer.grad_norm
    return run_threads(work, n)[0]


def assert_close(ours, expected, relative=1e-12):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        worst = np.abs(ours[name] - value).max() if value.size else 0.0
        assert worst <= relative * np.abs(value).max(), f"{name} is off by {worst}"


def assert_equal(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


@pytest.mark.parametrize("make", [mlp, gpt])
@pytest.mark.parametrize("n", [1, 2])
def test_where_sums_have_one_order_the_bits_are_those_of_replicas(n, make):
    expected, _ = trained(n, 0, make)
    for stage in STAGES:
        assert_equal(trained(n, stage, make)[0], expected)


@pytest.mark.parametrize("n, microbatches, make, make_optimizer", [
    (2, 3, mlp, adamw), (3, 1, mlp, two_groups), (4, 2, mlp, adamw), (2, 2, gpt, adamw),
    (3, 1, gpt, two_groups), (4, 1, gpt, adamw)])
def test_clipped_steps_of_several_micro_batches_are_those_of_replicas(n, microbatches, make,
                                                                      make_optimizer):
    more = {"microbatches": microbatches, "make_optimizer": make_optimizer, "max_norm": 0.5,
            "count": 10}
    expected, norm = trained(n, 0, make, **more)
    for stage in STAGES:
        ours, own = trained(n, stage, make, **more)
        assert_close(ours, expected)
        assert abs(own - norm) <= 1e-12 * norm


@pytest.mark.parametrize("algorithm", ["auto", "shared"])
def test_other_algorithms_give_the_same(algorithm):
    expected, _ = trained(2, 0)
    for stage in STAGES:
        assert_equal(trained(2, stage, algorithm=algorithm)[0], expected)


class Branches(nn.Module):
    """Blocks of which one uses a layer on some ranks only, and another one never."""

    def __init__(self, frozen=True):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.some, self.never = nn.Linear(6, 6), nn.Linear(6, 6)
        self.last = nn.Linear(6, 4)
        if frozen:
            self.first.requires_grad_(False)
            self.last.bias.requires_grad_(False)

    def blocks(self):
        yield nn.Block("first", ("first",), self.first)
        yield nn.Block("middle", ("some", "never"), self.middle)
        yield nn.Block("last", ("last",), self.last)

    def middle(self, x):
        return self.some(x) if world().rank == 1 else x.relu()

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_frozen_and_unused_parameters_stay_and_partly_used_ones_learn(n, frozen):
    def branches():
        return Branches(frozen)
    start, _ = trained(n, 0, branches, count=0)
    expected, _ = trained(n, 0, branches)
    for stage in STAGES:
        ours, _ = trained(n, stage, branches)
        assert_close(ours, expected)
        still = {name for name in ours if (ours[name] == start[name]).all()}
        assert still == {"never.weight", "never.bias",
                         *(["some.weight", "some.bias"] if n == 1 else []),
                         *(["first.weight", "first.bias", "last.bias"] if frozen else [])}


def test_more_ranks_than_elements_leave_some_without_any():
    def tiny():
        return nn.Sequential(nn.Linear(6, 1), nn.Linear(1, 4, bias=False))
    expected, norm = trained(4, 0, tiny, 1.0)
    for stage in STAGES:
        ours, own = trained(4, stage, tiny, 1.0)
        assert_close(ours, expected)
        assert own == pytest.approx(norm, rel=1e-12)


def test_ranks_without_samples_take_part():
    def work(stage):
        t = trainer(stage, gpt)
        steps(t, 0, 4, TOKENS[:13], NEXT[:13], 1.0)  # every second batch is of one sample
        return copies(t.parameters())
    expected = run_threads(work, 3, 0)[0]
    for stage in STAGES:
        assert_close(run_threads(work, 3, stage)[0], expected)


def test_statistics_of_batch_norm_are_rank_0s_as_in_data_parallelism():
    def work(stage):
        t = trainer(stage, lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)))
        steps(t, 0, 4, IMAGES, Y)
        t.module.eval()
        return copies(t.state()[0]), t.predict(IMAGES[:3]).array
    model, out = run_threads(work, 2, 0)[0]
    for stage in STAGES:
        results = run_threads(work, 2, stage)
        assert_equal(results[0][0], model)
        for _, ours in results:
            np.testing.assert_array_equal(ours, out)


# Checkpoints

def pipelined(make):
    mp.set_default_dtype("float64")
    mp.manual_seed(5)
    comm = world()
    return Pipelined(make(), adamw, loss_and_count, comm, Mesh(pp=comm.size),
                     SCHEDULES["1f1b"](comm.size, 2))


@pytest.mark.parametrize("before, after", [((1, 3), (0, 2)), ((2, 2), (3, 3)), ((3, 4), (1, 1)),
                                           ((0, 2), (3, 3)), ((3, 2), ("pipeline", 2)),
                                           (("shared", 3), (2, 2)), ((0, 2), ("shared", 2))])
def test_any_layout_goes_on_from_the_state_of_another(before, after):
    def first():
        t = trainer(before[0], gpt)
        steps(t, 0, 10, TOKENS, NEXT)
        return [copies(arrays) for arrays in t.state()]

    def then(model, state):
        t = pipelined(gpt) if after[0] == "pipeline" else trainer(after[0], gpt)
        t.load(*((model, state) if t.comm.rank == 0 else ({}, {})))
        steps(t, 10, 20, TOKENS, NEXT)
        return [copies(arrays) for arrays in t.state()]

    def whole():
        t = trainer(0, gpt)
        steps(t, 0, 20, TOKENS, NEXT)
        return [copies(arrays) for arrays in t.state()]
    states = run_threads(first, before[1])
    assert all(s == [{}, {}] for s in states[1:])
    model, state = run_threads(then, after[1], *states[0])[0]
    expected_model, expected = run_threads(whole, 1)[0]
    assert_close(model, expected_model, 1e-11)
    assert_close(state, expected, 1e-11)
    assert {int(v) for k, v in state.items() if k.endswith(".step")} == {20}


def test_a_state_that_lacks_something_is_refused_by_its_name():
    def work():
        t = trainer(3, mlp)
        model, _ = t.state()
        model.pop("1.weight", None)
        with pytest.raises(RuntimeError, match="missing.*: 1.weight"):
            t.load(model, {})
    run_threads(work, 2)


# Memory

@pytest.mark.parametrize("stage", [0, *STAGES])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_memory_is_what_the_paper_says(n, stage):
    def work():
        t = trainer(stage, lambda: MLP([64, 64, 64, 64]))
        steps(t, 0, 2, np.ones((12, 64)), np.zeros(12, np.int64))
        return t.memory(), sum(p.nbytes for p in t.module.parameters())
    for held, p in run_threads(work, n):
        share = {"parameters": n if stage in (3, "shared") else 1,
                 "gradients": n if stage in (2, 3) else 1,
                 "optimizer": n if stage else 1}
        for what, parts in share.items():
            size = p * (2 if what == "optimizer" else 1) / parts
            assert size <= held[what] <= 1.03 * size, what  # alignment, and flags in the gradients
        # Whole for a while: gradients of two layers, and parameters of two.
        third = p / 3
        lowest, highest = {2: (2, 2), 3: (3, 4)}.get(stage, (0, 0))
        assert lowest * third <= held["transient"] <= 1.05 * highest * third


def test_stages_of_a_pipeline_hold_the_model_once():
    def work():
        t = pipelined(lambda: MLP([64] * 5))
        steps(t, 0, 1, np.ones((12, 64)), np.zeros(12, np.int64))
        return t.memory()
    held = run_threads(work, 2)
    whole = 4 * (64 * 64 + 64) * 8
    assert sum(h["parameters"] for h in held) == whole
    assert sum(h["optimizer"] for h in held) == 2 * whole


def test_four_ranks_with_all_in_slices_hold_a_third_of_a_replica_at_their_peak():
    def work(stage):
        t = trainer(stage, lambda: gpt(layers=16))
        steps(t, 0, 2, TOKENS, NEXT)
        return sum(t.memory().values())
    whole, ours = (max(run_threads(work, 4, stage)) for stage in (0, 3))
    assert ours <= 0.35 * whole


@pytest.mark.parametrize("make, x", [(mlp, X), (gpt, TOKENS), (lambda: CNN((1, 8, 8), 4), IMAGES)])
def test_between_forward_and_backward_nothing_keeps_parameters(make, x):
    def work():
        t = trainer(3, make)
        gathered = []
        for unit in t._units:
            def gather(unit=unit, gather=unit.gather):
                new = unit.whole is None
                gather()
                if new:
                    gathered.append((unit, weakref.ref(unit.whole)))
            unit.gather = gather
        out = t._forward(Tensor(x[:4]))
        last = t._using(len(t._blocks) - 1)  # stays, for backward begins with it
        assert {unit for unit, _ in gathered} == set(t._units)
        for unit, whole in gathered:
            assert (whole() is None) or unit in last
        assert any(whole() is None for _, whole in gathered)
        out.sum().backward()
        t._done(0)
        assert all(whole() is None for _, whole in gathered)
    run_threads(work, 2)


def test_a_parameter_that_is_not_here_says_so():
    def work():
        t = trainer(3, mlp)
        with pytest.raises(RuntimeError, match="1.weight is not here.*slices"):
            next(t.module.parameters()).array
        with pytest.raises(RuntimeError, match="slices"):
            t.module.state_dict()
        assert next(t.module.parameters()).shape == (7, 6)
    run_threads(work, 2)


def test_shared_parameters_are_in_one_place_for_all_ranks():
    def work():
        t = trainer("shared", mlp)
        steps(t, 0, 3, X, Y)
        arrays = t.parameters()
        before = copies(arrays)
        t.comm.barrier()
        if t.comm.rank == 0:
            arrays["1.weight"][...] = 7
        t.comm.barrier()
        return before, copies(arrays), t.memory()
    results = run_threads(work, 3)
    for before, after, _ in results:
        assert_equal(before, results[0][0])
        assert (after["1.weight"] == 7).all()
    whole = sum(a.nbytes for a in results[0][0].values())
    node = sum(held["parameters"] + held["optimizer"] for *_, held in results)
    assert 3 * whole <= node <= 3 * whole + 3 * 3 * 3 * 64  # three units, in aligned slices


# What goes wrong

@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_that_is_not_finite_is_told_with_the_parameter(stage):
    def work():
        t = trainer(stage, mlp)
        model, _ = t.state()
        if t.comm.rank == 0:
            name = sorted(k for k in model if k.endswith("weight"))[-1]
            model[name][-1, -1] = np.nan
        else:
            name = None
        t.load(model, {})
        with pytest.raises(Diverged) as error:
            steps(t, 0, 1, X, Y)
        return str(error.value), name
    results = run_threads(work, 3)
    assert all(f"first bad: parameter {results[0][1]}" in message for message, _ in results)


@pytest.mark.parametrize("stage", STAGES)
def test_ranks_skip_a_step_together_when_one_slice_of_gradients_overflows(stage):
    def work():
        t = trainer(stage, mlp, scaler=GradScaler(init_scale=1e308, comm=world()))
        before = copies(t.parameters())
        with np.errstate(all="ignore"):
            steps(t, 0, 1, 1e4 * X, Y)
        skipped = copies(t.parameters())
        t.scaler.update(2.0)
        steps(t, 1, 2, X, Y)
        return before, skipped, copies(t.parameters())
    before, skipped, after = run_threads(work, 3)[0]
    assert_equal(skipped, before)
    assert any((after[name] != before[name]).any() for name in before)


def no_blocks(stage):
    return trainer(stage, lambda: type("Plain", (nn.Module,), {})())


def optimizer_first(stage):
    def make():
        module = mlp()
        adamw(module)
        return module
    return trainer(stage, make)


@pytest.mark.parametrize("make, message", [
    (lambda: trainer(4, mlp), "stages 1, 2 and 3, not 4"),
    (lambda: trainer(2, mlp, shared=True), "stage 1, on one machine"),
    (lambda: no_blocks(1), "no blocks"),
    (lambda: optimizer_first(2), "ZeRO comes first"),
    (lambda: trainer(3, lambda: mlp().requires_grad_(False)), "no parameter"),
    (lambda: trainer(2, mlp, algorithm="rign"), "did you mean ring"),
])
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        run_threads(lambda: (make(), steps(make(), 0, 1, X, Y)), 1)


# The main job

@pytest.mark.parametrize("stage", STAGES)
def test_the_main_job_trains_in_slices_and_resumes_as_replicas(stage, tmp_path):
    def run(n, count, *more):
        o = options.parse(["--quiet", "--dtype", "float64", "--clip", "1", "--hidden", "16",
                           "--steps", str(count), "--lr-schedule", "constant", *more], n)
        return run_threads(lambda: train.run(o, world()), n)
    folder = ["--checkpoint", str(tmp_path / "états")]
    ends = run(3, 6, "--sync", "shared" if stage == "shared" else f"zero{stage}", *folder)
    assert len({end["params_sha256"] for end in ends}) == 1
    assert set(ends[0]["memory"]) == {"parameters", "gradients", "optimizer", "transient"}
    resumed = run(2, 12, *folder, "--resume")[0]
    straight = run(1, 12)[0]
    assert resumed["loss"] == pytest.approx(straight["loss"], rel=1e-10)
    assert ends[0]["memory"]["optimizer"] < 0.4 * straight["memory"]["optimizer"]


@pytest.mark.parametrize("argv, message", [
    (["--sync", "zero4"], "did you mean zero"),
    (["--sync", "zero2", "--pp", "2"], "pp 2"),
    (["--sync", "zero2", "--codec", "fp16"], "--codec|all-reduce"),
    (["--sync", "zero3", "--algorithm", "swing"], "auto, ring, shared, mpi of both"),
])
def test_options_that_do_not_go_together_are_refused(argv, message):
    with pytest.raises(options.UsageError, match=message):
        options.parse(argv, 2)
