"""Aging: sheets of any number of faces, exact ages, and what is refused."""

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

import main
from dataset import FEMALE, MALE, InputError
from FaceAging import FaceAging
from ops import load_image
from tests.conftest import TINY


@pytest.fixture(scope="module")
def save_dir(tmp_path_factory):
    """A run's folder with a network of random weights."""
    folder = tmp_path_factory.mktemp("aging") / "save"
    FaceAging(**TINY, save_dir=folder).save_checkpoint()
    return folder


@pytest.fixture(scope="module")
def model(save_dir):
    return FaceAging.load(save_dir)


@pytest.fixture
def fresh(model, tmp_path):
    """The model, writing into an empty folder."""
    model.save_dir = tmp_path
    return model


def tiles(sheet, faces, rows=11, side=32):
    """The pictures of a labelled sheet, [rows, faces, side, side, 3], counted from its right and lower edges."""
    gap, margin = 2, 4
    bottom, right = sheet.shape[0] - margin, sheet.shape[1] - margin
    step = side + gap
    return np.array(
        [
            [
                sheet[bottom - (rows - row) * step + gap :, right - (faces - face) * step + gap :][:side, :side]
                for face in range(faces)
            ]
            for row in range(rows)
        ]
    )


@pytest.mark.parametrize(("count", "sheets"), [(1, [1]), (3, [3]), (10, [10]), (23, [10, 10, 3])])
def test_any_number_of_faces_is_aged_ten_a_sheet(fresh, faces, tmp_path, count, sheets):
    paths = [face.path for face in faces[:count]]
    assert fresh.test(paths) == count
    suffixes = [""] + [f"_{number}" for number in range(2, len(sheets) + 1)]
    expected = {f"test_as_{name}{suffix}.png" for name in ("male", "female") for suffix in suffixes}
    assert {path.name for path in (tmp_path / "test").iterdir()} == expected
    images = np.stack([load_image(path, 32, 3) for path in paths])
    for name, gender in (("male", MALE), ("female", FEMALE)):
        for number, (suffix, width) in enumerate(zip(suffixes, sheets, strict=True)):
            shown = tiles(iio.imread(tmp_path / f"test/test_as_{name}{suffix}.png"), width)
            row = images[10 * number : 10 * number + width]
            assert np.array_equal(shown[0], row)  # the faces themselves on top
            for age, pictures in zip(fresh.bins.centres, shown[1:], strict=True):  # then young to old
                assert np.abs(pictures.astype(int) - fresh.age(row, [age], [gender])).max() <= 1


def test_at_a_bins_centre_aging_shows_that_bin_and_between_two_something_between(model, faces):
    z = model.encode(np.stack([load_image(faces[0].path, 32, 3)]))
    young, between, old = (model.generate(z, [age], [MALE]).astype(int) for age in (2.5, 5.25, 8))
    assert not np.array_equal(young, old)
    assert np.array_equal(model.generate(z, [0], [MALE]), young)  # clamped outside the centres
    assert np.abs(between - (young + old) / 2).mean() < np.abs(young - old).mean()


def test_one_face_can_be_aged_to_many_ages_and_pictures_of_any_size_are_taken(model, faces):
    picture = np.asarray(Image.open(faces[0].path))[np.newaxis]  # [1, 128, 128, 3]
    aged = model.generate(np.repeat(model.encode(picture), 3, axis=0), [5, 40, 80], FEMALE)
    assert aged.shape == (3, 32, 32, 3) and aged.dtype == np.uint8


def test_results_do_not_depend_on_how_many_faces_are_aged_together(model, faces):
    images = np.stack([load_image(face.path, 32, 3) for face in faces])
    together = model.age(np.concatenate([images, images]), 30, MALE)  # 120: more than a batch
    alone = model.age(images[:1], 30, MALE)
    assert np.abs(together[0].astype(int) - alone[0]).max() <= 1
    assert np.abs(together[60].astype(int) - alone[0]).max() <= 1


def test_a_picture_that_cannot_be_read_is_named_and_left_out(fresh, faces, tmp_path, capfd):
    bad = tmp_path / "broken.jpg"
    bad.write_bytes(b"not a picture")
    assert fresh.test([faces[0].path, bad]) == 1
    assert "broken.jpg" in capfd.readouterr().err


def test_nothing_is_written_where_no_picture_can_be_read(fresh, tmp_path):
    bad = tmp_path / "broken.jpg"
    bad.write_bytes(b"")
    with pytest.raises(InputError, match="none of 1 pictures"):
        fresh.test([bad])
    assert list(tmp_path.iterdir()) == [bad]


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="no trained model"):
        FaceAging.load(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_main_ages_a_folder_and_prints_as_the_reference_program_did(save_dir, drawn_folder, capsys):
    assert main.main(["--is_train", "False", "--savedir", str(save_dir), "--testdir", str(drawn_folder)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "Building graph ...",
        "Testing Mode",
        "Loading pre-trained model ...",
        "SUCCESS ^_^",
        "60 of 60 faces aged",
        f"Done! Results are saved as {save_dir / 'test' / 'test_as_xxx.png'}",
    ]


def test_main_ages_one_picture_or_a_pattern(save_dir, faces, drawn_folder, capsys):
    for testdir, count in ((faces[0].path, 1), (str(drawn_folder / "1?_0_*.jpg"), None)):
        assert main.main(["--is_train", "False", "--savedir", str(save_dir), "--testdir", testdir]) == 0
        matched = count or len(list(drawn_folder.glob("1?_0_*.jpg")))
        assert f"{matched} of {matched} faces aged" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["a file", "nothing"])
def test_main_refuses_a_testdir_without_pictures(save_dir, tmp_path, capsys, content):
    if content == "a file":
        (tmp_path / "notes.txt").write_text("no picture")
    assert main.main(["--is_train", "False", "--savedir", str(save_dir), "--testdir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no pictures in" in error
