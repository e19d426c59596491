"""IDX files and tables of the user. Oracles: bytes and text written by the tests."""

import gzip

import numpy as np
import pytest
from data_files import idx_bytes, idx_images, write_mnist

import minipar
from minipar import data

# ------------------------------------------------------------------ IDX


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dot", [False, True])
def test_a_folder_of_mnists_four_files_is_a_data_set_scaled_to_0_to_1(packed, dot, tmp_path):
    written = write_mnist(tmp_path / "mein Ördner", packed, dot)
    found = data.load(tmp_path / "mein Ördner", dtype="float64")
    assert (found.kind, found.num_classes, found.input_shape) == ("classification", 3, (1, 4, 5))
    for name, (images, labels) in written.items():
        part = getattr(found, name)
        x, y = part.get_batch(np.arange(len(part)))
        assert x.dtype is minipar.float64 and y.dtype is minipar.int64
        assert np.array_equal(x.array[:, 0], images / 255) and np.array_equal(y.array, labels)
        one, label = part[-1]
        assert np.array_equal(one.array, x.array[-1]) and label.item() == labels[-1]
        assert part.get_batch([])[0].shape == (0, 1, 4, 5)


def test_an_idx_file_beside_its_labels_is_split_into_nine_tenths_and_a_tenth(tmp_path):
    images, labels = idx_images(30)
    (tmp_path / "emnist-train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
    (tmp_path / "emnist-train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    found = data.load(str(tmp_path / "emnist-train-images-idx3-ubyte.gz"))
    assert (len(found.train), len(found.test)) == (27, 3)
    rows = {image.tobytes(): label for image, label in zip(images, labels)}
    seen = []
    for part in found.train, found.test:
        for x, y in zip(*part.get_batch(range(len(part)))):
            image = np.rint(x.array[0] * 255).astype(np.uint8).tobytes()
            assert rows[image] == y.item()
            seen.append(image)
    assert len(set(seen)) == 30
    again = data.load(str(tmp_path / "emnist-train-images-idx3-ubyte.gz"))
    assert np.array_equal(again.test.pixels, found.test.pixels)


def test_a_whole_file_is_read_whatever_its_name_says_of_packing(tmp_path):
    images, labels = idx_images()
    (tmp_path / "images.idx3").write_bytes(gzip.compress(idx_bytes(images)))
    (tmp_path / "labels.idx1.gz").write_bytes(idx_bytes(labels))
    assert len(data.load(tmp_path / "images.idx3").train) == 18


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "f4", "f8"])
def test_idx_elements_that_are_no_bytes_keep_their_values(kind, tmp_path):
    images = np.arange(-60, 60).reshape(10, 3, 4)
    (tmp_path / "images-idx3").write_bytes(idx_bytes(images, kind))
    (tmp_path / "labels-idx1").write_bytes(idx_bytes(np.arange(10) % 2, "i4"))
    found = data.load(tmp_path / "images-idx3", dtype="float64")
    x = np.concatenate([part.tensors[0].array for part in (found.train, found.test)])
    assert sorted(x.ravel()) == list(range(-60, 60)) and found.input_shape == (1, 3, 4)


def test_images_of_several_channels_and_samples_of_one_axis_keep_their_shapes(tmp_path):
    for shape, expected in ((10, 3, 2, 2), (3, 2, 2)), ((10, 7), (7,)):
        (tmp_path / "images-idx").write_bytes(idx_bytes(np.zeros(shape)))
        (tmp_path / "labels-idx").write_bytes(idx_bytes(np.arange(10)))
        assert data.load(tmp_path / "images-idx").input_shape == expected


def test_a_model_trains_on_idx_images_as_on_the_same_npz(tmp_path):
    images, labels = idx_images(40)
    (tmp_path / "images-idx3").write_bytes(idx_bytes(images))
    (tmp_path / "labels-idx1").write_bytes(idx_bytes(labels))
    np.savez(tmp_path / "same.npz", x=images[:, None], y=labels)
    parts = [data.load(tmp_path / name).train for name in ("images-idx3", "same.npz")]
    batches = [part.get_batch([3, 1, 35]) for part in parts]
    for ours, theirs in zip(*batches):  # bit for bit
        assert ours.dtype is theirs.dtype and np.array_equal(ours.array, theirs.array)


# ------------------------------------------------------------------ tables


def load_table(tmp_path, text, name="table.csv", **options):
    """x and y of all rows, in the order of the first feature."""
    path = tmp_path / name
    content = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    found = data.load(path, **options)
    x, y = (np.concatenate([part.tensors[i].array for part in (found.train, found.test)])
            for i in (0, 1))
    order = np.argsort(x[:, 0])
    return x[order].tolist(), y[order].tolist()


ROWS = [[0.5, -2.0, 1], [1.5, 3e3, 0], [2.5, 0.25, 2]]
EXPECTED = [row[:2] for row in ROWS], [row[2] for row in ROWS]


@pytest.mark.parametrize("text", [
    "0.5,-2,1\n1.5,3e3,0\n2.5,0.25,2\n",
    "0.5,-2,1\n1.5,3e3,0\n2.5,0.25,2",                              # no end of the last line
    "a,b,c\n0.5,-2,1\n1.5,3e3,0\n2.5,0.25,2\n",                     # a header: the last column
    "\ufeffa,b,c\r\n0.5,-2,1\r\n1.5,3e3,0\r\n2.5,0.25,2\r\n",       # of a spreadsheet
    "Label,a,b\n1,0.5,-2\n0,1.5,3e3\n2,2.5,0.25\n",                 # a header that names it
    "a,y,b\n0.5,1,-2\n1.5,0,3e3\n2.5,2,0.25\n",
    "target,a,b\n1,0.5,-2\n0,1.5,3e3\n2,2.5,0.25\n",
    "y,a,label\n0.5,-2,1\n1.5,3e3,0\n2.5,0.25,2\n",                 # label goes before y
    "0,1,label\n0.5,-2,1\n1.5,3e3,0\n2.5,0.25,2\n",                 # numbered columns
    "a;b;c\n0.5;-2;1\n1.5;3e3;0\n2.5;0.25;2\n",
    "0.5\t-2\t1\n1.5\t3e3\t0\n2.5\t0.25\t2\n",
    '"a, long","b","y"\n"0.5","-2","1"\n1.5,"3e3",0\n2.5,0.25,2\n',
    "\n0.5, -2, 1\n\n1.5 ,+3e3, 0.0\n   \n2.5,.25,2e0\n\n",         # spaces and empty lines
    "2.5,0.25,2\n0.5,-2,1\n1.5,3e3,0\n",
])
def test_a_table_has_rows_of_features_and_a_label(text, tmp_path):
    assert load_table(tmp_path, text, dtype="float64") == EXPECTED
    assert load_table(tmp_path, text, "täble two.csv.gz", dtype="float64") == EXPECTED


def test_a_table_is_split_as_other_files_are_and_has_the_type_that_was_asked_for(tmp_path):
    path = tmp_path / "t.CSV"
    path.write_text("".join(f"{i},{i % 7}\n" for i in range(50)))
    found = data.load(path)
    assert (len(found.train), len(found.test), found.num_classes) == (45, 5, 7)
    assert found.input_shape == (1,) and found.train.tensors[0].dtype is minipar.float32
    x, y = found.test.tensors
    assert np.array_equal(x.array[:, 0] % 7, y.array)


def test_numbers_of_a_table_are_read_exactly(tmp_path):
    values = np.random.default_rng(0).normal(size=20) * 10.0 ** np.arange(-10, 10)
    text = "".join(f"{v!r},0\n" for v in values.tolist())
    assert load_table(tmp_path, text, dtype="float64")[0] == sorted([v] for v in values.tolist())
