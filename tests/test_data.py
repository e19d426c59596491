"""Data sets and data files. Oracles: the files' own bytes, and set arithmetic."""

import gzip
import hashlib
import io
import re
import zipfile

import numpy as np
import pytest

import minipar
from minipar import data
from minipar.data.datasets import EMBEDDED

# ------------------------------------------------------------------ embedded data


def test_embedded_files_have_the_sizes_and_sha256_that_their_readme_states():
    readme = (EMBEDDED / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| `(\S+)` \| ([\d,]+) \| `([0-9a-f]{64})` \|", readme)
    assert sorted(name for name, _, _ in rows) == ["digits.npz", "fashion.npz", "plays.txt.gz"]
    for name, size, digest in rows:
        content = (EMBEDDED / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (
            int(size.replace(",", "")), digest), name
    text = gzip.decompress((EMBEDDED / "plays.txt.gz").read_bytes())
    assert hashlib.sha256(text).hexdigest() in readme


def test_digits_are_1437_and_360_images_in_0_to_1_with_int64_labels():
    digits = data.load("digits")
    assert (digits.kind, digits.num_classes) == ("classification", 10)
    assert digits.input_shape == (1, 8, 8)
    for part, count in ((digits.train, 1437), (digits.test, 360)):
        x, y = part.tensors
        assert x.shape == (count, 1, 8, 8) and x.dtype is minipar.float32
        assert y.shape == (count,) and y.dtype is minipar.int64
        assert x.array.min() == 0 and x.array.max() == 1
        assert np.array_equal(x.array * 16, np.round(x.array * 16))  # 17 grey levels


def test_digits_split_is_disjoint_and_holds_a_fifth_of_every_class():
    digits = data.load("digits")
    images = [{row.tobytes() for row in part.tensors[0].array} for part in (digits.train,
                                                                             digits.test)]
    assert not images[0] & images[1]
    assert [len(s) for s in images] == [1437, 360]
    train, test = [np.bincount(p.tensors[1].array) for p in (digits.train, digits.test)]
    # The class counts of the whole, from the UCI description of the data.
    assert (train + test).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.abs(test - (train + test) / 5).max() < 1


def test_a_linear_classifier_on_digits_generalises():
    digits = data.load("digits", dtype="float64")
    (x, y), (x_test, y_test) = [(p.tensors[0].array.reshape(len(p), -1), p.tensors[1].array)
                                for p in (digits.train, digits.test)]
    # Ridge regression on one-hot labels reaches about 94 %: images and labels belong together.
    w = np.linalg.solve(x.T @ x + np.eye(64), x.T @ np.eye(10)[y])
    assert ((x_test @ w).argmax(1) == y_test).mean() > 0.9


def test_fashion_is_430_and_50_images_of_each_of_10_classes_and_no_image_twice():
    fashion = data.load("fashion")
    assert (fashion.kind, fashion.num_classes) == ("classification", 10)
    assert fashion.input_shape == (1, 28, 28)
    images = set()
    for part, count in ((fashion.train, 430), (fashion.test, 50)):
        x, y = part.tensors
        assert x.shape == (10 * count, 1, 28, 28) and x.dtype is minipar.float32
        assert np.bincount(y.array).tolist() == [count] * 10 and y.dtype is minipar.int64
        assert x.array.min() == 0 and x.array.max() == 1
        images |= {row.tobytes() for row in x.array}
    assert len(images) == 4800
    # The first labels of the whole data set, 60,000 and 10,000 images.
    assert fashion.train.tensors[1].tolist()[:10] == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert fashion.test.tensors[1].tolist()[:10] == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]


def test_all_embedded_data_together_has_at_most_2600000_bytes():
    assert sum(p.stat().st_size for p in EMBEDDED.iterdir() if p.suffix != ".md") <= 2_600_000


def test_a_small_cnn_learns_fashion_in_three_epochs():
    from minipar import optim
    from minipar.models import CNN
    from minipar.nn import functional as F
    minipar.manual_seed(0)
    fashion = data.load("fashion")
    model = CNN(fashion.input_shape, fashion.num_classes, channels=(8, 16))
    optimizer = optim.AdamW(model.parameters(), 4e-3)
    sampler = data.GlobalBatchSampler(len(fashion.train), 64)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for x, y in data.DataLoader(fashion.train, batch_sampler=sampler):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    (x, y), = data.DataLoader(fashion.test, 500)
    with minipar.no_grad():
        accuracy = (model(x).array.argmax(1) == y.array).mean()
    assert accuracy > 0.8  # 0.1 by chance; the larger model reaches 0.89 in 10 epochs


def test_plays_are_clean_text_whose_tokens_decode_to_the_file():
    plays = data.load("plays", block_size=64)
    text = gzip.decompress((EMBEDDED / "plays.txt.gz").read_bytes()).decode("ascii")
    assert plays.kind == "text" and plays.vocab_size == len(plays.chars) == 63
    assert plays.chars == "".join(sorted(set(text)))
    assert not set("*_#<>[]\\") & set(text)
    assert plays.decode(plays.train.tokens) + plays.decode(plays.test.tokens) == text
    assert len(plays.train.tokens) == len(text) * 9 // 10
    assert "To be, or not to be: that is the question:" in text
    assert text.index("\n\nTwelfth Night\n\n") < len(plays.train.tokens)


def test_a_block_and_its_targets_are_one_character_apart_and_blocks_tile_the_text(tmp_path):
    path = tmp_path / "täxt file.txt"
    path.write_text("abcdefghij" * 10, encoding="utf-8")
    text = data.load(path, block_size=4)
    assert len(text.train) == (90 - 1) // 4 and len(text.test) == (10 - 1) // 4
    x, y = text.train[1]
    assert (text.decode(x), text.decode(y)) == ("efgh", "fghi")
    assert x.dtype is y.dtype is minipar.int64
    xs, ys = text.train.get_batch(range(len(text.train)))
    assert text.decode(xs.array.ravel()) == ("abcdefghij" * 10)[:88]
    assert text.decode(ys.array.ravel()) == ("abcdefghij" * 10)[1:89]


def test_encode_and_decode_are_inverse_and_refuse_what_is_not_in_the_vocabulary(tmp_path):
    path = tmp_path / "greek.txt"
    path.write_text("\r\n".join(["αβγ", "é😀"] * 40), encoding="utf-8", newline="")
    text = data.load(str(path), block_size=4)
    assert text.chars == "".join(sorted("\nαβγé😀"))
    assert text.decode(text.encode("😀γ\nα")) == "😀γ\nα"
    assert text.encode("").shape == (0,) and text.decode([]) == ""
    assert text.encode("\nα").tolist() == [0, text.chars.index("α")]
    for bad in "x", "α~", "\0":
        with pytest.raises(ValueError, match="is not in the vocabulary of 6"):
            text.encode(bad)
    for bad in [6], [0, -1]:
        with pytest.raises(ValueError, match="the vocabulary has 0 to 5"):
            text.decode(bad)


def test_a_vocabulary_of_more_than_256_characters_works(tmp_path):
    chars = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    path = tmp_path / "large.txt"
    path.write_text(chars * 3, encoding="utf-8")
    text = data.load(path, block_size=10)
    assert text.vocab_size == 300 and text.decode(text.train.tokens) == (chars * 3)[:810]


# ------------------------------------------------------------------ files


def arrays(n=20, **changes):
    rng = np.random.default_rng(0)
    good = {"x": rng.normal(size=(n, 4)).astype(np.float32), "y": rng.integers(0, 3, n)}
    return {k: v for k, v in {**good, **changes}.items() if v is not None}


def test_an_npz_without_test_arrays_gives_the_same_tenth_as_test_set_each_time(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(50, dtype=np.float32)[:, None], y=np.arange(50) % 5)
    first, second = data.load(tmp_path / "a.npz"), data.load(tmp_path / "a.npz")
    train, test = [p.tensors[0].array.ravel() for p in (first.train, first.test)]
    assert len(test) == 5 and sorted([*train, *test]) == list(range(50))
    assert np.array_equal(test, second.test.tensors[0].array.ravel())
    for part in first.train, first.test:  # rows and labels stay together
        assert np.array_equal(part.tensors[0].array.ravel() % 5, part.tensors[1].array)


def test_an_npz_with_test_arrays_keeps_its_own_split_and_images_are_scaled(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.full((3, 2, 2), 255, np.uint8), y=[0, 1, 2],
             x_test=np.full((1, 2, 2), 51, np.uint8), y_test=[4])
    found = data.load(tmp_path / "a.npz", dtype=np.float64)
    assert (len(found.train), len(found.test), found.num_classes) == (3, 1, 5)
    assert found.input_shape == (2, 2) and found.train.tensors[0].dtype is minipar.float64
    assert (found.train.tensors[0].array == 1).all() and (found.test.tensors[0].array == .2).all()


def npz_bytes(**items):
    out = io.BytesIO()
    np.savez_compressed(out, **items)
    return out.getvalue()


def npy_bytes(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def zip_of(**members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return out.getvalue()


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1:]


X = arrays()["x"]
NAN = X.copy()
NAN[7, 2] = np.nan
HEADER = npy_bytes(X)
BAD_NPZ = {
    "empty": (b"", "no .npz archive"),
    "garbage": (bytes(range(256)) * 9, "no .npz archive"),
    "garbage that begins like an archive": (b"PK\x03\x04" + bytes(range(256)), "not a readable"),
    "truncated": (npz_bytes(**arrays())[:-200], "not a readable"),
    "damaged inside": (flipped(npz_bytes(**arrays(2000)), 5000), "not a readable"),
    "an .npy file": (npy_bytes(X), "no .npz archive"),
    "a pickle": (b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00]", "no .npz archive"),
    "an archive of text": (zip_of(x=b"hello", y=b"world"), "x has dtype .S5: numbers"),
    "a member with half its bytes": (zip_of(x=HEADER[:150], y=HEADER), "not a readable"),
    "a header that is no header": (zip_of(x=HEADER.replace(b"'descr'", b"}}({[=)"), y=HEADER),
                                   "not a readable"),
    "a header of 2**62 samples": (zip_of(x=HEADER.replace(b"(20, 4), }" + b" " * 19,
                                                          b"(4611686018427387904, 4), }  "),
                                         y=HEADER), "not a readable"),
    "no arrays": (zip_of(), "no array x or y in it, but nothing"),
    "x only": (npz_bytes(x=X), "no array y in it, but x"),
    "other names": (npz_bytes(images=X, labels=X), "no array x or y in it, but images, labels"),
    "x_test without y_test": (npz_bytes(**arrays(), x_test=X), "no array y_test in it"),
    "90 labels for 100 samples": (npz_bytes(**arrays(100, y=np.zeros(90, int))),
                                  "x has 100 samples, y has 90 labels"),
    "objects": (npz_bytes(**arrays(y=np.array([None, {}] * 10))), "holds Python objects"),
    "strings": (npz_bytes(**arrays(x=np.full((20, 3), "a"))), "x has dtype <U1: numbers"),
    "complex numbers": (npz_bytes(**arrays(x=X + 0j)), "x has dtype complex64: numbers"),
    "x of one axis": (npz_bytes(**arrays(x=X[:, 0])), r"x has shape \(20,\)"),
    "x of no axis": (npz_bytes(**arrays(x=np.float32(1))), r"x has shape \(\)"),
    "no samples": (npz_bytes(x=X[:0], y=np.zeros(0, int)), r"x has shape \(0, 4\)"),
    "samples without values": (npz_bytes(**arrays(x=X[:, :0])), r"x has shape \(20, 0\)"),
    "one sample": (npz_bytes(x=X[:1], y=np.zeros(1, int)), "1 sample cannot be split"),
    "NaN": (npz_bytes(**arrays(x=NAN)), "in 1 of 20 samples, first in sample 7"),
    "too large for float32": (npz_bytes(**arrays(x=X.astype(float) * 1e300)), "as float32"),
    "floating labels": (npz_bytes(**arrays(y=np.zeros(20))), "y has dtype float64: labels must"),
    "negative label": (npz_bytes(**arrays(y=np.arange(20) - 1)), "y has label -1 in sample 0"),
    "labels that are identifiers": (npz_bytes(**arrays(y=np.arange(20) * 10**9)),
                                    "y has label 1000000000 in sample 1"),
    "labels beyond int64": (npz_bytes(**arrays(y=np.full(20, 2**64 - 1, np.uint64))),
                            "y has label 18446744073709551615"),
    "one-hot labels": (npz_bytes(**arrays(y=np.zeros((20, 3), int))), r"y has shape \(20, 3\)"),
    "scalar label": (npz_bytes(**arrays(y=np.int64(1))), r"y has shape \(\)"),
    "another shape of test samples": (npz_bytes(**arrays(), x_test=X[:, :3], y_test=np.zeros(20)),
                                      r"samples of x are float32 \(4,\), those of x_test"),
    "NaN in the test set": (npz_bytes(**arrays(), x_test=NAN, y_test=arrays()["y"]),
                            "x_test has NaN"),
}
TEXT_GZ = gzip.compress(b"to be or not to be " * 200)
BAD_TEXT = {
    "empty.txt": (b"", "an empty text"),
    "binary.txt": (b"abc\xff\x00", "not a UTF-8 text: byte 3 is 0xff"),
    "cut.txt": ("é".encode()[:1], "not a UTF-8 text: byte 0 is 0xc3"),
    "short.txt": (b"x" * 1000, "last tenth of 1000 characters is 100, but one block of 128 needs"),
    "garbage.txt.gz": (b"to be or not to be", "not a readable text file"),
    "empty.txt.gz": (b"", "an empty text"),
    "truncated.txt.gz": (TEXT_GZ[:-20], "not a readable text file"),
    "damaged.txt.gz": (flipped(TEXT_GZ, 25), "not a readable text file"),
    "table.tsv": (b"1,2,3\n", "data files are .npz"),
}


def check_one_line(path, pattern):
    with pytest.raises(ValueError, match=pattern) as caught:
        data.load(path)
    assert type(caught.value) is ValueError
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and "pickle" not in message
    assert len(message) < len(str(path)) + 200


@pytest.mark.parametrize("case", BAD_NPZ)
def test_a_bad_npz_file_is_one_line_of_value_error(case, tmp_path):
    content, pattern = BAD_NPZ[case]
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    check_one_line(path, pattern)


@pytest.mark.parametrize("name", BAD_TEXT)
def test_a_bad_text_file_is_one_line_of_value_error(name, tmp_path):
    content, pattern = BAD_TEXT[name]
    path = tmp_path / name
    path.write_bytes(content)
    check_one_line(path, pattern)


def test_any_single_damaged_byte_of_an_npz_file_gives_value_error_or_valid_data(tmp_path):
    content, path = npz_bytes(**arrays(40)), tmp_path / "a.npz"
    for position in range(0, len(content), 7):
        path.write_bytes(flipped(content, position))
        try:
            found = data.load(path)
        except ValueError as error:
            assert type(error) is ValueError and "\n" not in str(error)
        else:
            assert len(found.train) + len(found.test) == 40


def test_missing_files_directories_and_unknown_names_are_one_line(tmp_path):
    check_one_line(tmp_path / "missing.npz",
                   r"neither a data set \(digits, fashion, plays\) nor a file$")
    for name in "directory.npz", "directory.txt", "directory":
        (tmp_path / name).mkdir()
        check_one_line(tmp_path / name, "not a readable|nothing known")
    check_one_line("digit", "nor a file; did you mean digits")
    check_one_line("play", "did you mean plays")
    check_one_line("fashion-mnist", "did you mean fashion")
    check_one_line("", "neither a data set")


def test_block_sizes_and_dtypes_that_cannot_be_are_refused():
    for size in 0, -1, 1.5, None:
        with pytest.raises(ValueError, match="block_size should be a positive integer"):
            data.load("plays", block_size=size)
    with pytest.raises(ValueError, match="one block of 200000 needs 200000 [+] 1"):
        data.load("plays", block_size=200_000)
    with pytest.raises(ValueError, match="data cannot be int64"):
        data.load("digits", dtype="int64")
    with pytest.raises(ValueError, match="3 tokens for blocks of 3"):
        data.Blocks(np.zeros(3, np.int64), 3)
