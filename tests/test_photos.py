"""Photos with --align, shown with the frame of each face."""

from pathlib import Path

import imageio.v3 as iio
import matplotlib
import numpy as np
import pytest
from PIL import Image

import main
from FaceAging import FaceAging
from support.pictures import FRAME_COLOR, framed
from tests.conftest import TINY

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


def test_sheets_show_where_each_face_was_found_where_it_is_asked_for(photos, tmp_path):
    model = FaceAging(**TINY, save_dir=tmp_path / "save")
    widths = []
    for photo in (False, True):
        assert model.test([photos / NAME.format(3)], genders=[0], align=True, photo=photo) == 2
        widths.append(iio.imread(tmp_path / "save/test/test_as_male.png").shape[1])
    assert widths[1] >= widths[0] + TINY["size_image"]  # a column more


def test_the_frame_lies_round_the_face(portrait):
    frame = np.array([[100.0, 0, 50], [0, 100, 100]])  # a square of 100 pixels at (50, 100)
    pixels = np.asarray(framed(portrait, [frame], 300))
    drawn = np.argwhere((pixels == FRAME_COLOR).all(axis=-1))
    left = (300 - 256) // 2
    assert np.abs(drawn.min(axis=0) - (100, left + 50)).max() <= 4
    assert np.abs(drawn.max(axis=0) - (200, left + 150)).max() <= 4


@pytest.mark.parametrize("flags", [["--photo=True"], ["--photo=True", "--align=True", "--blend", "a.jpg", "b.jpg"]])
def test_a_place_in_the_photo_is_shown_only_of_aligned_faces(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["--is_train=False", *flags]) == 2
    assert "add --align True" in capsys.readouterr().err
