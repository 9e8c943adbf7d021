import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from support import align
from support.errors import InputError

SIDE = 160
BACKGROUND = (90, 120, 150)


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
    for x, y in align.EYES:
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


def eyes_in(frame: np.ndarray, x: float, y: float, side: float, tilt: float) -> np.ndarray:
    """Where a face set in by `photo` has its eyes within a frame, [2, 2] in fractions of its width."""
    c, s = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    eyes = (np.array(align.EYES) - 0.5) * side @ np.array([[c, s], [-s, c]]) + (x, y)
    return np.linalg.solve(frame[:, :2], (eyes - frame[:, 2]).T).T


@pytest.mark.parametrize("tilt", [-20, -7, 0, 13, 20])
def test_a_tilted_face_comes_back_level_with_its_eyes_in_place(tilt):
    pytest.importorskip("cv2")
    place = (230, 210, 150, tilt)
    (frame,) = align.find_frames(photo([place]))
    # a drawing is no photo: half as much again as the 5% that real faces are held to
    assert np.hypot(*(eyes_in(frame, *place) - align.EYES).T).max() < 0.075


def test_several_faces_come_back_from_left_to_right():
    pytest.importorskip("cv2")
    faces = align.align_faces(photo([(430, 200, 200, 10), (130, 150, 110, -10)]))
    assert [face.dtype for face in faces] == [np.uint8] * 2
    assert [face.shape[2] for face in faces] == [3, 3]
    assert [face.shape[0] for face in faces] == [face.shape[1] for face in faces]
    assert [face.shape[0] for face in faces] == pytest.approx([110, 200], rel=0.15)


def test_a_large_photo_keeps_its_resolution():
    pytest.importorskip("cv2")
    (face,) = align.align_faces(photo([(1100, 800, 600, 0)], width=2400, height=1600))
    assert len(face) == pytest.approx(600, rel=0.15)


def test_a_face_that_fills_its_picture_is_found():
    pytest.importorskip("cv2")
    assert len(align.align_faces(drawn_face())) == 1


@pytest.mark.parametrize("shape", [(300, 400, 3), (1, 1, 3), (3, 500, 3)])
def test_no_face_gives_no_pictures(shape):
    pytest.importorskip("cv2")
    slope = np.linspace(0, 255, np.prod(shape)).reshape(shape).astype(np.uint8)
    assert align.align_faces(slope) == []


def test_without_opencv_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    align.opencv.cache_clear()
    with pytest.raises(InputError, match='pip install "opencv-python-headless<5"'):
        align.align_faces(drawn_face())


def test_an_opencv_without_cascades_is_told_from_a_missing_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", type("cv2", (), {"__version__": "5.0.0"}))
    align.opencv.cache_clear()
    with pytest.raises(InputError, match="5.0.0"):
        align.align_faces(drawn_face())


def test_looking_for_alignment_needs_no_opencv():
    program = (
        "import sys; sys.modules['cv2'] = None; import numpy; from support import align; "
        "align.looks_aligned(numpy.eye(64, dtype='u1'))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(align.__file__).parents[1])


def test_an_aligned_face_looks_aligned_in_colour_and_in_grey():
    face = drawn_face()
    grey = np.asarray(Image.fromarray(face).convert("L"))
    assert align.looks_aligned(face)
    assert align.looks_aligned(grey)
    assert align.looks_aligned(grey[..., None])


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
    assert not align.looks_aligned(picture)
