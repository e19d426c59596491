"""Transforms. Oracles: closed forms of torchvision's rules, Pillow, and PyTorch's interpolation."""

from collections import Counter

import numpy as np
import pytest

import minipar
from minipar import data
from minipar.context import current
from minipar.data.transforms import (CenterCrop, Compose, InterpolationMode, Normalize, RandomCrop,
                                     RandomHorizontalFlip, Resize, ToTensor, pad)
from minipar.tensor import from_numpy

Image = pytest.importorskip("PIL.Image")


def picture(height, width, channels=3):
    """An image in which every pixel is another one: value = 16 * row + column (mod 251)."""
    rows, columns = np.indices((height, width))
    array = np.stack([(16 * rows + columns + c) % 251 for c in range(channels)], -1)
    return Image.fromarray(np.squeeze(array.astype(np.uint8), -1) if channels == 1
                           else array.astype(np.uint8))


def tensor_of(image):
    """The same pixels as a uint8 Tensor (C, H, W)."""
    return from_numpy(np.ascontiguousarray(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)))


def pixels(image):
    """uint8 (C, H, W) of an image of either kind."""
    return (image if isinstance(image, minipar.Tensor) else tensor_of(image)).array


BOTH = pytest.mark.parametrize("kind", [lambda image: image, tensor_of], ids=["pillow", "tensor"])


# ------------------------------------------------------------------ Resize

# (height, width), size, max_size -> (height, width): the smaller edge is size, the other one
# int(size * long / short).
RESIZED = [((10, 20), 5, None, (5, 10)), ((20, 10), 5, None, (10, 5)), ((7, 10), 5, None, (5, 7)),
           ((10, 7), 5, None, (7, 5)), ((9, 9), 4, None, (4, 4)), ((3, 8), 6, None, (6, 16)),
           ((10, 20), (5,), None, (5, 10)), ((10, 20), (6, 6), None, (6, 6)),
           ((10, 30), 10, 20, (6, 20)), ((30, 10), 10, 20, (20, 6)), ((10, 12), 10, 20, (10, 12)),
           ((1, 9), 2, None, (2, 18))]


@BOTH
@pytest.mark.parametrize("old, size, max_size, new", RESIZED)
def test_resize_gives_the_smaller_edge_the_size_and_keeps_the_ratio(kind, old, size, max_size, new):
    image = Resize(size, max_size=max_size)(kind(picture(*old)))
    assert pixels(image).shape == (3, *new)


def test_resize_leaves_an_image_of_the_right_size_as_it_is():
    image = picture(4, 6)
    assert Resize(4)(image) is image and Resize((4, 6))(image) is image


@pytest.mark.peer
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("old, new", [((10, 12), (5, 5)), ((7, 5), (20, 9)), ((9, 31), (4, 40)),
                                      ((1, 1), (3, 2)), ((6, 1), (1, 4)), ((64, 50), (13, 11))])
def test_bilinear_resizing_of_tensors_is_that_of_pytorch(old, new, antialias):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, 3, *old))
    ours = Resize(new, antialias=antialias)(from_numpy(x))
    theirs = torch.nn.functional.interpolate(torch.tensor(x), new, mode="bilinear",
                                             antialias=antialias, align_corners=False)
    assert ours.dtype is minipar.float64
    np.testing.assert_allclose(ours.array, theirs.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.peer
@pytest.mark.parametrize("old, new", [((10, 12), (5, 5)), ((7, 5), (20, 9)), ((1, 3), (4, 4))])
def test_nearest_resizing_of_tensors_is_that_of_pytorch(old, new):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(1, 2, *old))
    ours = Resize(new, InterpolationMode.NEAREST)(from_numpy(x))
    theirs = torch.nn.functional.interpolate(torch.tensor(x), new, mode="nearest")
    assert np.array_equal(ours.array, theirs.numpy())


@pytest.mark.parametrize("new", [(5, 5), (9, 31), (40, 17)])
def test_bilinear_resizing_of_a_tensor_is_pillows_up_to_rounding(new):
    image = picture(21, 13)
    ours, theirs = Resize(new)(tensor_of(image)), Resize(new)(image)
    assert ours.dtype is minipar.uint8
    assert np.abs(pixels(ours).astype(int) - pixels(theirs)).max() <= 1


def test_halving_an_image_with_nearest_takes_every_other_pixel():
    image = tensor_of(picture(8, 6))
    assert np.array_equal(Resize(3, InterpolationMode.NEAREST)(image).array,
                          image.array[:, ::2, ::2])


# ------------------------------------------------------------------ crops and flips


@BOTH
@pytest.mark.parametrize("old, size, top, left", [
    ((10, 10), 4, 3, 3), ((10, 12), (4, 6), 3, 3), ((9, 9), 4, 2, 2), ((11, 11), 4, 4, 4),
    ((7, 9), (4, 4), 2, 2), ((5, 8), (5, 8), 0, 0), ((6, 5), (1, 1), 2, 2)])
def test_a_center_crop_rounds_half_to_even(kind, old, size, top, left):
    # (9 - 4) / 2 = 2.5 -> 2, (11 - 4) / 2 = 3.5 -> 4: Python's round, as in torchvision
    image = picture(*old)
    h, w = (size, size) if isinstance(size, int) else size
    expected = pixels(image)[:, top:top + h, left:left + w]
    assert np.array_equal(pixels(CenterCrop(size)(kind(image))), expected)


@BOTH
@pytest.mark.parametrize("old, size, sides", [
    ((3, 4), (5, 4), ((1, 1), (0, 0))), ((3, 4), (6, 7), ((1, 2), (1, 2))),
    ((1, 1), (2, 2), ((0, 1), (0, 1)))])
def test_a_center_crop_pads_smaller_images_with_zeros(kind, old, size, sides):
    image = picture(*old)
    expected = np.pad(pixels(image), ((0, 0), *sides))
    assert np.array_equal(pixels(CenterCrop(size)(kind(image))), expected)


def test_a_center_crop_cuts_one_axis_and_pads_the_other():
    image = tensor_of(picture(8, 3))
    found = CenterCrop((4, 5))(image).array
    assert np.array_equal(found, np.pad(image.array[:, 2:6], ((0, 0), (0, 0), (1, 1))))


@BOTH
def test_a_flip_turns_left_into_right_with_its_probability(kind):
    image = kind(picture(3, 5))
    flipped = pixels(image)[:, :, ::-1]
    assert np.array_equal(pixels(RandomHorizontalFlip(p=1)(image)), flipped)
    assert np.array_equal(pixels(RandomHorizontalFlip(p=0)(image)), pixels(image))
    minipar.manual_seed(0)
    flip = RandomHorizontalFlip(0.25)
    count = sum(np.array_equal(pixels(flip(image)), flipped) for _ in range(2000))
    assert abs(count - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75)  # 5 standard deviations


@BOTH
def test_a_random_crop_takes_every_place_equally_often(kind):
    minipar.manual_seed(1)
    image, crop = picture(4, 5), RandomCrop((2, 3))
    places = {pixels(image)[:, t:t + 2, s:s + 3].tobytes(): (t, s)
              for t in range(3) for s in range(3)}
    taken = Counter(places[pixels(crop(kind(image))).tobytes()] for _ in range(1800))
    assert len(taken) == 9 and all(abs(n - 200) < 5 * np.sqrt(200) for n in taken.values())


@BOTH
@pytest.mark.parametrize("padding, sides", [(2, (2, 2, 2, 2)), ((1, 3), (1, 3, 1, 3)),
                                            ((1, 2, 3, 4), (1, 2, 3, 4)), ([2], (2, 2, 2, 2))])
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric"])
@pytest.mark.parametrize("channels", [1, 3])
def test_padding_is_left_top_right_bottom_and_that_of_numpy(kind, padding, sides, mode, channels):
    image = picture(5, 6, channels)
    left, top, right, bottom = sides
    options = {"constant_values": 7} if mode == "constant" else {}
    expected = np.pad(pixels(image), ((0, 0), (top, bottom), (left, right)), mode, **options)
    assert np.array_equal(pixels(pad(kind(image), padding, 7, mode)), expected)
    size = expected.shape[1:]
    crop = RandomCrop(size, padding=padding, fill=7, padding_mode=mode)  # of all: one place
    assert np.array_equal(pixels(crop(kind(image))), expected)


def test_a_color_fills_padding_of_a_pillow_image_and_palettes_stay():
    assert pad(picture(2, 2), 1, (1, 2, 3)).getpixel((0, 0)) == (1, 2, 3)
    image = picture(2, 2).quantize(4)
    assert np.array_equal(np.asarray(pad(image, 1, 0, "edge").convert("RGB"))[1:3, 1:3],
                          np.asarray(image.convert("RGB")))


@BOTH
def test_a_random_crop_of_a_smaller_image_is_refused_or_padded_if_needed(kind):
    image = kind(picture(3, 8))
    with pytest.raises(ValueError, match=r"size \(5, 4\) is larger than input image size \(3, 8\)"):
        RandomCrop((5, 4))(image)
    found = pixels(RandomCrop((5, 8), pad_if_needed=True)(image))
    padded = np.pad(pixels(image), ((0, 0), (2, 2), (0, 0)))
    assert any(np.array_equal(found, padded[:, t:t + 5]) for t in range(3))


def test_random_transforms_in_a_loader_are_the_same_with_workers_and_for_any_number_of_ranks():
    images = [picture(6, 7) for _ in range(12)]
    change = Compose([RandomCrop(6, padding=2), RandomHorizontalFlip(), ToTensor()])

    class Pictures(data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, i):
            return change(images[i])

    def epoch(**options):
        return np.concatenate([b.array for b in data.DataLoader(Pictures(), **options)])
    whole = epoch(batch_size=5)
    assert np.array_equal(whole, epoch(batch_size=2, num_workers=3))
    for rank in range(3):
        indices = list(data.GlobalBatchSampler(12, 6, rank=rank, num_replicas=3, shuffle=False))
        found = epoch(batch_sampler=indices, num_workers=1)
        assert np.array_equal(found, whole[sum(indices, [])])
    assert len({image.tobytes() for image in whole}) > 6  # equal images, cropped differently


# ------------------------------------------------------------------ to numbers


@pytest.mark.parametrize("mode, dtype", [("L", "float32"), ("RGB", "float32"), ("RGBA", "float32"),
                                         ("1", "float32"), ("I", "int32"), ("F", "float32"),
                                         ("LA", "float32"), ("CMYK", "float32")])
def test_to_tensor_scales_bytes_and_puts_channels_first(mode, dtype):
    image = picture(3, 5).convert(mode)
    found = ToTensor()(image)
    assert found.dtype.name == dtype and found.shape == (len(image.getbands()), 3, 5)
    scale = 1 if mode in "IF" else 255
    for row, column in np.ndindex(3, 5):
        value = np.atleast_1d(image.getpixel((column, row)))
        np.testing.assert_allclose(found.array[:, row, column], value / scale, rtol=1e-6)
    assert found.array.flags.c_contiguous


def test_to_tensor_takes_arrays_as_height_width_channels_and_the_default_type():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    minipar.set_default_dtype("float64")
    try:
        found = ToTensor()(array)
    finally:
        minipar.set_default_dtype("float32")
    assert found.dtype is minipar.float64
    assert np.array_equal(found.array, array.transpose(2, 0, 1) / 255)
    floats = ToTensor()(np.array([[1.5, 300]]))
    assert floats.tolist() == [[[1.5, 300]]] and floats.dtype is minipar.float64
    deep = Image.fromarray(np.array([[40_000]], np.uint16))
    assert ToTensor()(deep).tolist() == [[[40_000]]]
    array[:] = 0
    assert found.array.any()  # a copy


def test_normalize_is_per_channel_and_in_place_only_if_asked():
    x = from_numpy(np.random.default_rng(0).normal(size=(2, 3, 4, 5)))
    before = x.array.copy()
    found = Normalize([1, 2, 3], [2, 4, 8])(x)
    for c in range(3):
        assert np.allclose(found.array[:, c], (before[:, c] - (c + 1)) / 2 ** (c + 1))
    assert np.array_equal(x.array, before)
    assert Normalize([1, 2, 3], [2, 4, 8], inplace=True)(x) is x
    assert np.array_equal(x.array, found.array)
    assert np.allclose(Normalize(0.5, [0.5])(found).array, (found.array - 0.5) / 0.5)


@pytest.mark.parametrize("call, error, message", [
    (lambda: Resize(0), ValueError, r"positive integers, not \(0,\)"),
    (lambda: Resize((1, 2, 3)), ValueError, r"not \(1, 2, 3\)"),
    (lambda: Resize(5, max_size=5), ValueError, "max_size = 5 must be larger"),
    (lambda: Resize((5, 6), max_size=9), ValueError, "max_size = 9"),
    (lambda: Resize(5, "cubist"), ValueError, "cubist"),
    (lambda: Resize(2, max_size=3)(picture(1, 100)), ValueError, "would become 0 x 3"),
    (lambda: CenterCrop((0, 1)), ValueError, r"not \(0, 1\)"),
    (lambda: RandomHorizontalFlip(1.5), ValueError, "p = 1.5 is not a probability"),
    (lambda: RandomCrop(4, padding=(1, 2, 3))(picture(4, 4)), ValueError, "not 3"),
    (lambda: Resize(3)(np.zeros((4, 4))), TypeError, "ndarray"),
    (lambda: RandomHorizontalFlip()("cat.png"), TypeError, "not <class 'str'>"),
    (lambda: CenterCrop(2)(from_numpy(np.zeros(3))), TypeError, r"not \(3,\)"),
    (lambda: ToTensor()(from_numpy(np.zeros((3, 3)))), TypeError, "not a Tensor"),
    (lambda: ToTensor()(np.zeros(3)), ValueError, r"not \(3,\)"),
    (lambda: ToTensor()([[1]]), TypeError, "list"),
    (lambda: Normalize(0, 1)(picture(2, 2)), TypeError, "ToTensor goes first"),
    (lambda: Normalize(0, 1)(tensor_of(picture(2, 2))), TypeError, "uint8"),
    (lambda: Normalize(0, 0)(from_numpy(np.zeros((1, 2, 2)))), ValueError, "std has a zero"),
    (lambda: Normalize([0, 1], 1)(from_numpy(np.zeros((3, 2, 2)))), ValueError,
     "2 means and 1 standard deviations for 3 channels"),
    (lambda: Normalize(0, 1)(from_numpy(np.zeros((2, 2)))), ValueError, r"not \(2, 2\)"),
])
def test_transforms_refuse_what_cannot_be(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_transform_draws_from_the_generator_of_the_context():
    minipar.manual_seed(0)
    expected = current().generator.random() < 0.5
    minipar.manual_seed(0)
    image = picture(1, 2)
    assert (RandomHorizontalFlip()(image) is not image) == expected
