import subprocess
import sys
from pathlib import Path

import keras
import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw

from support import align, finder
from support.alignment import TEMPLATE, apply, find_faces, looks_aligned, sample, similarity

ROOT = Path(align.__file__).parents[1]
SIDE = 160
BACKGROUND = (90, 120, 150)


@pytest.fixture(scope="session")
def portrait() -> Image.Image:
    """A portrait of public domain that matplotlib ships: one face, 512 x 600 pixels."""
    return Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")


@pytest.fixture(scope="session")
def points(portrait) -> np.ndarray:
    """Where the portrait's eyes, nose and mouth are: within 6 pixels of where a person reads them off."""
    (face,) = find_faces(portrait).faces
    assert np.abs(face.points - [(222, 191), (306, 186), (268, 236), (228, 280), (309, 279)]).max() < 6
    return face.points


def drawn_face(side: int = SIDE) -> np.ndarray:
    """An aligned face that is nobody's, uint8 [side, side, 3]: shaded ellipses where UTKFace has the features."""
    picture = Image.new("RGB", (4 * side, 4 * side), BACKGROUND)
    draw = ImageDraw.Draw(picture)

    def ellipse(x, y, width, height, colour):
        box = [4 * side * v for v in (x - width / 2, y - height / 2, x + width / 2, y + height / 2)]
        draw.ellipse(box, fill=colour)

    ellipse(0.5, 0.45, 0.9, 1.05, (70, 50, 40))  # hair
    for share in np.linspace(1, 0.6, 9):  # skin, lighter towards the middle
        ellipse(0.5, 0.48, 0.82 * share, 0.98 * share, tuple(int(v * (1.35 - 0.4 * share)) for v in (200, 160, 135)))
    for x, y in TEMPLATE[:2]:
        ellipse(x, y - 0.09, 0.2, 0.035, (80, 55, 40))
        ellipse(x, y - 0.01, 0.22, 0.13, (165, 125, 105))
        ellipse(x, y, 0.15, 0.065, (235, 235, 230))
        ellipse(x, y, 0.065, 0.065, (40, 30, 25))
    ellipse(0.5, 0.42, 0.07, 0.3, (240, 205, 180))
    ellipse(0.5, 0.58, 0.17, 0.05, (150, 105, 85))
    ellipse(0.5, 0.75, 0.32, 0.08, (150, 60, 60))
    return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS))


def photo(faces: list[tuple[float, float, float, float]], width: int = 600, height: int = 400) -> np.ndarray:
    """Drawn faces (x, y of the middle, side, tilt clockwise in degrees) on a plain ground, uint8 [height, width, 3]."""
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    for x, y, side, tilt in faces:
        face = Image.fromarray(drawn_face()).resize((side, side))
        turned = face.rotate(-tilt, Image.Resampling.BICUBIC, expand=True, fillcolor=BACKGROUND)
        canvas.paste(turned, (round(x - turned.width / 2), round(y - turned.height / 2)))
    return np.asarray(canvas)


def moved(points: np.ndarray, original: Image.Image, turned: Image.Image, degrees: float) -> np.ndarray:
    """Points of a photo where they are once it is turned clockwise about its middle."""
    a = np.exp(1j * np.radians(degrees))
    turn = np.array([(a.real, -a.imag), (a.imag, a.real)])
    return (points - np.divide(original.size, 2)) @ turn.T + np.divide(turned.size, 2)


def displacement(frame: np.ndarray, truth: np.ndarray) -> float:
    """How far the worst of the five points of TEMPLATE is off its place, in sides of the crop."""
    inside = np.linalg.solve(frame[:, :2], (apply(truth, TEMPLATE) - frame[:, 2]).T).T
    return float(np.hypot(*(inside - TEMPLATE).T).max())


@pytest.mark.parametrize("degrees", [-40, -15, 25, 40, 90, 180, 270])
def test_a_turned_photo_gives_the_same_crop(portrait, points, degrees):
    turned = portrait.rotate(-degrees, Image.Resampling.BICUBIC, expand=True)
    (face,) = find_faces(turned).faces
    truth = similarity(TEMPLATE, moved(points, portrait, turned, degrees))
    assert displacement(face.frame, truth) < 0.05
    upright = sample(portrait, similarity(TEMPLATE, points), 64)
    assert np.abs(sample(turned, face.frame, 64).astype(int) - upright).mean() < 12


@pytest.mark.parametrize(("across", "down"), [(0.3, 0.3), (0.75, 1), (1.3, 1), (4, 4)])
def test_a_shrunk_stretched_or_enlarged_face_is_found_in_its_place(portrait, points, across, down):
    (face,) = find_faces(portrait.resize((int(512 * across), int(600 * down)))).faces
    assert displacement(face.frame, similarity(TEMPLATE, points * (across, down))) < 0.05


def test_people_come_back_from_left_to_right_each_at_their_own_size_in_a_large_photo(portrait):
    canvas = Image.new("RGB", (4000, 1500), BACKGROUND)
    for x, scale in ((100, 1.5), (1100, 0.3), (1800, 0.8), (2900, 2)):
        canvas.paste(portrait.resize((int(512 * scale), int(600 * scale))), (x, 100))
    faces = find_faces(canvas).faces
    assert [face.image.shape for face in faces] == [(len(face.image), len(face.image), 3) for face in faces]
    assert [len(face.image) for face in faces] == pytest.approx([325, 65, 173, 433], rel=0.05)
    assert all(face.image.dtype == np.uint8 for face in faces)


def test_a_face_that_fills_its_picture_is_found():
    assert len(find_faces(Image.fromarray(drawn_face())).faces) == 1


def test_a_grey_photo_gives_the_face_of_the_coloured_one(portrait, points):
    (face,) = find_faces(portrait.convert("L")).faces
    assert displacement(face.frame, similarity(TEMPLATE, points)) < 0.05


@pytest.mark.parametrize("size", [(400, 300), (1, 1), (500, 3)])
def test_a_photo_without_a_face_gives_none(size):
    slope = np.linspace(0, 255, 3 * size[0] * size[1]).reshape(size[1], size[0], 3).astype(np.uint8)
    assert find_faces(Image.fromarray(slope)) == ([], [])


def test_a_face_found_twice_is_believed_once_and_said(portrait, points, monkeypatch):
    monkeypatch.setattr(finder, "find_points", lambda photo, quarters: np.stack([points, points + 9]))
    found = find_faces(portrait)
    assert len(found.faces) == 1 and len(found.dropped) == 1
    assert found.dropped[0].endswith("pixels wide: inside another face")


@pytest.mark.parametrize(
    ("look", "doubt"),
    [
        (lambda seen: (seen, 0.41), "only 41% sure to be a face"),
        (lambda seen: (seen[[1, 0, 2, 4, 3]], 1.0), "eyes, nose and mouth are not where a face has them"),
        (lambda seen: (seen[[3, 4, 2, 0, 1]], 1.0), "eyes, nose and mouth are not where a face has them"),
        (lambda seen: (1 - seen, 1.0), "unlike the training faces"),
    ],
    ids=["unsure", "left and right exchanged", "mouth above eyes", "on its head"],
)
def test_what_is_no_face_is_dropped_with_its_place_and_the_reason(portrait, points, monkeypatch, look, doubt):
    monkeypatch.setattr(finder, "find_points", lambda photo, quarters: points[np.newaxis])
    monkeypatch.setattr(finder, "look", lambda view: look(align.VIEW))
    found = find_faces(portrait)
    assert found.faces == []
    assert len(found.dropped) == 1 and found.dropped[0].startswith("at (2") and found.dropped[0].endswith(doubt)


def test_photos_of_any_size_are_searched_without_tracing_again(portrait):
    for size in ((512, 600), (300, 200), (701, 333)):
        find_faces(portrait.resize(size))
    assert finder._networks()[0].experimental_get_tracing_count() == 1


def test_faces_are_found_in_full_precision_whatever_the_run_computes_in(portrait, points):
    finder._networks.cache_clear()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        (face,) = find_faces(portrait).faces
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.abs(face.points - points).max() < 1e-3


def test_a_similarity_is_recovered_and_never_reflects():
    turn = 30 * np.array([(0.6, -0.8), (0.8, 0.6)])
    expected = np.column_stack([turn, (5, -7)])
    assert np.allclose(similarity(TEMPLATE, apply(expected, TEMPLATE)), expected)
    assert np.linalg.det(similarity(TEMPLATE, TEMPLATE * (-1, 1))[:, :2]) > 0


def test_what_lies_beyond_the_photo_repeats_its_edge():
    photo = Image.fromarray(np.linspace(0, 250, 50).repeat(40 * 3).reshape(50, 40, 3).astype(np.uint8))
    crop = sample(photo, np.array([(60.0, 0, -30), (0, 60.0, 30)]), 60)
    assert np.array_equal(crop, crop[:, :1].repeat(60, axis=1))
    assert np.all(crop[25:] == crop[-1]) and crop[-1, 0, 0] == 250
    assert np.allclose(crop[2:15], np.asarray(photo)[32:45, :1], atol=1)


def test_a_crop_smaller_than_in_the_photo_is_not_aliased():
    stripes = np.zeros([512, 512, 3], np.uint8)
    stripes[:, ::2] = 255
    crop = sample(Image.fromarray(stripes), np.array([(300.0, -40, 90), (40, 300.0, 50)]), 40)
    assert np.abs(crop.astype(int) - 127).max() < 30


def test_looking_for_alignment_needs_neither_tensorflow_nor_mtcnn():
    program = (
        "import sys; sys.modules['tensorflow'] = sys.modules['mtcnn'] = sys.modules['keras'] = None\n"
        "import numpy; from support import align; align.looks_aligned(numpy.eye(64, dtype='u1'))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_an_aligned_face_looks_aligned_in_colour_and_in_grey():
    face = drawn_face()
    grey = np.asarray(Image.fromarray(face).convert("L"))
    assert looks_aligned(face)
    assert looks_aligned(grey)
    assert looks_aligned(grey[..., None])


def test_the_faces_that_ship_look_aligned():
    doubted = [path.name for path in (ROOT / "demo/faces").iterdir() if not looks_aligned(np.asarray(Image.open(path)))]
    assert doubted == []


@pytest.mark.parametrize(
    "picture",
    [
        np.rot90(drawn_face()),
        drawn_face()[::-1],
        np.roll(drawn_face(), 60, axis=1),
        photo([(110, 280, 100, 0)], 400, 400),
        np.full((64, 64, 3), 128, np.uint8),
    ],
    ids=["on its side", "on its head", "off to a side", "small in a scene", "plain"],
)
def test_a_picture_far_from_an_aligned_face_is_told(picture):
    assert not looks_aligned(picture)
