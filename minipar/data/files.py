"""Reading and checking data files. Whatever is wrong with a file ends as one line of ValueError.

Files come from users, so nothing here trusts them: arrays are never unpickled, every array is
checked before it is used, and the message shows the numbers that do not fit.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np

MAX_LABEL = 65_535  # larger ones are taken for identifiers or garbage, not for classes


def read_npz(path, dtype, scale=None):
    """Read a classification data set from an .npz file.

    The file holds `x` (N, ...), numbers, and `y` (N,), integer labels from 0; it may hold
    `x_test` and `y_test`, of the same kinds. dtype: of the returned x, a floating NumPy type.
    x is divided by `scale`: if None, by 255 for uint8 (images), else by 1.
    Returns [(x, y)] or [(x, y), (x_test, y_test)], y int64.
    Raises ValueError for a file that cannot be read or that holds something else.
    """
    parts, arrays = _load_arrays(path)
    x, x_test = arrays["x"], arrays.get("x_test")
    if x_test is not None and (x_test.dtype, x_test.shape[1:]) != (x.dtype, x.shape[1:]):
        raise ValueError(f"{path}: samples of x are {x.dtype} {x.shape[1:]}, "
                         f"those of x_test {x_test.dtype} {x_test.shape[1:]}")
    for xn, yn in parts:
        same_length(path, xn, arrays[xn], yn, arrays[yn])
    return [(samples(path, xn, arrays[xn], dtype, scale), labels(path, yn, arrays[yn]))
            for xn, yn in parts]


def _load_arrays(path):
    """The pairs of names to read, (x, y) and perhaps (x_test, y_test), and {name: array}."""
    try:
        # Damaged archives raise a dozen exception types from zipfile, zlib, tokenize and NumPy;
        # with allow_pickle=False none of them has run code of the file.
        with open(path, "rb") as file:  # np.load given a name would leak it on a bad archive
            if file.read(2) != b"PK":
                raise ValueError("no .npz archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                parts = _parts(archive.files)
                return parts, {name: np.asarray(archive[name]) for pair in parts for name in pair}
    except Exception as error:
        raise ValueError(f"{path}: not a readable data set ({reason(error)})") from None


def _parts(held):
    """The pairs of names to read of those in the file. Raises ValueError if one is missing."""
    parts = [("x", "y")]
    if "x_test" in held or "y_test" in held:
        parts.append(("x_test", "y_test"))
    missing = [name for pair in parts for name in pair if name not in held]
    if missing:
        raise ValueError(f"no array {' or '.join(missing)} in it, but "
                         f"{', '.join(held) or 'nothing'}")
    return parts


def reason(error):
    """Why a file cannot be read: an exception's message cut to one short line, or its type."""
    if "pickle" in str(error):  # NumPy's advice to allow pickle is not for files of strangers
        return "an array is damaged or holds Python objects"
    text = getattr(error, "strerror", None) or str(error)
    line = " ".join(text.split()) or type(error).__name__
    return line if len(line) <= 100 else line[:97] + "..."


def samples(path, name, x, dtype, scale=None):
    """The array `x` (N, ...) called `name` as `dtype`, scaled as in `read_npz`, or ValueError."""
    if x.dtype.kind not in "buif":
        raise ValueError(f"{path}: {name} has dtype {x.dtype}: numbers are needed")
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"{path}: {name} has shape {x.shape}: at least one sample, and one value "
                         "in each, is needed: (N, ...)")
    if scale is None:
        scale = 255 if x.dtype == np.uint8 else 1
    with np.errstate(over="ignore"):  # what overflows is found below
        x = x.astype(dtype)
    bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
    if len(bad):
        raise ValueError(f"{path}: {name} has NaN or infinite values (as {x.dtype}) in {len(bad)} "
                         f"of {len(x)} samples, first in sample {bad[0]}")
    if scale != 1:
        x /= x.dtype.type(scale)
    return x


def labels(path, name, y):
    """The labels `y` (N,) called `name` as int64, or ValueError."""
    if y.dtype.kind not in "ui":
        raise ValueError(f"{path}: {name} has dtype {y.dtype}: labels must be integers")
    if y.ndim != 1:
        raise ValueError(f"{path}: {name} has shape {y.shape}: labels must be one number a "
                         "sample: (N,)")
    bad = np.flatnonzero((y < 0) | (y > MAX_LABEL))
    if len(bad):
        raise ValueError(f"{path}: {name} has label {y[bad[0]]} in sample {bad[0]}: labels must "
                         f"be 0 .. classes - 1, at most {MAX_LABEL}")
    return y.astype(np.int64)


def same_length(path, x_name, x, y_name, y):
    """Raise ValueError unless there are as many labels as samples."""
    if x.ndim and y.ndim and len(x) != len(y):
        raise ValueError(f"{path}: {x_name} has {len(x)} samples, {y_name} has {len(y)} labels")


def read_bytes(path, kind, packed):
    """The content of a file; unpacked from gzip if `packed`, or, if that is None, if it looks so.

    Raises ValueError, which calls the file a `kind`, if it cannot be read or unpacked.
    """
    try:
        content = Path(path).read_bytes()
        if content[:2] == b"\x1f\x8b" if packed is None else packed:
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a readable {kind} ({reason(error)})") from None
    return content


def read_text(path, kind="text file"):
    """Read a text file (UTF-8; unpacked if the name ends in .gz) as a str, lines ended by \\n.

    Raises ValueError for a file that cannot be read, is empty, or is not UTF-8.
    """
    data = read_bytes(path, kind, packed=str(path).lower().endswith(".gz"))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a UTF-8 text: byte {error.start} is "
                         f"0x{data[error.start]:02x}") from None
    if not text:
        raise ValueError(f"{path}: an empty text")
    return text.replace("\r\n", "\n")
