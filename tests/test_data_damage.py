"""Files cut short and with changed bytes: a line of ValueError, or a valid data set."""

import numpy as np
import pytest
from data_files import good_files, png, write_images

from minipar import data


def tried(loaded):
    """Load and read all; whether it went. What it raises but a line of ValueError comes out."""
    try:
        found = data.load(loaded, block_size=8, image_size=4)
        for part in found.train, found.test:
            part.get_batch(range(len(part)))
    except ValueError as error:
        assert type(error) is ValueError and "\n" not in str(error), repr(error)
        return False
    return True


def damaged(content, rng, flips):
    """The content cut at 12 places, and with a byte changed at `flips` places."""
    for cut in {0, 1, 2, 7, len(content) - 1, *rng.integers(0, len(content), 7).tolist()}:
        yield content[:cut]
    for place in rng.integers(0, len(content), flips).tolist():
        value = int(rng.integers(1, 256))
        yield content[:place] + bytes([content[place] ^ value]) + content[place + 1:]


def test_any_cut_and_any_changed_byte_gives_value_error_or_a_data_set(tmp_path):
    rng = np.random.default_rng(0)
    for path, loaded in good_files(tmp_path).items():
        assert tried(loaded), path
        content, outcomes = path.read_bytes(), []
        for bad in damaged(content, rng, flips=60):
            path.write_bytes(bad)
            outcomes.append(tried(loaded))
        assert not all(outcomes), path  # an empty file, at least, is refused
        path.write_bytes(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP"])
def test_any_damage_of_an_image_gives_value_error_or_an_image(kind, tmp_path):
    content, rng = png((16, 12), kind), np.random.default_rng(1)
    root = write_images(tmp_path / "r", count=1)
    path = root / "a" / "0.png"  # what an image is shows in its bytes
    path.write_bytes(content)
    assert tried(root)
    outcomes = []
    for bad in damaged(content, rng, flips=60):
        path.write_bytes(bad)
        outcomes.append(tried(root))
    assert not all(outcomes)
