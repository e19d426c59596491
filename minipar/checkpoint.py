"""Checkpoints: a training state in a folder, of which a whole one is always there.

A checkpoint is a folder `step-00000100` with three files:

    model.safetensors      parameters and buffers, under PyTorch's names
    optimizer.safetensors  the optimizer's state by parameter name, and what compression owes
    state.json             step, random state, what was trained; and the other files' sha256

It is written under another name, flushed to the disk, and renamed when it is complete; it is
renamed again before it is deleted. So a crash at any moment leaves whole checkpoints and files
whose names say that they are none. Knows no ranks: rank 0 calls it.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np

from . import dtypes
from .device import as_array, host
from .tensor import Tensor

FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")
_LEFTOVER = ".minipar-"  # names of what is being written or deleted start so


class Damaged(ValueError):
    """A checkpoint that is not what was written."""


def save_file(tensors, path, metadata=None):
    """Write {name: Tensor or array} as a .safetensors file, which PyTorch's users can read.

    metadata: {str: str} kept in the file's header.
    """
    from safetensors.numpy import save_file as write  # the format's own library, made for all
    write({name: _contiguous(t) for name, t in tensors.items()}, os.fspath(path), metadata)


def _contiguous(t):
    array = host(as_array(t.array if isinstance(t, Tensor) else t))
    return np.ascontiguousarray(array).reshape(array.shape)  # NumPy makes 0-d arrays 1-d here


def load_file(path):
    """{name: Tensor} of a .safetensors file.

    Raises OSError if there is none, ValueError in one line if it is damaged or of another kind.
    """
    from safetensors import SafetensorError, safe_open
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            if any(file.get_slice(name).get_dtype() == "BF16" for name in file.keys()):
                dtypes.bfloat16.storage  # NumPy then knows the type, or it is refused
            return {name: Tensor(file.get_tensor(name)) for name in file.keys()}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a readable .safetensors file ({reason})") from None


class CheckpointFolder:
    """The checkpoints in a folder; the last `keep` are kept."""

    def __init__(self, path, keep=3):
        self.path, self.keep = Path(path), keep

    def steps(self):
        """The steps that there are checkpoints of, in order. They may be damaged."""
        if not self.path.is_dir():
            return []
        found = (_NAME.fullmatch(entry.name) for entry in self.path.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def prepare(self):
        """Make the folder, and remove what a crash has left. OSError if it cannot be written."""
        self.path.mkdir(parents=True, exist_ok=True)
        for entry in self.path.glob(_LEFTOVER + "*"):
            shutil.rmtree(entry, ignore_errors=True)
        probe = self.path / f"{_LEFTOVER}probe"
        probe.mkdir()
        (probe / "probe").write_bytes(b"minipar")
        shutil.rmtree(probe)

    def save(self, step, model, optimizer, state):
        """Write the checkpoint of `step`; returns its path.

        model, optimizer: {name: array or Tensor}; state: what JSON can hold.
        """
        target = self._folder(step)
        if target.exists():
            if self._is_whole(target):
                return target  # training is deterministic: it holds the same
            self._remove(target)
        draft = self.path / f"{_LEFTOVER}{target.name}-{os.getpid()}"
        draft.mkdir()
        save_file(model, draft / "model.safetensors")
        save_file(optimizer, draft / "optimizer.safetensors")
        body = {"format": FORMAT, "step": step, "state": state,
                "files": {p.name: _digest(p) for p in sorted(draft.iterdir())}}
        text = json.dumps({**body, "sha256": _body_digest(body)}, indent=1)
        (draft / "state.json").write_text(text, encoding="utf-8")
        for path in (*draft.iterdir(), draft):
            _flush(path)
        os.replace(draft, target)
        _flush(self.path)
        for old in self.steps()[:-self.keep]:
            self._remove(self._folder(old))
        return target

    def load(self, warn=print):
        """(state, model, optimizer) of the last whole checkpoint, the latter two {name: Tensor}.

        warn: called with a line for each damaged one that is passed over.
        Raises ValueError if there is no checkpoint, or none that is whole.
        """
        steps = self.steps()
        if not steps:
            raise ValueError(f"there is no checkpoint in {self.path}")
        for step in reversed(steps):
            folder = self._folder(step)
            try:
                body = self._body(folder)
                model, optimizer = (load_file(folder / f"{name}.safetensors")
                                    for name in ("model", "optimizer"))
                return {**body["state"], "step": body["step"]}, model, optimizer
            except (Damaged, OSError, ValueError) as error:
                warn(f"checkpoint {folder} is passed over: {error}")
        raise ValueError(f"none of the {len(steps)} checkpoints in {self.path} is whole")

    def _folder(self, step):
        return self.path / f"step-{step:08d}"

    def _body(self, folder):
        """The contents of state.json, when it and the files it speaks of are as written."""
        try:
            body = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            claimed = body.pop("sha256")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"state.json cannot be read ({type(error).__name__})") from None
        if claimed != _body_digest(body):
            raise Damaged("state.json is not as it was written")
        if body["format"] != FORMAT:
            raise Damaged(f"its format is {body['format']}, this version reads {FORMAT}")
        for name, digest in body["files"].items():
            if not (folder / name).is_file():
                raise Damaged(f"{name} is missing")
            if _digest(folder / name) != digest:
                raise Damaged(f"{name} is not as it was written")
        return body

    def _is_whole(self, folder):
        try:
            self._body(folder)
        except Damaged:
            return False
        return True

    def _remove(self, folder):
        trash = self.path / f"{_LEFTOVER}trash-{folder.name}-{os.getpid()}"
        os.replace(folder, trash)
        shutil.rmtree(trash, ignore_errors=True)


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _body_digest(body):
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _flush(path):
    """Have the disk hold a file, or the names in a folder, before anything that comes later."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders, and orders renames by itself
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
