"""Checkpoints as files: what is written is read back, and a crash at any moment loses nothing."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from minipar.checkpoint import CheckpointFolder, load_file, save_file
from minipar.tensor import Tensor

rng = np.random.default_rng(5)


def save(folder, step, **state):
    """A checkpoint whose every array says which step it is of."""
    model = {"w": np.full((3, 4), step, np.float32), "n": np.array(step)}
    optimizer = {"w.exp_avg": np.full((3, 4), step, np.float64), "w.step": np.array(step)}
    return folder.save(step, model, optimizer, {"of": step, **state})


def step_of(folder):
    """The step of the last whole checkpoint, after checking that all of it agrees."""
    lines = []
    state, model, optimizer = folder.load(warn=lines.append)
    assert {state["step"], state["of"]} == {state["step"]}
    for t in (*model.values(), *optimizer.values()):
        assert (t.array == state["step"]).all()
    return state["step"], lines


def test_arrays_come_back_bit_by_bit_with_dtype_and_shape(tmp_path):
    arrays = {"f": rng.standard_normal((3, 5)).astype(np.float32), "0-d": np.array(7),
              "empty": np.empty((0, 4)), "transposed": rng.standard_normal((4, 6)).T,
              "bool": np.array([True, False]), "strange é.name": np.arange(3, dtype=np.int32),
              "nan": np.array([np.nan, -0.0, np.inf]), "half": np.ones(2, np.float16)}
    save_file({**arrays, "tensor": Tensor(arrays["f"])}, tmp_path / "a é.safetensors", {"k": "v"})
    back = load_file(tmp_path / "a é.safetensors")
    assert set(back) == {*arrays, "tensor"}
    for name, a in arrays.items():
        b = back[name].array
        assert (b.shape, b.dtype, b.tobytes()) == (a.shape, a.dtype, a.tobytes()), name


@pytest.mark.peer
def test_weights_travel_through_a_file_to_pytorch_and_back_unchanged(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as torch_load
    from safetensors.torch import save_file as torch_save

    from minipar import nn
    ours = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).materialize()
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    save_file(ours.state_dict(), tmp_path / "ours")
    theirs.load_state_dict(torch_load(tmp_path / "ours"))
    x = rng.standard_normal((5, 4)).astype(np.float32)
    np.testing.assert_allclose(theirs(torch.tensor(x)).detach().numpy(), ours(Tensor(x)).array,
                               rtol=1e-5, atol=1e-6)
    torch_save(theirs.state_dict(), tmp_path / "theirs")
    back = load_file(tmp_path / "theirs")
    for name, tensor in ours.state_dict().items():
        np.testing.assert_array_equal(back[name].array, tensor.array)


@pytest.mark.peer
def test_a_gpt_travels_to_pytorch_and_back_unchanged_tied_weights_included(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as torch_load
    from safetensors.torch import save_file as torch_save

    from minipar.models import GPT, GPTConfig
    config = GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=8)
    ours = GPT(config).materialize()
    save_file(ours.state_dict(), tmp_path / "ours")
    theirs = torch_load(tmp_path / "ours")
    assert torch.equal(theirs["lm_head.weight"], theirs["transformer.wte.weight"])
    torch_save({k: v.clone() for k, v in theirs.items()}, tmp_path / "theirs")
    other = GPT(config)
    other.load_state_dict(load_file(tmp_path / "theirs"))
    assert other.lm_head.weight is other.transformer.wte.weight
    for (name, a), (_, b) in zip(ours.named_parameters(), other.named_parameters(), strict=True):
        np.testing.assert_array_equal(a.array, b.array, err_msg=name)


def test_the_last_checkpoints_are_kept_and_the_newest_is_loaded(tmp_path):
    folder = CheckpointFolder(tmp_path / "new" / "folder", keep=2)
    folder.prepare()
    for step in (5, 10, 100_000_000, 15):
        save(folder, step)
    assert folder.steps() == [15, 100_000_000]
    assert step_of(folder) == (100_000_000, [])
    assert sorted(os.listdir(folder.path)) == ["step-00000015", "step-100000000"]


def test_saving_a_step_again_keeps_the_whole_one_and_replaces_a_damaged_one(tmp_path):
    folder = CheckpointFolder(tmp_path)
    path = save(folder, 3, note="first")
    save(folder, 3, note="second")
    assert folder.load()[0]["note"] == "first"
    (path / "model.safetensors").write_bytes(b"")
    save(folder, 3, note="third")
    assert folder.load()[0]["note"] == "third"


def test_what_a_crash_left_is_removed_and_never_taken_for_a_checkpoint(tmp_path):
    folder = CheckpointFolder(tmp_path)
    whole = save(folder, 4)
    for name in (".minipar-step-00000009-77", ".minipar-trash-step-00000002-77"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    (tmp_path / "step-notes.txt").write_text("the user's own")
    assert step_of(folder) == (4, [])
    folder.prepare()
    assert sorted(os.listdir(tmp_path)) == [whole.name, "step-notes.txt"]


FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGE = {"truncated": truncate, "flipped": flip, "empty": lambda p: p.write_bytes(b""),
          "missing": lambda p: p.unlink()}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(tmp_path, name, how):
    folder = CheckpointFolder(tmp_path)
    save(folder, 1)
    last = save(folder, 2)
    DAMAGE[how](last / name)
    step, lines = step_of(folder)
    assert step == 1 and len(lines) == 1
    assert str(last) in lines[0] and name in lines[0] and "\n" not in lines[0]


def test_no_whole_checkpoint_is_an_error_of_one_line(tmp_path):
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(ValueError, match="there is no checkpoint in"):
        folder.load()
    for step in (1, 2):
        flip(save(folder, step) / "model.safetensors")
    lines = []
    with pytest.raises(ValueError, match="none of the 2 checkpoints .* is whole"):
        folder.load(warn=lines.append)
    assert len(lines) == 2


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64,
                                     b"\x08" + bytes(7) + b"{}      "],
                         ids=["empty", "garbage", "a header of 2^64 bytes", "no tensors"])
def test_a_weights_file_that_is_none_is_a_value_error_or_empty(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    try:
        assert load_file(path) == {}
    except ValueError as error:
        assert "w.safetensors" in str(error) and "\n" not in str(error)


WRITER = """
import sys
import numpy as np
from pathlib import Path
from minipar.checkpoint import CheckpointFolder
folder, step = CheckpointFolder(sys.argv[1], keep=2), int(sys.argv[2])
folder.prepare()
while True:
    step += 1
    model = {"w": np.full((300, 40), step, np.float32), "n": np.array(step)}
    optimizer = {"w.exp_avg": np.full((300, 40), step, np.float64), "w.step": np.array(step)}
    folder.save(step, model, optimizer, {"of": step})
    print(step, flush=True)
"""


def test_killed_20_times_while_writing_a_whole_checkpoint_is_always_there(tmp_path):
    folder, last = CheckpointFolder(tmp_path / "c", keep=2), 0
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", WRITER, folder.path, str(last)],
                                   stdout=subprocess.PIPE, text=True)
        told = int(process.stdout.readline())  # writing has begun
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split()
        told = max([told, *map(int, rest)])
        step, lines = step_of(folder)
        assert lines == [] and told <= step <= told + 1
        last = step
    assert last > 20
