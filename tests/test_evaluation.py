"""The metrics of --evaluate: reconstruction, estimated ages and genders, identity. No test here needs dlib."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

import main
from ops import load_image, normalize
from support import evaluation, recognition
from support.batches import read_faces, train_val_split
from support.dataset import Face
from support.evaluation import METRICS, sharpness, ssim
from support.labels import FEMALE, MALE, UNKNOWN, AgeBins

BINS = AgeBins([10, 40])  # centres 5, 25.5 and 48 years


def embeddings(images):
    """Replace dlib's embeddings: the first 128 pixel values."""
    return images.reshape(len(images), -1)[:, :128] / 255.0


@pytest.fixture
def dlib(monkeypatch):
    monkeypatch.setattr(recognition, "dlib_models", lambda: None)
    monkeypatch.setattr(recognition, "embeddings", embeddings)


def test_aging_metrics():
    per_face = {
        "years": np.array([8, 44]),
        "estimated_age": np.array([[5.0, 20.0, 60.0], [9.0, 8.0, 50.0]]),
        "gender_accuracy": np.array([[[1, 1, 1], [0, 1, 1]], [[np.nan] * 3] * 2]),  # the second's gender is unknown
        "real_estimated_age": np.array([12.0, 50.0]),
        "real_gender_accuracy": np.array([1.0, np.nan]),
        "sharpness": np.array([[2.0, 0], [6.0, 0]]),
        "aged_sharpness": np.array([[2.0, 1.0, 4.0], [0.0, 1.0, 4.0]]),
    }
    metrics = evaluation.aging(per_face, BINS)
    overall = metrics["overall"]
    assert overall == {
        "youngest": 7,
        "oldest": 55,
        "span": 48,
        "rank_correlation": 0.75,  # 1 and 0.5
        "estimated_age": pytest.approx(152 / 6, abs=1e-4),
        "age_mae": pytest.approx((0 + 5.5 + 12 + 4 + 17.5 + 2) / 6, abs=1e-4),
        "gender_accuracy": pytest.approx(5 / 6, abs=1e-4),
        "aged_sharpness": 0.5,
        "real_faces": 2,
        "real_age": 26,
        "real_estimated_age": 31,
        "real_age_mae": 5,
        "real_gender_accuracy": 1,
    }
    young, middle, old = metrics["by_bin"].values()
    assert (young["estimated_age"], young["centre"], young["age_mae"], young["gender_accuracy"]) == (7, 5, 2, 0.5)
    assert [young[f"real_{name}"] for name in ("faces", "age", "estimated_age", "age_mae")] == [1, 8, 12, 4]
    assert (young["aged_sharpness"], old["aged_sharpness"]) == (0.25, 1)
    assert middle["real_faces"] == 0 and middle["real_estimated_age"] is None
    assert old["real_gender_accuracy"] is None and {*old, *overall} < set(METRICS)


def test_rank_correlation_equals_scipy():
    estimated = np.random.default_rng(0).uniform(0, 80, [20, 10])
    estimated[3, 4] = estimated[3, 5]  # ties share a rank
    centres = AgeBins().centres
    ours = evaluation.rank_correlation(centres, estimated)
    assert ours == pytest.approx([spearmanr(centres, one).statistic for one in estimated])
    assert evaluation.rank_correlation(centres, np.ones([1, 10])) == [0]


def test_identity_metrics_and_the_false_accept_rate_of_the_same_gender_and_bin(monkeypatch):
    monkeypatch.setattr(recognition, "embeddings", lambda images: images.reshape(len(images), -1)[:, :1] / 100.0)
    faces = [Face("", *label) for label in [(5, MALE), (6, MALE), (7, FEMALE), (30, FEMALE), (31, FEMALE), (70, MALE)]]
    values = np.array([0, 50, 90, 10, 110, 7], np.uint8)  # distances: 0.5 of the first two, 1.0 of the fourth and fifth
    impostors = evaluation.impostor_distances(values.reshape(-1, 1, 1, 1), faces, BINS)
    assert {i: distances.tolist() for i, distances in impostors.items()} == {0: [0.5], 1: [1.0]}

    per_face = {
        "reconstruction": np.array([0.4, 0.9, 0.1]),
        "aged": np.array([[0.4, 0.55, 0.7], [0.5, 0.5, 1.5], [0.1, 0.1, 0.1]]),
    }
    metrics = evaluation.identity(per_face, np.array([0, 1, 2]), impostors, BINS)
    names = (
        *("faces", "reconstruction_verification", "aged_verification", "pairs", "false_accept_rate"),
        *("far1_threshold", "reconstruction_verification_far1", "aged_verification_far1"),
    )
    expected = {
        "0-10": (1, 1, 2 / 3, 1, 1, 0.5, 1, 1 / 3),
        "11-40": (1, 0, 2 / 3, 1, 0, 1.0, 1, 2 / 3),
        "41+": (1, 1, 1, 0, None, None, None, None),
    }
    for group, values in expected.items():
        row = {name: None if v is None else pytest.approx(v, abs=1e-4) for name, v in zip(names, values, strict=True)}
        assert metrics["by_bin"][group] == row
    assert metrics["overall"]["reconstruction_verification_far1"] == 1 and metrics["overall"]["faces"] == 3
    assert set(names) < set(METRICS)


def test_impostors_are_limited_per_gender_and_bin():
    faces = [Face(str(i), 5 + 30 * (i % 2), UNKNOWN if i < 60 else MALE) for i in range(120)]
    chosen = evaluation.Evaluator(BINS, identity=False).choose_impostors(faces)
    assert len(chosen) == len(set(chosen)) == 4 * evaluation.IMPOSTORS
    faces = [Face(f"{person:03}A30{letter}.JPG", 30, MALE) for person in range(1, 4) for letter in "ab"]
    chosen = evaluation.Evaluator(BINS, identity=False).choose_impostors(faces)
    assert [face.path for face in chosen] == ["001A30a.JPG", "002A30a.JPG", "003A30a.JPG"]


def test_without_dlib_identity_is_skipped_with_a_message(run, faces, capsys):
    recognition.dlib_models.cache_clear()
    metrics = run.evaluate(faces[:4])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install dlib-bin face_recognition_models" in error
    assert "identity" not in metrics and "real_age_mae" in metrics["aging"]["overall"]
    assert "identity" not in run.evaluate(faces[:4], identity=False) and not capsys.readouterr().err
    table = evaluation.report(metrics)
    assert "71+" in table and "rank_correlation" in table and "verification" not in table


def test_labels_are_estimated_on_the_generated_images(run, faces, dlib):
    model = run
    people = [*faces[:4], Face(faces[4].path, faces[4].age, UNKNOWN)]
    metrics = model.evaluate(people, others=faces[5:])
    images = np.stack([load_image(face.path, 32, 3) for face in people])
    z, genders = model.encode(images), [face.gender for face in people]
    old = model.generate(z, 78, genders)
    assert metrics["aging"]["overall"]["oldest"] == pytest.approx(recognition.ages_and_genders(old)[0].mean(), abs=0.1)
    known = z[:4]
    correct = [
        (recognition.ages_and_genders(model.generate(known, 78, gender))[1] > 0.5) == (gender == FEMALE)
        for gender in (MALE, FEMALE)
    ]
    assert metrics["aging"]["by_bin"]["71+"]["gender_accuracy"] == pytest.approx(np.mean(correct), abs=1e-4)
    # a reconstruction is generated at the one-hot label of the face's bin
    rebuilt = model.generate(z, np.array(model.bins.centres)[model.bins.index([face.age for face in people])], genders)
    distance = np.linalg.norm(embeddings(rebuilt) - embeddings(images), axis=1)
    identity = metrics["identity"]["overall"]
    assert identity["reconstruction_verification"] == pytest.approx(np.mean(distance < 0.6), abs=1e-4)
    assert identity["pairs"] > 0


def test_detail_changes_the_generated_faces_but_not_the_reconstruction(run, faces, dlib):
    people = [Face(face.path, age, face.gender) for face, age in zip(faces[:3], (25, 35, 45), strict=True)]
    plain, detailed = (run.evaluate(people, others=people, detail=detail) for detail in (0, 1))
    assert plain["overall"]["L1"] == detailed["overall"]["L1"]  # that of the network
    assert (plain["detail"], detailed["detail"]) == (0, 1) and "--detail 1" in evaluation.report(detailed)
    images = np.stack([load_image(face.path, 32, 3) for face in people])
    own = [face.gender for face in people]
    aged = np.stack([run.age(images, 25.5, own, 1, [face.age for face in people], own)])
    expected = recognition.ages_and_genders(aged[0])[0].mean()
    assert detailed["aging"]["by_bin"]["21-30"]["estimated_age"] == pytest.approx(expected, abs=0.5)
    sharp, soft = (one["aging"]["overall"]["aged_sharpness"] for one in (detailed, plain))
    assert sharp > 2 * soft
    pasted = detailed["identity"]["overall"]
    assert pasted["pasted_detection"] > 0.5 and pasted["pasted_verification"] is not None
    assert "pasted_detection" not in plain["identity"]["overall"]


def test_ssim_equals_scikit_image():
    random = np.random.default_rng(0)
    a = random.uniform(size=(48, 48, 3))
    b = np.clip(a + 0.2 * random.standard_normal(a.shape), 0, 1)
    # scikit-image 0.26: structural_similarity with gaussian_weights, sigma 1.5, use_sample_covariance=False
    assert ssim(a[None], b[None])[0] == pytest.approx(0.82575302, abs=1e-6)
    assert ssim(a[None], a[None])[0] == pytest.approx(1)
    assert ssim(a[None, :8, :8], a[None, :8, :8])[0] == pytest.approx(1)  # smaller than the window


def test_sharpness_equals_the_variance_of_the_laplacian():
    checks = np.indices((16, 16)).sum(axis=0)[..., np.newaxis] % 2 * 2.0 - 1  # alternating -1 and 1
    inside = np.pad(np.zeros((4, 4, 3)), ((8, 8), (8, 8), (0, 0)))
    assert sharpness(inside) == 0
    assert sharpness(checks) > 30  # 8 times the value itself but at the edges
    assert sharpness(np.repeat(checks, 3, axis=-1)) == pytest.approx(sharpness(checks))


def test_reconstruction_metrics(run, faces):
    faces = faces[::4]
    metrics = run.evaluate(faces)
    images, ages, genders = read_faces(faces, run.bins, partial(load_image, size_image=32, channels=3))
    z = run.encode(images)
    x, made = normalize(images).numpy(), run.G([z, ages, genders], training=False).numpy()
    assert metrics["overall"]["L1"] == pytest.approx(np.abs(x - made).mean(), abs=2e-5)
    assert metrics["descriptions"] == METRICS and {*metrics["overall"]} - {"label_movement_by_bin"} < set(METRICS)
    young, old = (
        run.G([z, run.bins.one_hot([age]).repeat(len(z), axis=0), genders], training=False).numpy() for age in (3, 8)
    )
    assert metrics["overall"]["label_movement_by_bin"]["0-5 to 6-10"] == pytest.approx(
        np.abs(old - young).mean(), abs=2e-5
    )
    ordered = np.sort(z.ravel())
    above = np.arange(1, ordered.size + 1) / ordered.size - (ordered + 1) / 2
    distance = max(above.max(), (1 / ordered.size - above).max())
    assert metrics["overall"]["z_KS_pooled"] == pytest.approx(distance, abs=2e-5)
    for groups in (metrics["by_age"], metrics["by_gender"]):
        assert sum(group["faces"] for group in groups.values()) == len(faces)
        mean = sum(group["faces"] * group["L1"] for group in groups.values()) / len(faces)
        assert mean == pytest.approx(metrics["overall"]["L1"], abs=2e-5)
    assert json.loads(json.dumps(metrics)) == metrics


def test_main_evaluates_a_folder_or_the_held_out_faces(run, workplace, faces, capsys):
    shutil.copytree(run.save_dir, "save")
    (workplace / "few").mkdir()
    for face in faces[:8]:
        shutil.copy(face.path, "few")
    assert main.main(["--evaluate", "few"]) == 0
    assert "label_movement" in capsys.readouterr().out
    metrics = json.loads(Path("save/evaluation.json").read_text())
    assert metrics["overall"]["faces"] == 8 and not metrics["held_out"]
    assert main.main(["--evaluate"]) == 0
    metrics = json.loads(Path("save/evaluation.json").read_text())
    _, held_out, _ = train_val_split(faces, run.seed)
    assert metrics["overall"] == run.evaluate(held_out)["overall"] and metrics["held_out"]


@pytest.mark.parametrize("content", ["nothing", "an unlabelled image", "no folder"])
def test_folder_without_labelled_faces_is_rejected_in_one_line(run, tmp_path, capsys, content):
    folder = tmp_path / "faces"
    if content != "no folder":
        folder.mkdir()
    if content == "an unlabelled image":
        Image.new("RGB", (40, 40)).save(folder / "me.png")
    assert main.main(["--evaluate", str(folder), "--savedir", str(tmp_path / "save")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(folder) in error
    assert not (tmp_path / "save").exists()


def test_main_prints_metrics_before_writing_them(run, workplace, dlib, capsys):
    shutil.copytree(run.save_dir, "save")
    Path("save/evaluation.json").mkdir()  # cannot be written
    assert main.main(["--savedir=save", "--evaluate"]) == 2
    printed = capsys.readouterr()
    measured = {name: meaning for name, meaning in METRICS.items() if not name.startswith("pasted")}  # with --detail
    assert all(f"\n{name}: {meaning}" in printed.out for name, meaning in measured.items())
    assert printed.err.count("\n") == 1 and "save/evaluation.json" in printed.err
