"""Photos with --align: made into a data set to train on, and shown with the place where each face was found."""

from pathlib import Path

import imageio.v3 as iio
import matplotlib
import numpy as np
import pytest
from PIL import Image

import main
from FaceAging import FaceAging
from support.dataset import list_faces
from support.errors import InputError
from support.photos import align_dataset
from support.portraits import FRAME_COLOR, framed
from tests.conftest import TINY, TINY_FLAGS

NAME = "54_1_0_2017010100000000{}.jpg"  # of UTKFace's kind


@pytest.fixture(scope="module")
def portrait():
    """A public-domain photo of one person, which matplotlib brings along."""
    return (
        Image.open(Path(matplotlib.get_data_path(), "sample_data/grace_hopper.jpg")).convert("RGB").resize((256, 300))
    )


@pytest.fixture
def photos(tmp_path, portrait, monkeypatch):
    """The folder data/photos: two photos of a person, one of two people, and one of nobody."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data/photos"
    folder.mkdir(parents=True)
    portrait.save(folder / NAME.format(1))
    portrait.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / NAME.format(2))
    pair = Image.new("RGB", (512, 300))
    pair.paste(portrait, (0, 0))
    pair.paste(portrait, (256, 0))
    pair.save(folder / NAME.format(3))
    Image.new("RGB", (300, 200), "grey").save(folder / NAME.format(4))
    return folder


def test_a_set_of_photos_is_aligned_once_and_trained_on(photos, capsys):
    flags = ["--dataset=photos", "--align=True", *TINY_FLAGS, "--batch_size=1", "--epoch=1"]
    assert main.main(flags) == 0
    printed = capsys.readouterr().out
    assert "2 faces of 4 photos aligned in data/photos_aligned" in printed
    assert "1 left out, several faces, first " + NAME.format(3) in printed
    assert "1 left out, no face found, first " + NAME.format(4) in printed
    aligned = list_faces(photos.parent / "photos_aligned").faces
    assert [(face.age, face.gender) for face in aligned] == [(54, 1)] * 2
    assert main.main(["--epoch=2"]) == 0  # the run remembers the aligned set
    assert main.main(["--dataset=photos", "--align=True", "--epoch=3"]) == 0
    assert "aligned in" not in capsys.readouterr().out


def test_a_set_without_a_face_is_refused_and_leaves_nothing(photos):
    for number in (1, 2, 3):
        (photos / NAME.format(number)).unlink()
    target = photos.parent / "photos_aligned"
    with pytest.raises(InputError, match="no photo in .* shows one face"):
        align_dataset(list_faces(photos), photos, target)
    assert [path.name for path in photos.parent.iterdir()] == ["photos"]


def test_sheets_show_where_each_face_was_found_where_it_is_asked_for(photos, tmp_path):
    model = FaceAging(**TINY, save_dir=tmp_path / "save")
    heights = []
    for photo in (False, True):
        assert model.test([photos / NAME.format(3)], genders=[0], align=True, photo=photo) == 2
        heights.append(iio.imread(tmp_path / "save/test/test_as_male.png").shape[0])
    assert heights[1] >= heights[0] + TINY["size_image"]  # a row more


def test_the_frame_lies_round_the_face(portrait):
    frame = np.array([[100.0, 0, 50], [0, 100, 100]])  # a square of 100 pixels at (50, 100)
    pixels = np.asarray(framed(portrait, frame, 300))
    drawn = np.argwhere((pixels == FRAME_COLOR).all(axis=-1))
    left = (300 - 256) // 2
    assert np.abs(drawn.min(axis=0) - (100, left + 50)).max() <= 4
    assert np.abs(drawn.max(axis=0) - (200, left + 150)).max() <= 4


@pytest.mark.parametrize("flags", [["--photo=True"], ["--photo=True", "--align=True", "--blend", "a.jpg", "b.jpg"]])
def test_a_place_in_the_photo_is_shown_only_of_aligned_faces(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["--is_train=False", *flags]) == 2
    assert "add --align True" in capsys.readouterr().err


def test_a_run_goes_on_with_the_set_that_it_was_made_with(photos, capsys):
    """--align of a later call means the photos of the run, whatever --dataset would be by default."""
    assert main.main(["--dataset=photos/", "--align=True", *TINY_FLAGS, "--batch_size=1", "--epoch=1"]) == 0
    for path in (photos.parent / "photos_aligned").iterdir():
        path.unlink()
    (photos.parent / "photos_aligned").rmdir()
    assert main.main(["--align=True", "--epoch=2"]) == 0  # made again of the same photos
    assert sorted(path.name for path in photos.parent.iterdir()) == ["photos", "photos_aligned"]


def test_faces_that_a_run_took_as_they_are_are_not_aligned_later(workplace, capsys):
    assert main.main(["--dataset=drawn", *TINY_FLAGS, "--epoch=1"]) == 0
    capsys.readouterr()
    assert main.main(["--align=True", "--epoch=2"]) == 2
    assert "drawn as they are: leave out --align" in capsys.readouterr().err
