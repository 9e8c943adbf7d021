"""The drawn faces: their names, their files, and that age and gender can be seen in them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import draw_faces
from support.dataset import Listing, list_faces
from support.draw_faces import draw_dataset
from support.labels import AgeBins


@pytest.fixture(scope="module")
def listing(tmp_path_factory) -> Listing:
    folder = tmp_path_factory.mktemp("drawn") / "data" / "demo"
    draw_dataset(folder)
    return list_faces(folder)


def labels(listing: Listing) -> tuple[np.ndarray, np.ndarray]:
    """Returns the age bin and the gender of every face, int [N] each."""
    bins = AgeBins().index([face.age for face in listing.faces])
    return np.asarray(bins), np.array([face.gender for face in listing.faces])


def grey_pictures(listing: Listing, size: int) -> np.ndarray:
    """Returns the faces reduced to `size`, float [N, size, size]."""
    pictures = (Image.open(face.path).convert("L").resize((size, size)) for face in listing.faces)
    return np.stack([np.asarray(picture, float) for picture in pictures])


def nearest_mean_rate(pictures: np.ndarray, classes: np.ndarray) -> float:
    """Returns the share of pictures nearest to the mean of their own class, a half judged by the other half's means."""
    halves = np.split(np.random.default_rng(0).permutation(len(classes)), 2)
    hits = 0
    for training, test in (halves, halves[::-1]):
        means = np.stack([pictures[training][classes[training] == label].mean(0) for label in np.unique(classes)])
        distances = np.square(pictures[test][:, None] - means).sum((-1, -2))
        hits += (distances.argmin(1) == classes[test]).sum()
    return hits / len(classes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_name_is_one_of_utkface(listing):
    assert len(listing.faces) == 1000
    assert not listing.skipped
    assert dict(listing.conventions) == {"UTKFace": 1000}


def test_every_age_bin_and_gender_gets_the_same_number(listing):
    counts = np.zeros((10, 2), int)
    np.add.at(counts, labels(listing), 1)
    assert (counts == 50).all()


def test_a_few_faces_are_balanced_too(tmp_path):
    draw_dataset(tmp_path / "demo", number=15)
    bins, genders = labels(list_faces(tmp_path / "demo"))
    assert set(np.bincount(bins)) == {1, 2}
    assert set(np.bincount(genders)) == {7, 8}


def test_ages_run_from_1_to_90(listing):
    ages = {face.age for face in listing.faces}
    assert (min(ages), max(ages)) == (1, 90)


def test_pictures_are_colour_jpegs_of_128_pixels(listing):
    with Image.open(listing.faces[0].path) as picture:
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (128, 128))


def test_age_and_gender_can_be_told_from_small_grey_pictures(listing):
    bins, genders = labels(listing)
    pictures = grey_pictures(listing, 16)
    assert nearest_mean_rate(pictures, bins) >= 0.30
    assert nearest_mean_rate(pictures, genders) >= 0.80


def test_eyes_lie_where_aligned_faces_have_them(listing):
    middle = grey_pictures(listing, 128).mean(0)[32:90, 30:98]  # of the mean face, without its hair
    for half, eye in ((middle[:, :34], 0.36), (middle[:, 34:][:, ::-1], 0.36)):
        y, x = np.unravel_index(half.argmin(), half.shape)
        assert abs((x + 30) / 128 - eye) < 0.04
        assert abs((y + 32) / 128 - 0.43) < 0.04


def test_the_same_seed_draws_the_same_bytes(tmp_path):
    for name, seed in (("first", 2017), ("again", 2017), ("other", 1)):
        draw_dataset(tmp_path / name, number=12, seed=seed)
    assert contents(tmp_path / "first") == contents(tmp_path / "again")
    assert not set(contents(tmp_path / "first").values()) & set(contents(tmp_path / "other").values())


def test_an_interrupted_drawing_leaves_nothing_behind(tmp_path, monkeypatch):
    drawn = []

    def draw_three_then_stop(*traits):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(Image.new("RGB", (128, 128)))
        return drawn[-1]

    monkeypatch.setattr(draw_faces, "draw_face", draw_three_then_stop)
    with pytest.raises(KeyboardInterrupt):
        draw_dataset(tmp_path / "demo")
    assert len(drawn) == 3
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(OSError):
        draw_dataset(tmp_path, number=1)
    assert contents(tmp_path) == {"mine.jpg": b"mine"}
