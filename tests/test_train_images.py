"""The main job on images in folders, and models with batch normalisation on several ranks."""

import json
import shutil

import numpy as np
import pytest

from minipar import nn, options, train
from minipar.comm import run_threads, world
from minipar.interrupt import Interrupt
from minipar.parallel import DistributedDataParallel
from minipar.tensor import Tensor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 24 images of different sizes: bright above, and bright below."""
    image = pytest.importorskip("PIL.Image")
    root, rng = tmp_path_factory.mktemp("images é"), np.random.default_rng(2)
    for label, name in enumerate(("above", "below")):
        (root / name).mkdir()
        for i in range(24):
            pixels = rng.integers(0, 100, (40 + i % 5, 36, 3), dtype=np.uint8)
            half = slice(0, 20) if label == 0 else slice(20, None)
            pixels[half] += 150
            image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def run(args, n=1, after=None):
    o = options.parse(["--quiet", *map(str, args)], n)

    class Wish(Interrupt):
        def __init__(self):
            self.left = 10**9 if after is None else after

        @property
        def requested(self):
            self.left -= 1
            return self.left < 0
    ends = run_threads(lambda: train.run(o, world(), Wish()), n)
    assert len({end and (end["params_sha256"], end["loss"]) for end in ends}) == 1
    return ends[0]


def test_a_resnet18_learns_the_classes_of_an_image_folder(folder, tmp_path):
    end = run(["--model", "resnet18", "--data", folder, "--image-size", "16", "--batch-size", "14",
               "--steps", "24", "--warmup", "0", "--lr", "3e-4", "--metrics", tmp_path / "m"])
    lines = map(json.loads, (tmp_path / "m").read_text().splitlines())
    losses = [e["loss"] for e in lines if e["event"] == "step"]
    assert losses[0] > 0.5 and max(losses[-5:]) < 0.05
    assert end["loss"] < np.log(2)  # of guessing


def test_a_resnet18_is_resumed_to_the_same_bits_on_two_ranks(folder, tmp_path):
    args = ["--model", "resnet18", "--data", folder, "--image-size", "16", "--batch-size", "8",
            "--steps", "3"]
    whole = run(args, 2)
    more = [*args, "--checkpoint", tmp_path]
    assert run(more, 2, after=1) is None
    resumed = run([*more, "--resume"], 2)
    assert resumed["params_sha256"] == whole["params_sha256"]
    assert resumed["loss"] == whole["loss"]  # which the running statistics have a part in


def test_a_damaged_image_ends_the_job_with_one_line_naming_it(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "copy")
    bad = tmp_path / "copy" / "above" / "3.png"
    bad.write_bytes(bad.read_bytes()[:200])
    status = train.main(["--quiet", "--data", str(tmp_path / "copy"), "--image-size", "16",
                         "--batch-size", "40"])
    err = capsys.readouterr().err
    assert status == 1 and err.count("\n") == 1 and "3.png" in err


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.bn = nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.bn(self.fc(x))


@pytest.mark.parametrize("broadcast", [True, False])
def test_ranks_take_the_running_statistics_of_rank_0(broadcast):
    """Oracle: rank 0's module alone, on rank 0's samples."""
    x = np.random.default_rng(1).standard_normal((2, 3, 6, 3)).astype(np.float32)

    def rank():
        model = DistributedDataParallel(Normed(), broadcast_buffers=broadcast)
        for step in range(3):
            model(Tensor(x[world().rank, step])).sum().backward()
        own = model.module.bn.running_mean.array.copy()
        model.eval()
        model(Tensor(x[0, 0]))
        bn = model.module.bn
        return own, bn.running_mean.array.copy(), bn.num_batches_tracked.item()
    (own0, mean0, count0), (own1, mean1, count1) = run_threads(rank, 2)
    alone = Normed()
    for step in range(3):
        alone(Tensor(x[0, step]))
    np.testing.assert_allclose(own0, alone.bn.running_mean.array, rtol=1e-6)
    assert (own0 == mean0).all() and (own0 != own1).all() and count0 == count1 == 3
    assert (mean0 == mean1).all() == broadcast
