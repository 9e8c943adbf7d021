"""Shared fixtures: synthetic labelled faces, and networks small enough to train in seconds."""

import errno
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
from PIL import Image

from support.dataset import Face, list_faces
from support.labels import AGE_BOUNDS

ROOT = Path(__file__).parents[1]
TINY = {"size_image": 32, "num_encoder_channels": 4, "num_gen_channels": 32, "size_batch": 10}
TINY_FLAGS = ["--image_size=32", "--num_encoder_channels=4", "--num_gen_channels=32", "--batch_size=10"]


def make_faces(folder: Path, number: int = 60, seed: int = 2017) -> None:
    """Write synthetic faces into a new folder: those of demo/faces in random colours, under UTKFace's names.

    Every age bin and both genders get the same number, to within one. The same seed gives the same files.
    """
    folder.mkdir(parents=True)
    sources = [Image.open(path).convert("RGB") for path in sorted((ROOT / "demo/faces").glob("*.png"))]
    lows, highs = (1, *(bound + 1 for bound in AGE_BOUNDS)), (*AGE_BOUNDS, 90)
    for index in range(number):
        random = np.random.default_rng([seed, index])
        turn, age_bin = divmod(index, len(lows))
        name = f"{random.integers(lows[age_bin], highs[age_bin] + 1)}_{(turn + age_bin) % 2}_0_20170101{index:09d}.jpg"
        colours = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((128, 128))
        source = sources[random.integers(len(sources))].resize((128, 128))
        Image.blend(source, colours, 0.3).save(folder / name, quality=92)


def make_image(path: Path, shade: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (shade % 256, 80, 90)).save(path)
    return path


def make_numbered_faces(folder: Path, count: int, age_of=lambda i: i % 100) -> list[Face]:
    """Write images under UTKFace names; the red of number i is 2 * i."""
    for i in range(count):
        make_image(folder / f"{age_of(i)}_{i % 2}_0_2017010100000{i:04d}.png", 2 * i)
    return list_faces(folder).faces


def refuse_to_list(monkeypatch, *names):
    """Make listing folders of these names fail, as without the permission to read them."""
    scandir = os.scandir

    def refuse(path):
        if Path(path).name in names:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


@pytest.fixture(autouse=True)
def without_dlib(monkeypatch):
    """Hide dlib, an optional package, which would take a second a face in every evaluation."""
    monkeypatch.setitem(sys.modules, "dlib", None)


@pytest.fixture(scope="session")
def drawn_folder(tmp_path_factory):
    """A folder of 60 synthetic faces under UTKFace's names."""
    folder = tmp_path_factory.mktemp("data") / "drawn"
    make_faces(folder, number=60)
    return folder


@pytest.fixture(scope="session")
def faces(drawn_folder):
    return list_faces(drawn_folder).faces


@pytest.fixture(scope="session")
def run(tmp_path_factory, faces):
    """A model trained for an epoch, and its folder; tests that write there copy it."""
    from FaceAging import FaceAging

    model = FaceAging(**TINY, save_dir=tmp_path_factory.mktemp("run") / "save")
    notes = {"dataset": "drawn", "unknown_gender": False}
    assert model.train(faces, num_epochs=1, learning_rate=0.01, notes=notes) is None
    return model


@pytest.fixture(scope="module")
def untrained_run(tmp_path_factory):
    """The folder of a run whose network has random weights."""
    from FaceAging import FaceAging

    folder = tmp_path_factory.mktemp("untrained") / "save"
    FaceAging(**TINY, save_dir=folder).save_checkpoint()
    return folder


@pytest.fixture
def workplace(tmp_path, drawn_folder, monkeypatch):
    """An empty current folder whose data/drawn contains the synthetic faces."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "drawn").symlink_to(drawn_folder, target_is_directory=True)
    return tmp_path
