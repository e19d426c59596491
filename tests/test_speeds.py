"""Shares by speed: how they are cut, that training stays what it is, and how they are measured."""

import itertools
import json
import re

import fake_cupy
import numpy as np
import pytest
from launch import ROOT

from minipar import options, train
from minipar.comm import run_threads, world
from minipar.data import GlobalBatchSampler
from minipar.data.shares import apportion
from minipar.options import UsageError
from minipar.parallel import Mesh
from minipar.parallel.speeds import Balance

SGD = ["--optimizer", "sgd", "--momentum", "0", "--weight-decay", "0", "--lr", "0.05"]


# Cutting


@pytest.mark.parametrize("weights", [(1, 1, 0.5, 1), (3, 1), (0.2, 0.3, 0.7), (5,), (1e-9, 1, 1e9)])
@pytest.mark.parametrize("total", [0, 1, 2, 7, 12])
def test_no_other_whole_numbers_are_nearer_to_the_proportion(total, weights):
    quotas = np.array(weights) * total / sum(weights)
    shares = apportion(total, weights)
    best = min(np.abs(np.array(cut) - quotas).sum() for cut in itertools.product(
        range(total + 1), repeat=len(weights)) if sum(cut) == total)
    assert sum(shares) == total and all(isinstance(share, int) for share in shares)
    assert np.abs(shares - quotas).sum() <= best + 1e-9


@pytest.mark.parametrize("total, weights, at_least, expected", [
    (10, (1, 1, 1e-6), 1, (5, 4, 1)), (10, (1, 1, 1e-6), 2, (4, 4, 2)),
    (3, (9, 1, 1), 1, (1, 1, 1)),
    (12, (100, 10, 1, 1), 2, (6, 2, 2, 2)), (8, (1, 1, 1), 0, (3, 3, 2)),
    (64, (1, 1, 0.5, 1), 0, (19, 18, 9, 18))])
def test_everyone_has_at_least_so_many_and_the_others_share_the_rest(
        total, weights, at_least, expected):
    assert apportion(total, weights, at_least) == expected


def test_more_for_each_than_there_are_is_refused():
    with pytest.raises(ValueError, match="5 samples < 2 for each of 3"):
        apportion(5, (1, 1, 1), 2)


@pytest.mark.parametrize("length", [40, 43, 5])
@pytest.mark.parametrize("shares", [(4, 1, 5), (0, 10, 0)])
def test_the_unequal_shards_of_all_ranks_make_the_batches_of_one_rank(length, shares):
    whole = list(GlobalBatchSampler(length, 10, seed=5).shards(2))
    ranks = [GlobalBatchSampler(length, 10, rank=r, num_replicas=3, seed=5, shares=shares)
             for r in range(3)]
    for shards, expected in zip(zip(*[r.shards(2) for r in ranks], strict=True), whole,
                                strict=True):
        assert np.concatenate([s.indices for s in shards]).tolist() == expected.indices.tolist()
        sizes = [len(s.indices) for s in shards]
        assert [s.start for s in shards] == [sum(sizes[:r]) for r in range(3)]
        assert {s.shares for s in shards} == {tuple(sizes)} and sum(sizes) == expected.size
        assert expected.size < 10 or tuple(sizes) == shares
    nobody = GlobalBatchSampler(length, 10, rank=None, num_replicas=3, shares=shares)
    assert all(s.indices.size == s.start == 0 for s in nobody.shards(0))


def test_new_shares_count_from_the_next_batch_that_is_drawn():
    sampler = GlobalBatchSampler(12, 4, rank=1, num_replicas=2, shuffle=False)
    shards = sampler.shards(0)
    seen = [next(shards).indices.tolist()]
    sampler.shares = (1, 3)
    seen.append(next(shards).indices.tolist())
    sampler.shares = None
    seen.append(next(shards).indices.tolist())
    assert seen == [[2, 3], [5, 6, 7], [10, 11]]


@pytest.mark.parametrize("shares, message", [
    ((5, 5), "2 shares for 3 ranks"), ((4, 4, 4), r"4 \+ 4 \+ 4 = 12 .* batch of 10"),
    ((11, -1, 0), "batch of 10")])
def test_shares_that_are_not_those_of_a_batch_are_refused(shares, message):
    with pytest.raises(ValueError, match=message):
        GlobalBatchSampler(30, 10, num_replicas=3, shares=shares)
    with pytest.raises(ValueError, match="shares would cut 6 virtual shards"):
        GlobalBatchSampler(30, 10, num_replicas=3, virtual_shards=6, shares=(3, 3, 4))


# Training with given speeds


def run(n, *more):
    """(metrics of the end, parameters) of 8 steps of the main job on n threads, in float64."""
    o = options.parse(["--hidden", "24", "--batch-size", "26", "--dtype", "float64", "--steps",
                       "8", "--quiet", "--lr-schedule", "constant", *map(str, more)], n)

    def rank():
        job = train.Job(o, world(), train.Interrupt())
        end = job.run()
        return end, {k: a.copy() for k, a in job.trainer.parameters().items()}
    return run_threads(rank, n)[0]


def assert_equal_to(found, expected, relative=1e-12):
    (end, params), (known, values) = found, expected
    assert params.keys() == values.keys()
    for name, value in values.items():
        worst = np.abs(params[name] - value).max()
        assert worst <= relative * np.abs(value).max(), f"{name} is off by {worst}"
    assert abs(end["loss"] - known["loss"]) <= 1e-12 * known["loss"]


@pytest.fixture(scope="module")
def serial():
    """The run of one process, by the options that decide what is computed."""
    kept = {}

    def of(*more):
        if more not in kept:
            kept[more] = run(1, *more)
        return kept[more]
    return of


@pytest.mark.parametrize("n, speeds, more", [
    (4, "1,1,0.5,1", ["--sync", "ddp"]), (4, "1,1,0.5,1", ["--sync", "zero1"]),
    (4, "1,1,0.5,1", ["--sync", "zero2"]), (4, "1,1,0.5,1", ["--sync", "zero3"]),
    (4, "1,1,0.5,1", ["--sync", "shared"]), (3, "2,5,1", ["--microbatches", "3"]),
    (5, "1,1,0.5,1", ["--sync", "ps"]), (4, "3,1", ["--pp", "2"]), (4, "0.2,1", ["--tp", "2"]),
    (4, "3,1", ["--pp", "2", "--schedule", "zb-h1", "--microbatches", "5"]),
    (4, "3,1", ["--pp", "2", "--sync", "zero1"])])
def test_replicas_with_unequal_shares_train_what_one_process_trains(serial, n, speeds, more):
    unequal = run(n, "--speeds", speeds, *more)
    assert_equal_to(unequal, serial())
    assert_equal_to(unequal, run(n, *more))


@pytest.mark.parametrize("n, speeds, sync", [
    (4, "1,1,0.5,1", "local:1"), (4, "1,1,0.5,1", "gossip:complete"), (4, "4,2,1", "ssp:0")])
def test_replicas_that_step_alone_count_by_their_shares(serial, n, speeds, sync):
    assert_equal_to(run(n, "--speeds", speeds, "--sync", sync, *SGD), serial(*SGD))


def test_a_delayed_gradient_is_the_mean_over_unequal_shares():
    assert_equal_to(run(3, "--sync", "delayed", "--speeds", "1,3,1"), run(3, "--sync", "delayed"))


@pytest.mark.parametrize("sync", ["ddp", "local:3", "gossip:ring"])
def test_equal_speeds_have_the_bits_of_none(sync):
    ends = [run(3, "--sync", sync, *more)[0] for more in ([], ["--speeds", "2,2,2"])]
    assert ends[0]["params_sha256"] == ends[1]["params_sha256"]


@pytest.mark.parametrize("sync", ["ps:async", "ssp:2", "adpsgd:ring", "diloco:3"])
def test_methods_that_nobody_else_can_repeat_take_given_speeds(sync):
    end, _ = run(5 if sync[0] in "ps" else 4, "--sync", sync, "--speeds", "1,1,0.5,1")
    assert end["steps"] == 8 and np.isfinite(end["loss"])


def steps_of(path):
    return [e for e in map(json.loads, path.read_text().splitlines()) if e["event"] == "step"]


def test_the_metrics_tell_the_shares_of_each_step_unless_they_are_equal(tmp_path):
    run(3, "--speeds", "1,1,0.5", "--metrics", tmp_path / "m")
    assert [e["shares"] for e in steps_of(tmp_path / "m")] == [[11, 10, 5]] * 8
    run(3, "--metrics", tmp_path / "m")
    assert not any("shares" in e for e in steps_of(tmp_path / "m"))


# Measured speeds


def balanced(n, seconds, steps, mesh=None, size=112, **options):
    """Shares after each step, of ranks whose sample takes seconds(rank, step); equal on all."""
    mesh = mesh or Mesh(n)

    def rank():
        comm = world()
        balance, found = Balance(comm, mesh, size, **options), []
        replica, replicas = mesh.share(comm.rank)
        shares = [size // replicas] * replicas
        for step in range(steps):
            own = 0 if replica is None else shares[replica]
            taken = 0.0 if replica is None else seconds(comm.rank, step) * own
            found.append(balance.after(step, taken, own))
            shares = found[-1] or [size // replicas] * replicas
        return found
    results = run_threads(rank, n)
    assert all(result == results[0] for result in results)
    return results[0]


def test_shares_follow_the_speed_at_the_first_look_and_go_back_when_it_is_over():
    found = balanced(4, lambda r, step: 2e-3 if r == 3 and step < 20 else 1e-3, 30)
    assert found == [None] * 4 + [(32, 32, 32, 16)] * 20 + [None] * 6


def test_noise_does_not_move_the_shares():
    rng = np.random.default_rng(0)
    noise = rng.normal(1, 0.02, (4, 200))
    noise[1, ::7] = 10  # odd steps: a garbage collection, a page fault
    assert set(balanced(4, lambda r, step: 1e-3 * noise[r, step], 200)) == {None}
    slow = balanced(4, lambda r, step: (2 if r == 0 else 1) * 1e-3 * noise[r, step], 200)
    assert len(set(slow[5:])) == 1 and abs(slow[-1][0] - 16) <= 1


@pytest.mark.parametrize("fixed", [0.0, 5e-3, 1.0])
def test_what_a_step_costs_at_any_share_does_not_throw_the_shares_off(fixed):
    """Seconds are fixed + share x 1 ms, or x 3 ms on rank 1: the longest only shrinks."""
    share = {r: [56] for r in range(2)}

    def rank():
        comm = world()
        balance = Balance(comm, Mesh(2), 112)
        for step in range(60):
            own = share[comm.rank][-1]
            shares = balance.after(step, fixed + own * (3e-3 if comm.rank else 1e-3), own)
            share[comm.rank].append((shares or (56, 56))[comm.rank])
    run_threads(rank, 2)
    longest = [max(fixed + a * 1e-3, fixed + b * 3e-3) for a, b in zip(share[0], share[1])]
    best = min(max(fixed + a * 1e-3, fixed + (112 - a) * 3e-3) for a in range(1, 112))
    assert all(b <= a + 1e-12 for a, b in zip(longest, longest[1:]))
    assert longest[-1] <= 1.1 * best  # a gain of less than 5 % is not worth a change


def test_a_replica_is_as_fast_as_the_slowest_of_its_ranks():
    mesh = Mesh(dp=2, pp=2)  # replica 0 is ranks 0 and 2, replica 1 is ranks 1 and 3
    found = balanced(4, lambda r, step: 3e-3 if r == 2 else 1e-3, 6, mesh)
    assert found[-1] == (28, 84)


def test_servers_have_no_speed_and_a_share_does_not_shrink_below_the_micro_batches():
    found = balanced(4, lambda r, step: 1.0 if r == 1 else 1e-6, 6, Mesh(3), size=12, at_least=2)
    assert found[-1] == (5, 2, 5)


def test_of_replicas_that_have_seen_no_sample_nothing_is_said():
    assert balanced(2, lambda r, step: 1e-3, 10, size=1) == [None] * 10


@pytest.fixture
def measured(monkeypatch):
    """Has the ranks of the main job measure `seconds(rank)` for a sample, and not the clock."""
    after = Balance.after

    def use(seconds):
        monkeypatch.setattr(Balance, "after", lambda self, step, _, samples: after(
            self, step, seconds(self.comm.rank) * samples, samples))
    return use


@pytest.mark.parametrize("n, more", [
    (4, []), (4, ["--sync", "zero2"]), (5, ["--sync", "ps"]), (8, ["--pp", "2"]),
    (4, ["--sync", "local:1", *SGD])])
def test_training_at_measured_speeds_is_what_one_process_trains(
        serial, measured, tmp_path, n, more):
    measured(lambda rank: 2e-3 if rank == 1 else 1e-3)
    found = run(n, "--speeds", "auto", "--metrics", tmp_path / "m", *more)
    assert_equal_to(found, serial(*(SGD if SGD[0] in more else [])))
    shares = [e.get("shares") for e in steps_of(tmp_path / "m")]
    assert shares == [None] * 5 + [[8, 4, 7, 7]] * 3


def test_ranks_that_meet_every_h_steps_agree_on_speeds_then(measured, tmp_path):
    measured(lambda rank: 2e-3 if rank == 1 else 1e-3)
    run(2, "--speeds", "auto", "--sync", "local:3", "--metrics", tmp_path / "m")
    assert [e.get("shares") for e in steps_of(tmp_path / "m")] == [None] * 6 + [[17, 9]] * 2


def test_a_resumed_run_measures_anew_and_trains_the_same(serial, measured, tmp_path):
    measured(lambda rank: 2e-3 if rank == 1 else 1e-3)
    run(2, "--speeds", "auto", "--checkpoint", tmp_path, "--steps", "6")
    found = run(2, "--speeds", "auto", "--checkpoint", tmp_path, "--resume",
                "--metrics", tmp_path / "m")
    assert_equal_to(found, serial())
    assert [e.get("shares") for e in steps_of(tmp_path / "m")] == [None] * 2


def test_a_short_last_batch_is_cut_in_proportion(serial, measured, tmp_path):
    measured(lambda rank: 3e-3 if rank == 1 else 1e-3)
    args = ["--batch-size", "1000", "--steps", "7"]  # of 1,437 samples: 1,000, then 437
    found = run(2, "--speeds", "auto", "--metrics", tmp_path / "m", *args)
    assert_equal_to(found, serial(*args))
    assert [e.get("shares") for e in steps_of(tmp_path / "m")] == [None] * 5 + [
        [328, 109], [750, 250]]


def test_a_gpu_which_has_the_next_batch_already_takes_new_shares_a_step_later(
        serial, measured, tmp_path):
    measured(lambda rank: 2e-3 if rank == 1 else 1e-3)
    args = ["--dtype", "float32", "--device", "cuda", "--slow", "1:1.01"]
    with fake_cupy.installed():
        end, params = run(2, "--speeds", "auto", "--metrics", tmp_path / "m", *args)
    assert [e.get("shares") for e in steps_of(tmp_path / "m")] == [None] * 6 + [[17, 9]] * 2
    assert abs(end["loss"] - serial()[0]["loss"]) <= 1e-5 * end["loss"]


@pytest.mark.parametrize("line", re.findall(
    r"python -m minipar\.train ([^#\n]*)", (ROOT / "docs" / "unequal-machines.md").read_text()))
def test_the_commands_of_the_page_train(line, capsys):
    args = line.split() + ["--steps", "2", "--launcher", "threads", "--batch-size", "32"]
    if "--ranks" not in args:
        args += ["--ranks", "8" if "--pp" in args else "4"]
    assert train.main(args) == 0
    assert "2 steps in" in capsys.readouterr().out


@pytest.mark.parametrize("args, n, message", [
    (["--speeds", "1,1,1"], 4, r"3 speeds != 4 replicas \(4 ranks\)"),
    (["--speeds", "1,1,1,1", "--pp", "2"], 4, r"4 speeds != 2 replicas \(4 ranks / pp 2\)"),
    (["--speeds", "1,1,1,1", "--sync", "ps"], 4, r"!= 3 replicas \(4 ranks - 1 servers\)"),
    (["--speeds", "1,0"], 2, "'1,0' is not speeds > 0"),
    (["--speeds", "1,-2"], 2, "is not speeds > 0"),
    (["--speeds=-1,2"], 2, "is not speeds > 0"),
    (["--speeds", "1,fast"], 2, "'1,fast' is not speeds"),
    (["--speeds", "1,nan"], 2, "is not speeds > 0"),
    (["--speeds", "1,inf"], 2, "is not speeds > 0"),
    (["--speeds", "1,,1"], 2, "is not speeds > 0"),
    (["--speeds", "Auto"], 2, "'Auto' is not speeds"),
    (["--speeds", "1,0.01", "--batch-size", "8"], 2,
     r"replica 1 gets 8 x 0.01 / 1.01 = 0 samples of a global batch < 1 micro-batch$"),
    (["--speeds", "1,0.2", "--pp", "2", "--batch-size", "16"], 4,
     r"replica 1 gets 16 x 0.2 / 1.2 = 3 samples of a global batch < 4 micro-batches$"),
    (["--speeds", "auto", "--sync", "gossip:ring"], 4, "where all ranks meet.*gossip:ring"),
    (["--speeds", "auto", "--sync", "adpsgd:ring"], 4, "give the speeds"),
    (["--speeds", "auto", "--sync", "ps:async"], 4, "give the speeds"),
    (["--speeds", "auto", "--sync", "ssp:3"], 4, "give the speeds"),
    (["--speeds", "auto", "--pp", "2", "--virtual-compute", "1,1,1"], 4, "--virtual-compute"),
    (["--speeds", "auto", "--exact", "8"], 4, "--exact 8 has .* not with --speeds"),
    (["--speeds", "1,2", "--exact"], 2, "not with --speeds"),
])
def test_speeds_that_cannot_be_are_refused_in_one_line(args, n, message):
    with pytest.raises(UsageError, match=message) as info:
        options.parse(args, n)
    assert "\n" not in str(info.value)


def test_a_wrong_number_of_speeds_is_exit_status_2(capsys):
    assert train.main(["--ranks", "2", "--launcher", "threads", "--speeds", "1,1,1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
