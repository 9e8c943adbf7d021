"""Photos: detail transfer, faces aged in place, films, --photo, and invalid flags."""

import io
from pathlib import Path

import imageio.v3 as iio
import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageCms

import main
from FaceAging import FaceAging
from support import InputError
from support.alignment import find_faces
from support.figures import FRAME_COLOR, framed
from support.photo_editing import FEATHER, Photo, apply_edit, edits, feathered, own_label, own_labels, read_photo
from support.rendering import read_input_face
from tests.conftest import TINY
from tests.test_images import display_p3

SQUARE = np.array([(1.0, 0, 0), (0, 1, 0)])  # the frame of a photo of one pixel


@pytest.fixture(scope="module")
def model():
    return FaceAging(**TINY)


@pytest.fixture(scope="module")
def portrait():
    """A public-domain photo of one person, from matplotlib's sample data."""
    path = Path(matplotlib.get_data_path(), "sample_data/grace_hopper.jpg")
    return Image.open(path).convert("RGB").resize((256, 300))


@pytest.fixture(scope="module")
def pair(portrait):
    """A photo of two people."""
    image = Image.new("RGB", (512, 300))
    image.paste(portrait, (0, 0))
    image.paste(portrait, (256, 0))
    return image


def random_images(count: int, side: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), np.uint8)


def test_edit_without_detail_gives_the_generated_face():
    face, own, aged = random_images(3)[:, np.newaxis]
    (edit,) = edits(face, own, aged, [30], [60], detail=0)
    assert np.abs(apply_edit(face[0], edit).astype(int) - aged[0]).max() <= 1


def test_edit_of_an_unchanged_face_gives_the_photo():
    face, own = random_images(2)[:, np.newaxis]
    (edit,) = edits(face, own, own, [30], [30], detail=1)
    photo = random_images(1, side=100)[0]
    coarse = np.full((1, 32, 32, 3), 90, np.uint8)
    (even,) = edits(coarse, coarse, coarse, [30], [30], detail=1)
    assert np.array_equal(apply_edit(photo, even), photo)
    assert np.abs(apply_edit(face[0], edit).astype(int) - face[0]).mean() < 0.5


def test_detail_fades_with_change_and_wrinkles_with_rejuvenation():
    face = np.full((1, 32, 32, 3), 128, np.uint8)
    face[:, ::2] += 6  # weak fine detail
    own = np.full((1, 32, 32, 3), 131, np.uint8)

    def kept(aged, age):
        (edit,) = edits(face, own, aged, [70], [age], detail=1)
        return np.abs(np.diff(apply_edit(face[0], edit)[12:20, 12:20].astype(int), axis=0)).mean()

    assert kept(own, 70) == pytest.approx(6, abs=0.5)
    assert kept(own + 100, 70) < 1
    assert kept(own, 20) < 1 < 2 < kept(own, 60)


def test_edits_of_a_batch_equal_those_of_single_faces():
    faces, own, aged = (random_images(4, seed=seed) for seed in range(3))
    together = edits(faces, own, aged, [20, 40, 60, 80], [70, 10, 30, 50], detail=1)
    single = edits(faces[2:3], own[2:3], aged[2:3], [60], [30], detail=1)
    np.testing.assert_allclose(together[2:3], single, atol=1e-4)


@pytest.mark.parametrize("degrees", [0, 30, 90, 180, 250])
def test_pasted_face_changes_only_its_square(degrees):
    turn = np.deg2rad(degrees)
    axes = 60 * np.array([(np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))])
    frame = np.column_stack([axes, np.array([75, 75]) - axes @ (0.5, 0.5)])
    photo = random_images(1, side=150)[0]
    edit = feathered(np.ones((32, 32, 4), np.float32) * (-1, 40, 50, 60), frame)  # an even colour
    pixels = apply_edit(photo, edit.astype(np.float32), frame)
    y, x = np.mgrid[:150, :150] + 0.5
    u, v = np.linalg.inv(axes) @ (np.stack([x.ravel(), y.ravel()]) - frame[:, 2:])
    outside = (np.minimum(u, v) < 0) | (np.maximum(u, v) > 1)
    inside = (np.minimum(u, v) > FEATHER + 0.05) & (np.maximum(u, v) < 0.95 - FEATHER)
    assert np.array_equal(pixels.reshape(-1, 3)[outside], photo.reshape(-1, 3)[outside])
    assert (pixels.reshape(-1, 3)[inside] == (40, 50, 60)).all()


def test_overlapping_faces_are_divided_by_distance():
    frames = [np.array([(60.0, 0, left), (0, 60, 20)]) for left in (10, 40)]
    edit = np.ones((32, 32, 4), np.float32)
    first, second = (feathered(edit, frames[i], [frames[1 - i]])[16, :, 0] for i in (0, 1))
    assert first[14] > 0.9 and first[-6] < 0.1  # its middle, and the middle of the other
    np.testing.assert_allclose(first[::-1], second, atol=1e-5)


@pytest.mark.parametrize("shift", [-70, -30, 90])
def test_square_beyond_the_edge_of_the_photo_is_cropped(shift):
    image = Image.fromarray(random_images(1, side=100)[0])
    frame = np.array([(60.0, 0, shift), (0, 60, 20)])
    photo = Photo("photo", image, None, [frame], [0], random_images(1), ())
    edited = photo.edited(np.ones((1, 32, 32, 4), np.float32) * np.float32((-1, 9, 9, 9)))
    assert edited.size == image.size
    assert np.array_equal(np.asarray(edited), np.asarray(image)) == (shift == -70)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_photo_keeps_mode_and_alpha(model, tmp_path, portrait, mode):
    image = portrait.convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.linear_gradient("L").resize(image.size).point(lambda alpha: 200 + alpha // 5))
    image.save(tmp_path / "me.png")
    model.save_dir = tmp_path
    assert model.age_photos([tmp_path / "me.png"], [8], ["male"], own_ages=[77], own_genders=[1]) == 1
    aged = Image.open(tmp_path / "test/me_8_male.png")
    assert (aged.mode, aged.size) == (mode, image.size)
    changed = np.atleast_3d(np.asarray(aged) != np.asarray(image)).any(axis=2)
    assert 0.05 < changed.mean() < 0.3 and not changed[180:].any() and not changed[:, :50].any()
    if mode.endswith("A"):
        assert np.array_equal(np.asarray(aged)[..., -1], np.asarray(image)[..., -1])


def test_photo_keeps_format_size_and_profile_and_is_rotated_upright(model, tmp_path, portrait):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    turned = Image.Exif()
    turned[0x112] = 6
    portrait.rotate(90, expand=True).save(tmp_path / "me.jpg", exif=turned, icc_profile=profile, quality=98)
    model.save_dir = tmp_path
    model.age_photos([tmp_path / "me.jpg"], [8], own_ages=[77], own_genders=[1])
    aged = Image.open(tmp_path / "test/me_8_female.jpg")
    assert aged.format == "JPEG" and aged.size == portrait.size and aged.getexif().get(0x112, 1) == 1
    assert aged.info["icc_profile"] == profile
    assert np.abs(np.asarray(aged)[180:].astype(int) - np.asarray(portrait)[180:]).mean() < 3


def test_colours_of_a_photo_are_edited_in_its_profile(model, portrait, tmp_path):
    profile, srgb = display_p3(), ImageCms.createProfile("sRGB")
    display = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    ImageCms.profileToProfile(portrait, srgb, display).save(tmp_path / "p3.png", icc_profile=profile)
    model.save_dir = tmp_path
    own = {"own_ages": [77], "own_genders": [1]}
    model.age_photos([tmp_path / "p3.png"], [8], **own)
    aged = Image.open(tmp_path / "test/p3_8_female.png")
    assert aged.info["icc_profile"] == profile
    (expected,) = model.age_photo(np.asarray(portrait), [8], **own)
    shown = np.asarray(ImageCms.profileToProfile(aged, display, srgb))
    assert np.abs(shown.astype(int) - expected).mean() < 2


def test_each_face_of_a_photo_has_its_own_label(model, tmp_path, pair, capsys):
    pair.save(tmp_path / "two.png")
    model.save_dir = tmp_path
    options = {"ages": [8], "align": True, "detail": 1}
    with pytest.raises(InputError, match="3 values for 2 faces"):
        model.test([tmp_path / "two.png"], [1], own_ages=[77, 30, 8], own_genders=[1], **options)
    assert not (tmp_path / "test").exists()
    written = []
    for own_ages in ([77, 30], [77], [30]):
        model.test([tmp_path / "two.png"], [1], own_ages=own_ages, own_genders=[1], **options)
        written.append([(tmp_path / "test" / f"{name}_8_female.png").read_bytes() for name in ("two", "two_2")])
    assert written[0] == [written[1][0], written[2][1]]
    assert "estimated" not in capsys.readouterr().out


def test_faces_of_a_photo_are_numbered_and_selected(model, tmp_path, pair, capsys):
    pair.save(tmp_path / "two.png")
    model.save_dir = tmp_path
    own = {"own_ages": [77, 30], "own_genders": [1]}
    assert model.age_photos([tmp_path / "two.png"], years=[20, -50], **own) == 1
    assert {path.name for path in (tmp_path / "test").iterdir()} == {
        "two_+20_female.png",
        "two_-50_female.png",
        "two_faces.png",  # fmt: skip
    }
    assert "-50 years is outside 0-120 for face 2" in capsys.readouterr().out
    assert model.age_photos([tmp_path / "two.png"], [8], faces=[2], own_ages=[77], own_genders=[1]) == 1
    changed = (iio.imread(tmp_path / "test/two_8_female.png") != np.asarray(pair)).any(axis=(0, 2))
    assert not changed[:256].any() and changed[256:].any()


def test_age_photo_returns_images(model, pair):
    pixels = np.asarray(pair)
    images = model.age_photo(pixels, [8, 65], own_ages=[77], own_genders=["female"])
    assert [(image.shape, image.dtype) for image in images] == [(pixels.shape, np.uint8)] * 2
    only = model.age_photo(pixels, [8], faces=[1], own_ages=[77], own_genders=["female"])[0]
    assert np.array_equal(only[:, 256:], pixels[:, 256:])
    with pytest.raises(InputError, match="no face found"):
        model.age_photo(np.zeros((200, 200, 3), np.uint8), [8])


def test_age_with_detail_keeps_the_image_size(model, faces):
    images = np.stack([np.asarray(Image.open(face.path).resize((70, 60))) for face in faces[:3]])
    ages, genders = [face.age for face in faces[:3]], [face.gender for face in faces[:3]]
    aged = model.age(images, 65, 1, detail=1, own_ages=ages, own_genders=genders)
    assert aged.shape == (3, 60, 60, 3) and aged.dtype == np.uint8
    assert model.age(images[:1], [5, 30, 65], 1, detail=0.5, own_ages=30, own_genders=1).shape == (3, 60, 60, 3)
    assert np.array_equal(model.age(images, 65, 1, detail=0), model.age(images, 65, 1))


def test_aligned_image_is_one_face(model, tmp_path):
    face = Path("demo/faces/01_1F25.png").resolve()
    photo = read_photo(face, 32, 3)
    assert len(photo.frames) == 1 and photo.label == (25, 1)
    np.testing.assert_allclose(photo.frames[0][:, :2], np.eye(2) * photo.image.width)


def test_labels_of_a_table_take_precedence_over_the_name(tmp_path, portrait):
    for name in ("me.png", "54_1_0_20170101000000001.png", "you.png"):
        portrait.save(tmp_path / name)
    (tmp_path / "labels.csv").write_text("file,age,gender\nme.png,77,female\n54_1_0_20170101000000001.png,30,male\n")
    labels = [own_label(tmp_path / name) for name in ("me.png", "54_1_0_20170101000000001.png", "you.png")]
    assert labels == [(77, 1), (30, 0), ()]
    assert own_label("elsewhere/54_1_0_20170101000000001.png") == (54, 1)


def test_own_labels_come_from_names_then_flags_then_the_age_network(capsys):
    images = random_images(3, 64)
    ages, genders, estimated = own_labels(images, [(25, 1), (), ()], [40], [], ["a", "b", "c"])
    assert ages == [25, 40, 40] and genders[0] == 1 and estimated == [False, True, True]
    printed = capsys.readouterr().out
    assert "b: about 40" in printed and "a:" not in printed
    with pytest.raises(InputError, match="2 values for 3 faces"):
        own_labels(images, [()] * 3, [40, 50], [], ["a", "b", "c"])


def test_a_film_shows_the_whole_photo_from_young_to_old_and_back(model, tmp_path, portrait):
    portrait.save(tmp_path / "me.png")
    model.save_dir = tmp_path
    model.age_photos([tmp_path / "me.png"], animate="gif", film_side=100, own_ages=[77], own_genders=[1])
    frames = iio.imread(tmp_path / "test/me_female.gif", index=None)
    assert len(frames) >= 40 and frames.shape[1:3] == (100, 85)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--detail=2"], "2 is not a number within 0-1"),
        (["--detail=1", "--own_age=300"], "300 is not an age"),
        (["--detail=1", "--own_gender=man"], "man is not male, female"),
        (["--own_age=30"], "--own_age is for --detail: add --detail 1"),
        (["--years=+20"], "--years is for --paste: add --paste True"),
        (["--face=2"], "--face is for --paste"),
        (["--paste=True", "--random=3"], "omit --random"),
        (["--detail=1", "--random=3"], "--random excludes --detail"),
        (["--paste=True", "--testdir=two.png", "--face=9"], "no face 9 in two.png, which shows 2"),
        (["--paste=True", "--testdir=two.png", "--own_age=1,2,3"], "3 values for 2 faces"),
        (["--paste=True", "--testdir=empty.png"], "no face found in empty.png"),
        (["--paste=True", "--years=x"], "x is not a number of years"),
    ],
)
def test_invalid_flags_are_rejected_in_one_line_and_nothing_is_written(
    flags, message, untrained_run, tmp_path, pair, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    pair.save("two.png")
    Image.new("RGB", (300, 200), "grey").save("empty.png")
    before = sorted([*tmp_path.rglob("*"), *untrained_run.rglob("*")])
    try:
        status = main.main(["--is_train=False", f"--savedir={untrained_run}", *flags])
    except SystemExit as error:
        status = error.code
    errors = capsys.readouterr().err
    assert status == 2 and message in errors and errors.count("\n") == 1
    assert sorted([*tmp_path.rglob("*"), *untrained_run.rglob("*")]) == before


def test_main_pastes_a_photo_at_every_bin_by_default(tmp_path, portrait, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    FaceAging(**TINY, save_dir="run").save_checkpoint()
    portrait.save("me.png")
    flags = ["--is_train=False", "--savedir=run", "--paste=True", "--testdir=me.png", "--own_age=77"]
    assert main.main(flags) == 0
    assert "1 photo aged" in capsys.readouterr().out
    assert len(list(Path("run/test").iterdir())) == 10
    assert main.main([*flags, "--years=-20", "--gender=both", "--own_gender=female"]) == 0
    assert {path.name for path in Path("run/test").glob("me_-*")} == {"me_-20_female.png", "me_-20_male.png"}


def test_pasted_face_is_detected_at_its_position(model, portrait):
    before = find_faces(portrait).faces[0]
    (aged,) = model.age_photo(np.asarray(portrait), [77], detail=1, own_ages=[77], own_genders=[1])
    after = find_faces(Image.fromarray(aged)).faces[0]
    assert np.abs(before.points - after.points).max() < 6


def test_blend_with_detail_starts_and_ends_with_the_photos(model, tmp_path):
    paths = [Path(f"demo/faces/{name}.png").resolve() for name in ("01_1F25", "02_1M78")]
    faces, ages, genders = [read_input_face(path, 32, 3, align=False) for path in paths], (25, 78), (1, 0)
    first, last = model.generate(model.encode(np.stack([face.image for face in faces])), ages, genders)
    ends, blended = model._renderer(1).blend_detail(faces, np.stack([[first, last]] * 2), ages)
    assert ends.shape == (2, 128, 128, 3) and blended.shape == (2, 2, 128, 128, 3)
    assert np.abs(blended[0, 0].astype(int) - ends[0]).mean() < 1  # each at its own age
    assert np.abs(blended[1, 1].astype(int) - ends[1]).mean() < 1
    model.save_dir = tmp_path
    assert iio.imread(model.blend(*paths, detail=1)).shape[1] > 1280


def test_photo_adds_a_column_with_the_framed_photo(model, pair, tmp_path):
    model.save_dir = tmp_path / "save"
    pair.save(tmp_path / "two.png")
    widths = []
    for photo in (False, True):
        assert model.test([tmp_path / "two.png"], genders=[0], align=True, photo=photo) == 2
        widths.append(iio.imread(tmp_path / "save/test/test_as_male.png").shape[1])
    assert widths[1] >= widths[0] + TINY["size_image"]  # a column more


def test_frame_is_drawn_around_the_face(portrait):
    frame = np.array([[100.0, 0, 50], [0, 100, 100]])  # a square of 100 pixels at (50, 100)
    pixels = np.asarray(framed(portrait, [frame], 300))
    drawn = np.argwhere((pixels == FRAME_COLOR).all(axis=-1))
    left = (300 - 256) // 2
    assert np.abs(drawn.min(axis=0) - (100, left + 50)).max() <= 4
    assert np.abs(drawn.max(axis=0) - (200, left + 150)).max() <= 4


@pytest.mark.parametrize("flags", [["--photo=True"], ["--photo=True", "--align=True", "--blend", "a.jpg", "b.jpg"]])
def test_photo_needs_align_and_excludes_blend(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["--is_train=False", *flags]) == 2
    assert "--photo needs --align True" in capsys.readouterr().err
