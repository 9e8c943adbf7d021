"""Detection and alignment of faces, aligned data sets, and the test of alignment."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw

import main
from support import InputError, alignment
from support.alignment import (
    TEMPLATE,
    align_dataset,
    alignment_warning,
    crop_square,
    find_faces,
    looks_aligned,
    map_points,
    similarity,
)
from support.dataset import list_faces
from tests.conftest import ROOT, TINY_FLAGS, make_image

SIDE = 160
NAME = "54_1_0_2017010100000000{}.jpg"  # as in UTKFace
BACKGROUND = (90, 120, 150)


@pytest.fixture(scope="session")
def portrait() -> Image.Image:
    """A public-domain portrait included in matplotlib: one face, 512 x 600 pixels."""
    return Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")


@pytest.fixture(scope="session")
def points(portrait) -> np.ndarray:
    """The eyes, nose and mouth of the portrait, detected within 6 pixels of manually located positions."""
    (face,) = find_faces(portrait).faces
    assert np.abs(face.points - [(222, 191), (306, 186), (268, 236), (228, 280), (309, 279)]).max() < 6
    return face.points


def drawn_face(side: int = SIDE) -> np.ndarray:
    """Return a drawn aligned face, uint8 [side, side, 3]: shaded ellipses placed like the features in UTKFace."""
    image = Image.new("RGB", (4 * side, 4 * side), BACKGROUND)
    draw = ImageDraw.Draw(image)

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
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))


def photo(faces: list[tuple[float, float, float, float]], width: int = 600, height: int = 400) -> np.ndarray:
    """Return drawn faces (x, y of the centre, side, clockwise tilt in degrees) on a plain ground, uint8 [H, W, 3]."""
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    for x, y, side, tilt in faces:
        face = Image.fromarray(drawn_face()).resize((side, side))
        turned = face.rotate(-tilt, Image.Resampling.BICUBIC, expand=True, fillcolor=BACKGROUND)
        canvas.paste(turned, (round(x - turned.width / 2), round(y - turned.height / 2)))
    return np.asarray(canvas)


def moved(points: np.ndarray, original: Image.Image, turned: Image.Image, degrees: float) -> np.ndarray:
    """Return points of a photo after it is rotated clockwise about its centre."""
    a = np.exp(1j * np.radians(degrees))
    turn = np.array([(a.real, -a.imag), (a.imag, a.real)])
    return (points - np.divide(original.size, 2)) @ turn.T + np.divide(turned.size, 2)


def displacement(frame: np.ndarray, truth: np.ndarray) -> float:
    """Return the largest displacement of the five points of TEMPLATE, in sides of the crop."""
    inside = np.linalg.solve(frame[:, :2], (map_points(truth, TEMPLATE) - frame[:, 2]).T).T
    return float(np.hypot(*(inside - TEMPLATE).T).max())


@pytest.mark.parametrize("degrees", [-40, -15, 25, 40, 90, 180, 270])
def test_rotated_photo_gives_the_same_crop(portrait, points, degrees):
    turned = portrait.rotate(-degrees, Image.Resampling.BICUBIC, expand=True)
    (face,) = find_faces(turned).faces
    truth = similarity(TEMPLATE, moved(points, portrait, turned, degrees))
    assert displacement(face.frame, truth) < 0.05
    upright = crop_square(portrait, similarity(TEMPLATE, points), 64)
    assert np.abs(crop_square(turned, face.frame, 64).astype(int) - upright).mean() < 12


@pytest.mark.parametrize(("across", "down"), [(0.3, 0.3), (0.75, 1), (1.3, 1), (4, 4)])
def test_resized_face_is_located_correctly(portrait, points, across, down):
    (face,) = find_faces(portrait.resize((int(512 * across), int(600 * down)))).faces
    assert displacement(face.frame, similarity(TEMPLATE, points * (across, down))) < 0.05


def test_faces_are_sorted_left_to_right_and_keep_their_size(portrait):
    canvas = Image.new("RGB", (4000, 1500), BACKGROUND)
    for x, scale in ((100, 1.5), (1100, 0.3), (1800, 0.8), (2900, 2)):
        canvas.paste(portrait.resize((int(512 * scale), int(600 * scale))), (x, 100))
    faces = find_faces(canvas).faces
    assert [face.image.shape for face in faces] == [(len(face.image), len(face.image), 3) for face in faces]
    assert [len(face.image) for face in faces] == pytest.approx([325, 65, 173, 433], rel=0.05)
    assert all(face.image.dtype == np.uint8 for face in faces)


def test_face_that_fills_the_image_is_found():
    assert len(find_faces(Image.fromarray(drawn_face())).faces) == 1


def test_grey_photo_gives_the_same_frame(portrait, points):
    (face,) = find_faces(portrait.convert("L")).faces
    assert displacement(face.frame, similarity(TEMPLATE, points)) < 0.05


@pytest.mark.parametrize("size", [(400, 300), (1, 1), (500, 3)])
def test_photo_without_a_face_has_no_detection(size):
    slope = np.linspace(0, 255, 3 * size[0] * size[1]).reshape(size[1], size[0], 3).astype(np.uint8)
    assert find_faces(Image.fromarray(slope)) == ([], [])


def test_duplicate_detection_is_rejected(portrait, points, monkeypatch):
    monkeypatch.setattr(alignment, "find_points", lambda photo, quarters: np.stack([points, points + 9]))
    found = find_faces(portrait)
    assert len(found.faces) == 1 and len(found.rejected) == 1
    assert found.rejected[0].endswith("pixels wide: inside another face")


@pytest.mark.parametrize(
    ("look", "doubt"),
    [
        (lambda seen: (seen, 0.41), "confidence 41%"),
        (lambda seen: (seen[[1, 0, 2, 4, 3]], 1.0), "eyes, nose and mouth are not placed as in a face"),
        (lambda seen: (seen[[3, 4, 2, 0, 1]], 1.0), "eyes, nose and mouth are not placed as in a face"),
        (lambda seen: (1 - seen, 1.0), "unlike the training faces"),
    ],
    ids=["low confidence", "left and right exchanged", "mouth above eyes", "upside down"],
)
def test_false_detections_are_rejected_with_position_and_reason(portrait, points, monkeypatch, look, doubt):
    monkeypatch.setattr(alignment, "find_points", lambda photo, quarters: points[np.newaxis])
    monkeypatch.setattr(alignment, "run_onet", lambda view: look(alignment.ONET_TEMPLATE))
    found = find_faces(portrait)
    assert found.faces == []
    assert len(found.rejected) == 1 and found.rejected[0].startswith("at (2") and found.rejected[0].endswith(doubt)


def test_photos_of_other_sizes_do_not_retrace(portrait):
    for size in ((512, 600), (300, 200), (701, 333)):
        find_faces(portrait.resize(size))
    assert alignment._networks()[0].experimental_get_tracing_count() == 1


def test_detection_uses_float32_under_mixed_precision(portrait, points):
    alignment._networks.cache_clear()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        (face,) = find_faces(portrait).faces
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.abs(face.points - points).max() < 1e-3


def test_similarity_is_recovered_without_reflection():
    turn = 30 * np.array([(0.6, -0.8), (0.8, 0.6)])
    expected = np.column_stack([turn, (5, -7)])
    assert np.allclose(similarity(TEMPLATE, map_points(expected, TEMPLATE)), expected)
    assert np.linalg.det(similarity(TEMPLATE, TEMPLATE * (-1, 1))[:, :2]) > 0


def test_crop_repeats_the_edge_of_the_photo():
    photo = Image.fromarray(np.linspace(0, 250, 50).repeat(40 * 3).reshape(50, 40, 3).astype(np.uint8))
    crop = crop_square(photo, np.array([(60.0, 0, -30), (0, 60.0, 30)]), 60)
    assert np.array_equal(crop, crop[:, :1].repeat(60, axis=1))
    assert np.all(crop[25:] == crop[-1]) and crop[-1, 0, 0] == 250
    assert np.allclose(crop[2:15], np.asarray(photo)[32:45, :1], atol=1)


def test_reduced_crop_is_not_aliased():
    stripes = np.zeros([512, 512, 3], np.uint8)
    stripes[:, ::2] = 255
    crop = crop_square(Image.fromarray(stripes), np.array([(300.0, -40, 90), (40, 300.0, 50)]), 40)
    assert np.abs(crop.astype(int) - 127).max() < 30


def test_looks_aligned_imports_neither_tensorflow_nor_mtcnn():
    program = (
        "import sys; sys.modules['tensorflow'] = sys.modules['mtcnn'] = sys.modules['keras'] = None\n"
        "import numpy; from support import alignment; alignment.looks_aligned(numpy.eye(64, dtype='u1'))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_aligned_face_is_accepted_in_colour_and_grey():
    face = drawn_face()
    grey = np.asarray(Image.fromarray(face).convert("L"))
    assert looks_aligned(face)
    assert looks_aligned(grey)
    assert looks_aligned(grey[..., None])


def test_demo_faces_are_accepted_as_aligned():
    doubted = [path.name for path in (ROOT / "demo/faces").iterdir() if not looks_aligned(np.asarray(Image.open(path)))]
    assert doubted == []


@pytest.mark.parametrize(
    "image",
    [
        np.rot90(drawn_face()),
        drawn_face()[::-1],
        np.roll(drawn_face(), 60, axis=1),
        photo([(110, 280, 100, 0)], 400, 400),
        np.full((64, 64, 3), 128, np.uint8),
    ],
    ids=["rotated by 90 degrees", "upside down", "shifted", "small in a scene", "uniform"],
)
def test_unaligned_images_are_recognized(image):
    assert not looks_aligned(image)


def make_photos(folder, number, share, drawn_folder):
    """Write a folder of labelled photos, of which this share shows no aligned face."""
    folder.mkdir()
    aligned = sorted((ROOT / "demo/faces").glob("*.png"))
    for index in range(number):
        source = Image.open(aligned[index % len(aligned)]).convert("RGB")
        if index < share * number:  # a small face in the lower corner
            wall = Image.new("RGB", (400, 300), (200, 190, 170))
            wall.paste(source.resize((90, 90)), (20, 200))
            source = wall
        source.save(folder / f"{20 + index}_{index % 2}_0_20170116174525{index:03d}.jpg")
    return list_faces(folder).faces


def test_data_set_of_unaligned_photos_causes_a_warning(tmp_path, drawn_folder):
    warning = alignment_warning(make_photos(tmp_path / "photos", 20, 0.6, drawn_folder))
    assert re.match(r"1[2-4] of 20 images sampled do not look like aligned faces, first ", warning)
    assert warning.count(".jpg") == 3 and "\n" not in warning


def test_aligned_data_set_causes_no_warning(tmp_path, drawn_folder, faces):
    assert alignment_warning(make_photos(tmp_path / "photos", 20, 0.1, drawn_folder)) == ""
    assert alignment_warning(faces) == ""


@pytest.fixture
def photos(tmp_path, portrait, monkeypatch):
    """The folder data/photos: two photos of a person, one of two people, and one without a face."""
    portrait = portrait.resize((256, 300))
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


def test_photos_are_aligned_once_and_trained_on(photos, capsys):
    flags = ["--dataset=photos", "--align=True", *TINY_FLAGS, "--batch_size=1", "--epoch=1"]
    assert main.main(flags) == 0
    printed = capsys.readouterr().out
    assert "2 faces of 4 photos aligned in data/photos_aligned" in printed
    assert "1 left out, several faces, first " + NAME.format(3) in printed
    assert "1 left out, no face found, first " + NAME.format(4) in printed
    aligned = list_faces(photos.parent / "photos_aligned").faces
    assert [(face.age, face.gender) for face in aligned] == [(54, 1)] * 2
    assert main.main(["--epoch=2"]) == 0  # config.json records the aligned data set
    assert main.main(["--dataset=photos", "--align=True", "--epoch=3"]) == 0
    assert "aligned in" not in capsys.readouterr().out


def test_data_set_without_a_face_is_rejected_without_leftovers(photos):
    for number in (1, 2, 3):
        (photos / NAME.format(number)).unlink()
    target = photos.parent / "photos_aligned"
    with pytest.raises(InputError, match="no photo in .* shows one face"):
        align_dataset(photos, target)
    assert [path.name for path in photos.parent.iterdir() if path.suffix != ".lock"] == ["photos"]


def test_resume_with_align_uses_the_data_set_of_the_run(photos, capsys):
    """On resume, --align True refers to the data set of the run, not to the default of --dataset."""
    assert main.main(["--dataset=photos/", "--align=True", *TINY_FLAGS, "--batch_size=1", "--epoch=1"]) == 0
    for path in (photos.parent / "photos_aligned").iterdir():
        path.unlink()
    (photos.parent / "photos_aligned").rmdir()
    assert main.main(["--align=True", "--epoch=2"]) == 0  # aligned again from the same photos
    names = {path.name for path in photos.parent.iterdir() if path.suffix != ".lock"}
    assert names == {"photos", "photos_aligned"}


def test_resume_rejects_align_for_a_run_without_it(workplace, capsys):
    assert main.main(["--dataset=drawn", *TINY_FLAGS, "--epoch=1"]) == 0
    capsys.readouterr()
    assert main.main(["--align=True", "--epoch=2"]) == 2
    assert "drawn without alignment: omit --align" in capsys.readouterr().err


SLOW = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from support import alignment
face = SimpleNamespace(image=np.zeros((8, 8, 3), np.uint8))
alignment._networks = lambda: None
def find_faces(photo):
    time.sleep(0.02)
    print("searched", flush=True)
    return SimpleNamespace(faces=[face] * (photo.size[0] != 9))
alignment.find_faces = find_faces
alignment.align_dataset(Path("data/photos"), Path("data/photos_aligned"))
"""


def start_aligning(folder: Path) -> subprocess.Popen:
    """Start a process that aligns data/photos, with a detection that takes 20 ms and finds nothing in one photo."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-c", SLOW], cwd=folder, env=environment, **output)


@pytest.fixture
def many_photos(tmp_path):
    for i in range(60):
        make_image(tmp_path / "data/photos" / f"{i}_0_0_20170101{i:09d}.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "data/photos" / "5_0_0_20170101000000005.png")
    return tmp_path


def test_two_processes_align_a_data_set_once(many_photos):
    processes = [start_aligning(many_photos) for _ in range(2)]
    printed = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(text.count("searched") for text in printed) == [0, 60]
    assert sum("Waiting for another process, which aligns data/photos" in text for text in printed) == 1
    assert len(list_faces(many_photos / "data/photos_aligned").faces) == 59


def test_killed_alignment_resumes(many_photos):
    process = start_aligning(many_photos)
    for _ in range(20):
        process.stdout.readline()
    process.kill()
    process.communicate()
    assert not (many_photos / "data/photos_aligned").exists()
    removed, changed = (many_photos / "data/photos" / f"{i}_0_0_20170101{i:09d}.png" for i in (0, 1))
    removed.unlink()
    make_image(changed, 7)
    again = start_aligning(many_photos)
    printed = again.communicate(timeout=60)[0]
    assert again.returncode == 0 and "Continuing the alignment of data/photos after" in printed
    assert 36 <= printed.count("searched") <= 42 and "58 faces of 59 photos aligned" in printed
    aligned = many_photos / "data/photos_aligned"
    assert len(list_faces(aligned).faces) == 58 and not (aligned / f"{removed.name}.png").exists()
    assert sorted(path.name for path in aligned.iterdir() if path.suffix != ".png") == ["labels.csv"]
