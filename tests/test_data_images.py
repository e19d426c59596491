"""Folders of images. Oracles: files that Pillow wrote, sorted names, closed forms."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from minipar import data
from minipar.data import ImageFolder, images
from minipar.data.transforms import CenterCrop, Compose, RandomCrop, Resize, ToTensor

Image = pytest.importorskip("PIL.Image")


def write(path, color=(0, 0, 0), size=(6, 4)):
    """An image file of one color; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, tuple(color)).save(path)


def write_classes(root, count=5, names=("cat", "dog", "ox")):
    """count images of each class: image i of class c has the color (10 * c, i, 0)."""
    for c, name in enumerate(names):
        for i in range(count):
            write(root / name / f"{i:03d}.png", (10 * c, i, 0))
    return root


def everything(part):
    x, y = part.get_batch(range(len(part)))
    return x.array, y.array


# ------------------------------------------------------------------ ImageFolder


def test_an_image_folder_labels_sorted_classes_and_finds_nested_files_in_order(tmp_path):
    root = tmp_path / "Bilder größe"
    for name in ("zebra/b.PNG", "zebra/a.jpg", "Yak/deep/er/x.bmp", "Yak/y.ppm", "ape/1.tiff",
                 "ape/10.webp", "ape/2.png"):
        write(root / name)
    for name in ("zebra/notes.txt", "zebra/._a.jpg", ".hidden/c.png", "readme.png"):
        write(root / "x.png")
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"no image")
    folder = ImageFolder(root)
    assert folder.classes == ["Yak", "ape", "zebra"]  # capitals first, as sorted() has it
    assert folder.class_to_idx == {"Yak": 0, "ape": 1, "zebra": 2}
    assert [(p.removeprefix(str(root) + "/"), y) for p, y in folder.samples] == [
        ("Yak/y.ppm", 0), ("Yak/deep/er/x.bmp", 0), ("ape/1.tiff", 1), ("ape/10.webp", 1),
        ("ape/2.png", 1), ("zebra/a.jpg", 2), ("zebra/b.PNG", 2)]
    assert folder.targets == [0, 0, 1, 1, 1, 2, 2] and len(folder) == 7
    image, label = folder[-1]
    assert (image.mode, image.size, label) == ("RGB", (6, 4), 2)


def test_an_image_folder_applies_its_transforms_and_loader(tmp_path):
    root = write_classes(tmp_path / "r")
    folder = ImageFolder(root, Compose([Resize(2), CenterCrop(2), ToTensor()]), lambda y: -y)
    x, y = folder[7]
    assert x.shape == (3, 2, 2) and y == -1
    np.testing.assert_allclose(x.array[:, 0, 0] * 255, [10, 2, 0], rtol=1e-6)
    x, y = next(iter(data.DataLoader(folder, 15, num_workers=2)))
    assert x.shape == (15, 3, 2, 2) and y.tolist() == [0] * 5 + [-1] * 5 + [-2] * 5
    paths = ImageFolder(root, loader=lambda p: p, is_valid_file=lambda p: p.endswith("001.png"))
    assert [p[-11:] for p, _ in paths] == ["cat/001.png", "dog/001.png", "/ox/001.png"]


def test_an_empty_class_is_refused_unless_it_is_allowed(tmp_path):
    root = write_classes(tmp_path / "r")
    (root / "fox").mkdir()
    with pytest.raises(ValueError, match="fox: 0 images"):
        ImageFolder(root)
    folder = ImageFolder(root, allow_empty=True)
    assert folder.classes == ["cat", "dog", "fox", "ox"] and set(folder.targets) == {0, 1, 3}


def test_find_classes_may_be_overridden(tmp_path):
    class TwoOfThem(ImageFolder):
        def find_classes(self, directory):
            return ["ox", "cat"], {"ox": 0, "cat": 1}
    folder = TwoOfThem(write_classes(tmp_path / "r", 1))
    assert [(p[-11:], y) for p, y in folder.samples] == [("cat/000.png", 1), ("/ox/000.png", 0)]


def test_a_link_to_a_folder_above_ends_and_other_links_are_followed(tmp_path):
    root = write_classes(tmp_path / "r", 2)
    write(tmp_path / "elsewhere" / "z.png")
    (root / "cat" / "loop").symlink_to(root)
    (root / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    # cat: its 2 and, through the link, all others' but not its own again.
    assert np.bincount(ImageFolder(root).targets).tolist() == [2 + 3 + 2, 3, 2]


# ------------------------------------------------------------------ load


def test_a_folder_with_train_and_test_keeps_its_split_and_labels_by_trains_classes(tmp_path):
    write_classes(tmp_path / "r" / "train")
    write_classes(tmp_path / "r" / "val", 2, ("dog",))
    for name in "val", "test":  # the other name of the test part
        if name == "test":
            (tmp_path / "r" / "val").rename(tmp_path / "r" / "test")
        found = data.load(tmp_path / "r", image_size=4)
        assert found.classes == ("cat", "dog", "ox") and found.num_classes == 3
        assert found.input_shape == (3, 4, 4) and found.kind == "classification"
        assert (len(found.train), len(found.test)) == (15, 2)
        assert everything(found.test)[1].tolist() == [1, 1]
        x, y = everything(found.train)
        assert np.array_equal(np.rint(x[:, 0] * 255).max((1, 2)), 10 * y)


def test_a_folder_without_test_part_is_split_by_a_fixed_tenth(tmp_path):
    write_classes(tmp_path / "r" / "train", 10)
    split, plain = data.load(tmp_path / "r"), data.load(tmp_path / "r" / "train")
    assert split.input_shape == (3, 64, 64)
    for part in "train", "test":
        x, y = everything(getattr(split, part))
        assert len(y) == (27 if part == "train" else 3)
        assert np.array_equal(x, everything(getattr(plain, part))[0])
        assert np.array_equal(np.rint(x[:, 0, 0, 0] * 255), 10 * y)
    colors = np.concatenate([everything(p)[0][:, :, 0, 0] for p in (plain.train, plain.test)])
    assert len(np.unique(colors, axis=0)) == 30


def test_train_may_be_a_class(tmp_path):
    write_classes(tmp_path / "r", 5, ("bus", "train"))
    assert data.load(tmp_path / "r").classes == ("bus", "train")


def test_images_of_any_size_and_mode_become_squares_in_0_to_1_of_the_type(tmp_path):
    for name in "a", "b":
        write(tmp_path / "r" / name / "wide.png", (255, 51, 0), (30, 8))
        write(tmp_path / "r" / name / "high.png", (255, 51, 0), (3, 40))
        Image.new("L", (5, 5), 51).save(tmp_path / "r" / name / "grey.png")
        Image.new("RGBA", (9, 7), (51, 0, 0, 99)).save(tmp_path / "r" / name / "alpha.png")
        Image.new("1", (9, 7), 1).save(tmp_path / "r" / name / "bits.png")
    found = data.load(tmp_path / "r", image_size=5, dtype="float64")
    x = np.concatenate([everything(p)[0] for p in (found.train, found.test)])
    assert x.dtype == np.float64 and x.shape == (10, 3, 5, 5)
    assert set(np.unique(np.round(x * 255))) == {0, 51, 255}
    colors = sorted(map(tuple, np.round(x[:, :, 2, 2] * 5)))
    assert colors == sorted(2 * [(5, 1, 0), (5, 1, 0), (1, 1, 1), (1, 0, 0), (5, 5, 5)])


def test_the_middle_of_an_image_is_what_is_kept(tmp_path):
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 255
    for name in "a", "b":
        (tmp_path / name).mkdir()
        Image.fromarray(wide).save(tmp_path / name / "1.png")
    assert (everything(data.load(tmp_path, image_size=4).train)[0] == 1).all()


@pytest.mark.parametrize("kept", [True, False])
def test_images_are_read_when_asked_for_and_once_if_they_are_kept(kept, tmp_path, monkeypatch):
    read = []

    def loader(path, original=images.default_loader):
        read.append(path)
        return original(path)
    monkeypatch.setattr(images, "default_loader", loader)
    # 14 training images of 3 x 4 x 4 bytes
    monkeypatch.setattr(images, "KEPT_BYTES", 14 * 48 - (0 if kept else 1))
    found = data.load(write_classes(tmp_path / "r"), image_size=4).train
    assert not read
    first = found.get_batch([3, 1, 3, -1])
    assert len(read) == (3 if kept else 4)
    second = found.get_batch([3, 1, 3, -1])
    assert len(read) == (3 if kept else 8)
    assert np.array_equal(first[0].array, second[0].array)
    assert np.array_equal(first[0].array[0], first[0].array[2])
    first[0].array[:] = 7  # a batch is a copy
    assert np.array_equal(found.get_batch([3])[0].array, second[0].array[:1])
    assert found.get_batch([])[0].shape == (0, 3, 4, 4)
    with pytest.raises(IndexError):
        found.get_batch([14])


def test_loader_threads_over_kept_images_give_what_one_thread_gives(tmp_path):
    root = write_classes(tmp_path / "r", 20)
    serial = [[t.tolist() for t in batch] for batch in data.DataLoader(
        data.load(root, image_size=4).train, 7)]
    part = data.load(root, image_size=4).train
    for _ in range(2):
        assert serial == [[t.tolist() for t in batch] for batch in data.DataLoader(
            part, 7, num_workers=4)]


def test_random_transforms_of_a_folder_do_not_depend_on_workers_or_on_who_has_the_part(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)
    for i, image in enumerate(pixels):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "ab"[i % 2] / f"{i:02d}.png")
    folder = ImageFolder(tmp_path, Compose([RandomCrop(8, padding=3), ToTensor()]))

    def epoch(dataset, **options):
        return np.concatenate([x.array for x, _ in data.DataLoader(dataset, 4, **options)])
    whole = epoch(folder)
    assert np.array_equal(whole, epoch(folder, num_workers=3))
    mine = list(range(1, 12, 2))
    assert np.array_equal(whole[mine], epoch(data.Subset(folder, mine), num_workers=1))
    assert not np.array_equal(whole, np.concatenate([folder[i][0].array[None]
                                                     for i in range(12)]))


def test_pillow_is_imported_by_the_first_image_and_not_by_minipar(tmp_path):
    root = write_classes(tmp_path / "r")
    code = ("import sys, minipar.data as d\n"
            "d.load('digits')\n"
            "print('PIL' in sys.modules)\n"
            f"d.load({str(root)!r}, image_size=4)\n"
            "print('PIL' in sys.modules)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=Path(__file__).parent.parent)
    assert done.stdout.split() == ["False", "True"], done


def test_without_pillow_an_image_says_in_one_line_what_to_install(tmp_path, monkeypatch):
    found = data.load(write_classes(tmp_path / "r"), image_size=4)
    monkeypatch.setitem(sys.modules, "PIL", None)
    for call in lambda: found.train.get_batch([0]), lambda: data.load(tmp_path / "r"):
        with pytest.raises(ValueError, match=r"needs Pillow: pip install 'minipar\[images\]'$"):
            call()


@pytest.mark.parametrize("size", [0, -1, 2.5, None])
def test_an_image_size_that_cannot_be_is_refused(size, tmp_path):
    with pytest.raises(ValueError, match="image_size should be a positive integer value"):
        data.load(write_classes(tmp_path / "r"), image_size=size)


def test_ranks_as_threads_read_one_folder_at_once(tmp_path):
    root = write_classes(tmp_path / "r", 10)
    expected, found = everything(data.load(root, image_size=4).train), {}
    shared = data.load(root, image_size=4).train

    def rank(r):
        found[r] = everything(shared)
    threads = [threading.Thread(target=rank, args=(r,)) for r in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for r in range(4) for a, b in zip(found[r], expected))
