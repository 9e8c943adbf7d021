"""What the tests share: drawn faces, and networks small enough to train in seconds."""

import errno
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest

from support.dataset import list_faces
from support.draw_faces import draw_dataset

TINY = {"size_image": 32, "num_encoder_channels": 4, "num_gen_channels": 32, "size_batch": 10}
TINY_FLAGS = ["--image_size=32", "--num_encoder_channels=4", "--num_gen_channels=32", "--batch_size=10"]


def refuse_to_look_into(monkeypatch, *names):
    """Have the system refuse to list folders of these names, as it does without the right to read them."""
    scandir = os.scandir

    def refuse(path):
        if Path(path).name in names:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


@pytest.fixture(scope="session")
def drawn_folder(tmp_path_factory):
    """A folder of 60 drawn faces under UTKFace's names."""
    folder = tmp_path_factory.mktemp("data") / "drawn"
    draw_dataset(folder, number=60)
    return folder


@pytest.fixture(scope="session")
def faces(drawn_folder):
    return list_faces(drawn_folder).faces


@pytest.fixture
def workplace(tmp_path, drawn_folder, monkeypatch):
    """An empty current folder whose data/drawn holds the drawn faces."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "drawn").symlink_to(drawn_folder, target_is_directory=True)
    return tmp_path
