"""The included age network, its training, and dlib's embeddings. Nothing here needs UTKFace; one test needs dlib."""

import importlib.util
import sys

import numpy as np
import pytest

from ops import load_image
from support import InputError, recognition
from support.batches import train_val_split
from support.dataset import list_faces
from support.labels import FEMALE
from tools import train_age_network


def smooth_faces(count: int, side: int) -> np.ndarray:
    """Waves of a few colours, equal at any size: uint8 [count, side, side, 3]."""
    x = (np.arange(side) + 0.5) / side
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, [count, 1, 1, 3])
    waves = np.sin(2 * np.pi * x[:, np.newaxis, np.newaxis] + phases) * np.cos(4 * x[:, np.newaxis])
    return np.rint(127.5 + 100 * waves).astype(np.uint8)


def test_included_age_network_is_small_and_distinguishes_old_from_young():
    assert recognition.WEIGHTS.stat().st_size < 1e6
    faces = list_faces("demo/faces").faces
    estimated, female = recognition.ages_and_genders(np.stack([load_image(face.path, 128, 3) for face in faces]))
    ages = np.array([face.age for face in faces])
    assert estimated.shape == female.shape == (len(faces),) and estimated.min() >= 0 and estimated.max() <= 100
    assert estimated[ages > 50].mean() > estimated[ages < 14].mean() + 10
    assert np.mean((female > 0.5) == [face.gender == FEMALE for face in faces]) > 0.6


def test_estimates_do_not_depend_on_size_colour_channels_or_batch():
    large, small = smooth_faces(3, 128), smooth_faces(3, 64)
    ages, female = recognition.ages_and_genders(large)
    assert np.abs(ages - recognition.ages_and_genders(small)[0]).max() < 2
    assert recognition.ages_and_genders(large[1:2])[0] == pytest.approx(ages[1:2], abs=1e-2)
    grey = large[..., :1]
    as_grey, as_colours = (recognition.ages_and_genders(x) for x in (grey, np.repeat(grey, 3, axis=-1)))
    assert np.allclose(as_grey, as_colours, atol=1e-3)


def test_resampling_keeps_uniform_images_mirrors_and_blurs():
    uniform = np.full([1, 32, 32, 3], 200, np.uint8)
    half = np.zeros([1, 128, 128, 3], np.uint8)
    half[:, :, 64:] = 255  # dark on the left

    def resized(images, **columns):
        side = images.shape[1]
        rows = recognition.resampling(side, recognition.min_sigma(side))
        return recognition.resample(
            images, rows, recognition.resampling(side, **{"sigma": recognition.min_sigma(side)} | columns)
        ).numpy()

    assert np.allclose(resized(uniform), 200 / 127.5 - 1, atol=1e-4)
    assert np.allclose(resized(half)[:, :, :30], -1, atol=0.01) and np.allclose(resized(half)[:, :, 34:], 1, atol=0.01)
    assert np.allclose(resized(half, scale=-1), resized(half)[:, :, ::-1], atol=1e-4)
    assert np.abs(np.diff(resized(half, sigma=6.0), axis=2)).max() < np.abs(np.diff(resized(half), axis=2)).max() / 2


def test_missing_weights_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(recognition, "WEIGHTS", tmp_path / "weights.npz")
    with pytest.raises(InputError, match="weights.npz is not a complete set of weights"):
        recognition.included_network.__wrapped__()


def test_age_network_is_trained_without_the_held_out_faces(workplace, drawn_folder, monkeypatch, capsys):
    (workplace / "data/UTKFace").symlink_to(drawn_folder, target_is_directory=True)
    for name, value in (("BATCH", 10), ("VALIDATION", 10)):
        monkeypatch.setattr(train_age_network, name, value)
    trained_on = []
    train = train_age_network.train
    monkeypatch.setattr(
        train_age_network,
        "train",
        lambda network, images, faces, epochs: (
            trained_on.extend(faces),
            train(network, images[:20], faces[:20], epochs),
        ),
    )
    assert train_age_network.train_age_network(["--out=weights.npz", "--epochs=1"]) == 0
    _, held_out, _ = train_val_split(list_faces("data/UTKFace").faces, 2017)
    assert len(trained_on) == 60 - 6 - 10 and not set(trained_on) & set(held_out)
    assert 0.5e6 < (workplace / "weights.npz").stat().st_size < 1e6
    assert capsys.readouterr().out.count("| real_estimated_age |") == 2  # sharp and blurred
    assert train_age_network.train_age_network(["--data=nowhere"]) == 2


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("dlib", "face_recognition_models"))), reason="dlib is an optional extra"
)
def test_dlib_recognizes_mirrored_grey_or_small_faces(monkeypatch):
    monkeypatch.delitem(sys.modules, "dlib")
    recognition.dlib_models.cache_clear()
    paths = [face.path for face in list_faces("demo/faces").faces[:6]]
    faces = np.stack([load_image(path, 128, 3) for path in paths])
    embeddings = recognition.embeddings(faces)
    assert embeddings.shape == (6, 128) and embeddings.dtype == np.float32
    others = np.linalg.norm(embeddings[:, np.newaxis] - embeddings, axis=-1)[np.triu_indices(6, 1)]
    grey = np.stack([load_image(path, 128, 1) for path in paths[:3]])
    small = np.stack([load_image(path, 64, 3) for path in paths[:3]])
    for changed in (faces[:3, :, ::-1], grey, small):
        assert np.linalg.norm(recognition.embeddings(changed) - embeddings[:3], axis=1).max() < np.median(others)
