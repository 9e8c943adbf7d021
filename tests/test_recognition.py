"""What networks see in a face, and what is measured with that. Nothing here needs UTKFace, and one test only dlib."""

import importlib.util
import sys

import numpy as np
import pytest
from scipy.stats import spearmanr

import main
from FaceAging import FaceAging
from ops import load_image
from support import aging_measures, recognition
from support.batches import train_val_split
from support.dataset import Face, list_faces
from support.errors import InputError
from support.labels import FEMALE, MALE, UNKNOWN, AgeBins
from tests.conftest import TINY
from tools import train_age_network

BINS = AgeBins([10, 40])  # centres 5, 25.5 and 48 years


def smooth_faces(count: int, side: int) -> np.ndarray:
    """Waves of a few colours, which look alike at any size: uint8 [count, side, side, 3]."""
    x = (np.arange(side) + 0.5) / side
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, [count, 1, 1, 3])
    waves = np.sin(2 * np.pi * x[:, np.newaxis, np.newaxis] + phases) * np.cos(4 * x[:, np.newaxis])
    return np.rint(127.5 + 100 * waves).astype(np.uint8)


def test_the_judge_that_ships_is_less_than_a_megabyte_and_tells_old_from_young():
    assert recognition.WEIGHTS.stat().st_size < 1e6
    faces = list_faces("demo/faces").faces
    seen, female = recognition.ages_and_genders(np.stack([load_image(face.path, 128, 3) for face in faces]))
    ages = np.array([face.age for face in faces])
    assert seen.shape == female.shape == (len(faces),) and seen.min() >= 0 and seen.max() <= 100
    assert seen[ages > 50].mean() > seen[ages < 14].mean() + 10
    assert np.mean((female > 0.5) == [face.gender == FEMALE for face in faces]) > 0.6


def test_the_judge_sees_the_same_at_any_size_in_grey_and_in_any_company():
    large, small = smooth_faces(3, 128), smooth_faces(3, 64)
    ages, female = recognition.ages_and_genders(large)
    assert np.abs(ages - recognition.ages_and_genders(small)[0]).max() < 2
    assert recognition.ages_and_genders(large[1:2])[0] == pytest.approx(ages[1:2], abs=1e-2)
    grey = large[..., :1]
    as_grey, as_colours = (recognition.ages_and_genders(x) for x in (grey, np.repeat(grey, 3, axis=-1)))
    assert np.allclose(as_grey, as_colours, atol=1e-3)


def test_resampling_keeps_even_pictures_mirrors_and_blurs():
    even = np.full([1, 32, 32, 3], 200, np.uint8)
    half = np.zeros([1, 128, 128, 3], np.uint8)
    half[:, :, 64:] = 255  # dark on the left

    def seen(images, **columns):
        side = images.shape[1]
        rows = recognition.resampling(side, recognition.sharpest(side))
        return recognition.resample(
            images, rows, recognition.resampling(side, **{"sigma": recognition.sharpest(side)} | columns)
        ).numpy()

    assert np.allclose(seen(even), 200 / 127.5 - 1, atol=1e-4)
    assert np.allclose(seen(half)[:, :, :30], -1, atol=0.01) and np.allclose(seen(half)[:, :, 34:], 1, atol=0.01)
    assert np.allclose(seen(half, scale=-1), seen(half)[:, :, ::-1], atol=1e-4)
    assert np.abs(np.diff(seen(half, sigma=6.0), axis=2)).max() < np.abs(np.diff(seen(half), axis=2)).max() / 2


def test_missing_weights_are_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(recognition, "WEIGHTS", tmp_path / "weights.npz")
    with pytest.raises(InputError, match="weights.npz is not a complete set of weights"):
        recognition.shipped_network.__wrapped__()


def test_aging_is_measured_as_the_names_say():
    each = {
        "age_seen": np.array([[5.0, 20.0, 60.0], [9.0, 8.0, 50.0]]),
        "obeyed": np.array([[[1, 1, 1], [0, 1, 1]], [[np.nan] * 3] * 2]),  # nobody knows the second's gender
        "real_age_seen": np.array([12.0, 50.0]),
        "real_right": np.array([1.0, np.nan]),
    }
    measured = aging_measures.aging(each, np.array([8, 44]), BINS)
    assert measured["overall"] == {
        "youngest": 7,
        "oldest": 55,
        "span": 48,
        "rank_correlation": 0.75,  # 1 and 0.5
        "centre_error": pytest.approx((0 + 5.5 + 12 + 4 + 17.5 + 2) / 6, abs=1e-4),
        "gender_obeyed": pytest.approx(5 / 6, abs=1e-4),
        "real_age_error": 5,
        "real_gender_right": 1,
    }
    young, middle, old = measured["by_bin"].values()
    assert (young["age_seen"], young["centre"], young["centre_error"], young["gender_obeyed"]) == (7, 5, 2, 0.5)
    assert (young["real_faces"], young["real_age"], young["real_age_seen"], young["real_age_error"]) == (1, 8, 12, 4)
    assert middle["real_faces"] == 0 and middle["real_age_seen"] is None
    assert old["real_gender_right"] is None and set(old) == set(aging_measures.BIN_MEASURES)


def test_the_rank_correlation_is_spearmans_of_each_face():
    seen = np.random.default_rng(0).uniform(0, 80, [20, 10])
    seen[3, 4] = seen[3, 5]  # ties share a rank
    centres = AgeBins().centres
    ours = aging_measures.rank_correlation(centres, seen)
    assert ours == pytest.approx([spearmanr(centres, one).statistic for one in seen])
    assert aging_measures.rank_correlation(centres, np.ones([1, 10])) == [0]


def test_identity_is_held_against_other_people_of_the_same_gender_and_bin(monkeypatch):
    monkeypatch.setattr(recognition, "embeddings", lambda images: images.reshape(len(images), -1)[:, :1] / 100.0)
    faces = [Face("", *label) for label in [(5, MALE), (6, MALE), (7, FEMALE), (30, FEMALE), (31, FEMALE), (70, MALE)]]
    values = np.array([0, 50, 90, 10, 110, 7], np.uint8)  # so far apart: 0.5 the first two, 1.0 the fourth and fifth
    others = aging_measures.distances_of_others(values.reshape(-1, 1, 1, 1), faces, BINS)
    assert {i: distances.tolist() for i, distances in others.items()} == {0: [0.5], 1: [1.0]}

    each = {
        "rebuilt": np.array([0.4, 0.9, 0.1]),
        "aged": np.array([[0.4, 0.55, 0.7], [0.5, 0.5, 1.5], [0.1, 0.1, 0.1]]),
    }
    measured = aging_measures.identity(each, np.array([0, 1, 2]), others, BINS)
    young, middle, old = measured["by_bin"].values()
    assert (young["rebuilt_same"], young["others_same"], young["distance"], young["pairs"]) == (1, 1, 0.5, 1)
    assert (young["aged_same"], young["aged_strict"]) == pytest.approx((2 / 3, 1 / 3), abs=1e-4)
    assert (middle["rebuilt_same"], middle["rebuilt_strict"], middle["others_same"]) == (0, 1, 0)
    assert old["rebuilt_same"] == 1 and old["rebuilt_strict"] is old["distance"] is old["others_same"] is None
    assert measured["overall"]["rebuilt_strict"] == 1 and measured["overall"]["faces"] == 3
    assert set(old) == set(measured["units"])


def test_a_few_of_each_gender_and_bin_are_chosen_as_others():
    faces = [Face(str(i), 5 + 30 * (i % 2), UNKNOWN if i < 60 else MALE) for i in range(120)]
    chosen = aging_measures.choose_others(faces, BINS)
    assert len(chosen) == len(set(chosen)) == 4 * aging_measures.OTHERS_COMPARED


@pytest.fixture(scope="module")
def model():
    return FaceAging(**TINY)


def test_without_dlib_everything_else_is_measured_and_one_line_says_what_to_install(model, faces, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "dlib", None)
    recognition.dlib_models.cache_clear()
    measured = model.evaluate(faces[:4])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install dlib-bin face_recognition_models" in error
    assert "identity" not in measured and measured["aging"]["overall"]["real_age_error"] >= 0
    assert "identity" not in model.evaluate(faces[:4], identity=False) and not capsys.readouterr().err
    table = aging_measures.table(measured)
    assert "71+" in table and "rank_correlation" in table and "rebuilt" not in table


def test_what_is_seen_in_generated_faces_is_what_is_seen_in_those_that_generate_makes(model, faces, monkeypatch):
    monkeypatch.setattr(recognition, "dlib_models", lambda: None)

    def embeddings(images):
        return images.reshape(len(images), -1)[:, :128] / 255.0

    monkeypatch.setattr(recognition, "embeddings", embeddings)
    people = [*faces[:4], Face(faces[4].path, faces[4].age, UNKNOWN)]
    measured = model.evaluate(people, others=faces[5:])
    images = np.stack([load_image(face.path, 32, 3) for face in people])
    z, genders = model.encode(images), [face.gender for face in people]
    old = model.generate(z, 78, genders)
    assert measured["aging"]["overall"]["oldest"] == pytest.approx(recognition.ages_and_genders(old)[0].mean(), abs=0.1)
    known = z[:4]
    obeyed = [
        (recognition.ages_and_genders(model.generate(known, 78, gender))[1] > 0.5) == (gender == FEMALE)
        for gender in (MALE, FEMALE)
    ]
    assert measured["aging"]["by_bin"]["71+"]["gender_obeyed"] == pytest.approx(np.mean(obeyed), abs=1e-4)
    # a reconstruction is made at the whole label of the face's bin
    rebuilt = model.generate(z, np.array(model.bins.centres)[model.bins.index([face.age for face in people])], genders)
    distance = np.linalg.norm(embeddings(rebuilt) - embeddings(images), axis=1)
    assert measured["identity"]["overall"]["rebuilt_same"] == pytest.approx(np.mean(distance < 0.6), abs=1e-4)
    assert measured["identity"]["overall"]["pairs"] > 0


def test_the_judge_is_trained_on_the_faces_that_are_not_held_out(workplace, drawn_folder, monkeypatch, capsys):
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
    assert capsys.readouterr().out.count("| mean age seen |") == 2  # sharp and blurred
    assert train_age_network.train_age_network(["--data=nowhere"]) == 2


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("dlib", "face_recognition_models"))), reason="dlib is an optional extra"
)
def test_dlib_knows_a_face_again_that_is_mirrored_grey_or_small():
    recognition.dlib_models.cache_clear()
    paths = [face.path for face in list_faces("demo/faces").faces[:6]]
    faces = np.stack([load_image(path, 128, 3) for path in paths])
    ours = recognition.embeddings(faces)
    assert ours.shape == (6, 128) and ours.dtype == np.float32
    others = aging_measures.distances_of_pairs(ours)
    grey = np.stack([load_image(path, 128, 1) for path in paths[:3]])
    small = np.stack([load_image(path, 64, 3) for path in paths[:3]])
    for changed in (faces[:3, :, ::-1], grey, small):
        assert np.linalg.norm(recognition.embeddings(changed) - ours[:3], axis=1).max() < np.median(others)


def test_evaluating_from_the_command_line_prints_and_keeps_all(workplace, drawn_folder, monkeypatch, capsys):
    monkeypatch.setattr(recognition, "dlib_models", lambda: None)
    monkeypatch.setattr(recognition, "embeddings", lambda images: images.reshape(len(images), -1)[:, :128] / 255.0)
    model = FaceAging(**TINY, save_dir="save")
    notes = {"dataset": "drawn", "loss_weights": [1e-4] * 3, "balance": False, "unknown_gender": False}
    model.train(list_faces("data/drawn").faces, num_epochs=1, learning_rate=0.01, notes=notes)
    assert main.main(["--savedir=save", "--evaluate"]) == 0
    printed = capsys.readouterr().out
    for name in (*aging_measures.AGING_MEASURES, *aging_measures.BIN_MEASURES, *aging_measures.IDENTITY_MEASURES):
        assert name in printed
