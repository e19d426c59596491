"""The main job from outside: command lines, exit statuses, metrics, equality over ranks."""

import itertools
import json

import numpy as np
import pytest

from launch import mpirun, python
from minipar.context import KERNELS


def train(n, *args, timeout=90):
    program = ("-m", "minipar.train", *args)
    return mpirun(n, *program, timeout=timeout) if n else python(*program, timeout=timeout)


def said(done):
    """What the program printed on stderr; Open MPI's launcher adds lines of its own."""
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("minipar")]


def events(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_default_job_on_four_ranks_reaches_97_percent(tmp_path):
    done = train(4, "--metrics", tmp_path / "m.jsonl")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "test accuracy" in done.stdout
    *steps, evaluation, end = events(tmp_path / "m.jsonl")
    assert end["event"] == "end" and end["test_accuracy"] >= 0.97 and end["world_size"] == 4
    assert evaluation["event"] == "eval" and evaluation["accuracy"] == end["test_accuracy"]
    assert [s["step"] for s in steps] == list(range(1, end["steps"] + 1))
    assert {"epoch", "loss", "lr", "samples_per_s", "compute_s", "comm_s"} <= set(steps[0])
    assert len(end["params_sha256"]) == 64 and (end["dp"], end["pp"], end["tp"]) == (4, 1, 1)


JOBS = {"the default job": ("--epochs", "5"),
        "gpt with dropout": (
            "--model", "gpt", "--steps", "20", "--batch-size", "17", "--layers", "2", "--embedding",
            "32", "--heads", "2", "--block-size", "24", "--dropout", "0.1", "--clip", "1")}
# {job: its (ranks, micro-batches)}: every pair of job, ranks and micro-batches.
LAYOUTS = {"the default job": [(1, 4), (2, 1), (3, 4), (4, 1)],
           "gpt with dropout": [(1, 4), (2, 4), (3, 1), (4, 4)]}


def check_layouts(job, layouts, folder):
    """Assert that a job ends with the parameters of one process on all (ranks, micro-batches)."""
    def parameters(n, m):
        out = folder / f"{n}-{m}.npz"
        done = mpirun(n, "tests/mpi_programs/parameters.py", out, *JOBS[job], "--dtype", "float64",
                      "--microbatches", m, "--quiet", timeout=90)
        assert done.returncode == 0, done.stderr
        return dict(np.load(out))
    serial = parameters(1, 1)
    for n, m in layouts:
        for name, values in parameters(n, m).items():
            error = np.linalg.norm(values - serial[name]) / np.linalg.norm(serial[name])
            assert error <= 1e-12, f"{name} on {n} ranks, {m} micro-batches: {error:.1e}"


@pytest.mark.parametrize("job", JOBS)
def test_any_number_of_ranks_and_microbatches_trains_the_same_parameters(job, tmp_path):
    check_layouts(job, LAYOUTS[job], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_every_number_of_ranks_with_every_number_of_microbatches_does_so_too(job, tmp_path):
    check_layouts(job, itertools.product(range(1, 5), (1, 4)), tmp_path)


@pytest.mark.slow
def test_they_are_the_same_after_hundreds_of_steps_too(tmp_path, monkeypatch):
    monkeypatch.setitem(JOBS, "the default job", ("--epochs", "15"))
    check_layouts("the default job", [(2, 1), (4, 4)], tmp_path)


def test_two_runs_of_one_layout_are_bitwise_equal(tmp_path):
    hashes = set()
    for i in range(2):
        train(3, "--steps", "30", "--metrics", tmp_path / f"{i}")
        hashes.add(events(tmp_path / f"{i}")[-1]["params_sha256"])
    assert len(hashes) == 1


@pytest.mark.parametrize("algorithm", ["mpi", "auto"])
def test_training_runs_with_the_librarys_own_all_reduce_and_with_an_automatic_one(
        algorithm, tmp_path):
    train(2, "--steps", "20", "--metrics", tmp_path / "a", "--algorithm", algorithm)
    train(2, "--steps", "20", "--metrics", tmp_path / "b", "--algorithm", "ring")
    found, expected = (events(tmp_path / name)[-1]["loss"] for name in "ab")
    assert abs(found - expected) < 1e-5 * expected


def test_one_rank_without_a_launcher_needs_no_mpi_library(tmp_path):
    code = ("import sys; sys.modules['mpi4py'] = None\n"
            "from minipar.train import main\n"
            "sys.exit(main(['--steps', '5', '--quiet']))")
    done = python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


REFUSED = [
    (("--model", "mpl"), "did you mean mlp"),
    (("--data", "digit"), "digits"),
    (("--data", "nowhere.npz"), "nowhere.npz"),
    (("--optimizer", "adamax"), "adam"),
    (("--algorithm", "rung"), "ring"),
    (("--algorithm", "mpi"), "start with mpirun"),
    (("--algorithm", "swing", "--ranks", "3"), "swing serves 2^k ranks, not 3"),
    (("--batch-size", "0"), "0 is not >= 1"),
    (("--batch-size", "3", "--microbatches", "4"), "global batch 3 < 1 rank x 4"),
    (("--lr", "-1"), "-1 is not > 0"),
    (("--lr", "fast"), "'fast' is not a number"),
    (("--dp", "2"), "world size 1 != dp 2"),
    (("--epochs", "1", "--steps", "1"), "not allowed with"),
    (("--metrics", "no/such/folder/m.jsonl"), "no folder"),
    (("--metrics", "."), "is a folder"),
    (("--model", "gpt", "--data", "digits"), "gpt does not train on classification data"),
    (("--model", "mlp", "--data", "plays"), "mlp does not train on text data"),
    (("--model", "gpt", "--heads", "3"), "128 features do not divide into 3 heads"),
    (("--sample", "5"), "--sample is for gpt"),
    (("--dtype", "float16"), "float32"),
    (("--amp", "float32"), "did you mean float16"),
    (("--amp", "float16", "--dtype", "float64"), "--amp float16 is mixed with float32, not with"),
    (("--nonsense",), "--nonsense"),
]


def test_what_cannot_be_is_refused_with_one_line_and_status_2(capsys):
    from minipar.train import main
    for args, expected in REFUSED:
        assert main(list(args)) == 2, args
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("minipar: error: ") and err.count("\n") == 1, args
        assert expected in err, (args, err)


def test_bad_files_are_refused_with_one_line_and_status_2(tmp_path, capsys):
    from minipar.train import main
    good = dict(x=np.zeros((20, 4), np.float32), y=np.arange(20) % 2)
    cases = {"empty.npz": b"", "garbage.npz": b"PK\x03\x04 not a zip", "empty.txt": b"",
             "short.txt": b"abc", "binary.txt": bytes(range(128, 256))}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    np.savez(tmp_path / "lengths.npz", x=good["x"], y=good["y"][:7])
    np.savez(tmp_path / "nan.npz", x=np.full((20, 4), np.nan), y=good["y"])
    np.savez(tmp_path / "negative.npz", x=good["x"], y=good["y"] - 1)
    np.savez(tmp_path / "nokeys.npz", a=good["x"])
    for path in sorted(tmp_path.iterdir()):
        model = "gpt" if path.suffix == ".txt" else "mlp"
        assert main(["--model", model, "--data", str(path), "--steps", "1"]) == 2, path.name
        err = capsys.readouterr().err
        assert err.startswith("minipar: error: ") and err.count("\n") == 1, err


def test_a_file_of_ones_own_is_trained_on(tmp_path, capsys):
    from minipar.train import main
    rng = np.random.default_rng(0)
    y = np.arange(200) % 3
    np.savez(tmp_path / "d.npz", x=rng.standard_normal((200, 5)) + y[:, None] * 4, y=y)
    (tmp_path / "t.txt").write_text("to be or not to be, that is the question. " * 50)
    assert main(["--data", str(tmp_path / "d.npz"), "--epochs", "20", "--warmup", "0"]) == 0
    assert main(["--model", "gpt", "--data", str(tmp_path / "t.txt"), "--steps", "2", "--layers",
                 "1", "--block-size", "16", "--batch-size", "4", "--sample", "5"]) == 0
    assert "test accuracy" in capsys.readouterr().out


def test_refusals_are_printed_once_for_all_ranks():
    done = train(3, "--batch-size", "2")
    assert done.returncode == 2
    assert said(done) == ["minipar: error: global batch 2 < 3 ranks"]


def test_help_is_printed_once_and_ends_with_status_0():
    done = train(2, "--help")
    assert done.returncode == 0 and done.stdout.count("--microbatches M") == 2  # usage and list


def test_a_loss_that_is_not_finite_ends_the_job_naming_step_and_parameter():
    done = train(2, "--lr", "1e30", "--optimizer", "sgd", "--warmup", "0", "--steps", "50")
    assert done.returncode == 1
    line, = said(done)
    assert line.startswith("minipar: error: loss is ") and "at step" in line and "weight" in line


def test_a_gpt_learns_and_writes(tmp_path):
    done = train(2, "--model", "gpt", "--steps", "30", "--batch-size", "8", "--layers", "1",
                 "--embedding", "64", "--block-size", "64", "--sample", "50", "--lr", "3e-3",
                 "--metrics", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    losses = [e["loss"] for e in events(tmp_path / "m") if e["event"] == "step"]
    assert losses[0] == pytest.approx(np.log(63), abs=0.1) and losses[-1] < 3.4


def test_the_job_gives_the_same_result_on_every_kind_of_kernels(tmp_path):
    losses = {}
    for kernels in KERNELS:
        done = python("-m", "minipar.train", "--steps", "12", "--kernels", kernels, "--clip", "1",
                      "--metrics", tmp_path / kernels)
        assert done.returncode == 0, done.stderr
        losses[kernels] = [e["loss"] for e in events(tmp_path / kernels) if "loss" in e]
    for kernels in KERNELS:
        np.testing.assert_allclose(losses[kernels], losses["reference"], rtol=1e-5)


def test_a_kind_of_kernels_that_there_is_not_is_refused_also_from_the_environment():
    done = python("-m", "minipar.train", MINIPAR_KERNELS="fast")
    assert done.returncode == 2
    assert said(done) == ["minipar: error: MINIPAR_KERNELS: no 'fast': there are reference, "
                          "compiled, emulated"]
