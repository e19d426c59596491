"""Bad files of every kind: each is one line of ValueError with the file's name and the numbers.

The bytes are written here, by struct, text and Pillow; the numbers in the messages are counted by
hand from them. Damage at random places: test_data_damage.py.
"""

import builtins
import contextlib
import gzip
import io
import os
import struct

import numpy as np
import pytest
from data_files import (GOOD_TABLE, TRAIN_IMAGES, TRAIN_LABELS, good_files, idx_bytes, idx_images,
                        png, write_images, write_mnist)

from minipar import data, train
from minipar.data.transforms import ToTensor

IMAGES, LABELS = idx_images()


def check(path, named, *numbers, read=False, **options):
    """Loading `path` (and reading all of it) raises one line that names the file and numbers."""
    with pytest.raises(ValueError) as caught:
        found = data.load(path, **options)
        if read:
            for part in found.train, found.test:
                part.get_batch(range(len(part)))
    message = str(caught.value)
    if not (read or options):
        refused_by_the_main_job(path, message)
    assert type(caught.value) is ValueError and "\n" not in message
    assert str(named) in message and len(message) < len(str(path)) + len(str(named)) + 220
    for number in numbers:
        assert str(number) in message.replace(str(named), ""), (number, message)


def refused_by_the_main_job(path, message):
    """Status 2 and one line, which is that of the loader."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert train.main(["--data", os.fspath(path), "--quiet"]) == 2
    assert said.getvalue() == f"minipar: error: {message}\n"


# ------------------------------------------------------------------ IDX


def header(*shape, code=0x08, zero=0):
    return struct.pack(">HBB", zero, code, len(shape)) + struct.pack(f">{len(shape)}I", *shape)


BODY = IMAGES.tobytes()  # 20 x 4 x 5 = 400 bytes
WHOLE = header(20, 4, 5) + BODY
PACKED = gzip.compress(WHOLE)
BAD_IMAGES = {
    "empty": (b"", "0 bytes", "4"),
    "three bytes": (b"\0\0\x08", "3 bytes"),
    "text": (b"hello, this is text", "0x68656c6c"),
    "a png": (b"\x89PNG\r\n\x1a\n" + bytes(40), "0x89504e47"),
    "little-endian": (struct.pack("<I", 0x803) + WHOLE[4:], "0x03080000"),
    "an unknown type": (header(20, 4, 5, code=0x0A) + BODY, "0x00000a03"),
    "no axes": (header() + b"\7", "0x00000800"),
    "half a header": (WHOLE[:10], "3 axes", "16 bytes", "10"),
    "no elements": (WHOLE[:16], "20 x 4 x 5", "400 bytes", "but 0"),
    "one byte missing": (WHOLE[:-1], "20 x 4 x 5", "400 bytes", "but 399"),
    "one byte too many": (WHOLE + b"x", "400 bytes", "but 401"),
    "a header of more images": (header(21, 4, 5) + BODY, "21 x 4 x 5", "420 bytes", "400"),
    "a header of 2**96 bytes": (header(2**32 - 1, 2**32 - 1, 2**32 - 1) + BODY,
                                "4294967295 x 4294967295", "400"),
    "wider elements": (header(20, 4, 5, code=0x0D) + BODY, "4 bytes = 1600 bytes", "400"),
    "no images": (header(0, 4, 5), "(0, 4, 5)"),
    "images of no pixels": (header(20, 0, 5), "(20, 0, 5)"),
    "200 axes": (header(*[1] * 200) + b"1", "200 axes", "7"),
    "labels in place of images": (idx_bytes(LABELS), "(20,)", "holds labels, not images"),
    "not a number": (idx_bytes(np.where(IMAGES == IMAGES[3, 0, 0], np.nan, IMAGES), "f4"), "NaN"),
    "packed and cut": (PACKED[:-20], "not a readable IDX file"),
    "packed and cut in its header": (PACKED[:9], "not a readable IDX file"),
    "packed and damaged": (PACKED[:40] + bytes([PACKED[40] ^ 255]) + PACKED[41:],
                           "not a readable IDX file"),
    "packed, of one byte too few": (gzip.compress(WHOLE[:-1]), "400 bytes", "but 399"),
}
BAD_LABELS = {
    "fewer labels": (idx_bytes(LABELS[:18]), "20 samples", "18 labels"),
    "more labels": (idx_bytes(np.append(LABELS, 0)), "20 samples", "21 labels"),
    "no labels": (header(0), "(0,)"),
    "images in place of labels": (idx_bytes(IMAGES), "(20, 4, 5)"),
    "a negative label": (idx_bytes(LABELS - np.eye(20)[6] * 9, "i4"), "label -9 in sample 6"),
    "a label beyond 65535": (idx_bytes(LABELS + 70_000 * np.eye(20)[2], "i4"),
                             "label 70002 in sample 2"),
    "labels that are no integers": (idx_bytes(LABELS, "f4"), "float32", "integers"),
    "a truncated file of labels": (idx_bytes(LABELS)[:-5], "20 bytes", "but 15"),
    "another magic number": (b"\1" + idx_bytes(LABELS)[1:], "0x01000801"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_a_bad_idx_file_of_images_is_one_line(case, tmp_path):
    content, *numbers = BAD_IMAGES[case]
    write_mnist(tmp_path)
    (tmp_path / TRAIN_IMAGES).write_bytes(content)
    check(tmp_path, tmp_path / TRAIN_IMAGES, *numbers)
    check(tmp_path / TRAIN_IMAGES, tmp_path / TRAIN_IMAGES, *numbers)


@pytest.mark.parametrize("case", BAD_LABELS)
def test_a_bad_idx_file_of_labels_is_one_line(case, tmp_path):
    content, *numbers = BAD_LABELS[case]
    write_mnist(tmp_path)
    (tmp_path / TRAIN_LABELS).write_bytes(content)
    check(tmp_path, tmp_path / TRAIN_LABELS, *numbers)


@pytest.mark.parametrize("missing", [TRAIN_IMAGES, TRAIN_LABELS, "t10k-images-idx3-ubyte",
                                     "t10k-labels-idx1-ubyte"])
def test_a_folder_of_three_idx_files_names_the_fourth(missing, tmp_path):
    write_mnist(tmp_path)
    (tmp_path / missing).unlink()
    check(tmp_path, tmp_path, missing, "3 of 4")


def test_idx_files_that_do_not_belong_together_are_named(tmp_path):
    write_mnist(tmp_path)
    other = tmp_path / "t10k-images-idx3-ubyte"
    other.write_bytes(idx_bytes(idx_images(6, 4, 7)[0]))
    check(tmp_path, other, "(1, 4, 5)", "(1, 4, 7)", TRAIN_IMAGES)
    other.write_bytes(idx_bytes(idx_images(6)[0], "f4"))  # floats beside bytes are not images
    (tmp_path / TRAIN_LABELS).unlink()
    check(tmp_path / TRAIN_IMAGES, TRAIN_IMAGES, TRAIN_LABELS)
    check(tmp_path / "t10k-labels-idx1-ubyte", "t10k-labels-idx1-ubyte", "images")


def test_one_image_cannot_be_split(tmp_path):
    (tmp_path / "images-idx3").write_bytes(idx_bytes(IMAGES[:1]))
    (tmp_path / "labels-idx1").write_bytes(idx_bytes(LABELS[:1]))
    check(tmp_path / "images-idx3", "images-idx3", "1 sample cannot be split")


# ------------------------------------------------------------------ tables

BAD_TABLES = {
    "empty": ("", "an empty text"),
    "blank lines": ("\n\n  \n", "an empty table"),
    "only a header": ("a,b,label\n", "a header of 3 columns", "0 rows"),
    "one column": ("1\n2\n3\n", "line 1 has 1 column"),
    "words": ("to be\nor not to be\n", "line 1 has 1 column"),
    "a short row": (GOOD_TABLE + "1,2\n", "line 22 has 2 columns", "3"),
    "a long row": ("1,2,3\n1,2,3\n\n1,2,3,4\n", "line 4 has 4 columns", "3"),
    "rows longer than the header": ("a,b\n1,2,3\n1,2,3\n", "line 2 has 3 columns", "2"),
    "rows shorter than the header": ("a,b,c\n1,2\n1,2\n", "line 2 has 2 columns", "3"),
    "a word": ("1,2,0\n1,red,1\n", "line 2, column 2: 'red' is not a number"),
    "an empty field": ("a,b,label\n1,2,0\n1,,1\n", "line 3, column 2: ''"),
    "a missing value": ("a,b,label\n1,2,0\n\nNA,1,1\n", "line 4, column 1: 'NA'"),
    "a name as label": ("a,b,label\n1,2,setosa\n", "line 2, column 3: 'setosa'"),
    "a decimal comma": ('1;2;0\n"3,5";2;1\n', "line 2, column 1: '3,5'"),
    "a floating label": ("1,2,0\n1,2,0.5\n", "line 2: label 0.5"),
    "no label": ("1,2,0\n1,2,nan\n", "line 2: label nan"),
    "an infinite label": ("1,2,0\n1,2,inf\n", "line 2: label inf"),
    "a huge label": ("1,2,0\n1,2,1e300\n", "line 2: label 1e+300"),
    "a negative label": ("1,2,0\n1,2,-3\n", "label -3 in sample 1"),
    "an identifier as label": ("1,2,0\n1,2,70000\n", "label 70000 in sample 1", "65535"),
    "NaN": ("1,2,0\n1,nan,1\n", "NaN", "1 of 2 samples", "sample 1"),
    "beyond float32": ("1,2,0\n1e300,3,1\n", "float32", "1 of 2 samples"),
    "one row": ("1,2,0\n", "1 sample cannot be split"),
    "an open quote": ('1,2,0\n"1,2,0\n1,2,0\n', "line 2"),
    "a byte of zero": ("1,2,0\n1,\0,1\n", "line 2"),
    "an underscore": ("1,2,0\n1_0,3,1\n", "not a table of numbers"),
}
BAD_TABLE_BYTES = {
    "not UTF-8": (b"a,b\n1,\xff\n", "byte 6", "0xff"),
    "UTF-16": ("1,2,0\n".encode("utf-16"), "byte 0", "0xff"),
    "binary": (bytes(range(256)), "byte 128", "0x80"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_one_line(case, tmp_path):
    text, *numbers = BAD_TABLES[case]
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    check(tmp_path / "t.csv", tmp_path / "t.csv", *numbers)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    check(tmp_path / "t.csv.gz", tmp_path / "t.csv.gz", *numbers)


@pytest.mark.parametrize("case", BAD_TABLE_BYTES)
def test_a_table_that_is_no_text_is_one_line(case, tmp_path):
    content, *numbers = BAD_TABLE_BYTES[case]
    (tmp_path / "t.csv").write_bytes(content)
    check(tmp_path / "t.csv", tmp_path / "t.csv", *numbers)


# ------------------------------------------------------------------ images


BAD_PICTURES = {
    "empty": lambda: b"",
    "text": lambda: b"I am no image",
    "zeros": lambda: bytes(1000),
    "half": lambda: png()[:len(png()) // 2],
    "its signature alone": lambda: png()[:8],
    "its header alone": lambda: png()[:33],
    "damaged inside": lambda: png()[:60] + bytes([png()[60] ^ 255]) + png()[61:],
    "no pixels": lambda: png()[:16] + bytes(4) + png()[20:],
    "2**31 pixels wide": lambda: png()[:16] + b"\x80\0\0\0" + png()[20:],
    "half a JPEG": lambda: png((64, 64), "JPEG")[:700],
    "a web page": lambda: b"<!DOCTYPE html><html><body>404</body></html>",
}


BEHIND_ITS_HEADER = {"half", "damaged inside", "half a JPEG", "its header alone"}


@pytest.mark.parametrize("case", BAD_PICTURES)
def test_a_bad_image_is_one_line_at_once_or_when_its_pixels_are_asked_for(case, tmp_path):
    root = write_images(tmp_path / "r")
    bad = root / "b" / "bad 1.png"
    bad.write_bytes(BAD_PICTURES[case]())
    check(root, bad, "not a readable image", read=case in BEHIND_ITS_HEADER)
    with pytest.raises(ValueError, match="bad 1.png: not a readable image"):
        data.ImageFolder(root)[-1]
    with pytest.raises(ValueError, match="bad 1.png: not a readable image"):  # from a worker too
        list(data.DataLoader(data.ImageFolder(root, ToTensor()), num_workers=2))


def test_folders_that_are_no_data_set_say_what_is_missing(tmp_path):
    check(tmp_path, tmp_path, "nothing known", "IDX", "one folder for each class")
    (tmp_path / "notes.md").write_text("hello")
    (tmp_path / "sub").mkdir()
    check(tmp_path, tmp_path, "nothing known")
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png())
    check(tmp_path, tmp_path, "nothing known", "3 images lie in no class")


def test_one_class_is_none(tmp_path):
    check(write_images(tmp_path / "r", ("cat",)), tmp_path / "r", "1 class (cat)", "2")
    root = write_images(tmp_path / "s" / "train", ("cat",)).parent
    write_images(root / "test", ("cat",))
    check(root, root / "train", "1 class (cat)")


def test_classes_without_images_are_named(tmp_path):
    root = write_images(tmp_path / "r")
    (root / "c").mkdir()
    (root / "c" / "notes.txt").write_text("none yet")
    check(root, root / "c", "0 images")
    with pytest.raises(ValueError, match="no folder in it"):
        data.ImageFolder(root / "a")


def test_a_test_part_with_other_classes_or_none_is_refused(tmp_path):
    root = write_images(tmp_path / "r" / "train").parent
    write_images(root / "test", ("a", "c", "d"))
    check(root, root / "test", "2 classes that are not in train: c, d")
    root = write_images(tmp_path / "s" / "train").parent
    (root / "val").mkdir()
    check(root, root / "val", "0 images")
    (root / "val" / "a").mkdir()
    check(root, root / "val" / "a", "0 images")


def test_one_image_of_each_class_can_be_split_but_not_one_alone(tmp_path):
    found = data.load(write_images(tmp_path / "r", count=1))
    assert (len(found.train), len(found.test)) == (1, 1)


# ------------------------------------------------------------------ any file


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    files = good_files(tmp_path)
    files[write_images(tmp_path / "r") / "a" / "0.png"] = tmp_path / "r"
    original, listdir = builtins.open, os.listdir
    denied = []

    def refusing(path, *args, **kwargs):  # root may read all: refuse as the system would
        if str(path) in denied:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *args, **kwargs)

    def refusing_folders(path="."):
        if str(path) in denied:
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)
    monkeypatch.setattr(builtins, "open", refusing)
    monkeypatch.setattr(io, "open", refusing)
    monkeypatch.setattr(os, "listdir", refusing_folders)
    for path, loaded in files.items():
        denied[:] = [str(path)]
        check(loaded, path, "Permission denied", read=True)
    denied[:] = [str(tmp_path / "r")]
    check(tmp_path / "r", tmp_path / "r", "Permission denied")
    denied[:] = [str(tmp_path / "r" / "a")]
    check(tmp_path / "r", tmp_path / "r" / "a", "Permission denied")


def test_folders_with_the_names_of_files_are_named(tmp_path):
    for name in "a.npz", "t.csv", "t.csv.gz", "t.txt":
        (tmp_path / name).mkdir()
        check(tmp_path / name, tmp_path / name, "not a readable")
    (tmp_path / "images-idx3").mkdir()
    check(tmp_path / "images-idx3", tmp_path / "images-idx3", "nothing known")


def test_a_file_of_another_kind_lists_the_kinds_that_there_are(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    check(tmp_path / "a.parquet", tmp_path / "a.parquet", ".npz", ".csv", "IDX", ".txt")
    (tmp_path / "0.png").write_bytes(png())
    check(tmp_path / "0.png", tmp_path / "0.png", "folders of images")
