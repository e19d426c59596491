"""Images in folders, one folder for each class. torchvision's names where it has one.

Decoding is Pillow's (the extra `images`), imported when the first image is opened.
"""

import os

import numpy as np

from .. import dtypes
from ..tensor import Tensor
from .files import reason
from .loader import Dataset
from .transforms import CenterCrop, Resize

IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
KEPT_BYTES = 256 * 2**20  # ImageFiles that fit in here are decoded once


def default_loader(path):
    """The image in a file as an RGB Pillow image. Raises ValueError, naming the file."""
    return _with_image(path, lambda image: image.convert("RGB"))


def _with_image(path, action):
    """action(Pillow image of a file, of which only the header is read yet)."""
    try:
        from PIL import Image
    except ImportError:
        raise ValueError(f"{path}: reading images needs Pillow: pip install 'minipar[images]'"
                         ) from None
    try:  # damaged files raise a dozen exception types from Pillow's decoders
        with Image.open(path) as image:
            return action(image)
    except Exception as error:
        # What Pillow says of a file that it does not know repeats the path.
        why = "" if "cannot identify" in str(error) else f" ({reason(error)})"
        raise ValueError(f"{path}: not a readable image{why}") from None


class ImageFolder(Dataset):
    """Images in root/CLASS/**/IMAGE: sample i is (image, label). torchvision's class.

    The names of root's folders in sorted order are the classes, and their positions the labels;
    images count in folders of any depth, in sorted order. Names that begin with a dot are left out.

    root:             the folder.
    transform:        called with the image that `loader` gives (see `minipar.data.transforms`).
    target_transform: called with the label.
    loader:           makes an image of a path; by default a Pillow image, RGB.
    is_valid_file:    which paths are images; by default those that end in IMG_EXTENSIONS.
    allow_empty:      a class may have no image.

    Attributes: classes (list of str), class_to_idx (dict), samples (list of (path, label)),
    targets (list of labels).
    Raises ValueError if there is no class, or a class without images; and, when a sample is
    asked for, if it cannot be read.
    """

    def __init__(self, root, transform=None, target_transform=None, loader=default_loader,
                 is_valid_file=None, allow_empty=False):
        self.root = os.fspath(root)
        self.transform, self.target_transform, self.loader = transform, target_transform, loader
        self.classes, self.class_to_idx = self.find_classes(self.root)
        self.samples = _samples(self.root, self.class_to_idx, is_valid_file, allow_empty)
        self.targets = [label for _, label in self.samples]

    def find_classes(self, directory):
        """(names of the classes, {name: label}); may be overridden. ValueError if there is none."""
        classes = _folders(directory)
        if not classes:
            raise ValueError(f"{directory}: no folder in it: a class is a folder of images")
        return classes, {name: label for label, name in enumerate(classes)}

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        path, label = self.samples[index]
        image = self.loader(path)
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return image, label


def find_images(root):
    """(classes, train, test) of a folder of images; parts are lists of (path, label).

    If root holds train and test (or val), these are folders as of an ImageFolder, and all classes
    are in train. Else, with train alone or none of them, test is None.
    Raises ValueError if there are fewer than 2 classes, or a class without images.
    """
    folders = _folders(root)
    other = next((name for name in ("test", "val") if name in folders), None)
    split = "train" in folders and (other is not None or len(folders) == 1)
    top = os.path.join(root, "train") if split else root
    classes = _folders(top)
    if not any(_images(os.path.join(top, name)) for name in classes):
        loose = len([f for f in _listed(top) if f.lower().endswith(IMG_EXTENSIONS)])
        raise ValueError(f"{top}: a folder of nothing known: neither MNIST's four IDX files nor "
                         "images in one folder for each class"
                         + (f" ({loose} images lie in no class)" if loose else ""))
    if len(classes) < 2:
        raise ValueError(f"{top}: 1 class ({classes[0]}): at least 2 are needed, a folder each")
    train = ImageFolder(top)
    if not split or other is None:
        return classes, train.samples, None
    test = os.path.join(root, other)
    unknown = [name for name in _folders(test) if name not in train.class_to_idx]
    if unknown:
        raise ValueError(f"{test}: {len(unknown)} classes that are not in train: "
                         f"{', '.join(unknown)[:100]}")
    held = {name: train.class_to_idx[name] for name in _folders(test)}
    samples = _samples(test, held)
    if not samples:
        raise ValueError(f"{test}: 0 images")
    return classes, train.samples, samples


def _listed(folder):
    """The names in a folder in sorted order, without those that begin with a dot."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise ValueError(f"{folder}: not a readable folder ({reason(error)})") from None


def _folders(folder):
    return [name for name in _listed(folder) if os.path.isdir(os.path.join(folder, name))]


def _images(folder, is_valid_file=None, above=()):
    """The paths of all images in a folder of any depth, those of a folder before its folders'."""
    above = (*above, os.path.realpath(folder))
    paths = [os.path.join(folder, name) for name in _listed(folder)]
    found, inner = [], []
    for path in paths:
        if os.path.isdir(path):
            if os.path.realpath(path) not in above:  # a link to a folder above would never end
                inner += _images(path, is_valid_file, above)
        elif is_valid_file(path) if is_valid_file else path.lower().endswith(IMG_EXTENSIONS):
            found.append(path)
    return found + inner


def _samples(root, class_to_idx, is_valid_file=None, allow_empty=False):
    """[(path, label)] of all classes in the order of their names."""
    samples = []
    for name, label in sorted(class_to_idx.items()):
        folder = os.path.join(root, name)
        found = _images(folder, is_valid_file)
        if not found and not allow_empty:
            raise ValueError(f"{folder}: 0 images"
                             + ("" if is_valid_file else f" ({' '.join(IMG_EXTENSIONS)})"))
        samples += [(path, label) for path in found]
    return samples


class Pixels(Dataset):
    """Images kept as bytes, of which batches are made as numbers in [0, 1].

    pixels: uint8 (N, ...), not copied.
    labels: integers (N,).
    dtype:  floating type of the batches.
    A sample is a tuple (dtype (...), int64 ()), a batch a list of two.
    """

    def __init__(self, pixels, labels, dtype):
        self.pixels, self.labels = pixels, np.asarray(labels, dtype=np.int64)
        self.dtype = dtypes.dtype(dtype)

    @property
    def input_shape(self):
        return self.pixels.shape[1:]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return tuple(Tensor(field.array[0]) for field in self.get_batch([index]))

    def get_batch(self, indices):
        """[images, labels]: Tensors (len(indices), ...) of `dtype` and int64 (len(indices),)."""
        indices = np.asarray(indices, dtype=np.int64)
        x = self._rows(indices).astype(self.dtype.storage)
        x /= x.dtype.type(255)
        return [Tensor(x), Tensor(self.labels[indices])]

    def _rows(self, indices):
        return self.pixels.take(indices, axis=0)


class ImageFiles(Pixels):
    """Image files as RGB squares: the smaller edge resized to `image_size`, the middle cut out.

    samples:    [(path, label)].
    image_size: height and width S in pixels.
    dtype:      floating type of the batches, which are (n, 3, S, S) in [0, 1].
    A file is read when it is asked for. If all N images fit in 256 MiB (N x 3 x S x S bytes), they
    are kept; else they are read again in each epoch.
    Raises ValueError for a size below 1, and from get_batch for a file that cannot be read.
    """

    def __init__(self, samples, image_size, dtype):
        if not isinstance(image_size, (int, np.integer)) or image_size < 1:
            raise ValueError(f"image_size should be a positive integer value, but got {image_size}")
        self.paths, labels = zip(*samples)
        shape = (len(self.paths), 3, image_size, image_size)
        kept = int(np.prod(shape, dtype=np.int64)) <= KEPT_BYTES
        super().__init__(np.empty(shape if kept else (0, *shape[1:]), np.uint8), labels, dtype)
        self._read = np.zeros(len(self.paths) if kept else 0, bool)
        self._resize, self._crop = Resize(image_size), CenterCrop(image_size)

    def check(self):
        """Raise ValueError if a file does not begin like an image, or if Pillow is missing.

        Headers only, and if the images are not kept, as they are too many, only of the first one.
        """
        for path in self.paths if len(self._read) else self.paths[:1]:
            _with_image(path, lambda image: image.size)

    def _rows(self, indices):
        if not len(self._read):
            return np.array([self._decode(i) for i in indices], np.uint8).reshape(
                len(indices), *self.input_shape)
        for i in np.unique(indices[~self._read[indices]]):
            self.pixels[i] = self._decode(i)
            self._read[i] = True  # last: another thread may look
        return super()._rows(indices)

    def _decode(self, i):
        image = self._crop(self._resize(default_loader(self.paths[i])))
        return np.asarray(image).transpose(2, 0, 1)
